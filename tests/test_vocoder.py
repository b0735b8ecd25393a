# SPDX-License-Identifier: Apache-2.0
"""The vocoder's training: its losses, whose gradients they are, batches and resumption; and its rows of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.evaluation.clips import Plan
from idlora.evaluation.codec_rows import ShippedCodec
from idlora.evaluation.scoring import Judges
from idlora.evaluation.store import Store, Values
from idlora.evaluation.vocoder_rows import log_spectral_distance, vocoder_rows, vocoders
from idlora.networks.codecs import AudioCodec, GriffinLimVocoder
from idlora.networks.mel import LogMel
from idlora.pipeline.generation import Codecs
from idlora.training.miniature import components
from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.loop import Losses, Schedule, Trainer
from idlora.training.miniature.stages import _begin_vocoder
from idlora.training.miniature.vocoder import (
    CROP,
    HOP,
    VocoderLoss,
    VocoderPair,
    adversarial_losses,
    spectral_loss,
)
from idlora.training.miniature.workshop import Workshop

Sound = NDArray[np.float32]
LENGTH = 100 * HOP


@pytest.fixture(scope="module")
def pair() -> VocoderPair:
    torch.manual_seed(0)
    return VocoderPair(components.vocoder())


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, Pool]:
    folder = tmp_path_factory.mktemp("pools")
    noise = np.random.default_rng(0).normal(size=(4, LENGTH)).astype(np.float16) * 0.1
    mels = LogMel()(torch.from_numpy(noise).float()[:, None].expand(-1, 2, -1)).numpy().astype(np.float16)
    waves = Pool(folder, "waves", 4, lambda indices: noise[list(indices)]).render()
    return waves, Pool(folder, "mels", 4, lambda indices: mels[list(indices)]).render()


# Training


def test_a_mel_frame_becomes_one_hop_of_samples_as_with_griffin_lim(pair: VocoderPair) -> None:
    mel = torch.zeros(1, 2, 20, 64)
    assert pair.vocoder(mel).shape == GriffinLimVocoder()(mel).shape == (1, 2, 20 * HOP)
    assert pair.vocoder.config.output_sampling_rate == 100 * HOP
    assert sum(parameter.numel() for parameter in pair.vocoder.parameters()) < 1.1e6


def test_training_keeps_the_channels_one_sound(tmp_path: Path, pools: tuple[Pool, Pool]) -> None:
    torch.manual_seed(3)
    pair = VocoderPair(components.vocoder())
    before = pair.vocoder.conv_out.weight.detach().clone()
    loss = VocoderLoss(pair, *pools, adversarial_from=1)
    loss.size = 1
    Trainer(pair, loss, Schedule(steps=2, warmup=1), tmp_path).run()
    assert (pair.vocoder.conv_out.weight - before).abs().max() > 1e-3
    left, right = pair.vocoder(torch.randn(1, 2, 20, 64))[0].detach()
    assert (left - right).abs().max() < 1e-5 < left.abs().max()


def test_a_sound_has_no_spectral_distance_to_itself_and_some_to_others() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(2, LENGTH, generator=generator) * 0.1
    assert spectral_loss(sound, sound) == 0
    assert spectral_loss(-sound, sound) < 1e-5  # spectra do not know the sign
    assert spectral_loss(0.5 * sound, sound) == pytest.approx(0.5 + np.log(2), abs=0.01)


def test_one_backward_gives_vocoder_and_judges_their_own_gradients(pair: VocoderPair) -> None:
    made = torch.randn(2, LENGTH, requires_grad=True)
    losses, judges = adversarial_losses(pair.judges, made, torch.randn(2, LENGTH)), list(pair.judges.parameters())
    for_vocoder, for_judges = losses["fooling"] + losses["matching"], losses["judging"]
    together = torch.autograd.grad(for_vocoder + for_judges, [made, *judges], retain_graph=True)
    alone = torch.autograd.grad(for_vocoder, made, retain_graph=True) + torch.autograd.grad(for_judges, judges)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in together)


def test_a_true_sound_has_the_features_that_are_asked_for(pair: VocoderPair) -> None:
    true = torch.randn(2, LENGTH)
    assert adversarial_losses(pair.judges, true, true)["matching"] == 0
    assert adversarial_losses(pair.judges, 0.5 * true, true)["matching"] > 0.01


def test_batches_follow_from_seed_and_step_and_mels_fit_their_samples(
    pair: VocoderPair, pools: tuple[Pool, Pool]
) -> None:
    loss = VocoderLoss(pair, *pools, seed=1)
    mels, samples = loss.draw(5)
    assert mels.shape == (loss.size, 2, CROP, 64)
    assert samples.shape == (loss.size, CROP * HOP)
    again, other = VocoderLoss(pair, *pools, seed=1).draw(5), VocoderLoss(pair, *pools, seed=2).draw(5)
    assert torch.equal(mels, again[0])
    assert torch.equal(samples, again[1])
    assert not torch.equal(samples, other[1])
    inner = slice(8, CROP - 8)  # frames whose window lies inside the crop
    assert torch.allclose(LogMel()(samples[:, None])[:, 0, inner], mels[:, 0, inner], atol=0.05)


def test_mixed_precision_does_not_round_the_mels(pair: VocoderPair, pools: tuple[Pool, Pool]) -> None:
    loss = VocoderLoss(pair, *pools)
    exact = loss.draw(0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.draw(0)[0], exact)


def resumed(folder: Path, pools: tuple[Pool, Pool], stops: Sequence[int]) -> dict[str, Tensor]:
    """Weights after a run that was broken off and taken up at every stop but the last; the judges join at step 2."""
    schedule = Schedule(steps=stops[-1], learning_rate=1e-3, warmup=1)
    for stop in stops:
        torch.manual_seed(0)
        pair = VocoderPair(components.vocoder())
        loss = VocoderLoss(pair, *pools, adversarial_from=2)
        loss.size = 1

        def broken(step: int, stop: int = stop, loss: VocoderLoss = loss) -> Losses:
            if step == stop:
                raise KeyboardInterrupt
            return loss(step)

        try:
            Trainer(pair, broken, schedule, folder).run()
        except KeyboardInterrupt:
            continue
    return {name: parameter.detach() for name, parameter in pair.named_parameters()}


def test_a_run_resumes_bit_for_bit_before_and_after_the_judges_join(tmp_path: Path, pools: tuple[Pool, Pool]) -> None:
    whole, broken = resumed(tmp_path / "a", pools, [4]), resumed(tmp_path / "b", pools, [1, 3, 4])
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    torch.manual_seed(0)
    fresh = dict(VocoderPair(components.vocoder()).named_parameters())
    assert not any(torch.equal(value, fresh[name]) for name, value in whole.items() if name.startswith("judges"))


def test_griffin_lim_is_nothing_to_begin_from(tmp_path: Path) -> None:
    start, small = tmp_path / "start", components.vocoder().config.hidden_channels
    GriffinLimVocoder().save_pretrained(start / "vocoder")
    assert _begin_vocoder(Workshop(tmp_path / "work", start)).config.hidden_channels == small
    learned = components.vocoder()
    learned.save_pretrained(start / "vocoder")
    begun = _begin_vocoder(Workshop(tmp_path / "work", start))
    assert torch.equal(begun.conv_in.weight, learned.conv_in.weight)


# Rows


class Louder:
    """A codec that changes the level alone."""

    def __init__(self, factor: float) -> None:
        self.factor = np.float32(factor)

    def sound(self, samples: Sound) -> tuple[Sound, int]:
        return self.factor * samples, 16_000

    def picture(self, frames: Any) -> Any:
        raise NotImplementedError


class LevelJudges(Judges):
    """Hear one error in quiet sounds, and a voice that turns with the level."""

    def hear(self, sound: Sound, rate: int, words: Sequence[str]) -> Values:
        assert rate == 16_000
        level = float(np.abs(sound).max())
        return {"embedding": [1.0, level, *[0.0] * 254], "errors": int(level < 0.1), "words": len(words)}


def test_log_spectral_distance_is_in_decibels() -> None:
    sound = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    assert log_spectral_distance(sound, sound) == 0
    assert log_spectral_distance(sound, sound * np.float32(0.5)) == pytest.approx(20 * np.log10(2), abs=0.01)
    assert log_spectral_distance(sound * np.float32(1e-7), sound * np.float32(1e-9)) == 0  # both below what is heard
    assert log_spectral_distance(sound, np.concatenate([sound, sound])) < 0.5


def test_rows_compare_vocoders_on_the_same_clips_and_are_kept(tmp_path: Path) -> None:
    plan, codecs = Plan(speakers=2, prompts=1, enrolments=1), {"quiet": Louder(0.01), "true": Louder(1.0)}
    store = Store(tmp_path / "scores.jsonl", "me")
    rows = {row.measure: row for row in vocoder_rows(plan, store, LevelJudges(), codecs)}
    assert [name for name in rows if name.endswith("WER")] == ["quiet: WER", "true: WER", "true less quiet: WER"]
    assert rows["quiet: WER"].estimate.value == pytest.approx(1 / 3)
    assert rows["true: log-spectral distance, dB"].estimate.value == 0
    # Quiet sounds are like one another; what counts is that they are unlike true ones.
    assert rows["quiet: cos"].estimate.value < 0.99 * rows["true: cos"].estimate.value
    for measure in ("cos", "margin", "WER", "log-spectral distance, dB"):
        quiet, true, less = (rows[f"{name}: {measure}"].estimate.value for name in ("quiet", "true", "true less quiet"))
        assert less == pytest.approx(true - quiet)
        assert rows[f"true: {measure}"].n == 2
    again = vocoder_rows(plan, Store(store.path, "me"), LevelJudges(), dict.fromkeys(codecs, Louder(0.0)))
    assert again == list(rows.values())


def test_a_learned_vocoder_is_compared_with_griffin_lim_and_that_with_nothing(pair: VocoderPair) -> None:
    def of(vocoder: Any) -> ShippedCodec:
        video: Any = None
        return ShippedCodec(Codecs(video, AudioCodec(None), vocoder))

    learned = of(pair.vocoder)
    both = vocoders(learned)
    assert list(both) == ["GriffinLimVocoder", "LTX2Vocoder"]
    assert both["LTX2Vocoder"] is learned
    assert list(vocoders(of(GriffinLimVocoder()))) == ["GriffinLimVocoder"]
    assert list(vocoders(Louder(1.0))) == ["Louder"]
