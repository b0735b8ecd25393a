# SPDX-License-Identifier: Apache-2.0
"""`IDLoraPipeline`: a picture, a voice and a prompt in, a clip out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

import torch

from idlora.core.noise import Generators, generators_for
from idlora.core.samplers import Callback
from idlora.core.state import AVState
from idlora.errors import DeviceMemoryError, SettingsError
from idlora.files import sha256_of
from idlora.networks.adapter import IDENTITY, AdapterWeights, read_adapter
from idlora.networks.codecs import AudioCodec, VideoCodec
from idlora.networks.generations import Generation, generation_of
from idlora.networks.joint import JointModel, JointOptions
from idlora.networks.kernels import attention_by, check_attention
from idlora.networks.ranks import Ranks
from idlora.networks.single_file import write_single_file
from idlora.networks.stack import DISTILLED
from idlora.networks.text import PromptTokens
from idlora.pipeline.card import ModelCard, defaults_for, published_card, read_card, write_card
from idlora.pipeline.checks import check_adapters, check_graphs, check_ranks, check_size, check_upscaler
from idlora.pipeline.components import UPSAMPLER, Components, adapters_of, replacing_folder, save_components
from idlora.pipeline.generation import (
    Codecs,
    Media,
    Sampling,
    decode,
    denoise,
    grid_step,
    noise,
    prepare,
    renoise,
    schedule,
    stages,
    upscale,
)
from idlora.pipeline.inputs import (
    Inputs,
    Keyframe,
    Picture,
    Recording,
    Request,
    common_settings,
    read_by_text,
    read_inputs,
    refuse_mixed_voices,
    sized_by_picture,
    texts_in,
)
from idlora.pipeline.meter import Meter
from idlora.pipeline.output import Result
from idlora.pipeline.placement import WHOLE, Placement, Residence
from idlora.pipeline.settings import Options, Settings, settings_to_json, with_options
from idlora.pipeline.sources import PACKAGED, Parts, digests_of, is_distilled, load_model, model_path
from idlora.pipeline.texts import READERS, PromptReader, TextCache, Texts, joined, told_cuts

_ADAPTER_NAME = "adapter.safetensors"


class IDLoraPipeline:
    """The networks of one model with its identity adapter.

    Args:
        components: networks and tokenizer.
        card: how the model wants to be used; by default as the official scripts use its generation.
        adapter: the identity adapter; None = the base alone.
        device: where the networks run. Noise is always drawn on the CPU, so a seed means the same everywhere.
        placement: what of them is there, and when.
        origins: SHA-256 of the weights' files, for sidecars.

    Attributes:
        text_cache: keeps encoded prompts of networks that came from files; None by default.
        ranks: processes that share out the passes of a step, and all make the same clip; None by default.
        compiled, graphs: compile the blocks, a minute or more at first; record steps as CUDA graphs. Both save time.
        attention: one of diffusers' backends (`attention_by`); empty = diffusers' own choice.

    Raises:
        WeightsError: the adapter is one of another network.
    """

    def __init__(
        self,
        components: Components,
        card: ModelCard | None = None,
        adapter: AdapterWeights | None = None,
        *,
        device: torch.device | str = "cpu",
        placement: Placement = WHOLE,
        origins: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.device = torch.device(device)
        self.components = components
        self.card = card or published_card(self.generation)
        self.tokens = PromptTokens(components.tokenizer, self.card.max_text_tokens)
        self.residence = Residence(components, placement, self.device)
        self.text_cache: TextCache | None = None
        self.compiled, self.graphs, self.attention = False, False, ""
        self.ranks: Ranks | None = None
        self.adapters = adapters_of(components)
        if adapter is not None:
            self.adapters.add(IDENTITY, adapter, self.card.adapter_strength)
        self._origins = origins

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = PACKAGED,
        *,
        adapter: str | os.PathLike[str] | None = None,
        adapter_strength: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        parts: Parts | None = None,
        placement: Placement = WHOLE,
    ) -> Self:
        """Load a model: `miniature`, a folder or hub repository in diffusers' layout, or an official single file.

        The generation is told by the weights' configuration. Masks and positions with which the identity adapter says
        that it was trained become the model's defaults.

        Args:
            name: which model.
            adapter: file of an identity adapter in the published layout, instead of the folder's own.
            adapter_strength: 1 = as trained; instead of the card's.
            device: where the networks run.
            dtype: of their weights.
            parts: text encoder and spatial upscaler from elsewhere; a single file needs a text encoder.
            placement: what is on the device when, and how the transformer is stored.

        Raises:
            WeightsError: the model or the adapter is missing, damaged or of another generation.
        """
        with model_path(name) as path:
            components = load_model(path, dtype, parts or Parts())
            generation = generation_of(components.config("transformer"))
            card = read_card(path, generation, distilled=is_distilled(generation, parts or Parts()))
            card = card if adapter_strength is None else replace(card, adapter_strength=adapter_strength)
            file = Path(adapter) if adapter is not None else path / card.adapter if card.adapter else None
            weights = None if file is None else read_adapter(file)
            card = replace(card, adapter="" if file is None else file.name)
            card = defaults_for(card, weights.metadata, file) if file is not None and weights is not None else card
            origins = digests_of(path, file, parts or Parts())
            if placement.where == "whole":  # all but what reads prompts, which may be known
                components.load(name for name in components.names if name not in READERS)
        return cls(components, card, weights, device=device, placement=placement, origins=origins)

    def add_adapter(self, name: str, file: str | os.PathLike[str], strength: float = 1.0) -> None:
        """Add one more adapter beside the identity adapter.

        Args:
            name: `distilled` has the strengths that settings name stage by stage; any other is a style, in every stage.
            file: in the published layout.
            strength: 1 = as trained.

        Raises:
            WeightsError: the file is missing or damaged, of another network, or there is one of that name.
        """
        before, added = self._origins, Path(file)
        self.adapters.add(name, read_adapter(added), strength)
        self._origins = lambda: {**before(), added.name: sha256_of(added)}
        self.__dict__.pop("digests", None)

    def fuse_adapters(self) -> None:
        """Add identity adapter and styles, not the distilled one, to the weights for good, in float32 arithmetic.

        Passes get faster, strengths stay as they are; two stages need the identity adapter apart.

        Raises:
            SettingsError: the transformer is kept in few bits, which cannot be added to.
        """
        self._require_full_storage()
        for name in self.adapters.strengths:
            if name != DISTILLED:
                self.adapters.fuse(name)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write the model in diffusers' layout, all weights as safetensors; an older model there is replaced.

        Of the adapters the identity adapter goes with it.

        Args:
            folder: a new, empty or model folder.
            dtype: of the weights in the files; None = as they are in memory.

        Raises:
            OutputError: the folder holds something else or cannot be written; then nothing has changed.
            SettingsError: the transformer is kept in few bits, from which its weights do not come back.
        """
        self._require_full_storage()
        self.components.modules()
        with replacing_folder(Path(folder)) as fresh:
            identity = self.adapters.get(IDENTITY)
            if identity:
                identity.save(fresh / _ADAPTER_NAME, dtype or torch.float32)
            with self.adapters.bare():
                save_components(fresh, self.components, dtype)
            write_card(fresh, replace(self.card, adapter=_ADAPTER_NAME if identity else ""))

    def save_single_file(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write transformer, connectors, autoencoders and vocoder as one official file, without adapter and Gemma.

        Raises:
            WeightsError: the generation has no official single files (2.5).
            OutputError: the file cannot be written.
            SettingsError: the transformer is kept in few bits.
        """
        self._require_full_storage()
        modules = self.components.modules()
        with self.adapters.bare():
            write_single_file(Path(path), modules, dtype)

    def _require_full_storage(self) -> None:
        if (storage := self.residence.placement.storage) != "full":
            raise SettingsError(f"the transformer is kept in {storage}; load it with the storage full for that")

    def __call__(
        self,
        prompt: str,
        *,
        image: Picture | None = None,
        voice: Recording | None = None,
        keyframes: Sequence[Keyframe] = (),
        settings: Settings | None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Make one clip.

        Args:
            prompt: tagged (`[VISUAL] ... [SPEECH] ... [SOUNDS] ...`) or free English with the speech in quotes.
            image: the first frame; None = the model's own idea.
            voice: seconds of somebody's speech; None = any voice.
            keyframes: pictures for other frames than the first.
            settings: instead of the model's defaults.
            callback: called before each step; returning False cancels. `progress_bar` has one.
            options: fields of `Settings` that differ from these.

        Raises:
            InputError: prompt, picture, voice or size cannot be used.
            SettingsError: a setting is out of its range.
            Cancelled: the callback returned False.
        """
        chosen = with_options(settings or self.card.defaults, options)
        return self.generate_batch([Request(prompt, chosen, image, voice, tuple(keyframes))], callback)[0]

    @torch.no_grad()
    def generate_batch(self, requests: Sequence[Request], callback: Callback | None = None) -> list[Result]:
        """Make several clips at once; each is what it would be alone, within rounding.

        Raises:
            SettingsError: the requests' settings differ in more than seed and negative prompt.
            InputError: a size is off the model's grid, or an input cannot be used.
            DeviceMemoryError: the device is too small for the placement; tells what others would take.
        """
        requests = [self._sized(request) for request in requests]
        settings = common_settings(requests)
        self.check(settings)
        meter = Meter(self.device)
        batch = [read_inputs(request, self.card.vocabulary) for request in requests]
        refuse_mixed_voices(batch)
        try:
            media = self._media(batch, meter, callback)
        except DeviceMemoryError as error:
            from idlora.pipeline.plan import foretold  # the plan runs a pipeline itself

            raise DeviceMemoryError(f"{error}{foretold(self, settings)}") from error
        return [
            Result(
                video=video,
                audio=audio,
                sample_rate=media.sample_rate,
                settings=inputs.settings,
                notes=(*inputs.notes, *told_cuts(inputs, self.tokens)),
                timings=meter.seconds,
                peak_bytes=meter.peak_bytes,
                provenance=self._provenance(inputs),
            )
            for video, audio, inputs in zip(media.video, media.audio, batch, strict=True)
        ]

    def _media(self, batch: Sequence[Inputs], meter: Meter, callback: Callback | None) -> Media:
        state = self.latents(batch, self.texts(batch, meter), meter, callback)
        with self.residence.stage("decode", meter):
            return decode(state, self.codecs, batch[0].settings)

    def record(self, request: Request) -> dict[str, Any]:
        """What a clip's sidecar says of what it was made from: prompt, inputs, model and settings.

        Raises:
            InputError: an input cannot be used.
        """
        inputs = read_inputs(self._sized(request), self.card.vocabulary)
        return {**self._provenance(inputs), "settings": settings_to_json(inputs.settings)}

    def _sized(self, request: Request) -> Request:
        return sized_by_picture(request, grid_step(request.settings, self.codecs))

    def check(self, settings: Settings) -> None:
        """Refuse before any work what these weights cannot do (InputError for a size, else SettingsError)."""
        check_size(settings, self.codecs)
        check_upscaler(settings, there=UPSAMPLER in self.components.names)
        check_adapters(settings, self.adapters, distilled_weights=self.card.distilled)
        check_graphs(settings, self.residence.placement, self.device, wanted=self.graphs)
        check_ranks(settings, self.ranks)
        check_attention(self.attention, self.device, self.components.dtype)

    def texts(self, batch: Sequence[Inputs], meter: Meter) -> Texts:
        """The encoded prompts of a batch; negative ones only if its guidance wants them."""
        positive, negative = zip(*(read_by_text(inputs.prompt, inputs.settings) for inputs in batch), strict=True)
        texts = [text for text in (*positive, *negative) if text is not None]
        contexts = self.reader.contexts([self.tokens.tokens([text]) for text in texts], meter)
        return Texts(joined(contexts[: len(batch)]), joined(others) if (others := contexts[len(batch) :]) else None)

    @torch.no_grad()
    def learn_prompts(self, requests: Sequence[Request]) -> None:
        """Read the prompts of clips to come into the text cache, if there is one; what is none is passed over."""
        self.reader.learn([self.tokens.tokens([text]) for text in texts_in(requests)], Meter(self.device))

    def latents(self, batch: Sequence[Inputs], texts: Texts, meter: Meter, callback: Callback | None = None) -> AVState:
        """The clean tokens of a batch, by one stage or two."""
        plans, generators = stages(batch[0].settings), generators_for([inputs.settings.seed for inputs in batch])
        with self.residence.stage("prepare", meter):
            state = prepare(batch, plans[0], self.codecs, self.device)
        with self.residence.stage("denoise", meter):
            state = noise(state, generators, official=plans[0].official_noise)
            state = self._denoised(state, texts, plans[0], self._sampling(plans[0], generators, callback))
        if len(plans) == 1:
            return state
        with self.residence.stage("upscale", meter):
            state = upscale(state, batch, plans, self.codecs, self.components.latent_upsampler)
        with self.residence.stage("refine", meter):
            sampling = self._sampling(plans[1], generators, callback)
            state = renoise(state, float(sampling.sigmas[0]), generators)
            return self._denoised(state, texts, plans[1], sampling)

    def _sampling(self, settings: Settings, generators: Generators, callback: Callback | None) -> Sampling:
        sigmas, sharing = schedule(settings, self.codecs.grid(settings)), self.residence.placement.sharing
        return Sampling(sigmas, generators, callback, sharing, self.ranks, self.graphs)

    def _denoised(self, state: AVState, texts: Texts, settings: Settings, sampling: Sampling) -> AVState:
        """One stage; the identity adapter works only where the sound is made."""
        strengths = {DISTILLED: settings.distilled} | ({IDENTITY: 0.0} if state.audio.frozen else {})
        with self.adapters.at(strengths), attention_by(self.attention):
            return denoise(self._model(settings), state, texts, settings, sampling)

    @property
    def reader(self) -> PromptReader:
        """What turns prompts into text contexts."""
        return PromptReader(self.components, self.residence, self.tokens, self.device, self.text_cache)

    @property
    def generation(self) -> Generation:
        """Which LTX-2 this is."""
        return generation_of(self.components.config("transformer"))

    @cached_property
    def codecs(self) -> Codecs:
        """What turns pictures and sound into tokens and back."""
        return Codecs(VideoCodec(self.components.vae), AudioCodec(self.components.audio_vae), self.components.vocoder)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files that the model came from; empty for a pipeline made of components."""
        return dict(self._origins())

    def _model(self, settings: Settings) -> JointModel:
        model = JointModel(
            self.components.transformer,
            JointOptions.of(settings),
            without_adapter=self.adapters.without_identity,
            around_block=self.residence.around_block,
        )
        if self.compiled:
            model.compile_blocks()
        return model

    def _provenance(self, inputs: Inputs) -> dict[str, Any]:
        model = {
            "name": self.card.name,
            "generation": self.generation.name,
            "weights": self.digests,
            "adapter": self.card.adapter or None,
            "adapters": self.adapters.strengths,
            "fused": sorted(self.adapters.fused),
            "dtype": str(self.components.dtype).removeprefix("torch."),
            "device": self.device.type,
            "storage": self.residence.placement.storage,
            "tiled": self.residence.placement.tiled,
            "attention": self.attention or None,
        }
        return {"prompt": inputs.prompt.text(), "inputs": dict(inputs.origins), "model": model}
