# SPDX-License-Identifier: Apache-2.0
"""What a generation will take in memory, told from configurations alone, and which placement fits a device.

The generation itself runs, on the meta device: every tensor has its size there and no contents, so what is counted is
what the real run hands out. The transformer's blocks are all alike, so two of them stand for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from idlora.core.guidance import Guidance
from idlora.core.positions import SAMPLING_RATE
from idlora.data.media import Voice
from idlora.errors import SettingsError
from idlora.networks.adapter import IDENTITY, AdapterWeights, LowRank, new_adapter
from idlora.networks.footprint import Footprint, weight_bytes
from idlora.networks.packing import STORAGES, Storage, smaller_storage, stored_bytes, stored_small
from idlora.networks.published import Blueprint
from idlora.networks.stack import DISTILLED
from idlora.pipeline.components import Components
from idlora.pipeline.generation import decoded, stages
from idlora.pipeline.inputs import Request, read_inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.pipeline import IDLoraPipeline
from idlora.pipeline.placement import STAGES, STREAMED, Placement, Where, series_of
from idlora.pipeline.settings import Settings
from idlora.pipeline.texts import READERS, Texts

IDENTITY_RANK, DISTILLED_RANK = 128, 384  # as published
HEADROOM = 0.06  # of a device's memory: its context, what kernels take for themselves, gaps between tensors
META = torch.device("meta")
_FEW = 2
_TILED = "decode in tiles"
_AUTO: tuple[Storage, ...] = ("full", "fp8", "nf4")
_TWO_STEPS = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Weights:
    """Bytes of one network.

    Attributes:
        parameters: their number.
        rest: bytes of all but the blocks and what comes apart.
        blocks: bytes of each block, in the order in which they work; none if it cannot be streamed.
        apart: bytes of each large layer that works before the blocks.
        saved: what each smaller storage saves of a block.
        widest: its widest linear layer, which is there in full for a moment.
    """

    parameters: int
    rest: int
    blocks: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    saved: Mapping[Storage, int] = field(default_factory=dict)
    widest: int = 0

    def resident(self, storage: Storage = "full", *, streamed: bool = False) -> int:
        """The most bytes on the device while it works."""
        if streamed:
            return max(self.streaming(storage), self.streaming(storage, early=True))
        saved = self.saved.get(storage, 0)
        return self.rest + sum(self.blocks) - saved * len(self.blocks) + sum(self.apart) + (self.widest if saved else 0)

    def streaming(self, storage: Storage = "full", *, early: bool = False) -> int:
        """Bytes on the device while its blocks work one by one; or before that, while large layers do (`early`)."""
        saved = self.saved.get(storage, 0)
        blocks = [block - saved for block in self.blocks]
        if early:
            at_once = [layer + blocks[0] for layer in self.apart]  # the first block is on its way already
        else:
            at_once = [sum(pair) for pair in pairwise((*blocks, *blocks[:1]))]
        return self.rest + max(at_once, default=0) + (self.widest if saved else 0)


@dataclass(frozen=True)
class Demand:
    """What a generation takes, whatever the placement.

    Attributes:
        weights: of every network; adapters are part of the transformer.
        working: the most bytes of all other tensors, by stage; stages that do not happen are left out.
        tiled: the same when pictures are decoded in tiles.
        kept: what comes on top by stage if the transformer is whole on the device: keys and values of the text.
        early: of `working` what is there while large layers work before the blocks, in stages that have such.
    """

    weights: Mapping[str, Weights]
    working: Mapping[str, int]
    tiled: Mapping[str, int]
    kept: Mapping[str, int] = field(default_factory=dict)
    early: Mapping[str, int] = field(default_factory=dict)

    def components(self, stage: str, placement: Placement) -> dict[str, int]:
        """Bytes of the weights on the device, by network."""
        names = self.weights if placement.where == "whole" else STAGES[stage]
        return {
            name: self.weights[name].resident(placement.storage, streamed=name in STREAMED[placement.where])
            for name in names
            if name in self.weights
        }

    def peak(self, stage: str, placement: Placement) -> int:
        """The most bytes on the device in a stage."""
        working = (self.tiled if placement.tiled else self.working)[stage]
        if placement.where == "whole":
            return sum(self.components(stage, placement).values()) + working + self.kept.get(stage, 0)
        moments = [self._at_work(stage, placement, early=False) + working]
        if stage in self.early:
            moments.append(self._at_work(stage, placement, early=True) + self.early[stage])
        return max(moments)

    def _at_work(self, stage: str, placement: Placement, *, early: bool) -> int:
        """Bytes of weights on the device while blocks, or the large layers before them, come one by one."""
        streamed, there = STREAMED[placement.where], [name for name in STAGES[stage] if name in self.weights]
        return sum(
            self.weights[name].streaming(placement.storage, early=early)
            if name in streamed
            else self.weights[name].resident(placement.storage)
            for name in there
        )

    def host_bytes(self, placement: Placement) -> int:
        """Bytes of weights in main memory once everything is loaded: nothing if all of it is on the device.

        Text encoder and connectors are let go before the rest is loaded.
        """
        if placement.where == "whole":
            return 0
        sizes = {name: each.resident(placement.storage) for name, each in self.weights.items()}
        reading = sum(sizes.get(name, 0) for name in READERS)
        return max(reading, sum(sizes.values()) - reading)

    def peak_bytes(self, placement: Placement) -> int:
        """The most bytes on the device at any time."""
        return max(self.peak(stage, placement) for stage in self.working)


def placements(storage: Storage | Literal["auto"] = "full") -> tuple[Placement, ...]:
    """From the fastest to the one that needs least memory.

    `auto` takes every storage that the others do not beat (int8 is as large as fp8 and coarser). Weights are kept in
    fewer bits before their blocks are streamed, since a block that comes anew in each pass costs more time than its
    rounding.
    """
    if storage != "auto":
        return tuple(Placement(where, storage, tiled) for where in get_args(Where) for tiled in (False, True))
    options = [each for storage in _AUTO for each in placements(storage)]
    return tuple(sorted(options, key=lambda each: each.where == "stream"))


def fits(demand: Demand, placement: Placement, device_memory: int) -> bool:
    """Whether a placement leaves `HEADROOM` of so many bytes free."""
    return demand.peak_bytes(placement) <= device_memory * (1 - HEADROOM)


def choose(demand: Demand, device_memory: int, storage: Storage | Literal["auto"] = "full") -> Placement:
    """The fastest placement that fits a device of so many bytes; `auto` chooses the storage as well.

    Raises:
        SettingsError: none fits.
    """
    for placement in placements(storage):
        if fits(demand, placement, device_memory):
            return placement
    least = min(demand.peak_bytes(placement) for placement in placements(storage))
    needed, less = least / (1 - HEADROOM) / 1e9, None if storage == "auto" else smaller_storage(storage)
    raise SettingsError(
        f"{device_memory / 1e9:.2f} GB are too few: this clip takes a device of {needed:.2f} GB at least; make it "
        "smaller or shorter" + (f", or keep the transformer in less (--storage {less})" if less else "")
    )


def demand_of(
    blueprints: Mapping[str, Blueprint],
    settings: Settings,
    dtype: torch.dtype = torch.bfloat16,
    max_text_tokens: int = 1024,
    identity_rank: int | None = None,
    max_branches: int = 1,
) -> Demand:
    """The demand of one clip with first frame, voice, identity adapter, and the distilled one if settings want it.

    Args:
        blueprints: every component but the tokenizer.
        settings: of the generation.
        dtype: of the weights.
        max_text_tokens: prompts are padded to this length.
        identity_rank: of the identity adapter; None = as published.
        max_branches: so many passes of a step at once.

    Raises:
        InputError: a size is off the model's grid.
        SettingsError: settings ask for what the model does not have.
    """
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    transformer = blueprints["transformer"]
    num_blocks = int(transformer.full_config()["num_layers"])
    few = replace(transformer, config={**transformer.config, "num_layers": min(_FEW, num_blocks)})
    parts = {**blueprints, "transformer": few}
    made = {name: blueprint.on_meta().to(META, dtype) for name, blueprint in parts.items()}
    placement = Placement(max_branches=max_branches)
    pipe = IDLoraPipeline(Components(**made, tokenizer=_NoTokenizer()), device=META, placement=placement)
    with META:  # where PEFT makes its branches
        _adapt(pipe, settings, identity_rank or IDENTITY_RANK)
    pipe.check(settings)
    short = _short(settings, num_blocks)
    working, early = _simulated(pipe, short, max_text_tokens)
    tiled = working.pop(_TILED)
    weights = {name: weights_of(name, module, num_blocks) for name, module in pipe.components.modules().items()}
    kept = _kept_text(made["transformer"], settings, dtype, max_text_tokens)
    # The simulated network is whole: it kept the text of its few blocks, where others have that of one at a time.
    working = {
        stage: size - (len(made["transformer"].transformer_blocks) - 1) * kept.get(stage, 0)
        for stage, size in working.items()
    }
    more = {stage: (num_blocks - 1) * size for stage, size in kept.items()}
    return Demand(weights, working, {**working, "decode": tiled}, more, early)


def _kept_text(transformer: Any, settings: Settings, dtype: torch.dtype, max_text_tokens: int) -> dict[str, int]:
    """Bytes of the text's keys and values in one block, by stage; none where they depend on the noise."""
    if getattr(transformer, "prompt_adaln", None) is not None:
        return {}
    block = transformer.transformer_blocks[0]
    width = sum(attention.inner_kv_dim for attention in (block.attn2, block.audio_attn2))
    size = 2 * width * max_text_tokens * dtype.itemsize
    parts = zip(("denoise", "refine"), stages(settings), strict=False)
    return {stage: size * (1 + any(part.guidance.text.weights())) for stage, part in parts}


def foretold(pipe: IDLoraPipeline, settings: Settings) -> str:
    """What smaller placements than a pipeline's own would take, in words; nothing if that cannot be told."""
    blueprints, now = pipe.components.blueprints(), pipe.residence.placement
    storages = dict.fromkeys((now.storage, "nf4"))
    smaller = [each for storage in storages for each in placements(storage) if each.tiled == now.tiled]
    if set(blueprints) != set(pipe.components.names):
        return ""
    rank = max(adapter.weights().ranks.values()) if (adapter := pipe.adapters.get(IDENTITY)) else None
    demand = demand_of(blueprints, settings, pipe.components.dtype, pipe.card.max_text_tokens, rank)
    peaks = {str(each): demand.peak_bytes(each) for each in smaller}
    less = [f"{name} {peak / 1e9:.3g} GB" for name, peak in peaks.items() if peak < peaks[str(now)]]
    return f" (foretold: {now} {peaks[str(now)] / 1e9:.3g} GB, {', '.join(less)})" if less else ""


class _NoTokenizer:
    """Stands where no text is read."""

    padding_side = "left"


class FootprintMeter(Meter):
    """Peak bytes of tensors by verb, wherever they are; the weights of `modules` are not among them."""

    def __init__(self, footprint: Footprint) -> None:
        super().__init__(META)
        self._footprint = footprint

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """Measure what happens inside this context."""
        self._footprint.peak = self._footprint.alive
        with super().verb(name):
            yield
        self.peak_bytes[name] = max(self._footprint.peak, self.peak_bytes.get(name, 0))


@torch.no_grad()
def _simulated(pipe: IDLoraPipeline, settings: Settings, max_text_tokens: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of all but the weights at the peak of every stage, and while large layers work before the blocks."""
    inputs = read_inputs(Request("[VISUAL] a face [SPEECH] word", settings, _picture(), _voice(settings)))
    texts = [torch.full((1, max_text_tokens), each) for each in range(1 + any(settings.guidance.text.weights()))]
    pipe.codecs.audio.mel.tables(META)  # else only the process's first plan would count them
    with Footprint(pipe.components.modules().values()) as footprint:
        meter, early = FootprintMeter(footprint), _early(pipe.components, footprint)
        contexts = pipe.reader.contexts([(ids, torch.ones_like(ids)) for ids in texts], meter)
        state = pipe.latents([inputs], Texts(contexts[0], contexts[-1]), meter)
        with meter.verb("decode"):
            decoded(state, pipe.codecs, settings)
        pipe.components.vae.enable_tiling()
        with meter.verb(_TILED):
            decoded(state, pipe.codecs, settings)
    return dict(meter.peak_bytes), early


def _early(components: Components, footprint: Footprint) -> dict[str, int]:
    """A table that is filled while networks run: by stage, the most bytes while their large layers work."""
    found, before = dict[str, int](), list[int]()
    stages_of = {name: stage for stage, names in STAGES.items() for name in names if name in READERS}

    def begins(*_: object) -> None:
        before.append(footprint.peak)
        footprint.peak = footprint.alive

    def note(stage: str, *_: object) -> None:
        found[stage] = max(found.get(stage, 0), footprint.peak)
        footprint.peak = max(footprint.peak, before.pop())

    for name, stage in stages_of.items():
        _, *apart = series_of(name, components.get(name))
        for layer in (layer for layers in apart for layer in layers):
            layer.register_forward_pre_hook(begins)
            layer.register_forward_hook(partial(note, stage))
    return found


def _picture() -> Any:
    return np.zeros((64, 64, 3), np.uint8)


def _voice(settings: Settings) -> Voice:
    samples = np.random.default_rng(0).normal(0, 0.1, (1, round(settings.max_voice_seconds * SAMPLING_RATE)))
    return Voice(samples.astype(np.float32), SAMPLING_RATE)


def _short(settings: Settings, num_blocks: int) -> Settings:
    """Two steps in each stage, in the few blocks that there are: the second step finds what the first one left."""
    stg = settings.guidance.stg
    if any(block >= num_blocks for block in stg.blocks) and any(stg.weights()):
        raise SettingsError(f"STG block {max(stg.blocks)} does not exist: this model has blocks 0 to {num_blocks - 1}")
    guidance: Guidance = replace(settings.guidance, stg=replace(stg, blocks=(0,) if stg.blocks else ()))
    short = replace(settings, guidance=guidance, sigmas=_TWO_STEPS)
    if not settings.refine.sigmas:
        return short
    return replace(short, refine=replace(settings.refine, sigmas=_TWO_STEPS))


def _adapt(pipe: IDLoraPipeline, settings: Settings, identity_rank: int) -> None:
    """The adapters that the settings call for."""
    network = pipe.components.transformer
    fresh = new_adapter(network, identity_rank)
    weights = fresh.weights()
    fresh.remove()
    pipe.adapters.add(IDENTITY, weights)
    if any(stage.distilled for stage in stages(settings)):
        pipe.adapters.add(DISTILLED, everywhere(network, DISTILLED_RANK))


def everywhere(network: Any, rank: int) -> AdapterWeights:
    """Branches beside every linear layer of the blocks."""
    layers = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.") and "lora_" not in name:
            like, rows, columns = network.proj_in.weight, module.out_features, module.in_features
            pair = (like.new_empty(rank, columns), like.new_empty(rows, rank))
            layers[name.removesuffix(".base_layer")] = LowRank(*pair)
    return AdapterWeights(layers)


def weights_of(name: str, module: Any, num_blocks: int) -> Weights:
    """Bytes of a network; a transformer has been made with few of its `num_blocks` equal blocks."""
    total, parameters = weight_bytes(module), sum(each.numel() for each in module.parameters())
    if name not in STREAMED["stream"]:
        return Weights(parameters, total)
    blocks, *others = series_of(name, module)
    sizes, apart = (tuple(map(weight_bytes, each)) for each in (blocks, [layer for each in others for layer in each]))
    if name != "transformer":
        return Weights(parameters, total - sum(sizes) - sum(apart), sizes, apart)
    layers = [layer for _, layer in stored_small(blocks[0])]
    sizes_in = {storage: [stored_bytes(layer, storage) for layer in layers] for storage in STORAGES}
    return Weights(
        parameters + (num_blocks - len(blocks)) * sum(each.numel() for each in blocks[0].parameters()),
        total - sum(sizes),
        sizes[:1] * num_blocks,
        saved={storage: sum(sizes_in["full"]) - sum(sizes_in[storage]) for storage in STORAGES},
        widest=max(sizes_in["full"]),
    )
