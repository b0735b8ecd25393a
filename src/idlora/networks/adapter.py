# SPDX-License-Identifier: Apache-2.0
"""The identity adapter: low-rank branches W x + scale B A x beside linear layers of the transformer.

Read and saved in the published key layout `diffusion_model.<module>.lora_A.weight` (no alpha: scale 1). Many small ones
are saved with the layers of all blocks as one tensor, `diffusion_model.transformer_blocks.*.<layer>.lora_A.weight`
(blocks, rank, D): names and offsets are else an eighth of such a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from idlora.errors import WeightsError
from idlora.files import write_tensors
from idlora.networks.checkpoints import open_weights, to_diffusers_key, to_official_key
from idlora.networks.generations import generation_of
from idlora.networks.packing import PackedLinear
from idlora.networks.stacking import stacked_blocks, unstacked

logger = logging.getLogger(__name__)

LORA_PREFIX = "diffusion_model."
IDENTITY = "identity"
_ATTENTIONS = ("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
# The layers of every block that the published adapters change.
IDENTITY_TARGETS: tuple[str, ...] = (
    *(f"{attention}.{projection}" for attention in _ATTENTIONS for projection in _PROJECTIONS),
    "audio_ff.net.0.proj",
    "audio_ff.net.2",
)


@dataclass(frozen=True)
class LowRank:
    """One layer's change of weight: B A."""

    a: Tensor  # (rank, D_in)
    b: Tensor  # (D_out, rank)


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter by itself, its layers under diffusers' names."""

    layers: Mapping[str, LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer."""
        return {name: layer.a.shape[0] for name, layer in self.layers.items()}

    @property
    def targets(self) -> set[str]:
        """The layers without the blocks' numbers."""
        return {re.sub(r"^transformer_blocks\.\d+\.", "", name) for name in self.layers}

    @property
    def digest(self) -> str:
        """SHA-256 of names and numbers, as 64 hexadecimal digits: the same in whatever layout they were read from."""
        found = hashlib.sha256()
        for name, layer in sorted(self.layers.items()):
            for part in (layer.a, layer.b):
                found.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                found.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def read_adapter(path: Path) -> AdapterWeights:
    """Read an adapter in the published layout, or in that of many small ones.

    Raises:
        WeightsError: the file is missing or broken, or holds something else than pairs lora_A, lora_B.
    """
    with open_weights(path) as file:
        tensors = unstacked({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - not a mapping
        metadata = file.metadata() or {}
    suffix_a, suffix_b = ".lora_A.weight", ".lora_B.weight"
    modules = {key.removesuffix(suffix_a) for key in tensors if key.endswith(suffix_a)}
    expected = {module + suffix for module in modules for suffix in (suffix_a, suffix_b)}
    if not modules or tensors.keys() != expected:
        odd = _some(tensors.keys() ^ expected) or "nothing in it"
        raise WeightsError(f"{path} is not an adapter in the layout of ID-LoRA ({odd}); it needs lora_A, lora_B pairs")
    spoilt = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if spoilt:
        raise WeightsError(f"{path} holds numbers that are not finite ({_some(spoilt)}); fetch or train it again")
    layers = {}
    for module in sorted(modules):
        name = to_diffusers_key(module.removeprefix(LORA_PREFIX))
        layers[name] = LowRank(tensors[module + suffix_a], tensors[module + suffix_b])
    return AdapterWeights(layers, metadata)


def write_adapter(
    path: Path, weights: AdapterWeights, dtype: torch.dtype = torch.bfloat16, *, stacked: bool = False
) -> None:
    """Write an adapter with its metadata, in the published layout, or `stacked` in that of many small ones."""
    tensors = {}
    for name, layer in weights.layers.items():
        stem = LORA_PREFIX + to_official_key(name)
        tensors[f"{stem}.lora_A.weight"] = layer.a.detach().to("cpu", dtype).contiguous()
        tensors[f"{stem}.lora_B.weight"] = layer.b.detach().to("cpu", dtype).contiguous()
    write_tensors(path, stacked_blocks(tensors) if stacked else tensors, weights.metadata)


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _linear(transformer: Any, name: str) -> Any:
    """The linear layer of that name, seen through an injected branch; None if there is none."""
    try:
        module = transformer.get_submodule(name)
    except AttributeError:
        return None
    module = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return module if isinstance(module, torch.nn.Linear) else None


def check_adapter(transformer: Any, weights: AdapterWeights) -> None:
    """Refuse an adapter made for another network.

    Raises:
        WeightsError: it says that it is of another generation, or names layers that the network lacks or that have
            another shape there.
    """
    made_for, generation = weights.metadata.get("generation"), generation_of(transformer.config).name
    if made_for not in (None, generation):
        raise WeightsError(f"the adapter is made for LTX-{made_for}, the model is LTX-{generation}; use a fitting one")
    unfit = []
    for name, layer in weights.layers.items():
        linear = _linear(transformer, name)
        if linear is None:
            unfit.append(f"{name} (no such layer)")
        elif (linear.out_features, linear.in_features) != (layer.b.shape[0], layer.a.shape[1]):
            wanted, given = (linear.out_features, linear.in_features), (layer.b.shape[0], layer.a.shape[1])
            unfit.append(f"{name} ({given} for {wanted})")
    if unfit:
        raise WeightsError(f"the adapter does not fit this model: {_some(unfit)}; use the adapter of its generation")


class Adapter:
    """An adapter injected into a transformer as branches of their own, trainable and switchable.

    Made by `inject_adapter` or `new_adapter`. Several may stand in one transformer under different names; the branches
    of a layer add up.
    """

    def __init__(
        self, transformer: Any, layers: Mapping[str, Any], metadata: Mapping[str, str], name: str = IDENTITY
    ) -> None:
        self._transformer = transformer
        self._layers = layers
        self.metadata = dict(metadata)
        self.name = name
        self.strength = next(iter(layers.values())).scaling[name]

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the branches, A before B, layer by layer."""
        return [part.weight for layer in self._layers.values() for part in self._branch(layer)]

    def _branch(self, layer: Any) -> tuple[Any, Any]:
        return layer.lora_A[self.name], layer.lora_B[self.name]

    def make_trainable(self) -> None:
        """Want gradients, in float32 weights; the branches take their inputs as they are, without a float32 copy."""
        for layer in self._layers.values():
            layer.cast_input_dtype_enabled = False  # autocast brings both to one dtype
            for part in self._branch(layer):
                part.to(torch.float32)
        for parameter in self.parameters():
            parameter.requires_grad = True

    def set_strength(self, strength: float) -> None:
        """W x + strength * B A x from now on; 1 = as trained, 0 = the branches are not computed."""
        for layer in self._layers.values():
            layer.scaling[self.name] = strength
            others = [name for name in layer.active_adapters if name != self.name]
            _activate(layer, others if strength == 0 else [*others, self.name])
        self.strength = strength

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Another strength inside this context."""
        before = self.strength
        self.set_strength(strength)
        try:
            yield
        finally:
            self.set_strength(before)

    def disabled(self) -> AbstractContextManager[None]:
        """The network without this adapter inside this context."""
        return self.at(0.0)

    def weights(self) -> AdapterWeights:
        """The branches' weights by layer, with scale 1; they share memory with the network."""
        layers = {name: LowRank(*(part.weight for part in self._branch(each))) for name, each in self._layers.items()}
        return AdapterWeights(layers, self.metadata)

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the adapter in the published layout; the metadata names generation, rank and targets."""
        weights = self.weights()
        made = {
            "generation": generation_of(self._transformer.config).name,
            "rank": str(max(weights.ranks.values())),
            "targets": json.dumps(sorted(weights.targets)),
            **self.metadata,
        }
        write_adapter(path, AdapterWeights(weights.layers, made), dtype)

    def remove(self) -> None:
        """Take the branches out; the transformer is as it was before the injection."""
        for name, layer in self._layers.items():
            if set(layer.lora_A) == {self.name}:
                parent, _, child = name.rpartition(".")
                setattr(self._transformer.get_submodule(parent), child, layer.get_base_layer())
            else:
                layer.delete_adapter(self.name)
        self._layers = {}
        self._transformer.peft_config.pop(self.name)
        if not self._transformer.peft_config:
            del self._transformer.peft_config


def _activate(layer: Any, names: list[str]) -> None:
    """Choose the branches that are computed; which parameters want gradients stays as it is."""
    parameters = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    wanted = [parameter.requires_grad for parameter in parameters]
    layer.set_adapter([name for name in layer.lora_A if name in names], inference_mode=True)
    for parameter, requires_grad in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(requires_grad)


def _inject(
    transformer: Any, ranks: Mapping[str, int], metadata: Mapping[str, str], name: str, dropout: float = 0.0
) -> Adapter:
    """PEFT's branches at the named layers, with scale 1 everywhere."""
    from peft import LoraConfig, inject_adapter_in_model

    if name in getattr(transformer, "peft_config", {}):
        raise WeightsError(f"there is an adapter {name!r} already; give this one another name")
    rank = max(ranks.values())
    odd = {layer: value for layer, value in ranks.items() if value != rank}
    patterns = {"rank_pattern": odd, "alpha_pattern": odd}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ranks), lora_dropout=dropout, **patterns)
    active = {layer: list(layer.active_adapters) for layer in transformer.modules() if hasattr(layer, "lora_A")}
    inject_adapter_in_model(config, transformer, adapter_name=name)
    layers = {layer: transformer.get_submodule(layer) for layer in ranks}
    compute = transformer.proj_in.weight.dtype
    for changed in layers.values():  # PEFT leaves them in float32 beside packed weights
        changed.lora_A[name].to(compute)
        changed.lora_B[name].to(compute)
    for each, names in active.items():  # PEFT makes the newest the only active one
        _activate(each, [*names, name])
    return Adapter(transformer, layers, metadata, name)


def inject_adapter(
    transformer: Any,
    weights: AdapterWeights,
    strength: float = 1.0,
    *,
    name: str = IDENTITY,
    trainable: bool = False,
    dropout: float = 0.0,
) -> Adapter:
    """Put an adapter beside its layers, and beside those that are there: W x + strength * B A x; 1 = as trained.

    Raises:
        WeightsError: it is one of another network, or there is one of that name; nothing has been changed then.
    """
    check_adapter(transformer, weights)
    adapter = _inject(transformer, weights.ranks, weights.metadata, name, dropout)
    adapter.set_strength(strength)
    with torch.no_grad():
        for layer, branch in adapter.weights().layers.items():
            branch.a.copy_(weights.layers[layer].a)
            branch.b.copy_(weights.layers[layer].b)
    for parameter in adapter.parameters():
        parameter.requires_grad_(trainable)
    logger.debug("adapter injected into %d layers", len(weights.layers))
    return adapter


def new_adapter(
    transformer: Any,
    rank: int,
    targets: tuple[str, ...] = IDENTITY_TARGETS,
    metadata: Mapping[str, str] | None = None,
    dropout: float = 0.0,
) -> Adapter:
    """A fresh trainable adapter (A random, B zero: no effect yet) on the target layers of every block.

    The transformer's own parameters are frozen. Seed torch's global generator for a reproducible start.

    Raises:
        WeightsError: a block has no such layer.
    """
    transformer.requires_grad_(requires_grad=False)
    blocks = range(len(transformer.transformer_blocks))
    names = [f"transformer_blocks.{block}.{target}" for block in blocks for target in targets]
    missing = [name for name in names if _linear(transformer, name) is None]
    if missing:
        raise WeightsError(f"the model has no layers {_some(missing)}; name ends of linear layers of its blocks")
    return _inject(transformer, dict.fromkeys(names, rank), metadata or {}, IDENTITY, dropout)


Precision = Literal["fp32", "official-bf16"]


@dataclass(frozen=True)
class Fused:
    """An adapter fused into the weights, with what is needed to undo it exactly."""

    transformer: Any
    originals: Mapping[str, Tensor]

    def undo(self) -> None:
        """Put the original weights back, bit for bit."""
        with torch.no_grad():
            for name, original in self.originals.items():
                _linear(self.transformer, name).weight.copy_(original)


def fuse_adapter(
    transformer: Any,
    weights: AdapterWeights,
    strength: float = 1.0,
    precision: Precision = "fp32",
    *,
    keep: bool = True,
) -> Fused:
    """Add strength * B A to the weights.

    Args:
        transformer: changed in place; its layers keep their dtype.
        weights: the adapter.
        strength: 1 = as trained.
        precision: `fp32` computes and adds in float32; `official-bf16` rounds strength * B, the product and the sum to
            bfloat16, as the official loader does.
        keep: a copy of the weights that are changed, for undoing.

    Returns:
        A record that can undo the fusion if the weights were kept.

    Raises:
        WeightsError: the adapter is one of another network, or weights are kept in few bits, which cannot be added to;
            nothing has been changed then.
    """
    check_adapter(transformer, weights)
    if any(isinstance(_linear(transformer, name), PackedLinear) for name in weights.layers):
        raise WeightsError(
            "weights in fp8, fp8-scaled, int8 or nf4 cannot be added to; keep the adapter apart, or load them in full"
        )
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    originals = {}
    with torch.no_grad():
        for name, layer in weights.layers.items():
            weight = _linear(transformer, name).weight
            if keep:
                originals[name] = weight.detach().clone()
            a, b = layer.a.to(weight.device, dtype), layer.b.to(weight.device, dtype)
            weight.copy_(weight.to(dtype) + (b * strength) @ a)
    return Fused(transformer, originals)
