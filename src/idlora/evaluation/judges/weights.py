# SPDX-License-Identifier: Apache-2.0
"""Weights that users bring: files as tensors, never as programs; folders of transformers, or names on the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from idlora.errors import WeightsError
from idlora.files import sha256_of

_INSIDE = ("model", "state_dict")  # where trainers put the tensors
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w.-]*)*")  # owner/name, and a file in it
_WEIGHTS = ("*.safetensors", "*.bin", "*.onnx")


def existing(source: str, what: str) -> Path:
    """The path of weights that must be there (WeightsError if not)."""
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"there are no weights of {what} at {source}; check the path")
    return path


def file_of(source: str, name: str, what: str) -> Path:
    """A file of weights: `source` itself, the file of a name in that folder, else what the hub has by that name.

    Args:
        source: path of the file or of its folder; or owner/name on the hub, or owner/name/file for another file of it.
        name: of the file, where `source` does not say it.
        what: whose weights they are, for messages.

    Raises:
        WeightsError: it is not there, and the hub does not give it.
    """
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source):
        return existing(str(path / name if path.is_dir() else path), what)
    from huggingface_hub import hf_hub_download

    owner, repository, *inside = source.split("/")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", "/".join(inside) or name))
    except Exception as error:  # of the network, the hub, or a name it does not take
        raise WeightsError(
            f"there are no weights of {what} at {source}, and the hub does not give them ({type(error).__name__}); "
            f"check the path, or download {'/'.join(inside) or name} and name the file"
        ) from error


def folder_of(source: str, what: str) -> Path:
    """A folder of transformers: `source` itself, else what the hub has by that name.

    Raises:
        WeightsError: it is no folder, and the hub does not give it.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.bin", "*.model"]))
    except Exception as error:
        raise WeightsError(
            f"{source} is no folder with weights of {what}, and the hub does not give it ({type(error).__name__}); "
            "download it, and name the folder"
        ) from error


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, safetensors or a checkpoint of torch, which is read without running any of it.

    Raises:
        WeightsError: it cannot be read, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise WeightsError(
            f"{path} cannot be read as tensors ({' '.join(str(error).split())[:200]}); give the published file, or "
            "convert it to safetensors"
        ) from error
    for name in _INSIDE:
        content = content[name] if isinstance(content, dict) and isinstance(content.get(name), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no table of tensors; give the published file")
    return content


def fill(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load every tensor of a network; nothing may be missing, of another shape, or left over.

    Raises:
        WeightsError: names or shapes differ: then no weight is random and no score is given.
    """
    own = network.state_dict()
    # What only training reads may be missing.
    unread = {name: value for name, value in own.items() if name.endswith(("num_batches_tracked", "masked_spec_embed"))}
    given = {**unread, **tensors}
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if missing or foreign or shapes:
        wrong = {"missing": missing, "unknown": foreign, "of another shape": sorted(shapes)}
        told = ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in wrong.items() if names)
        raise WeightsError(f"these are not the weights of {what}: tensors {told}; give the published file")
    network.load_state_dict(given)
    network.eval().requires_grad_(requires_grad=False)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the digests of a folder's weights."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Lazy:
    """A judge whose networks are loaded when it first judges; a copy for another process is of its source alone."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}
