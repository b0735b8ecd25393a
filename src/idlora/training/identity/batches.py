# SPDX-License-Identifier: Apache-2.0
"""Samples to the batch of a training step: everything random is drawn here, everything padded is padded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.core.schedules import logit_normal_sigmas, shift_mu, stretched_logit_normal_sigmas
from idlora.networks.codecs import AUDIO_TOKENS_PER_SECOND, AudioCodec
from idlora.networks.joint import TextContext
from idlora.networks.text import TextFeatures
from idlora.pipeline.generation import pad_references
from idlora.training.identity.config import ObjectiveOptions
from idlora.training.identity.sampling import Visit, keyed_seed
from idlora.training.latents.store import Latents, Row
from idlora.training.objective import TrainingBatch

Attend = Callable[[TextFeatures, Tensor], TextContext]


class Longest(NamedTuple):
    """Tokens that shorter samples are padded to; 0 = to the longest of the batch."""

    audio: int = 0
    reference: int = 0


class Drawn(NamedTuple):
    """What is random about one sample, its tokens cut as drawn."""

    video: Tensor  # (T_video, C)
    audio: Tensor  # (T_audio, C)
    reference: Tensor  # (T_reference, C); no token if it was dropped
    text: TextFeatures  # (S, D)
    sigma: Tensor  # 0-d
    video_noise: Tensor
    audio_noise: Tensor
    given: bool  # the first latent frame


@dataclass(frozen=True)
class Batcher:
    """Makes batches.

    Args:
        options: what is drawn, and how.
        attend: connectors of the model (`PromptEncoder.attended`).
        max_text_tokens: to which text is padded.
        seed: of all draws.
        device: of the batch.
        longest: for shapes that never change.
    """

    options: ObjectiveOptions
    attend: Attend
    max_text_tokens: int
    seed: int
    device: torch.device = torch.device("cpu")
    longest: Longest = Longest()

    def batch(self, visits: Sequence[Visit], step: int, part: int = 0) -> TrainingBatch:
        """The batch of some samples; `part` numbers the batches of a step.

        Raises:
            TrainingError: a sample is damaged.
        """
        latents = [visit.store.read(visit.row) for visit in visits]
        if self.options.draws == "sample":
            drawn = [self._drawn_alone(visit, each) for visit, each in zip(visits, latents, strict=True)]
        else:
            generator = torch.Generator().manual_seed(keyed_seed(self.seed, step, part))
            drawn = self._drawn_together([visit.row for visit in visits], latents, generator)
        return self._collated(drawn, visits[0].row)

    def _drawn_alone(self, visit: Visit, latents: Latents) -> Drawn:
        options, row = self.options, visit.row
        generator = torch.Generator().manual_seed(keyed_seed(self.seed, row.id, visit.number))
        given, no_reference, no_text, length, start = torch.rand(5, generator=generator).tolist()
        sigma = self._sigmas(1, row, generator)[0]
        audio = self._target(latents.audio, row)
        reference = latents.reference
        if options.reference_seconds:
            reference = _window(reference, options.reference_seconds, length, start)
        if no_reference < options.reference_dropout:
            reference = reference[:0]
        return Drawn(
            video=latents.video,
            audio=audio,
            reference=reference,
            text=visit.store.no_text if no_text < options.text_dropout else latents.text,
            sigma=sigma,
            video_noise=torch.randn(latents.video.shape, generator=generator),
            audio_noise=torch.randn(audio.shape, generator=generator),
            given=given < options.first_frame,
        )

    def _drawn_together(
        self, rows: Sequence[Row], latents: Sequence[Latents], generator: torch.Generator
    ) -> list[Drawn]:
        """As the official trainer does: sigmas of the batch, one draw for the first frames, noise as one tensor."""
        count = len(rows)
        sigmas = self._sigmas(count, rows[0], generator)
        given = torch.rand(count, generator=generator) < self.options.first_frame
        if self.options.first_frame_draw == "batch":
            given = given[:1].expand(count)
        targets = [self._target(each.audio, row) for each, row in zip(latents, rows, strict=True)]
        video_noise = torch.randn(count, *latents[0].video.shape, generator=generator)
        audio_noise = torch.randn(count, *max(targets, key=len).shape, generator=generator)
        return [
            Drawn(
                video=latents[b].video,
                audio=targets[b],
                reference=latents[b].reference,
                text=latents[b].text,
                sigma=sigmas[b],
                video_noise=video_noise[b],
                audio_noise=audio_noise[b],
                given=bool(given[b]),
            )
            for b in range(count)
        ]

    def _sigmas(self, count: int, row: Row, generator: torch.Generator) -> Tensor:
        options = self.options
        mean = options.sigma_bias
        if options.sigma_by_size:
            frames, height, width = row.grid
            mean += shift_mu(frames * height * width)
        law = logit_normal_sigmas if options.sigma == "logit-normal" else stretched_logit_normal_sigmas
        return law(count, mean, generator, options.sigma_deviation)

    def _target(self, audio: Tensor, row: Row) -> Tensor:
        if not self.options.equal_lengths:
            return audio
        return audio[: AudioCodec.num_tokens(row.num_frames / row.frame_rate)]

    def _collated(self, drawn: Sequence[Drawn], row: Row) -> TrainingBatch:
        there = self.device
        frames, height, width = row.grid
        given = torch.tensor([each.given for each in drawn])
        first = torch.arange(frames * height * width) < height * width
        audio, noise, valid = self._audio(drawn)
        reference, positions, real = self._references([each.reference for each in drawn])
        return TrainingBatch(
            video=torch.stack([each.video for each in drawn]).to(there),
            audio=audio.to(there),
            video_noise=torch.stack([each.video_noise for each in drawn]).to(there),
            audio_noise=noise.to(there),
            sigmas=torch.stack([each.sigma for each in drawn]).to(there),
            video_positions=video_positions(row.grid, row.frame_rate, there),
            audio_positions=audio_positions(audio.shape[1], there),
            context=self._context([each.text for each in drawn]),
            conditioned=(given[:, None] & first[None]).to(there),
            reference=reference.to(there),
            reference_positions=positions.to(there),
            reference_valid=None if real is None else real.to(there),
            audio_valid=None if valid is None else valid.to(there),
        )

    def _audio(self, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Targets and noise (B, T, C) padded behind, and which tokens are real (B, T); None = all, or unmasked."""
        lengths = [len(each.audio) for each in drawn]
        longest = self.longest.audio or max(lengths)
        audio = _behind([each.audio for each in drawn], longest)
        noise = _behind([each.audio_noise for each in drawn], longest)
        if not self.options.mask_padding or min(lengths) == longest:
            return audio, noise, None
        return audio, noise, torch.arange(longest) < torch.tensor(lengths)[:, None]

    def _references(self, references: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """References (B, T, C), their positions, and which tokens are real; None = all, or unmasked.

        Without a mask shorter ones are padded behind, which moves them away from the target, as the official code does.
        """
        rounding, time = self.options.positions, self.options.reference_time
        longest = self.longest.reference or max(map(len, references))
        if self.options.mask_padding:
            tokens, positions, real = pad_references(references, longest, rounding, time)
            return tokens, positions, None if min(map(len, references)) == longest else real
        return _behind(references, longest), reference_positions(longest, rounding, time), None

    @torch.no_grad()
    def _context(self, texts: Sequence[TextFeatures]) -> TextContext:
        lengths = torch.tensor([[min(len(text.video), self.max_text_tokens)] for text in texts])
        mask = torch.arange(self.max_text_tokens) >= self.max_text_tokens - lengths
        parts = (self._padded([text.video for text in texts]), self._padded([text.audio for text in texts]))
        return self.attend(TextFeatures(*parts), mask.long().to(self.device))

    def _padded(self, texts: Sequence[Tensor]) -> Tensor:
        """Features (B, S, D) padded in front."""
        size = self.max_text_tokens
        rows = [torch.cat([text.new_zeros(size - min(len(text), size), text.shape[1]), text[:size]]) for text in texts]
        return torch.stack(rows).to(self.device)


def _behind(rows: Sequence[Tensor], longest: int = 0) -> Tensor:
    """Rows (T_b, C) as (B, T, C), zeros behind the shorter ones."""
    longest = longest or max(map(len, rows))
    return torch.stack([torch.cat([row, row.new_zeros(longest - len(row), row.shape[1])]) for row in rows])


def _window(reference: Tensor, seconds: tuple[float, ...], length: float, start: float) -> Tensor:
    """A window of a reference (T, C); `length` and `start` are uniform draws in [0, 1)."""
    shortest, longest = (min(len(reference), round(each * AUDIO_TOKENS_PER_SECOND)) for each in seconds)
    size = shortest + int(length * (longest - shortest + 1))
    first = int(start * (len(reference) - size + 1))
    return reference[first : first + size]
