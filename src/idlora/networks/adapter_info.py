# SPDX-License-Identifier: Apache-2.0
"""What an adapter's file tells about itself, and what it does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from idlora.networks.adapter import IDENTITY_TARGETS, AdapterWeights, read_adapter

# Parts of layer names that only some generations have.
_SINCE_2_3 = ("to_gate_logits", "prompt_adaln")
_ONLY_2_0 = ("caption_projection",)
# What a training run measures, in words.
MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "validation_loss": "loss of held-out samples (less is better)",
        "speaker_similarity": "cosine of the voices of made and true clips (more is better)",
        "word_error": "word error rate of made clips (less is better)",
    }
)
# What `idlora train` writes into the metadata, in the order in which it is told.
_HEADINGS: Mapping[str, str] = {
    "base": "trained on",
    "steps": "steps",
    "alpha": "alpha",
    "positions": "reference in time",
    "rounding": "positions in training",
    "mask_reference_to_video": "reference and picture",
    "reference_text": "reference and text",
    "reference_attention": "reference and the rest",
    "data": "encoded pairs",
    "seed": "seed",
    "trained_by": "trained by",
    **MEASURES,
}
_WORDS: Mapping[str, Mapping[str, str]] = {
    "positions": {
        "negative": "before zero",
        "adjacent": "before zero without a gap",
        "shared": "at the target's own times",
        "far": "20 s behind the target's start",
    },
    "rounding": {
        "fp32": "float32",
        "bf16-training": "rounded to bfloat16 as the official training does",
        "bf16-inference": "rounded to bfloat16 as the official inference does",
    },
    "mask_reference_to_video": {"true": "no video token sees the reference", "false": "video tokens see the reference"},
    "reference_text": {
        "open": "the reference attends to the text",
        "average": "the reference gets the mean over all text tokens",
        "block": "the reference gets nothing of the text",
    },
    "reference_attention": {
        "joint": "the reference hears the target too",
        "alone": "the reference hears nothing but itself",
    },
}
_TOLD_OTHERWISE = ("format", "generation", "rank", "targets", *_HEADINGS)


def describe_adapter(path: Path) -> dict[str, Any]:
    """Rank, layers, generation and training settings of an adapter's file, as JSON's own types.

    `training` says in words what the metadata has of the training, `others` is the metadata that is not ours, and
    `unknown` lists in words what the file does not say.

    Raises:
        WeightsError: the file is missing, broken or no adapter.
    """
    weights = read_adapter(path)
    ranks = sorted(set(weights.ranks.values()))
    found = re.compile(r"^transformer_blocks\.(\d+)\.")
    blocks = sorted({int(match[1]) for name in weights.layers if (match := found.match(name))})
    generation = generation_in(weights)
    return {
        "file": path.name,
        "kind": "identity" if weights.targets == set(IDENTITY_TARGETS) else "other",
        "ranks": ranks,
        "layers": len(weights.layers),
        "blocks": blocks,
        "targets": sorted(weights.targets),
        "parameters": sum(layer.a.numel() + layer.b.numel() for layer in weights.layers.values()),
        "generation": generation,
        "metadata": dict(weights.metadata),
        "training": training_in_words(weights.metadata),
        "others": {name: value for name, value in weights.metadata.items() if name not in _TOLD_OTHERWISE},
        "unknown": list(_unknown(weights.metadata, generation)),
    }


def generation_in(weights: AdapterWeights) -> str | None:
    """The generation that an adapter is made for, if its metadata or its layers tell; identity layers do not."""
    if said := weights.metadata.get("generation"):
        return said
    if any(part in target for target in weights.targets for part in _SINCE_2_3):
        return "2.3 or 2.5"
    return "2.0" if any(part in target for target in weights.targets for part in _ONLY_2_0) else None


def training_in_words(metadata: Mapping[str, str]) -> dict[str, str]:
    """What our trainer wrote of a training, by headings; a value that has no words stays as it is."""
    found = {
        heading: _WORDS.get(name, {}).get(metadata[name], metadata[name])
        for name, heading in _HEADINGS.items()
        if name in metadata
    }
    if "alpha" in found and found["alpha"] != metadata.get("rank"):
        found["alpha"] += f", rank {metadata.get('rank', 'unknown')}: the weights have their quotient in them"
    if "data" in metadata:
        digests = metadata["data"].split("+")
        found[_HEADINGS["data"]] = f"SHA-256 {', '.join(digests)}"
    return found


def _unknown(metadata: Mapping[str, str], generation: str | None) -> list[str]:
    """What a user may want to know and the file does not say."""
    missing = {
        "the generation: its layers are the same in 2.0, 2.3 and 2.5": generation is None,
        "how it was trained: there is no metadata": not metadata,
        "where its reference lay in time (published adapters: before zero)": "positions" not in metadata,
    }
    return [words for words, absent in missing.items() if absent]
