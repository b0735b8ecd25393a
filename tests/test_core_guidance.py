# SPDX-License-Identifier: Apache-2.0
"""Laws of guidance: neutral terms cost nothing and change nothing, and the sum is the written formula."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from idlora.core.guidance import (
    NEUTRAL,
    X0,
    Guidance,
    IdentityGuidance,
    ModalityGuidance,
    Pass,
    Rescale,
    STGuidance,
    Term,
    TextGuidance,
    deltas,
    guide,
)
from idlora.errors import SettingsError

NUM_REFERENCE = 3
NAMES = ("positive", "negative", "no_reference", "perturbed", "isolated")


def predictions() -> dict[str, X0]:
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in NAMES:
        reference = 0 if name == "no_reference" else NUM_REFERENCE
        video, audio = (torch.randn(2, n, 4, generator=generator) for n in (6, 5 + reference))
        made[name] = X0(video, audio, reference)
    return made


def test_neutral_guidance_is_the_positive_prediction_bit_for_bit() -> None:
    made = predictions()
    guided = guide(NEUTRAL, made, 0.5)
    assert guided.video is made["positive"].video
    assert guided.audio is made["positive"].audio


def test_neutral_guidance_needs_one_pass() -> None:
    assert NEUTRAL.plan(0.5, NUM_REFERENCE) == [Pass("positive")]


def test_the_sum_is_the_formula() -> None:
    made = predictions()
    guided = guide(Guidance(), made, 0.5)
    p, n, r, s, m = (made[name] for name in NAMES)
    video = p.video + 2 * (p.video - n.video) + (p.video - s.video) + 2 * (p.video - m.video)
    torch.testing.assert_close(guided.video, video)
    audio = p.audio + 6 * (p.audio - n.audio) + (p.audio - s.audio) + 2 * (p.audio - m.audio)
    torch.testing.assert_close(guided.audio[:, :NUM_REFERENCE], audio[:, :NUM_REFERENCE])
    target = audio[:, NUM_REFERENCE:] + 3 * (p.audio[:, NUM_REFERENCE:] - r.audio)
    torch.testing.assert_close(guided.audio[:, NUM_REFERENCE:], target)


def test_identity_touches_the_audio_target_alone() -> None:
    made, alone = predictions(), replace(NEUTRAL, identity=IdentityGuidance(2.0))
    guided = guide(alone, made, 0.5)
    assert torch.equal(guided.video, made["positive"].video)
    assert torch.equal(guided.audio[:, :NUM_REFERENCE], made["positive"].audio[:, :NUM_REFERENCE])
    assert not torch.equal(guided.audio[:, NUM_REFERENCE:], made["positive"].audio[:, NUM_REFERENCE:])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"text": TextGuidance(1.0, 2.0)}, Pass("negative", negative_text=True)),
        ({"identity": IdentityGuidance(1.0)}, Pass("no_reference", reference=False)),
        ({"identity": IdentityGuidance(1.0, adapter_off=True)}, Pass("no_reference", reference=False, adapter=False)),
        ({"stg": STGuidance(1.0, 0.0, (2, 3))}, Pass("perturbed", perturbed_blocks=(2, 3))),
        ({"modality": ModalityGuidance(1.0, 0.0)}, Pass("isolated", isolated=True)),
    ],
)
def test_each_term_asks_for_its_pass(change: dict[str, Term], wanted: Pass) -> None:
    guidance = Guidance(**{**vars(NEUTRAL), **change})
    assert guidance.plan(0.5, NUM_REFERENCE) == [Pass("positive"), wanted]


def test_identity_of_the_picture_is_its_own_difference() -> None:
    made, both = predictions(), replace(NEUTRAL, identity=IdentityGuidance(2.0, video=0.5))
    guided, alone = guide(both, made, 0.5), guide(replace(NEUTRAL, identity=IdentityGuidance(2.0)), made, 0.5)
    positive, other = made["positive"].video, made["no_reference"].video
    torch.testing.assert_close(guided.video, positive + 0.5 * (positive - other), rtol=0, atol=1e-6)
    assert torch.equal(guided.audio, alone.audio)
    assert IdentityGuidance(0.0, video=0.5).active(0.5)
    with pytest.raises(SettingsError, match=r"0\.5 of the picture"):
        IdentityGuidance(video=0.5, audio_only=True)


def test_without_a_reference_there_is_no_identity_pass() -> None:
    names = [run.name for run in Guidance().plan(0.5, 0)]
    assert names == ["positive", "negative", "perturbed", "isolated"]


@pytest.mark.parametrize(
    "changes",
    [
        ({"stg": STGuidance(2.0, 0.0)}, {"stg": STGuidance(0.0, 2.0)}),
        ({"modality": ModalityGuidance(2.0, 1.0)}, {"modality": ModalityGuidance(1.0, 2.0)}),
        ({"rescale": Rescale(0.5, 0.0)}, {"rescale": Rescale(0.0, 0.5)}),
    ],
)
def test_each_stream_has_its_own_scale(changes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    made, guidance = predictions(), replace(NEUTRAL, text=TextGuidance(3.0, 3.0))
    plain = guide(guidance, made, 0.5)
    of_video, of_audio = (guide(replace(guidance, **change), made, 0.5) for change in changes)
    assert torch.allclose(of_video.audio, plain.audio)
    assert not torch.allclose(of_video.video, plain.video)
    assert torch.allclose(of_audio.video, plain.video)
    assert not torch.allclose(of_audio.audio[:, NUM_REFERENCE:], plain.audio[:, NUM_REFERENCE:])


def test_stg_without_blocks_is_neutral() -> None:
    assert not STGuidance(1.0, 1.0, ()).active(0.5)


@pytest.mark.parametrize(("sigma", "active"), [(0.1, False), (0.2, True), (0.6, True), (0.7, False)])
def test_a_term_acts_inside_its_interval(sigma: float, active: bool) -> None:
    guidance = replace(NEUTRAL, identity=IdentityGuidance(3.0, lo=0.2, hi=0.6))
    assert (len(guidance.plan(sigma, NUM_REFERENCE)) == 2) is active


def test_full_rescale_restores_the_spread_of_each_sample() -> None:
    made = predictions()
    guided = guide(Guidance(rescale=Rescale(1.0, 1.0)), made, 0.5)
    torch.testing.assert_close(guided.video.flatten(1).std(1), made["positive"].video.flatten(1).std(1))
    targets = [x0.audio[:, NUM_REFERENCE:].flatten(1).std(1) for x0 in (guided, made["positive"])]
    torch.testing.assert_close(*targets)


def test_star_ignores_the_size_of_the_negative_prediction() -> None:
    made, star = predictions(), replace(NEUTRAL, text=TextGuidance(3.0, 7.0, star=True))
    scaled = {**made, "negative": X0(made["negative"].video * 5, made["negative"].audio * 5, NUM_REFERENCE)}
    torch.testing.assert_close(guide(star, scaled, 0.5).audio, guide(star, made, 0.5).audio)


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)])
def test_a_wrong_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match="interval"):
        STGuidance(lo=interval[0], hi=interval[1])


def test_a_wrong_rescale_is_refused() -> None:
    with pytest.raises(SettingsError, match="rescale"):
        Rescale(0.0, 1.5)


def test_what_is_kept_stands_for_the_pass_that_made_it() -> None:
    made, guidance = predictions(), Guidance()
    kept = {name: deltas(guidance, made, 0.5)[name] for name in ("perturbed", "isolated")}
    assert [run.name for run in guidance.plan(0.5, NUM_REFERENCE, kept)] == ["positive", "negative", "no_reference"]
    few = {name: x0 for name, x0 in made.items() if name not in kept}
    assert torch.equal(guide(guidance, few, 0.5, kept).audio, guide(guidance, made, 0.5).audio)


def test_identity_on_the_audio_alone_is_a_pass_of_its_own_kind() -> None:
    assert IdentityGuidance(audio_only=True).other_pass() == Pass("no_reference", reference=False, audio_only=True)
    with pytest.raises(SettingsError, match="video states of its own"):
        IdentityGuidance(audio_only=True, adapter_off=True)
    with pytest.raises(SettingsError, match="every 0 steps"):
        STGuidance(every=0)
