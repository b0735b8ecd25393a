# SPDX-License-Identifier: Apache-2.0
"""From a configuration to everything that a run works on: model, adapter, data, and how the adapter is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idlora.errors import SettingsError, TrainingError, WeightsError
from idlora.networks.adapter import (
    Adapter,
    AdapterWeights,
    LowRank,
    inject_adapter,
    new_adapter,
    read_adapter,
    write_adapter,
)
from idlora.networks.generations import generation_of
from idlora.networks.joint import TextContext
from idlora.networks.text import PromptEncoder, TextFeatures
from idlora.pipeline import IDLoraPipeline, Parts, Placement
from idlora.pipeline.card import defaults_for, read_card
from idlora.pipeline.sources import digests_of, load_model, model_path
from idlora.training.identity.batches import Batcher, Longest
from idlora.training.identity.config import AdapterShape, Data, Engine, Model, ObjectiveOptions, TrainingConfig
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.sampling import Sampler
from idlora.training.latents.store import LatentStore, Row


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with the adapter that is trained.

    Attributes:
        pipe: the model; it makes clips with the adapter as it is.
        adapter: in its transformer.
        module: the training step.
    """

    pipe: IDLoraPipeline
    adapter: Adapter
    module: TrainingModule


def named_model(model: Model) -> str:
    """The model's name (SettingsError if there is none)."""
    if not model.name:
        raise SettingsError("model.name is empty: give a folder, a hub repository or an official file")
    return model.name


def parts_of(model: Model) -> Parts:
    """What it is made of beside its main folder or file."""
    return Parts(model.text_encoder or None, transformer=model.transformer)


def load_bench(config: TrainingConfig, device: torch.device) -> Bench:
    """Load the model and put a trainable adapter into it.

    Raises:
        WeightsError: the model or the starting adapter is missing, damaged or of another generation.
        SettingsError: no model is named.
    """
    parts = parts_of(config.model)
    dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
    with model_path(named_model(config.model)) as path:
        components = load_model(path, dtype, parts)
        card = replace(
            read_card(path, generation_of(components.config("transformer"))), adapter="", adapter_strength=1.0
        )
        placement = Placement("whole" if device.type == "cpu" else "offload", config.engine.storage)
        origins = digests_of(path, None, parts)
        pipe = IDLoraPipeline(components, card, device=device, placement=placement, origins=origins)
        pipe.residence.keep("transformer")
        if config.engine.storage == "full":  # else memory is short: they come for every batch, block by block
            pipe.residence.keep("connectors")
        components.load(["transformer", "connectors"])
    return make_bench(config, pipe)


def make_bench(config: TrainingConfig, pipe: IDLoraPipeline) -> Bench:
    """Put a trainable adapter into a pipeline that has none; clips are made with the masks of the objective."""
    transformer = pipe.components.transformer
    pipe.card = defaults_for(pipe.card, _conditions(config.objective), Path(config.out))
    adapter = _adapter(transformer, config.adapter, config.seed)
    adapter.make_trainable()
    if config.adapter.scale != 1:
        adapter.set_strength(config.adapter.scale)
    pipe.adapters.adopt(adapter)
    module = TrainingModule(transformer, config.objective, bf16=config.engine.precision != "fp32")
    set_checkpointing(module, config.engine)
    if config.engine.compile:
        module.model.compile_blocks(dynamic=False)
    return Bench(pipe, adapter, module)


def set_checkpointing(module: TrainingModule, engine: Engine) -> None:
    """Choose what is computed again in the backward pass."""
    if engine.checkpointing != "none":
        module.model.recomputed = max(0, len(module.transformer.transformer_blocks) - engine.kept_blocks)
        module.model.keeps_attention = engine.checkpointing == "attention" and module.attention_is_fused


def _adapter(transformer: Any, shape: AdapterShape, seed: int) -> Adapter:
    if shape.start:
        weights = read_adapter(Path(shape.start))
        return inject_adapter(transformer, weights, trainable=True, dropout=shape.dropout)
    torch.manual_seed(seed)
    return new_adapter(transformer, shape.rank, shape.targets, dropout=shape.dropout)


def checked_device(name: str) -> str:
    """The name of a device that is here, or `auto` (SettingsError if it is not)."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise SettingsError(f"engine.device {name!r} is not here; choose auto or cpu, or a machine that has it")
    return name


@dataclass(frozen=True)
class Fit:
    """What encoded pairs must be for a model.

    Attributes:
        generation: of the model.
        widths: numbers of a token, by the names of `LatentStore.widths`.
    """

    generation: str
    widths: Mapping[str, int]

    @classmethod
    def of(cls, transformer: Mapping[str, Any], connectors: Mapping[str, Any]) -> Fit:
        """By the configurations of its networks."""
        texts = ("video_hidden_dim", "audio_hidden_dim") if connectors["per_modality_projections"] else None
        text, text_audio = (connectors[name] for name in texts or ("caption_channels",) * 2)
        audio: int = transformer["audio_in_channels"]
        widths = {"video": transformer["in_channels"], "audio": audio, "reference": audio}
        return cls(generation_of(transformer).name, {**widths, "text": text, "text_audio": text_audio})

    def check(self, store: LatentStore) -> None:
        """Refuse pairs that the model cannot read (TrainingError); a damaged shard is told when it is read."""
        if store.header.generation != self.generation:
            raise TrainingError(
                f"{store.folder} was encoded by LTX-{store.header.generation}, the model is LTX-{self.generation}; "
                "encode the pairs with it"
            )
        for name, width in store.widths().items():
            if width != self.widths[name]:
                raise TrainingError(
                    f"{store.folder} was encoded by another model: its {name} has {width} numbers a token, this model "
                    f"reads {self.widths[name]}; encode the pairs with it"
                )


def fit_of(pipe: IDLoraPipeline) -> Fit:
    """What a loaded model reads."""
    return Fit.of(pipe.components.config("transformer"), pipe.components.config("connectors"))


def open_stores(folders: tuple[str, ...], fit: Fit) -> tuple[LatentStore, ...]:
    """Encoded pairs.

    Raises:
        TrainingError: a folder holds none, or those of another model.
    """
    stores = tuple(LatentStore(Path(folder)) for folder in folders)
    for store in stores:
        fit.check(store)
    return stores


def samples_of(stores: tuple[LatentStore, ...], split: str) -> tuple[tuple[LatentStore, Row], ...]:
    """The samples of a split, folder by folder in the order of their ids (TrainingError if there are none).

    The order of the index is none to rely on: what is encoded anew stands at its end.
    """
    found = tuple((store, row) for store in stores for row in sorted(store.of_split(split), key=lambda row: row.id))
    if not found:
        names = ", ".join(str(store.folder) for store in stores) or "data.train, which is empty"
        raise TrainingError(f"there is no sample of the split {split!r} in {names}; precompute some")
    return found


def training_samples(data: Data, fit: Fit) -> tuple[tuple[LatentStore, Row], ...]:
    """The samples that are trained on (TrainingError if there are none)."""
    return samples_of(open_stores(data.train, fit), "train")[: data.limit or None]


def validation_samples(config: TrainingConfig, fit: Fit) -> tuple[tuple[LatentStore, Row], ...]:
    """The samples of the validation loss; none if nobody asks for it (TrainingError if there are none then)."""
    if not config.data.validation or not config.watching.validate_every:
        return ()
    return samples_of(open_stores(config.data.validation, fit), "validation")


def make_sampler(config: TrainingConfig, bench: Bench, world: int) -> Sampler:
    """The training samples in their order, for so many processes."""
    samples = training_samples(config.data, fit_of(bench.pipe))
    return Sampler(samples, config.engine.batch * config.engine.accumulate * world, config.seed)


def make_batcher(config: TrainingConfig, bench: Bench, sampler: Sampler, device: torch.device) -> Batcher:
    """What makes batches of samples."""
    pipe = bench.pipe
    encoder = PromptEncoder(pipe.components.tokenizer, None, pipe.components.connectors, pipe.card.max_text_tokens)
    # Held-out samples go through the same compiled blocks, and may be longer.
    rows = [row for _, row in (*sampler.samples, *validation_samples(config, fit_of(pipe)))]
    longest = Longest(max(row.num_audio for row in rows), max(row.num_reference for row in rows))
    if config.objective.equal_lengths:
        longest = longest._replace(audio=0)

    def attend(features: TextFeatures, mask: Tensor) -> TextContext:
        with pipe.residence.at_work("connect"):
            return encoder.attended(features, mask)

    return Batcher(
        options=config.objective,
        attend=attend,
        max_text_tokens=pipe.card.max_text_tokens,
        seed=config.seed,
        device=device,
        longest=longest if config.engine.compile else Longest(),
    )


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """Writes the adapter in the published layout, with what is to be known of it.

    Args:
        config: of the run.
        bench: model and adapter.
        data: SHA-256 of the samples.
    """

    config: TrainingConfig
    bench: Bench
    data: str

    def __call__(self, path: Path, weights: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
        """Weights by the names of the trained parameters; the scale goes into B, since published files have none."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.items():
            layer, part = _layer_of(name)
            parts.setdefault(layer, {})[part] = value
        scale = self.config.adapter.scale
        layers = {layer: LowRank(each["A"], each["B"] * scale) for layer, each in parts.items()}
        write_adapter(path, AdapterWeights(layers, {**self.metadata(layers), **told}))

    def metadata(self, layers: Mapping[str, LowRank]) -> dict[str, str]:
        """Rank, targets, generation, positions, masks, data and versions."""
        from idlora import __version__

        rank = max(layer.a.shape[0] for layer in layers.values())
        return {
            "format": "pt",
            "generation": self.bench.pipe.generation.name,
            "base": self.config.model.name
            if self.config.model.name == "miniature"
            else Path(self.config.model.name).name,
            "rank": str(rank),
            "alpha": f"{self.config.adapter.alpha or rank:g}",
            "targets": json.dumps(sorted(AdapterWeights(layers).targets)),
            **_conditions(self.config.objective),
            "data": self.data,
            "seed": str(self.config.seed),
            "trained_by": f"idlora {__version__}",
        }


def _conditions(objective: ObjectiveOptions) -> dict[str, str]:
    """What of an objective inference has to do as well, as metadata."""
    return {
        "positions": objective.reference_time,
        "rounding": objective.positions,
        "mask_reference_to_video": json.dumps(objective.mask_reference_to_video),
        "reference_text": objective.reference_text,
        "reference_attention": objective.reference_attention,
    }


def _layer_of(name: str) -> tuple[str, str]:
    """Layer and part of the name of a trained parameter, such as `transformer.<layer>.lora_A.identity.weight`."""
    stem, _, _ = name.removeprefix("transformer.").rpartition(".weight")
    layer, _, tail = stem.partition(".lora_")
    if not tail:
        raise WeightsError(f"{name} is no part of an adapter")
    return layer, tail[0]
