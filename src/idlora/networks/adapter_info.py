# SPDX-License-Identifier: Apache-2.0
"""What an adapter's file tells about itself, and what it does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idlora.networks.adapter import IDENTITY_TARGETS, AdapterWeights, read_adapter

# Parts of layer names that only some generations have.
_SINCE_2_3 = ("to_gate_logits", "prompt_adaln")
_ONLY_2_0 = ("caption_projection",)


def describe_adapter(path: Path) -> dict[str, Any]:
    """Rank, layers, generation and training settings of an adapter's file, as JSON's own types.

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
        "unknown": list(_unknown(weights.metadata, generation)),
    }


def generation_in(weights: AdapterWeights) -> str | None:
    """The generation that an adapter is made for, if its metadata or its layers tell; identity layers do not."""
    if said := weights.metadata.get("generation"):
        return said
    if any(part in target for target in weights.targets for part in _SINCE_2_3):
        return "2.3 or 2.5"
    return "2.0" if any(part in target for target in weights.targets for part in _ONLY_2_0) else None


def _unknown(metadata: Mapping[str, str], generation: str | None) -> list[str]:
    """What a user may want to know and the file does not say."""
    missing = {
        "the generation: its layers are the same in 2.0, 2.3 and 2.5": generation is None,
        "how it was trained: there is no metadata": not metadata,
        "where its reference lay in time (published adapters: before zero)": "positions" not in metadata,
    }
    return [words for words, absent in missing.items() if absent]
