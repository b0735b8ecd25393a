# SPDX-License-Identifier: Apache-2.0
"""What the judges of the miniature's world have learnt: linear maps in one small file, with their held-out accuracy."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from idlora.evaluation.classifier import Linear, Ridge
from idlora.evaluation.judges.sounds import Floats
from idlora.files import sha256_of, write_tensors

_PARTS = ("mean", "scale", "weights")


def write_learnt(path: Path, maps: dict[str, Linear], extra: dict[str, Floats], facts: dict[str, Any]) -> None:
    """Write maps and other arrays in half precision (the maps' weights relative to the scale, so that it suffices)."""
    import torch

    arrays = {f"{name}/{part}": getattr(linear, part) for name, linear in maps.items() for part in _PARTS} | extra
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array, np.float16)) for name, array in arrays.items()}
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


@cache
def _asset() -> tuple[dict[str, Floats], dict[str, Any], str]:
    """Arrays, facts and SHA-256 of the file that ships, made by `tools/train_world_judges.py`."""
    with as_file(files("idlora.evaluation.judges").joinpath("assets/world.safetensors")) as path:
        with safe_open(path, framework="np") as stream:
            arrays = {name: stream.get_tensor(name).astype(np.float64) for name in stream.keys()}  # noqa: SIM118
            facts = json.loads(stream.metadata()["facts"])
        return arrays, facts, sha256_of(path)


def learnt_map(name: str) -> Linear:
    """A map of the file that ships."""
    arrays = _asset()[0]
    return Linear(*(arrays[f"{name}/{part}"] for part in _PARTS))


def learnt_classifier(name: str) -> Ridge:
    """A classifier of the file that ships."""
    return Ridge(tuple(facts()["labels"][name]), learnt_map(name))


def learnt_array(name: str) -> Floats:
    """Another array of it."""
    return _asset()[0][name]


def facts() -> dict[str, Any]:
    """Labels, and accuracy on unseen speakers and faces."""
    return _asset()[1]


def weights_hash() -> str:
    """SHA-256 of the file."""
    return _asset()[2]
