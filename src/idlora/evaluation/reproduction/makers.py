# SPDX-License-Identifier: Apache-2.0
"""How the arms' clips are made: jointly, the sound alone, or the sound first and then the picture driven by it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from idlora.core.guidance import NEUTRAL, X0, Pass
from idlora.core.noise import generators_for
from idlora.core.reference import detach_reference
from idlora.core.samplers import sample_euler
from idlora.core.state import AVState
from idlora.errors import WeightsError
from idlora.evaluation.judges import Footage, mono
from idlora.evaluation.reproduction.arms import Arm
from idlora.evaluation.reproduction.heldout import heldout_losses
from idlora.evaluation.store import Values
from idlora.networks.adapter import IDENTITY, AdapterWeights, read_adapter
from idlora.networks.codecs import vocoder_rate
from idlora.networks.denoiser import GuidedDenoiser
from idlora.networks.joint import JointModel, JointOptions
from idlora.pipeline import IDLoraPipeline, Request
from idlora.pipeline.generation import decoded_sound, noise, prepare, schedule
from idlora.pipeline.inputs import Inputs, read_inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.settings import Settings
from idlora.pipeline.texts import Texts


class Maker(Protocol):
    """Anything that makes the clips of an arm."""

    def make(self, arm: Arm, requests: Sequence[Request], adapter: Path | None = None) -> list[Footage]:
        """A clip for each request; they share their settings but for seeds. An adapter's file instead of the own."""
        ...

    def losses(self, who: int, settings: Settings, adapter: Path | None = None) -> Values:
        """Held-out loss of a validation speaker, see `heldout.heldout_losses`; likewise."""
        ...


@dataclass(frozen=True)
class Isolated(GuidedDenoiser):
    """Every pass with the streams isolated from each other: a model of sound beside one of pictures."""

    def predict(self, state: AVState, sigma: float, plan: list[Pass]) -> dict[str, X0]:
        """As the joint denoiser, without attention between video and audio."""
        return super().predict(state, sigma, [replace(run, isolated=True) for run in plan])


@dataclass(frozen=True)
class Driving(GuidedDenoiser):
    """The picture beside a sound that is finished: at every noise level the sound is the finished one, noised so.

    A model whose streams have always shared their noise level knows no clean sound beside a noisy picture, so the known
    stream takes the place of what the model would make of it (the replacement of Song et al. 2021, with one noise).
    """

    sound: Tensor = field(kw_only=True)  # (B, T, C)

    def __call__(self, state: AVState, sigma: float) -> AVState:
        """As the joint denoiser, but for what it believes the sound to be."""
        return state.with_tokens(super().__call__(state, sigma).video.tokens, self.sound)


@dataclass(frozen=True)
class PipelineMaker:
    """Makes them with the networks of a pipeline."""

    pipe: IDLoraPipeline

    @torch.no_grad()
    def make(self, arm: Arm, requests: Sequence[Request], adapter: Path | None = None) -> list[Footage]:
        """See `Maker.make`; pictures are decoded only where the arm wants them.

        Raises:
            WeightsError: the tokens are not finite.
        """
        with self._adapted(adapter):
            return self._make(arm, requests)

    def _make(self, arm: Arm, requests: Sequence[Request]) -> list[Footage]:
        pipe = self.pipe
        batch = [read_inputs(request, pipe.card.vocabulary) for request in requests]
        bare = pipe.adapters.without_identity() if arm.reference == "none" else nullcontext()
        with bare:
            meter = Meter(pipe.device)
            texts = pipe.texts(batch, meter)
            if arm.making == "joint":
                state = pipe.latents(batch, texts, meter)
            elif arm.making == "alone":
                state = self._alone(batch, texts)
            else:
                unseen = [replace(inputs, pictures={}) for inputs in batch]
                state = self._driven(batch, texts, pipe.latents(unseen, texts, meter))
        return self._decoded(state, batch[0].settings, pictures=arm.pictures)

    def losses(self, who: int, settings: Settings, adapter: Path | None = None) -> Values:
        """See `Maker.losses`."""
        with self._adapted(adapter):
            return heldout_losses(self.pipe, who, settings)

    def _adapted(self, adapter: Path | None) -> AbstractContextManager[None]:
        return nullcontext() if adapter is None else self.pipe.adapters.exchanged(IDENTITY, _weights(adapter))

    def _alone(self, batch: Sequence[Inputs], texts: Texts) -> AVState:
        """Both streams, neither of which heard or saw the other."""
        settings, generators = batch[0].settings, generators_for([inputs.settings.seed for inputs in batch])
        guidance = replace(settings.guidance, modality=NEUTRAL.modality)  # there is nothing to isolate further
        state = noise(prepare(batch, settings, self.pipe.codecs, self.pipe.device), generators)
        guided = Isolated(self._model(settings), texts.positive, texts.negative, guidance)
        return sample_euler(guided, state, schedule(settings, self.pipe.codecs.grid(settings)))

    def _driven(self, batch: Sequence[Inputs], texts: Texts, sound: AVState) -> AVState:
        """The picture made anew from its first frame beside the finished sound, by the base with its own guidance."""
        asked = batch[0].settings.guidance
        guidance = replace(NEUTRAL, text=replace(asked.text, audio=1.0), modality=replace(asked.modality, audio=1.0))
        settings = replace(batch[0].settings, guidance=guidance)
        generators = generators_for([inputs.settings.seed for inputs in batch])
        voiceless = [replace(inputs, voice=None, settings=settings) for inputs in batch]
        start = noise(prepare(voiceless, settings, self.pipe.codecs, self.pipe.device), generators)
        heard = detach_reference(sound.audio).tokens
        driving = Driving(self._model(settings), texts.positive, texts.negative, guidance, sound=heard)
        with self.pipe.adapters.at({IDENTITY: 0.0}):
            return sample_euler(driving, start, schedule(settings, self.pipe.codecs.grid(settings)))

    def _model(self, settings: Settings) -> JointModel:
        pipe = self.pipe
        options = JointOptions.of(settings)
        around = pipe.residence.around_block
        without = pipe.adapters.without_identity
        return JointModel(pipe.components.transformer, options, without_adapter=without, around_block=around)

    def _decoded(self, state: AVState, settings: Settings, *, pictures: bool) -> list[Footage]:
        codecs, rate = self.pipe.codecs, vocoder_rate(self.pipe.codecs.vocoder)
        if not bool(torch.isfinite(state.audio.tokens).all() and torch.isfinite(state.video.tokens).all()):
            raise WeightsError("the tokens are not finite: the weights are damaged; load them anew")
        sounds = [mono(each) for each in decoded_sound(state, codecs, settings).cpu().numpy()]
        if not pictures:
            return [Footage(samples=sound, sample_rate=rate) for sound in sounds]
        frames = codecs.video.decode(state.video.tokens, codecs.grid(settings)).cpu().numpy()
        return [Footage(each, settings.frame_rate, sound, rate) for each, sound in zip(frames, sounds, strict=True)]


@lru_cache(maxsize=4)
def _weights(file: Path) -> AdapterWeights:
    return read_adapter(file)
