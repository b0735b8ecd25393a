# SPDX-License-Identifier: Apache-2.0
"""Settings: what they refuse, and that their JSON says them exactly."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idlora.core.guidance import Guidance, IdentityGuidance, ModalityGuidance, Rescale, STGuidance, TextGuidance
from idlora.errors import IDLoraError, InputError, SettingsError, WeightsError
from idlora.networks.generations import GENERATIONS
from idlora.pipeline import Settings, read_settings, settings_from_json, settings_to_json
from idlora.pipeline.card import CARD_NAME, ModelCard, published_card, read_card, write_card
from idlora.pipeline.presets import PRESETS, preset_settings
from idlora.pipeline.settings import Options, Refinement, with_options

finite = st.floats(-50, 50)
share = st.floats(0, 1)
interval = st.tuples(share, share).map(sorted).map(lambda pair: {"lo": pair[0], "hi": pair[1]})


def terms(kind: Any, **numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda ends, values: kind(**values, **ends), interval, st.fixed_dictionaries(numbers))


guidances = st.builds(
    Guidance,
    terms(TextGuidance, video=finite, audio=finite, star=st.booleans()),
    terms(IdentityGuidance, scale=finite, adapter_off=st.booleans()),
    terms(STGuidance, video=finite, audio=finite, blocks=st.lists(st.integers(0, 47), max_size=3).map(tuple)),
    terms(ModalityGuidance, video=finite, audio=finite),
    st.builds(Rescale, share, share),
)
any_settings = st.builds(
    Settings,
    negative_prompt=st.text(max_size=20),
    num_frames=st.integers(0, 40).map(lambda k: 8 * k + 1),
    height=st.integers(2, 40).map(lambda k: 32 * k),
    width=st.integers(2, 40).map(lambda k: 32 * k),
    frame_rate=st.floats(1, 240),
    num_inference_steps=st.integers(1, 100),
    seed=st.integers(0, 2**63 - 1),
    sampler=st.sampled_from(["euler", "res2s"]),
    shift=st.sampled_from(["fixed", "by-size"]),
    guidance=guidances,
    mask_reference_to_video=st.booleans(),
    reference_text=st.sampled_from(["open", "average", "block"]),
    reference_attention=st.sampled_from(["joint", "alone"]),
    positions=st.sampled_from(["fp32", "bf16-inference", "bf16-training"]),
    reference_time=st.sampled_from(["negative", "adjacent", "shared", "far"]),
    first_block_cache=share,
    official_noise=st.booleans(),
    aspect=st.sampled_from(["size", "picture"]),
    max_voice_seconds=st.floats(0.5, 60),
    clean_voice=st.booleans(),
    sigmas=st.sampled_from([(), (1.0, 0.0), (0.9, 0.5, 0.25, 0.0)]),
    distilled=share,
    refine=st.builds(Refinement, st.sampled_from([(), (0.7, 0.3, 0.0)]), share),
)


@given(any_settings)
def test_json_says_the_settings_exactly(settings: Settings) -> None:
    text = json.dumps(settings_to_json(settings))
    assert settings_from_json(json.loads(text), Settings()) == settings


@given(any_settings, any_settings)
def test_what_a_file_leaves_out_comes_from_the_base(first: Settings, second: Settings) -> None:
    part = {name: settings_to_json(first)[name] for name in ("seed", "frame_rate", "guidance")}
    expected = with_options(second, {"seed": first.seed, "frame_rate": first.frame_rate, "guidance": first.guidance})
    assert settings_from_json(part, second) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_frame": 9}, "did you mean 'num_frames'"),
        ({"guidance": {"identify": {}}}, "did you mean 'identity'"),
        ({"guidance": {"text": {"vidio": 1}}}, "settings: guidance: text has no 'vidio'; did you mean 'video'"),
        ({"qqqq": 1}, "known are negative_prompt"),
        ({"seed": "1"}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"num_frames": 9.0}, "whole number"),
        ({"frame_rate": "25"}, "finite number"),
        ({"guidance": {"rescale": {"video": float("nan")}}}, "finite number"),
        ({"guidance": {"stg": {"blocks": 29}}}, "a list is needed"),
        ({"guidance": {"stg": {"blocks": ["a"]}}}, "whole number"),
        ({"guidance": 3}, "an object of named values"),
        ({"official_noise": 1}, "true or false"),
        ({"sampler": "heun"}, "choose one of euler, res2s"),
        ({"negative_prompt": None}, "text"),
        ([1], "an object of named values"),
    ],
)
def test_json_that_says_no_settings_is_refused(data: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from_json(data, Settings())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"height": 0}, InputError, "height 0 .* at least 1"),
        ({"width": -32}, InputError, "width -32 .* at least 1"),
        ({"num_frames": 0}, InputError, "num_frames 0 .* at least 1"),
        ({"frame_rate": 0.0}, InputError, "frame rate 0.0"),
        ({"frame_rate": float("nan")}, InputError, "frame rate nan"),
        ({"seed": -1}, InputError, "seed -1"),
        ({"num_inference_steps": 0}, SettingsError, "at least 1"),
        ({"max_voice_seconds": 0.1}, SettingsError, "below 0.5"),
        ({"guidance": Guidance(IdentityGuidance(float("inf")))}, SettingsError, "not finite"),  # type: ignore[arg-type]
        ({"guidance": Guidance(text=TextGuidance(float("nan")))}, SettingsError, "text guidance is not finite"),
        ({"num_step": 3}, SettingsError, "settings has no 'num_step'"),
    ],
)
def test_settings_out_of_range_are_refused_with_a_remedy(
    options: Options, kind: type[IDLoraError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        with_options(Settings(), options)


def test_every_setting_is_an_option_of_the_call() -> None:
    assert set(Options.__annotations__) == {field.name for field in fields(Settings)}


def test_a_sidecar_counts_as_the_settings_in_it(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4.json"
    path.write_text(json.dumps({"ai_generated": True, "prompt": "x", "settings": {"seed": 7}}), encoding="utf-8")
    assert read_settings(path, Settings()) == Settings(seed=7)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="is not JSON"):
        read_settings(path, Settings())
    with pytest.raises(SettingsError, match="check the path"):
        read_settings(tmp_path / "absent.json", Settings())


def test_the_published_defaults_are_those_of_the_generation() -> None:
    blocks = {name: published_card(row).defaults.guidance.stg.blocks for name, row in GENERATIONS.items()}
    assert blocks == {"2.0": (29,), "2.3": (28,), "2.5": (28,)}
    official = {name: preset_settings("official", Settings(), row).guidance for name, row in GENERATIONS.items()}
    assert {name: guidance.stg.blocks for name, guidance in official.items()} == {
        "2.0": (29,),
        "2.3": (29,),
        "2.5": (28,),
    }


@given(any_settings)
def test_a_card_comes_back_from_its_folder(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> None:
    folder = tmp_path_factory.mktemp("card")
    card = ModelCard("m", 48, "adapter.safetensors", 0.5, ("one", "two"), settings)
    write_card(folder, card)
    assert read_card(folder, GENERATIONS["2.0"]) == card


def test_a_folder_without_a_card_is_used_as_its_weights_are_meant(tmp_path: Path) -> None:
    generation = GENERATIONS["2.3"]
    for distilled, name in ((False, "one-stage"), (True, "distilled")):
        card = read_card(tmp_path, generation, distilled=distilled)
        assert card == published_card(generation, tmp_path.name, distilled=distilled)
        assert card.defaults == preset_settings(name, card.defaults, generation)
        assert card.defaults.negative_prompt


def test_presets_differ_as_their_table_says() -> None:
    """The numbers of the official scripts and of Lightricks' own defaults (method.md 2.1 to 2.4, 1.6)."""
    base = Settings(num_frames=49, height=256, width=320, frame_rate=24.0, negative_prompt="bad")
    made = {name: preset_settings(name, base, GENERATIONS["2.3"]) for name in PRESETS}
    for settings in made.values():
        assert (settings.num_frames, settings.height, settings.width, settings.frame_rate) == (49, 256, 320, 24.0)
        assert settings.negative_prompt == "bad"
        assert preset_settings("one-stage", settings, GENERATIONS["2.3"]) == replace(
            made["one-stage"], seed=settings.seed
        )
    one, official = made["one-stage"], made["official"]
    assert (one.num_inference_steps, one.guidance.rescale, one.positions) == (30, Rescale(0.7, 0.7), "fp32")
    assert (official.guidance.rescale, official.positions, official.seed) == (Rescale(), "bf16-inference", 42)
    assert made["two-stage"] == replace(one, refine=Refinement((0.909375, 0.725, 0.421875, 0.0), 0.8))
    hq = made["hq"]
    assert (hq.sampler, hq.num_inference_steps, hq.shift, hq.distilled) == ("res2s", 15, "by-size", 0.25)
    assert hq.refine.distilled == 0.5
    assert hq.guidance.text.star
    distilled = made["distilled"]
    assert len(distilled.sigmas) == 9
    assert [any(term.weights()) for term in distilled.guidance.active_terms(0.9, 1)] == [True]
    with pytest.raises(SettingsError, match="choose one of one-stage"):
        preset_settings("quick", base, GENERATIONS["2.3"])


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 0.5), (0.5, 0.7, 0.0), (1.5, 0.0), (0.0,), (1.0, 1.0, 0.0)])
def test_sigmas_must_descend_to_zero(sigmas: tuple[float, ...]) -> None:
    for build in (lambda: Settings(sigmas=sigmas), lambda: Refinement(sigmas)):
        with pytest.raises(SettingsError, match="descend from at most 1 to 0"):
            build()


@pytest.mark.parametrize("text", ["{", '{"vocabulry": []}', '{"adapter": "../x"}', '{"defaults": {"height": 0}}'])
def test_a_damaged_card_is_a_fault_of_the_weights(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be used"):
        read_card(tmp_path, GENERATIONS["2.3"])
