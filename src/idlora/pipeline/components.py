# SPDX-License-Identifier: Apache-2.0
"""The networks of a pipeline in a folder of diffusers' layout: `model_index.json` and a subfolder for each."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from idlora.errors import OutputError, WeightsError
from idlora.files import sha256_of, write_text

INDEX_NAME = "model_index.json"
PACKAGED = "miniature"

# Component -> module of its classes -> the classes that may be loaded.
_HOMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "transformer": {"diffusers": ("LTX2VideoTransformer3DModel",)},
    "vae": {"diffusers": ("AutoencoderKLLTX2Video",)},
    "audio_vae": {"diffusers": ("AutoencoderKLLTX2Audio",)},
    "connectors": {"diffusers.pipelines.ltx2.connectors": ("LTX2TextConnectors",)},
    "vocoder": {
        "diffusers.pipelines.ltx2.vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
        "idlora.networks.codecs": ("GriffinLimVocoder",),
    },
    "text_encoder": {
        "transformers": (
            "Gemma3TextModel",
            "Gemma3Model",
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
        )
    },
}
# What diffusers writes for classes that live beside its pipelines.
_LIBRARY = {"diffusers.pipelines.ltx2.connectors": "ltx2", "diffusers.pipelines.ltx2.vocoder": "ltx2"}


@dataclass(frozen=True)
class Components:
    """The networks of a pipeline: classes of diffusers and transformers, whatever their size."""

    transformer: Any
    vae: Any
    audio_vae: Any
    vocoder: Any
    connectors: Any
    text_encoder: Any
    tokenizer: Any

    def modules(self) -> dict[str, Any]:
        """The networks by name; the tokenizer is none."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokenizer"}

    def for_inference(self, device: torch.device) -> Components:
        """The same, moved and frozen."""
        for module in self.modules().values():
            module.to(device).eval().requires_grad_(requires_grad=False)
        return self


@contextmanager
def model_folder(name: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder of a model: `miniature` (shipped with the package), a local folder, or a repository of the hub.

    Raises:
        WeightsError: there is no such folder and it cannot be fetched.
    """
    if str(name) == PACKAGED:
        with as_file(files("idlora").joinpath(f"weights/{PACKAGED}")) as folder:
            yield _with_index(folder)
    elif Path(name).is_dir():
        yield _with_index(Path(name))
    else:
        yield _with_index(_fetched(str(name)))


def _with_index(folder: Path) -> Path:
    if not (folder / INDEX_NAME).is_file():
        raise WeightsError(f"{folder} has no {INDEX_NAME}; a folder in diffusers' layout is needed")
    return folder


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.count("/") != 1 or name.startswith((".", "/")):
        raise WeightsError(f"there is no model folder {name}; use {PACKAGED!r}, a folder, or a hub id owner/name")
    wanted = ["*.json", "*.model", "*/*.json", "*/*.jinja", "*/*.model", "*/*.safetensors", "adapter*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise WeightsError(
            f"{name} is no folder here and cannot be fetched ({reason}); check the name and the network, or fetch it "
            "elsewhere and give its folder"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_components(folder: Path, dtype: torch.dtype = torch.float32) -> Components:
    """Load all components from safetensors.

    Raises:
        WeightsError: one is missing, damaged, incomplete or of a class that is none of LTX-2's.
    """
    index = _read_index(folder)
    loaded = {name: _load(folder, name, index, dtype) for name in _HOMES}
    return Components(**loaded, tokenizer=_load_tokenizer(folder / "tokenizer"))


def _read_index(folder: Path) -> Mapping[str, Any]:
    try:
        index: Mapping[str, Any] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        return {name: index[name][1] for name in _HOMES}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{folder / INDEX_NAME} is damaged or names too few components ({error!r})") from error


def _load(folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        found = _class_of(name, index[name])
        # transformers and diffusers call the same option by different names.
        options["dtype" if name == "text_encoder" else "torch_dtype"] = dtype
        module, info = found.from_pretrained(folder / name, **options)
    except WeightsError:
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise WeightsError(f"{folder / name} cannot be loaded: {first_line(error)}; fetch or train it again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(f"{folder / name} lacks {len(missing)} weights, {missing[0]} among them; fetch it again")
    return _aligned(module)


def _aligned(module: Any) -> Any:
    """Move weights that lie askew in a mapped file: matrix products round differently there, so bytes would differ."""
    for parameter in module.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module


_ALIGNMENT = 64  # bytes, as torch allocates


def _class_of(component: str, name: str) -> Any:
    for module, classes in _HOMES[component].items():
        if name in classes:
            return getattr(import_module(module), name)
    known = ", ".join(known for classes in _HOMES[component].values() for known in classes)
    raise WeightsError(f"the {component} is a {name}; LTX-2 needs one of {known}")


def _load_tokenizer(folder: Path) -> Any:
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
        home = next(home for home, classes in _HOMES[name].items() if kind in classes)
        index[name] = [_LIBRARY.get(home, home), kind]
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


def weights_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file below a folder, by its relative path."""
    return {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*.safetensors"))}


def _digest(path: Path) -> str:
    # The hub's cache links to files that are named by their SHA-256; reading gigabytes again would tell no more.
    target = path.resolve().name
    return target if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", target) else sha256_of(path)
