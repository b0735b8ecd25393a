# SPDX-License-Identifier: Apache-2.0
"""The networks of a pipeline in a folder of diffusers' layout: `model_index.json` and a subfolder for each."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError

from idlora.errors import OutputError, WeightsError, first_line
from idlora.files import write_text
from idlora.networks.checkpoints import aligned
from idlora.networks.classes import class_of, library_of
from idlora.networks.published import Blueprint
from idlora.networks.stack import AdapterStack

INDEX_NAME = "model_index.json"
NETWORKS = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder")
UPSAMPLER = "latent_upsampler"


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        blueprint: what it is.
        load: reads its weights.
        dtype: of these.
        files: that it is read from.
    """

    blueprint: Blueprint
    load: Callable[[], Any]
    dtype: torch.dtype
    files: tuple[Path, ...] = ()


class Components:
    """The networks of a pipeline by name: classes of diffusers and transformers, whatever their size.

    A network given as a `Source` is loaded when it is first asked for, and may be let go again. `latent_upsampler`
    doubles a clip's height and width in latents; only two-stage generation needs it.

    Args:
        tokenizer: of the text encoder.
        networks: `transformer`, `vae`, `audio_vae`, `vocoder`, `connectors`, `text_encoder`, and `latent_upsampler` if
            there is one.
    """

    def __init__(self, *, tokenizer: Any, **networks: Any) -> None:
        given = {name: network for name, network in networks.items() if network is not None}
        if not set(NETWORKS) <= given.keys() <= {*NETWORKS, UPSAMPLER}:
            raise TypeError(f"the networks are {', '.join(NETWORKS)}, perhaps {UPSAMPLER}; given are {sorted(given)}")
        self.tokenizer = tokenizer
        self._sources = {name: network for name, network in given.items() if isinstance(network, Source)}
        self._loaded = {name: network for name, network in given.items() if not isinstance(network, Source)}
        self._arrivals: list[Callable[[str, Any], None]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in (*NETWORKS, UPSAMPLER):
            raise AttributeError(name)
        return self.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that there are, loaded or not."""
        return tuple(name for name in (*NETWORKS, UPSAMPLER) if name in self._loaded or name in self._sources)

    @property
    def loaded(self) -> Mapping[str, Any]:
        """The networks that are loaded."""
        return MappingProxyType(self._loaded)

    def get(self, name: str) -> Any:
        """A network, loaded now if it is not yet; None for an upscaler that there is not."""
        if name not in self._loaded and name in self._sources:
            self._loaded[name] = self._sources[name].load()
            self._arrive(name)
        return self._loaded.get(name)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of some networks that there are but that are not loaded."""
        return [name for name in names if name in self._sources and name not in self._loaded]

    def load(self, names: Iterable[str]) -> None:
        """Load networks that are not loaded yet."""
        for name in names:
            self.get(name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        if "transformer" in self._loaded:
            dtype: torch.dtype = self._loaded["transformer"].proj_in.weight.dtype
            return dtype
        return self._sources["transformer"].dtype

    def modules(self) -> dict[str, Any]:
        """All networks, loaded."""
        return {name: self.get(name) for name in self.names}

    def config(self, name: str) -> Mapping[str, Any]:
        """Configuration of a network of diffusers, whether it is loaded or not."""
        if name in self._loaded:
            config: Mapping[str, Any] = self._loaded[name].config
            return config
        return self._sources[name].blueprint.full_config()

    def blueprint(self, name: str) -> Blueprint | None:
        """What a network that is not loaded will be."""
        return None if name in self._loaded else self._sources[name].blueprint

    def blueprints(self) -> dict[str, Blueprint]:
        """What the networks are that come from somewhere, loaded or not."""
        return {name: source.blueprint for name, source in self._sources.items()}

    def stamp(self, name: str) -> str:
        """Tells a network and its dtype from others by its files' names, sizes and times; empty if it has no files."""
        source = self._sources.get(name)
        if source is None or not source.files:
            return ""
        states = [(str(path.resolve()), path.stat()) for path in source.files]
        return repr((source.dtype, [(path, state.st_size, state.st_mtime_ns) for path, state in states]))

    def release(self, name: str) -> None:
        """Let a network go if it can be loaded again."""
        if name in self._sources:
            self._loaded.pop(name, None)

    def on_arrival(self, act: Callable[[str, Any], None]) -> None:
        """Call `act(name, network)` for every network that is loaded, and for every one when it will be."""
        self._arrivals.append(act)
        for name, network in self._loaded.items():
            act(name, network)

    def replaced(self, **networks: Any) -> Components:
        """The same with some networks, or the tokenizer, replaced."""
        return Components(**{"tokenizer": self.tokenizer, **self._loaded, **self._sources, **networks})

    def _arrive(self, name: str) -> None:
        for act in self._arrivals:
            act(name, self._loaded[name])


def adapters_of(components: Components) -> AdapterStack:
    """The adapters of the transformer, or of the one that will come."""
    waits = components.blueprint("transformer")
    if waits is None:
        return AdapterStack(components.transformer)
    stack = AdapterStack(None, cache(waits.on_meta))
    components.on_arrival(lambda name, network: stack.attach(network) if name == "transformer" else None)
    return stack


def load_components(folder: Path, dtype: torch.dtype = torch.float32, transformer: str = "transformer") -> Components:
    """The components of a folder, each to be loaded from safetensors when it is needed.

    Args:
        folder: of diffusers' layout.
        dtype: of the weights.
        transformer: its subfolder; LTX-2.5 has the distilled one in `transformer`, the full one in `transformer_full`.

    Raises:
        WeightsError: one is missing or of a class that is none of LTX-2's. Weights that are damaged or incomplete raise
            it when they are loaded.
    """
    sources = {
        name: component_source(_home(folder, name, transformer), name, blueprint.kind, dtype)
        for name, blueprint in read_blueprints(folder, transformer).items()
    }
    return Components(**sources, tokenizer=load_tokenizer(folder / "tokenizer"))


def component_source(folder: Path, name: str, kind: str, dtype: torch.dtype) -> Source:
    """One component in its own folder (WeightsError if there is none)."""
    blueprint = read_blueprint(folder, name, kind)
    files = (folder / "config.json", *sorted(folder.glob("*.safetensors")))
    return Source(blueprint, lambda: load_component(folder, name, kind, dtype), dtype, files)


def read_blueprint(folder: Path, name: str, kind: str) -> Blueprint:
    """What a component is by its configuration, without its weights (WeightsError if that cannot be read)."""
    class_of(name, kind)
    if not list(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} has no safetensors file; fetch or train it again")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Blueprint(name, kind, {key: value for key, value in config.items() if not key.startswith("_")})
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{folder / 'config.json'} is damaged or missing ({error!r}); fetch the model again"
        ) from error


def read_blueprints(folder: Path, transformer: str = "transformer") -> dict[str, Blueprint]:
    """What the components of a folder are, without their weights (WeightsError if that cannot be read)."""
    index = _read_index(folder)
    found = {name: read_blueprint(_home(folder, name, transformer), name, index[name]) for name in NETWORKS}
    if (folder / UPSAMPLER / "config.json").is_file():
        found[UPSAMPLER] = read_blueprint(folder / UPSAMPLER, UPSAMPLER, "LTX2LatentUpsamplerModel")
    return found


def _home(folder: Path, name: str, transformer: str) -> Path:
    return folder / (transformer if name == "transformer" else name)


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
