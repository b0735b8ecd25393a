# SPDX-License-Identifier: Apache-2.0
"""Guidance in x0 space: four terms as records, the passes that they need, and their one sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from types import MappingProxyType

import torch
from torch import Tensor

from idlora.core.reference import on_target, target_part
from idlora.errors import SettingsError

POSITIVE = "positive"


@dataclass(frozen=True)
class Pass:
    """One prediction of the network and how it differs from the positive one.

    `audio_only` predicts the audio alone, which hears the video states of the positive pass; the prediction's video is
    that of the positive pass.
    """

    name: str
    negative_text: bool = False
    reference: bool = True
    perturbed_blocks: tuple[int, ...] = ()
    perturbed_streams: tuple[str, ...] = ("video", "audio")
    isolated: bool = False
    adapter: bool = True
    audio_only: bool = False


@dataclass(frozen=True)
class X0:
    """Clean-data predictions of one pass."""

    video: Tensor  # (B, T_video, C)
    audio: Tensor  # (B, T_reference + T_target, C); no reference rows if the pass did not see them
    num_reference: int = 0  # leading audio rows that are reference


@dataclass(frozen=True)
class Term(ABC):
    """A guidance term: it adds weight * (x0 positive - x0 of another pass) while lo <= sigma <= hi.

    `every` = n runs the other pass in one of n calls of the model and reuses what it gave there in the n - 1 that
    follow, as a velocity, since that changes least from level to level: faster, and no longer exact.

    Raises:
        SettingsError: not 0 <= lo <= hi <= 1, or `every` below 1.
    """

    lo: float = field(default=0.0, kw_only=True)
    hi: float = field(default=1.0, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingsError(f"a guidance term every {self.every} steps; 1 computes it in each, 2 in every other")
        if not 0 <= self.lo <= self.hi <= 1:
            raise SettingsError(f"guidance interval [{self.lo}, {self.hi}]: it must lie in [0, 1], low end first")

    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """Factors of the difference for video and audio; 0 is neutral."""

    @abstractmethod
    def other_pass(self) -> Pass:
        """The pass that this term compares the positive one with."""

    def active(self, sigma: float) -> bool:
        """Whether this term changes anything at this noise level."""
        return self.lo <= sigma <= self.hi and any(weight != 0 for weight in self.weights())

    def delta(self, positive: X0, other: X0) -> X0:
        """What is added to the positive prediction."""
        video, audio = self.weights()
        return X0(video * (positive.video - other.video), audio * (positive.audio - other.audio))


@dataclass(frozen=True)
class TextGuidance(Term):
    """Classifier-free guidance (Ho and Salimans 2022): (scale - 1) (positive - negative text); 1 is neutral.

    `star` scales the negative prediction by its projection on the positive one first (CFG-Zero*, Fan et al. 2025).
    """

    video: float = 3.0
    audio: float = 7.0
    star: bool = False

    def weights(self) -> tuple[float, float]:
        """The scales less one, since the positive prediction itself counts once."""
        return self.video - 1, self.audio - 1

    def other_pass(self) -> Pass:
        """The negative text."""
        return Pass("negative", negative_text=True)

    def delta(self, positive: X0, other: X0) -> X0:
        """The plain difference, or that to the projected negative prediction."""
        if self.star:
            other = X0(_projected(positive.video, other.video), _projected(positive.audio, other.audio))
        return super().delta(positive, other)


def _projected(positive: Tensor, negative: Tensor) -> Tensor:
    """The negative prediction times <positive, negative> / |negative|^2, over each sample."""
    dot = (positive * negative).flatten(1).sum(1)
    norm = negative.square().flatten(1).sum(1)
    return negative * (dot / (norm + 1e-8))[:, None, None]


@dataclass(frozen=True)
class IdentityGuidance(Term):
    """Identity guidance (ID-LoRA): scale (positive - no reference) on the audio target; 0 is neutral.

    `video` is the scale for the picture, which the published way leaves as it is.
    `adapter_off` takes the prediction without reference from the base alone; the published way keeps the adapter on.
    `audio_only` predicts the audio alone, beside the video states of the positive pass: a fraction of the work, and an
    approximation, since these have heard the reference.

    Raises:
        SettingsError: both at once, since the positive pass has the adapter on; an audio-only pass for the picture.
    """

    scale: float = 3.0
    adapter_off: bool = False
    audio_only: bool = False
    video: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter_off and self.audio_only:
            raise SettingsError("identity guidance by the base alone needs video states of its own: no audio-only pass")
        if self.video and self.audio_only:
            raise SettingsError(
                f"identity guidance {self.video:g} of the picture needs a pass on both streams: --identity-both"
            )

    def weights(self) -> tuple[float, float]:
        """The scales as they are."""
        return self.video, self.scale

    def other_pass(self) -> Pass:
        """The reference removed."""
        return Pass("no_reference", reference=False, adapter=not self.adapter_off, audio_only=self.audio_only)

    def delta(self, positive: X0, other: X0) -> X0:
        """The difference on the target's rows; the other pass has no others."""
        change = self.scale * (target_part(positive.audio, positive.num_reference) - other.audio)
        seen = self.video * (positive.video - other.video) if self.video else torch.zeros_like(positive.video)
        return X0(seen, on_target(change, positive.num_reference))


@dataclass(frozen=True)
class STGuidance(Term):
    """Spatio-temporal guidance (Hyung et al. 2024): scale (positive - perturbed self-attention); 0 is neutral."""

    video: float = 1.0
    audio: float = 1.0
    blocks: tuple[int, ...] = (29,)

    def weights(self) -> tuple[float, float]:
        """The scales as they are."""
        return (self.video, self.audio) if self.blocks else (0.0, 0.0)

    def other_pass(self) -> Pass:
        """Self-attention of the chosen blocks perturbed."""
        return Pass("perturbed", perturbed_blocks=self.blocks)


@dataclass(frozen=True)
class ModalityGuidance(Term):
    """Modality guidance (LTX-2): (scale - 1) (positive - streams isolated from each other); 1 is neutral."""

    video: float = 3.0
    audio: float = 3.0

    def weights(self) -> tuple[float, float]:
        """The scales less one, since the positive prediction itself counts once."""
        return self.video - 1, self.audio - 1

    def other_pass(self) -> Pass:
        """No attention between video and audio."""
        return Pass("isolated", isolated=True)


@dataclass(frozen=True)
class Rescale:
    """How far the spread of the guided prediction is pulled back to that of the positive one (Lin et al. 2023).

    Raises:
        SettingsError: a share outside [0, 1].
    """

    video: float = 0.0
    audio: float = 0.0

    def __post_init__(self) -> None:
        for stream, share in (("video", self.video), ("audio", self.audio)):
            if not 0 <= share <= 1:
                raise SettingsError(f"rescale of the {stream} {share}: it must lie in [0, 1]; 0 is off, 0.7 is usual")


@dataclass(frozen=True)
class Guidance:
    """All terms of one generation; the defaults are the official ones of LTX-2.0."""

    text: TextGuidance = TextGuidance()
    identity: IdentityGuidance = IdentityGuidance()
    stg: STGuidance = STGuidance()
    modality: ModalityGuidance = ModalityGuidance()
    rescale: Rescale = Rescale()

    def active_terms(self, sigma: float, num_reference: int) -> list[Term]:
        """Terms that change anything here, in the official order.

        Without a reference there is nothing for the identity term to compare.
        """
        identity = [self.identity] if num_reference else []
        terms: list[Term] = [self.text, *identity, self.stg, self.modality]
        return [term for term in terms if term.active(sigma)]

    def plan(self, sigma: float, num_reference: int, kept: Container[str] = ()) -> list[Pass]:
        """The passes this noise level needs: the positive one, and one for each active term.

        Those in `kept` are left out by name: what they change is known.
        """
        others = [term.other_pass() for term in self.active_terms(sigma, num_reference)]
        return [Pass(POSITIVE), *(run for run in others if run.name not in kept)]


NEUTRAL = Guidance(TextGuidance(1.0, 1.0), IdentityGuidance(0.0), STGuidance(0.0, 0.0), ModalityGuidance(1.0, 1.0))


def deltas(guidance: Guidance, predictions: Mapping[str, X0], sigma: float) -> dict[str, X0]:
    """What every active term adds to the positive prediction, by the name of its other pass; those that were made."""
    positive = predictions[POSITIVE]
    terms = {term.other_pass().name: term for term in guidance.active_terms(sigma, positive.num_reference)}
    return {name: term.delta(positive, predictions[name]) for name, term in terms.items() if name in predictions}


def guide(
    guidance: Guidance, predictions: Mapping[str, X0], sigma: float, kept: Mapping[str, X0] = MappingProxyType({})
) -> X0:
    """Guided x0 = positive + sum of the active terms' deltas, then rescaled.

    The deltas are summed before they meet the positive prediction, as the official code does; with no active term
    the positive prediction is returned as it is.

    Args:
        guidance: the terms.
        predictions: x0 of the passes in `guidance.plan(sigma, ...)`, by name.
        sigma: noise level in [0, 1].
        kept: what the other terms added before, by the names of their passes.
    """
    positive = predictions[POSITIVE]
    terms = guidance.active_terms(sigma, positive.num_reference)
    if not terms:
        return positive
    known = {**kept, **deltas(guidance, predictions, sigma)}
    changes = [known[term.other_pass().name] for term in terms]
    video = positive.video + reduce(add, [change.video for change in changes])
    audio = positive.audio + reduce(add, [change.audio for change in changes])
    return X0(
        _rescaled(video, positive.video, guidance.rescale.video),
        _rescaled(audio, positive.audio, guidance.rescale.audio, positive.num_reference),
        positive.num_reference,
    )


def _rescaled(guided: Tensor, positive: Tensor, phi: float, num_reference: int = 0) -> Tensor:
    """The guided prediction times phi std(positive) / std(guided) + 1 - phi, the spread of each sample's target."""
    if phi == 0:
        return guided
    spread, wanted = (target_part(x0, num_reference).flatten(1).std(1) for x0 in (guided, positive))
    return guided * (phi * wanted / spread + 1 - phi)[:, None, None]
