# SPDX-License-Identifier: Apache-2.0
"""Training of the miniature's `LTX2Vocoder`: spectra at several resolutions, and adversaries that look at them.

Multi-resolution STFT and least-squares discriminators of spectra are those of UnivNet (Jang et al. 2021), the matching
of their features that of HiFi-GAN (Kong et al. 2020).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from idlora.networks.mel import LogMel
from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.loop import Losses

HOP = 160
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # samples of a window, of a step
CROP = 50  # mel frames of a training crop
MEL_WEIGHT = 5.0
ADVERSARIAL_WEIGHT = 0.5
MATCHING_WEIGHT = 1.0
FLOOR = 1e-4  # of a magnitude, under its logarithm


def magnitude(samples: Tensor, window: int, step: int) -> Tensor:
    """Spectrogram (N, window / 2 + 1, T) of samples (N, L), scaled so that a full-scale sine is of order 1."""
    weights = torch.hann_window(window, device=samples.device)
    spectrum = torch.stft(samples, window, step, window=weights, return_complex=True)
    return spectrum.abs() * (2 / window)


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence + L1 of log magnitudes of samples (N, L), mean over the resolutions; 0 if they are equal."""
    losses = []
    for window, step in RESOLUTIONS:
        ours, theirs = magnitude(output, window, step), magnitude(target, window, step)
        convergence = (ours - theirs).norm() / theirs.norm().clamp(min=FLOOR)
        losses.append(convergence + (ours.clamp(min=FLOOR).log() - theirs.clamp(min=FLOOR).log()).abs().mean())
    return torch.stack(losses).mean()


class SpectrumJudge(nn.Module):
    """Tells true from made sound by its spectrogram at one resolution: one score for each patch of it."""

    def __init__(self, window: int, step: int, channels: int = 16) -> None:
        super().__init__()
        self.window, self.step = window, step
        widths = [1, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, (5, 3), stride=(2, 1), padding=(2, 1)) for before, after in pairwise(widths)
        )
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, samples: Tensor) -> list[Tensor]:
        """Features (N, channels, F', T) of samples (N, L) after every layer, and last scores; 1 = true, 0 = made."""
        seen = [magnitude(samples, self.window, self.step).clamp(min=FLOOR).log()[:, None]]
        for layer in self.layers:
            seen.append(F.leaky_relu(layer(seen[-1]), 0.1))
        return [*seen[1:], self.last(seen[-1])]


class VocoderPair(nn.Module):
    """A vocoder and the judges that it is trained against."""

    def __init__(self, vocoder: Any) -> None:
        super().__init__()
        self.vocoder = vocoder
        self.judges = nn.ModuleList(SpectrumJudge(*resolution) for resolution in RESOLUTIONS)


def adversarial_losses(judges: nn.ModuleList, made: Tensor, true: Tensor) -> Losses:
    """Least-squares losses of the vocoder ("fooling", "matching" of features) and of the judges, samples (N, L).

    Their sum may be differentiated at once: the vocoder is judged by constants, the judges learn from constants.
    """
    losses = [_one_judge(judge, made, true) for judge in judges]
    return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}


def _one_judge(judge: nn.Module, made: Tensor, true: Tensor) -> Losses:
    resting = {name: parameter.detach() for name, parameter in judge.named_parameters()}
    *features, score = functional_call(judge, resting, (made,))
    *true_features, true_score = judge(true)
    apart = [(ours - theirs.detach()).abs().mean() for ours, theirs in zip(features, true_features, strict=True)]
    return {
        "fooling": (score - 1).square().mean(),
        "matching": torch.stack(apart).mean(),
        "judging": (true_score - 1).square().mean() + judge(made.detach())[-1].square().mean(),
    }


class VocoderLoss:
    """Losses on crops of 0.5 s; half of the mels went through the audio autoencoder, as all will in use.

    Args:
        pair: vocoder and judges.
        waves: true samples (L,) of clips.
        mels: rows (2, T, bins), the log-mels of the same clips from the autoencoder.
        adversarial_from: step at which the judges begin.
    """

    def __init__(self, pair: VocoderPair, waves: Pool, mels: Pool, seed: int = 0, adversarial_from: int = 400) -> None:
        self.pair, self.waves, self.mels, self.seed, self.adversarial_from = pair, waves, mels, seed, adversarial_from
        self.log_mel = LogMel()
        self.size = 8

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        mel, true = (part.to(self.pair.vocoder.device) for part in self.draw(step))
        # Through the mean both channels get the same gradient, so those that start equal stay so.
        made = self.pair.vocoder(mel).float().mean(1)  # (B, CROP * HOP)
        spectral, mel_error = spectral_loss(made, true), (self._log_mel(made) - self._log_mel(true)).abs().mean()
        total = spectral + MEL_WEIGHT * mel_error
        losses = {"spectral": spectral, "mel": mel_error}
        if step >= self.adversarial_from:
            losses |= adversarial_losses(self.pair.judges, made, true)
            total = total + ADVERSARIAL_WEIGHT * losses["fooling"] + MATCHING_WEIGHT * losses["matching"]
            total = total + losses["judging"]
        return {"loss": total} | losses

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Mels (B, 2, CROP, bins) and the samples (B, CROP * HOP) that they are of."""
        rng = np.random.default_rng([self.seed, step])
        clips = rng.integers(len(self.waves), size=self.size)
        starts = rng.integers(self.mels[0].shape[1] - CROP, size=self.size)
        pairs = [
            self._crop(int(clip), int(start), coded=rng.random() < 0.5)
            for clip, start in zip(clips, starts, strict=True)
        ]
        mels, samples = zip(*pairs, strict=True)
        return torch.stack(mels), torch.stack(samples)

    def _crop(self, clip: int, start: int, *, coded: bool) -> tuple[Tensor, Tensor]:
        samples = torch.from_numpy(np.asarray(self.waves[clip], np.float32))
        mel = torch.from_numpy(np.asarray(self.mels[clip], np.float32)) if coded else self._true_mel(samples)
        return mel[:, start : start + CROP], samples[start * HOP : (start + CROP) * HOP]

    def _true_mel(self, samples: Tensor) -> Tensor:
        return self._log_mel(samples[None]).expand(2, -1, -1)

    def _log_mel(self, samples: Tensor) -> Tensor:
        """Log-mels (N, T, bins) of samples (N, L), in float32 although the step may be in mixed precision."""
        with torch.autocast(samples.device.type, enabled=False):
            mel: Tensor = self.log_mel(samples[:, None])[:, 0]
        return mel
