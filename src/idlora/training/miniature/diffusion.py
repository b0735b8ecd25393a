# SPDX-License-Identifier: Apache-2.0
"""Training of the miniature's base: batches for the one training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.core.positions import audio_positions, video_positions
from idlora.data.world.clip import FRAME_RATE
from idlora.networks.joint import JointModel
from idlora.networks.text import PromptEncoder
from idlora.training.miniature.guide import AttentionGuide
from idlora.training.miniature.latents import LatentPools, ids_and_mask
from idlora.training.miniature.loop import Losses
from idlora.training.miniature.text import spoken_words
from idlora.training.objective import Objective, TrainingBatch, training_step

Indices = NDArray[np.int64]
GUIDE_WEIGHT = 0.1


@dataclass(frozen=True)
class Recipe:
    """What is drawn for a batch.

    Attributes:
        batch: clips a step.
        text_dropout: share of clips with an empty prompt, which trains the negative pass.
        first_frame: share of clips whose first latent frame is given. It also tells the time: attention knows times
            only by their differences, and in noise alone nothing tells which word is due.
        sigma_mean, sigma_deviation: of the normal distribution whose logistic is sigma. As wide as the sampler's steps:
            which word is said is decided above 0.8, how it sounds below 0.5.
    """

    batch: int = 24
    text_dropout: float = 0.1
    first_frame: float = 0.9
    sigma_mean: float = 0.9
    sigma_deviation: float = 1.5
    seed: int = 0


class _Drawn(NamedTuple):
    """A batch, with what a guide must know: the ordinals of the words in time (B, T) and among the keys (B, S)."""

    batch: TrainingBatch
    due: Tensor
    words: Tensor


def in_key_order(tokens: Tensor, mask: Tensor) -> Tensor:
    """Values of left-padded tokens (B, S) in the order in which the connectors hand them on: padding last."""
    return tokens.gather(1, torch.argsort(1 - mask, dim=1, stable=True))


@dataclass(frozen=True)
class DiffusionLoss:
    """Losses of a step: the batch is drawn by (seed, step) and handed to `training_step`."""

    model: JointModel
    prompts: PromptEncoder
    pools: LatentPools
    latent_size: tuple[int, int, int]
    recipe: Recipe
    objective: Objective = Objective()
    guide: AttentionGuide | None = None

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        drawn = self._drawn(step)
        losses = training_step(self.model, drawn.batch, self.objective).losses
        if self.guide is not None:
            attention = self.guide.loss(drawn.due, drawn.words)
            total = losses.total + GUIDE_WEIGHT * attention
            return {"loss": total, "video": losses.video, "audio": losses.audio, "attention": attention}
        return {"loss": losses.total, "video": losses.video, "audio": losses.audio}

    def draw(self, step: int) -> TrainingBatch:
        """The batch of a step."""
        return self._drawn(step).batch

    def _drawn(self, step: int) -> _Drawn:
        rng = np.random.default_rng([self.recipe.seed, step])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clips = rng.integers(len(self.pools.audio), size=self.recipe.batch)
        audio, video, size = self.pools.audio.batch(clips), self.pools.video.batch(clips), self.latent_size
        there = self.model.transformer.device
        given = self._conditioned(rng, len(clips), size)
        ids, mask = self._text(rng, clips)
        batch = TrainingBatch(
            video=video.to(there),
            audio=audio.to(there),
            video_noise=torch.randn(video.shape, generator=noise).to(there),
            audio_noise=torch.randn(audio.shape, generator=noise).to(there),
            sigmas=self._sigmas(noise).to(there),
            video_positions=video_positions(size, FRAME_RATE, there),
            audio_positions=audio_positions(audio.shape[1], there),
            context=self.prompts.context(ids, mask),
            conditioned=given.to(there),
        )
        words = in_key_order(spoken_words(ids, self.prompts.tokenizer), mask)
        return _Drawn(batch, self.pools.spoken.batch(clips).to(there), words.to(there))

    def _sigmas(self, noise: torch.Generator) -> Tensor:
        logits = torch.randn(self.recipe.batch, generator=noise)
        return torch.sigmoid(self.recipe.sigma_mean + self.recipe.sigma_deviation * logits)  # (B,)

    def _text(self, rng: np.random.Generator, clips: Indices) -> tuple[Tensor, Tensor]:
        rows = self.pools.text.batch(clips)  # (B, captions, S)
        chosen = rows[torch.arange(len(rows)), torch.from_numpy(rng.integers(rows.shape[1], size=len(rows)))]
        ids, mask = ids_and_mask(chosen)
        empty = torch.from_numpy(rng.random(len(rows)) < self.recipe.text_dropout)
        nothing = torch.zeros_like(ids)
        nothing[:, -1] = self.prompts.tokenizer.bos_token_id
        ids = torch.where(empty[:, None], nothing, ids)
        mask = torch.where(empty[:, None], (nothing > 0).long(), mask)
        return ids, mask

    def _conditioned(self, rng: np.random.Generator, batch: int, size: tuple[int, int, int]) -> Tensor:
        given = torch.from_numpy(rng.random(batch) < self.recipe.first_frame)
        frames, height, width = size
        first = torch.arange(frames * height * width) < height * width
        return given[:, None] & first[None]
