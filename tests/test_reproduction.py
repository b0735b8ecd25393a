# SPDX-License-Identifier: Apache-2.0
"""`idlora reproduce`: its rows and their rule, what an interruption leaves, and how the arms' clips are made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_pipeline
from fake_lab import KEYS, TINY, FakeMaker, LevelJudge, lab, rows_in
from idlora.data.world.clip import render_picture, render_sound
from idlora.errors import SettingsError
from idlora.evaluation.comparisons import Table, interval
from idlora.evaluation.judges import Footage
from idlora.evaluation.laboratory.panel import OFFERS
from idlora.evaluation.reproduction import ablations, arms, run
from idlora.evaluation.reproduction.ablations import ABLATIONS, ADAPTERS, RECIPE, Ablation, Workshop
from idlora.evaluation.reproduction.arms import BASE, CASCADE, CROSSED, EASY, FULL, HARD, QUICK, STRUCK, Arm
from idlora.evaluation.reproduction.beyond import out_of_reach
from idlora.evaluation.reproduction.findings import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNTESTABLE,
    Claim,
    Measured,
    difference_of,
    judged,
)
from idlora.evaluation.reproduction.makers import PipelineMaker
from idlora.evaluation.reproduction.run import Laboratory, reproduce
from idlora.evaluation.reproduction.scores import slope_of
from idlora.evaluation.reproduction.strikes import struck_by_picture, struck_by_sound
from idlora.evaluation.reproduction.trials import Owner
from idlora.evaluation.statistics import Estimate
from idlora.networks.adapter import IDENTITY, AdapterWeights, write_adapter
from idlora.pipeline import Request
from idlora.pipeline.generation import prepare
from idlora.pipeline.inputs import read_inputs
from idlora.pipeline.meter import Meter


@dataclass(frozen=True, eq=False)
class FakeWorkshop(Workshop):
    """Trains at once."""

    def train(self, keys: Iterable[str], out: Path, moved: Any) -> None:
        (out / ADAPTERS).mkdir(exist_ok=True)
        for each in ABLATIONS:
            if each.key in keys:
                moved(each.key)
                layers = tiny_pipeline.adapter_for(self.pipe.components.transformer).layers
                told = {"positions": each.config.objective.reference_time}
                write_adapter(out / ADAPTERS / each.file_name, AdapterWeights(layers, told))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Laboratory:
    """A laboratory with a workshop; what ships is not looked at."""
    monkeypatch.setattr(ablations, "shipped_folder", lambda: tmp_path / "none")
    return replace(lab(FakeMaker()), workshop=FakeWorkshop(tiny_pipeline.pipeline("2.3", adapted=False)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted call leaves."""
    out = tmp_path_factory.mktemp("whole")
    reproduce(lab(FakeMaker()), TINY, out)
    return out


def test_rows_have_their_keys_and_a_verdict_that_fits(whole: Path) -> None:
    rows = rows_in(whole)
    for row in rows:
        assert row.keys() >= KEYS
        assert row["verdict"] in (REPRODUCED, NOT_REPRODUCED, UNTESTABLE)
        assert (row["n"] == 0) == (row["verdict"] == UNTESTABLE) == (row["ours"] is None)
        assert row["n"] > 0 or row["remark"]
        assert row["command"].startswith("idlora ")
    assert len({row["claim"] for row in rows}) == len(rows)
    page = (whole / "results.md").read_text(encoding="utf-8")
    assert page.index("## Not decided") < page.index("## Reproduced") < page.index("## Cannot be tested here")
    assert {path.suffix for path in (whole / "plots").iterdir()} == {".png", ".svg"}


def test_planted_differences_are_found_and_absent_ones_are_not(whole: Path) -> None:
    rows = {row["claim"]: row for row in rows_in(whole)}
    carried = rows["The adapter carries the voice over from another place (above 0)"]
    assert carried["verdict"] == REPRODUCED
    assert carried["ours"] == pytest.approx(0.3, abs=1e-4)
    assert carried["n"] == carried["speakers"] == 5
    beside = rows["Joint generation is nearer to the speaker than a cascade (above 0)"]
    assert (beside["verdict"], beside["interval"][0] > 0) == (NOT_REPRODUCED, True)  # no judge of words, no control
    assert beside["remark"].startswith("UNDECIDED")
    equal = rows["The training mask at inference brings the voice nearer (above 0)"]
    assert equal["verdict"] == NOT_REPRODUCED
    assert "UNDECIDED" in equal["remark"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of such small calls."""
    monkeypatch.setattr(run, "drawings", lambda *_: [])


@pytest.mark.usefixtures("undrawn")
def test_a_second_call_makes_nothing_and_finds_the_same(whole: Path) -> None:
    before, maker = rows_in(whole), FakeMaker()
    reproduce(lab(maker), TINY, whole)
    assert not maker.made
    assert rows_in(whole) == before


@pytest.mark.usefixtures("undrawn")
def test_what_the_paper_compares_may_have_more_clips_than_the_rest(whole: Path) -> None:
    before = {row["claim"]: row for row in rows_in(whole)}
    reproduce(lab(FakeMaker()), replace(TINY, main_prompts=2), whole)
    rows = {row["claim"]: row for row in rows_in(whole)}
    main, other = (
        "The adapter carries the voice over from another place (above 0)",
        "The training mask at inference brings the voice nearer (above 0)",
    )
    assert [rows[main]["n"], before[main]["n"]] == [10, 5]
    assert rows[main]["speakers"] == before[main]["speakers"]
    assert rows[other]["n"] == before[other]["n"]
    assert "2 in base, cascade, easy, hard" in (whole / "results.md").read_text(encoding="utf-8")
    reproduce(lab(FakeMaker()), TINY, whole)
    assert rows_in(whole) == list(before.values())


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_call_leaves_whole_files_and_the_next_goes_on(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        reproduce(lab(FakeMaker(stops_at="cascade")), TINY, tmp_path)
    assert [row["claim"] for row in rows_in(tmp_path)][:2] == [row["claim"] for row in rows_in(whole)][:2]
    assert (tmp_path / "results.md").read_text(encoding="utf-8").endswith("\n")
    maker = FakeMaker()
    reproduce(lab(maker), TINY, tmp_path)
    assert "hard" not in maker.made
    assert [{**row, "command": ""} for row in rows_in(tmp_path)] == [{**row, "command": ""} for row in rows_in(whole)]


@pytest.mark.usefixtures("undrawn")
def test_a_broken_clip_costs_itself_alone_and_is_told(tmp_path: Path) -> None:
    reproduce(lab(FakeMaker(broken=(3,))), TINY, tmp_path)
    assert rows_in(tmp_path)[0]["n"] == 4
    assert "this clip is broken" in (tmp_path / "results.md").read_text(encoding="utf-8")
    reproduce(lab(FakeMaker()), TINY, tmp_path)
    assert rows_in(tmp_path)[0]["n"] == 5
    assert "this clip is broken" not in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_scores_of_another_model_are_refused(whole: Path) -> None:
    other = replace(lab(FakeMaker()), owner=Owner({"model": "1" * 64}, {"speaker": LevelJudge()}))
    with pytest.raises(SettingsError, match="another"):
        reproduce(other, TINY, whole)


@pytest.mark.usefixtures("undrawn")
def test_the_full_form_trains_what_rows_need_and_the_quick_one_says_what_is_missing(
    trained: Laboratory, tmp_path: Path
) -> None:
    reproduce(trained, TINY, tmp_path)
    waiting = {row["claim"]: row for row in rows_in(tmp_path)}
    claim = "Negative positions against shared: nearer to the voice (above 0)"
    assert (waiting[claim]["verdict"], waiting[claim]["n"]) == (UNTESTABLE, 0)
    assert "without negative-0, negative-1" in waiting[claim]["remark"]
    assert trained.workshop is not None
    trained.workshop.train([f"{name}-{seed}" for name in ("negative", "shared") for seed in (0, 1)], tmp_path, print)
    trained.workshop.train(["negative-2"], tmp_path, print)
    reproduce(trained, TINY, tmp_path)
    some = next(row for row in rows_in(tmp_path) if row["claim"] == claim)
    assert (some["n"], some["speakers"]) == (10, 5)
    assert "without shared-2, not trained yet" in some["remark"]
    told: list[str] = []
    reproduce(trained, replace(TINY, trains=True), tmp_path, told.append)
    keys = {each.key for each in ABLATIONS}
    assert {each for each in told if each in keys} == keys - {
        "negative-0",
        "negative-1",
        "negative-2",
        "shared-0",
        "shared-1",
    }
    rows = {row["claim"]: row for row in rows_in(tmp_path)}
    assert rows.keys() > waiting.keys()
    assert (rows[claim]["verdict"], rows[claim]["n"], rows[claim]["speakers"]) == (REPRODUCED, 15, 5)
    assert rows[claim]["ours"] == pytest.approx(0.1)
    fitted = "Negative positions against a large positive offset: a lower held-out loss (below 0)"
    assert rows[fitted]["ours"] == pytest.approx(-0.05)
    again: list[str] = []
    reproduce(trained, replace(TINY, trains=True), tmp_path, again.append)
    assert not keys & set(again)


def test_an_ablation_is_the_recipe_but_for_its_change_and_its_file_says_which() -> None:
    assert len({each.file_name for each in ABLATIONS}) == len({each.key for each in ABLATIONS}) == len(ABLATIONS)
    usual, faster = Ablation("x"), Ablation("x", changes={"engine": {"compile": True}, "saving": {"every": 7}})
    assert usual.file_name == faster.file_name != Ablation("x", changes={"steps": RECIPE.steps + 1}).file_name
    shared = next(each for each in ABLATIONS if each.name == "shared").config
    changed = replace(shared.objective, reference_time="negative")
    assert replace(shared, objective=changed) == replace(RECIPE, seed=shared.seed)


def test_an_adapter_is_exchanged_and_comes_back() -> None:
    pipe = tiny_pipeline.pipeline("2.3")
    bare = tiny_pipeline.pipeline("2.3", adapted=False).components.transformer
    maker, other = PipelineMaker(pipe), tiny_pipeline.adapter_for(bare, seed=5)
    own = pipe.adapters.get(IDENTITY)
    assert own is not None
    before, strength = own.weights().layers, own.strength
    clips = [maker.make(HARD, requests())[0].sound]
    with pipe.adapters.exchanged(IDENTITY, other):
        clips.append(maker.make(HARD, requests())[0].sound)
    clips.append(maker.make(HARD, requests())[0].sound)
    assert np.array_equal(clips[0], clips[2])
    assert not np.array_equal(clips[0], clips[1])
    back = pipe.adapters.get(IDENTITY)
    assert back is not None
    assert back.strength == strength
    assert all(torch.equal(back.weights().layers[name].b, layer.b) for name, layer in before.items())


@pytest.mark.parametrize(
    ("side", "low", "high", "verdict", "words"),
    [
        ("above", 0.01, 0.2, REPRODUCED, ""),
        ("above", -0.01, 0.2, NOT_REPRODUCED, "UNDECIDED"),
        ("above", -0.2, -0.01, NOT_REPRODUCED, "opposite"),
        ("above", 0.0, 0.2, NOT_REPRODUCED, "UNDECIDED"),
        ("below", -0.2, -0.01, REPRODUCED, ""),
        ("below", 0.01, 0.2, NOT_REPRODUCED, "opposite"),
        ("above", math.nan, math.nan, NOT_REPRODUCED, "UNDECIDED"),
    ],
)
def test_reproduced_is_an_interval_wholly_on_the_claimed_side(
    side: Any, low: float, high: float, verdict: str, words: str
) -> None:
    row = judged(Claim("c", "p", side), Measured(Estimate(0.0, low, high), 9, 9), "m", "c")
    assert row.verdict == verdict
    assert words in row.remark


def test_a_difference_is_that_of_the_clips_of_both() -> None:
    first = {(who, 0): (f"{who}", 1.0 + 0.1 * who, 1.0) for who in range(5)}
    second = {(who, 0): (f"{who}", 0.1 * who, 1.0) for who in range(1, 9)}
    found = difference_of(first, second)
    assert found is not None
    assert (found.n, found.speakers) == (4, 4)
    assert found.estimate.value == pytest.approx(1)
    assert difference_of(first, {}) is None


def test_a_planted_slope_is_found() -> None:
    distance = {(who, 0): 0.5 + 0.1 * who for who in range(10)}
    found = slope_of({place: 0.3 * far - 1 for place, far in distance.items()}, distance)
    assert found is not None
    assert found.estimate.value == pytest.approx(0.3)
    assert found.estimate.low == pytest.approx(0.3)
    assert slope_of({(0, 0): 1.0}, distance) is None


def test_what_is_out_of_reach_claims_no_number_and_its_commands_name_options_that_exist() -> None:
    from typer.main import get_command

    from idlora.cli.app import app

    known = {option for each in get_command(app).commands["evaluate"].params for option in each.opts}  # type: ignore[attr-defined]
    for row in out_of_reach():
        assert (row.verdict, row.n, row.ours, row.interval) == (UNTESTABLE, 0, None, None)
        program, command, *words = row.command.split()
        assert (program, command) == ("idlora", "evaluate")
        assert {word for word in words if word.startswith("--")} <= known
        given = [after for word, after in itertools.pairwise(words) if word == "--weights"]
        assert {each.split("=")[0] for each in given} <= set(OFFERS)


def test_easy_is_of_one_place_and_hard_of_two_and_words_are_others() -> None:
    for who, prompt in replace(QUICK, prompts=2).places(HARD):
        wanted = arms.asked(HARD, who, prompt)
        hard, easy = (arms.recorded(arm, who, prompt) for arm in (HARD, EASY))
        assert hard.place != wanted.place == easy.place
        assert hard.voice == easy.voice == wanted.voice
        assert not set(hard.words) & set(wanted.words)
        assert arms.asked(BASE, who, prompt) == wanted == arms.asked(CASCADE, who, prompt)
        crossed = arms.asked(CROSSED, who, prompt)
        assert crossed.face.beard != wanted.face.beard
        assert crossed == replace(wanted, face=crossed.face)


def test_the_quick_form_asks_enough_speakers_of_every_kind() -> None:
    wanted = [arms.asked(HARD, who, prompt) for who, prompt in QUICK.places(HARD)]
    assert QUICK.speakers >= 8
    few = [arms.asked(HARD, *place) for place in QUICK.places(replace(HARD, adapter="x"))]
    assert sum(spec.place in arms.CLEAR for spec in few) >= 8
    assert sum(spec.place in arms.CLEAR for spec in wanted) >= 8
    assert sum(spec.style != "calm" for spec in wanted) >= 8
    made = {arm for extent in (QUICK, FULL) for row in run._rows(extent) for arm in row.arms}
    assert len(made) == len({arm.name for arm in made})


def test_another_number_of_speakers_is_asked_in_all_rows_and_told(whole: Path) -> None:
    assert run.extent_of(quick=True) == QUICK
    assert run.extent_of(quick=False) == FULL
    more = run.extent_of(quick=True, speakers=20)
    assert {len(more.places(replace(HARD, adapter=adapter))) for adapter in ("", "x")} == {20}
    with pytest.raises(SettingsError, match="41 speakers; 1 to 40"):
        run.extent_of(quick=True, speakers=41)
    assert rows_in(whole)[0]["command"].startswith("idlora reproduce --quick --speakers 5 --out ")


@pytest.mark.parametrize("who", range(0, 12, 3))
def test_a_strike_is_found_where_it_is_seen_and_heard(who: int) -> None:
    spec = arms.asked(STRUCK, who, 0)
    sound = render_sound(spec)
    assert struck_by_sound(sound.samples.astype(np.float32), spec.object) == pytest.approx(spec.strike, abs=0.06)
    assert struck_by_picture(render_picture(spec, sound), 25) == pytest.approx(spec.strike, abs=0.06)


def requests(picture: Any = tiny_pipeline.PICTURE) -> list[Request]:
    settings = replace(tiny_pipeline.SETTINGS, seed=5)
    return [Request(tiny_pipeline.PROMPT, settings, picture, tiny_pipeline.voice())]


def sound_of(arm: Arm, picture: Any = tiny_pipeline.PICTURE) -> np.ndarray[Any, Any]:
    samples = PipelineMaker(tiny_pipeline.pipeline()).make(arm, requests(picture))[0].samples
    assert samples is not None
    return samples


def test_joint_clips_are_the_pipelines_own() -> None:
    clip = PipelineMaker(tiny_pipeline.pipeline()).make(HARD, requests())[0]
    result = tiny_pipeline.pipeline().generate_batch(requests())[0]
    assert clip.frames is not None
    assert np.array_equal(clip.frames, result.video)
    assert np.array_equal(clip.sound, Footage.of_arrays(result.video, result.audio, result.sample_rate).sound)


def test_sound_made_alone_hears_no_picture() -> None:
    darker = np.asarray(tiny_pipeline.PICTURE) // 3
    alone = Arm("alone", making="alone")
    assert np.array_equal(sound_of(alone), sound_of(alone, darker))
    assert not np.array_equal(sound_of(HARD), sound_of(HARD, darker))


def test_a_cascade_makes_the_sound_unseen_and_then_keeps_it() -> None:
    darker = np.asarray(tiny_pipeline.PICTURE) // 3
    assert np.array_equal(sound_of(CASCADE), sound_of(CASCADE, darker))
    assert np.allclose(sound_of(CASCADE), sound_of(HARD, None), atol=1e-5)
    maker = PipelineMaker(tiny_pipeline.pipeline())
    driven, joint = (maker.make(arm, requests())[0].pictures for arm in (CASCADE, HARD))
    assert driven.shape == joint.shape
    assert not np.array_equal(driven, joint)


def test_a_picture_is_driven_by_the_sound_that_is_finished() -> None:
    pipe = tiny_pipeline.pipeline()
    maker, (request,) = PipelineMaker(pipe), requests()
    batch = [read_inputs(request)]
    texts = pipe.texts(batch, Meter(pipe.device))
    sound = prepare(batch, request.settings, pipe.codecs, pipe.device)
    tokens = torch.randn(sound.audio.tokens.shape, generator=torch.Generator().manual_seed(1))
    driven = [maker._driven(batch, texts, sound.with_tokens(sound.video.tokens, each)) for each in (tokens, -tokens)]
    target = sound.audio.num_reference
    for state, each in zip(driven, (tokens, -tokens), strict=True):
        assert torch.allclose(state.audio.tokens, each[:, target:], atol=1e-5)
    assert not torch.allclose(driven[0].video.tokens, driven[1].video.tokens)


def test_an_interval_of_a_row_is_that_of_the_laboratory() -> None:
    scores = [(f"{who}", float(who % 3), 1.0) for who in range(9)]
    expected = interval(Table.of(scores))
    zero = {(who, 0): (name, 0.0, weight) for who, (name, _, weight) in enumerate(scores)}
    found = difference_of({(who, 0): each for who, each in enumerate(scores)}, zero)
    assert found is not None
    assert (found.estimate.low, found.estimate.high) == pytest.approx((expected.low, expected.high))
