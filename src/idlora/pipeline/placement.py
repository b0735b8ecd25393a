# SPDX-License-Identifier: Apache-2.0
"""Where the networks are while a clip is made, and in what form the transformer's weights are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import nn

from idlora.errors import DeviceMemoryError, SettingsError
from idlora.networks.executor import Sharing
from idlora.networks.footprint import tensors_of
from idlora.networks.packing import STORAGES, Storage, smaller_storage, store_small
from idlora.networks.streaming import BlockStream, Guest
from idlora.pipeline.components import UPSAMPLER, Components
from idlora.pipeline.meter import Meter

Where = Literal["whole", "offload", "stream"]

# The stages of a generation and the networks that work in each.
STAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text_encoder",),
        "connect": ("connectors",),
        "prepare": ("vae", "audio_vae"),
        "denoise": ("transformer",),
        "upscale": ("vae", UPSAMPLER),
        "refine": ("transformer",),
        "decode": ("vae", "audio_vae", "vocoder"),
    }
)
# Networks whose blocks can come one by one; those that run once a clip always do, since they come whole in any case.
STREAMED: Mapping[Where, tuple[str, ...]] = MappingProxyType(
    {
        "whole": (),
        "offload": ("text_encoder", "connectors"),
        "stream": ("text_encoder", "connectors", "transformer"),
    }
)


@dataclass(frozen=True)
class Placement:
    """How a model is fitted to a device.

    Attributes:
        where: `whole` keeps every network on the device; `offload` brings each one there for its stage, text encoder
            and connectors block by block; `stream` brings the transformer block by block too.
        storage: `full` keeps the transformer's weights as they are; `fp8` and `int8` keep those of its linear layers in
            eight bits, `nf4` in four, and compute as before, which changes results: little, less and more. `fp8-scaled`
            has scales, rounds what comes in as well, and multiplies in eight bits where the GPU does (Ada, Hopper and
            later; elsewhere `fp8` is faster and nearer). `int8` and `nf4` need bitsandbytes (the extra `quant`).
        tiled: decode the picture in overlapping tiles, which may show at their seams.
        max_branches: so many passes of a step run as one batch, where their shapes allow it.

    Raises:
        SettingsError: there is no such place or storage, or fewer branches than 1.
    """

    where: Where = "whole"
    storage: Storage = "full"
    tiled: bool = False
    max_branches: int = 1

    def __post_init__(self) -> None:
        Sharing(self.max_branches)
        for name, known in (("where", get_args(Where)), ("storage", STORAGES)):
            if getattr(self, name) not in known:
                raise SettingsError(f"placement {name} {getattr(self, name)!r}; choose one of {', '.join(known)}")

    def __str__(self) -> str:
        extra = ("" if self.storage == "full" else f"+{self.storage}") + ("+tiled" if self.tiled else "")
        return self.where + extra + (f"+{self.max_branches} branches" if self.max_branches > 1 else "")

    @property
    def sharing(self) -> Sharing:
        """How far the passes of a step go together: the text's keys and values are kept where there is room."""
        return Sharing(self.max_branches, keep_text=self.where == "whole")


WHOLE = Placement()


_PROJECTIONS = ("text_proj_in", "video_text_proj_in", "audio_text_proj_in")  # of connectors: one or two of them


def series_of(name: str, module: Any) -> list[list[nn.Module]]:
    """What of a network can come for its own calls alone: the long list of blocks, then large layers before them."""
    if name == "transformer":
        return [list(module.transformer_blocks)]
    if name == "connectors":
        projections = (getattr(module, layer, None) for layer in _PROJECTIONS)
        blocks = [*module.video_connector.transformer_blocks, *module.audio_connector.transformer_blocks]
        return [blocks, *([each] for each in projections if each is not None)]
    language = getattr(module.base_model, "language_model", module.base_model)
    return [list(language.layers), [language.embed_tokens]]


@contextmanager
def told_when_full(stage: str, placement: Placement) -> Iterator[None]:
    """Turn an overflow of the device's memory into what to do about it (DeviceMemoryError)."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = get_args(Where)
        smaller = where[where.index(placement.where) + 1 :]
        steps = [f"--placement {smaller[0]}"] if smaller else []
        steps += [] if placement.tiled or stage != "decode" else ["--tiled"]
        storage = smaller_storage(placement.storage)
        steps += [f"--storage {storage}"] if storage and not smaller else []
        remedy = " and ".join(steps) or "a smaller or shorter clip"
        raise DeviceMemoryError(
            f"the device ran out of memory in the stage {stage!r} with the placement {placement}; use {remedy}, and "
            "see what each placement takes with `idlora plan`"
        ) from error


class Residence:
    """Brings the networks of a pipeline to the device for as long as they work there.

    Args:
        components: the networks, in main memory; those that are loaded later arrive there.
        placement: how.
        device: where they work.
    """

    def __init__(self, components: Components, placement: Placement, device: torch.device) -> None:
        self._components, self._device = components, device
        self.placement = placement
        self._kept: set[str] = set()
        self._guests: dict[str, Guest] = {}
        self._streams: dict[str, list[BlockStream]] = {}
        components.on_arrival(self._receive)

    def keep(self, name: str) -> None:
        """Have a network on the device from now on, whatever the placement: it is being trained there."""
        self._kept.add(name)
        if name in self._components.loaded:
            self._components.loaded[name].to(self._device)

    def release(self, name: str) -> None:
        """Let a network go that will not be needed soon, unless it is to stay on the device."""
        if not self._stays(name):
            self._guests.pop(name, None)
            self._streams.pop(name, None)
            self._components.release(name)

    def _stays(self, name: str) -> bool:
        return self.placement.where == "whole" or name in self._kept

    def _receive(self, name: str, network: Any) -> None:
        network.eval().requires_grad_(requires_grad=False)
        if name == "vae" and self.placement.tiled:
            network.enable_tiling()
        if name == "transformer":
            store_small(network, self.placement.storage, self._device)
        if self._stays(name):
            with told_when_full(f"loading {name}", self.placement):
                network.to(self._device)

    @contextmanager
    def stage(self, name: str, meter: Meter) -> Iterator[None]:
        """The networks of a stage at work, and what they cost.

        Raises:
            DeviceMemoryError: they do not fit the device.
        """
        if missing := self._components.missing(STAGES[name]):
            with meter.verb("load"):
                self._components.load(missing)
        with meter.verb(name), told_when_full(name, self.placement), self.at_work(name):
            yield

    @contextmanager
    def at_work(self, stage: str) -> Iterator[None]:
        """The networks of a stage on the device inside this context; they must be loaded."""
        with ExitStack() as stack:
            for name in STAGES[stage]:
                network = self._components.get(name)
                if network is not None and not self._stays(name):
                    stack.enter_context(self._visit(name, network))
            yield

    def around_block(self, block: nn.Module) -> AbstractContextManager[None]:
        """One block of the transformer is on the device inside this context."""
        streams = self._streams.get("transformer")
        return streams[0].at(block) if streams else nullcontext()

    @contextmanager
    def _visit(self, name: str, module: Any) -> Iterator[None]:
        """One network on the device: whole, or all of it but its blocks and large layers, which come one by one."""
        series = series_of(name, module) if name in STREAMED[self.placement.where] else []
        self._settle(name, module, series)
        called = zip(series, self._streams.get(name, ()), strict=True) if name != "transformer" else ()
        hooks = [hook for blocks, stream in called for hook in _hooked(blocks, stream)]
        self._guests[name].fetch()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._guests[name].drop()
            for stream in self._streams.get(name, ()):
                stream.close()

    def _settle(self, name: str, module: Any, series: list[list[nn.Module]]) -> None:
        """Give the weights their home, anew if there are others than before (an adapter may have come)."""
        streamed = frozenset(id(tensor) for blocks in series for block in blocks for tensor in tensors_of(block))
        kept = [tensor for tensor in tensors_of(module) if id(tensor) not in streamed]
        settled = name in self._guests and self._guests[name].names == frozenset(map(id, kept))
        there = frozenset().union(*(stream.names for stream in self._streams.get(name, ())))
        if settled and there == streamed:
            return
        self._guests[name] = Guest(kept, self._device)
        self._streams.pop(name, None)  # whose parcels would be held twice
        self._streams[name] = [BlockStream(blocks, self._device) for blocks in series]


def _hooked(blocks: list[nn.Module], stream: BlockStream) -> list[Any]:
    """Make blocks that are called as modules come when they are called."""
    visits: dict[int, AbstractContextManager[None]] = {}

    def come(block: nn.Module, _args: Any) -> None:
        visits[id(block)] = stream.at(block)
        visits[id(block)].__enter__()

    def go(block: nn.Module, _args: Any, _out: Any) -> None:
        visits.pop(id(block)).__exit__(None, None, None)

    before = [block.register_forward_pre_hook(come) for block in blocks]
    return before + [block.register_forward_hook(go) for block in blocks]
