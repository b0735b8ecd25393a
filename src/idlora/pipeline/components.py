# SPDX-License-Identifier: Apache-2.0
"""The networks of a pipeline in a folder of diffusers' layout: `model_index.json` and a subfolder for each."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from idlora.errors import OutputError, WeightsError
from idlora.files import write_text
from idlora.networks.checkpoints import aligned
from idlora.networks.classes import class_of, library_of

INDEX_NAME = "model_index.json"
NETWORKS = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder")
UPSAMPLER = "latent_upsampler"


@dataclass(frozen=True)
class Components:
    """The networks of a pipeline: classes of diffusers and transformers, whatever their size.

    `latent_upsampler` doubles a clip's height and width in latents; only two-stage generation needs it.
    """

    transformer: Any
    vae: Any
    audio_vae: Any
    vocoder: Any
    connectors: Any
    text_encoder: Any
    tokenizer: Any
    latent_upsampler: Any = None

    def modules(self) -> dict[str, Any]:
        """The networks that are there by name; the tokenizer is none."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokenizer"}
        return {name: module for name, module in named.items() if module is not None}

    def for_inference(self, device: torch.device) -> Components:
        """The same, moved and frozen."""
        for module in self.modules().values():
            module.to(device).eval().requires_grad_(requires_grad=False)
        return self


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_components(folder: Path, dtype: torch.dtype = torch.float32, transformer: str = "transformer") -> Components:
    """Load all components from safetensors.

    Args:
        folder: of diffusers' layout.
        dtype: of the weights.
        transformer: its subfolder; LTX-2.5 has the distilled one in `transformer`, the full one in `transformer_full`.

    Raises:
        WeightsError: one is missing, damaged, incomplete or of a class that is none of LTX-2's.
    """
    index = _read_index(folder)
    homes = {**{name: folder / name for name in NETWORKS}, "transformer": folder / transformer}
    loaded = {name: load_component(homes[name], name, index[name], dtype) for name in NETWORKS}
    if (folder / UPSAMPLER / "config.json").is_file():
        loaded[UPSAMPLER] = load_component(folder / UPSAMPLER, UPSAMPLER, "LTX2LatentUpsamplerModel", dtype)
    return Components(**loaded, tokenizer=load_tokenizer(folder / "tokenizer"))


def _read_index(folder: Path) -> Mapping[str, Any]:
    try:
        index: Mapping[str, Any] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        return {name: index[name][1] for name in NETWORKS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{folder / INDEX_NAME} is damaged or names too few components ({error!r})") from error


def load_component(folder: Path, name: str, kind: str, dtype: torch.dtype) -> Any:
    """One component of a class in its own folder.

    Raises:
        WeightsError: it is missing, damaged, incomplete or of a class that is none of LTX-2's.
    """
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        found = class_of(name, kind)
        # transformers and diffusers call the same option by different names.
        options["dtype" if name == "text_encoder" else "torch_dtype"] = dtype
        module, info = found.from_pretrained(folder, **options)
    except WeightsError:
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise WeightsError(f"{folder} cannot be loaded: {first_line(error)}; fetch or train it again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(f"{folder} lacks {len(missing)} weights, {missing[0]} among them; fetch it again")
    return aligned(module)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder (WeightsError if there is none)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"{folder} cannot be loaded: {first_line(error)}; fetch or train it again") from error


def save_components(folder: Path, components: Components, dtype: torch.dtype | None = None) -> None:
    """Write all components into an existing folder; `dtype` is that of the parameters in the files.

    Buffers (filters, windows, statistics of latents) are few and stay exact.
    """
    for name, module in components.modules().items():
        module.save_pretrained(folder / name, safe_serialization=True)
        _forget_origin(folder / name / "config.json")
        if dtype is not None:
            _cast_files(folder / name, module, dtype)
    components.tokenizer.save_pretrained(folder / "tokenizer")
    write_text(folder / INDEX_NAME, json.dumps(_index_of(components), indent=1) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod((folder / INDEX_NAME).stat().st_mode)  # safetensors lets nobody but the owner read


def _forget_origin(path: Path) -> None:
    """Take out the folder that a network was loaded from: it says nothing elsewhere, and much about this machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(config, indent=2) + "\n")


def _index_of(components: Components) -> dict[str, Any]:
    import diffusers

    index: dict[str, Any] = {"_class_name": "IDLoraPipeline", "_diffusers_version": diffusers.__version__}
    for name, module in components.modules().items():
        kind = type(module).__name__
        index[name] = [library_of(name, kind), kind]
    return index | {"tokenizer": ["transformers", type(components.tokenizer).__name__]}


def _cast_files(folder: Path, module: Any, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    exact = {name for name, _ in module.named_buffers()}
    for path in folder.glob("*.safetensors"):
        tensors = {key: value if key in exact else value.to(dtype) for key, value in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends well; else nothing changes.

    Raises:
        OutputError: `folder` holds something else than a model, or cannot be written.
    """
    if folder.exists() and not (folder / INDEX_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} holds something else than a model; choose a new or empty folder")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            fresh = Path(temporary, "new")
            fresh.mkdir()
            yield fresh
            if folder.exists():
                os.replace(folder, Path(temporary, "old"))
            os.replace(fresh, folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {folder}: {reason}; choose another folder or free space") from error
