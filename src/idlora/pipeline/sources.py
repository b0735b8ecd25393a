# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: the package, a folder, the hub, or an official single file with a Gemma folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from idlora.errors import WeightsError, first_line
from idlora.files import sha256_of
from idlora.networks.adapter import read_adapter
from idlora.networks.generations import Generation, generation_of
from idlora.networks.published import Blueprint
from idlora.networks.single_file import (
    load_single_component,
    load_upsampler,
    read_single_blueprints,
    read_upsampler_blueprint,
)
from idlora.pipeline.card import ModelCard, read_card
from idlora.pipeline.components import (
    INDEX_NAME,
    UPSAMPLER,
    Components,
    Source,
    component_source,
    load_component,
    load_components,
    load_tokenizer,
    read_blueprint,
    read_blueprints,
)

PACKAGED = "miniature"


@dataclass(frozen=True)
class Parts:
    """What a model is made of beside its main folder or file.

    Attributes:
        text_encoder: folder of Gemma with its tokenizer, as transformers saves it; an official single file needs one.
        upsampler: official file, or folder of diffusers' layout, of the spatial upscaler that `two-stage` and `hq` use.
        transformer: subfolder of the transformer; LTX-2.5 has the full one in `transformer_full`.
    """

    text_encoder: str | os.PathLike[str] | None = None
    upsampler: str | os.PathLike[str] | None = None
    transformer: str = "transformer"


@contextmanager
def model_path(name: str | os.PathLike[str]) -> Iterator[Path]:
    """Where a model is: `miniature` (in the package), a local folder or single file, or a repository of the hub.

    Raises:
        WeightsError: there is nothing of that name, and it cannot be fetched.
    """
    if str(name) == PACKAGED:
        with as_file(files("idlora").joinpath(f"weights/{PACKAGED}")) as folder:
            yield _with_index(folder)
    elif Path(name).is_dir():
        yield _with_index(Path(name))
    elif Path(name).is_file():
        yield Path(name)
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
        raise WeightsError(
            f"there is no model {name}; use {PACKAGED!r}, a folder, a single file, or a hub id owner/name"
        )
    wanted = ["*.json", "*.model", "*/*.json", "*/*.jinja", "*/*.model", "*/*.safetensors", "adapter*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise WeightsError(
            f"{name} is no folder here and cannot be fetched ({reason}); check the name and the network, or fetch it "
            "elsewhere and give its folder"
        ) from error


def load_model(path: Path, dtype: torch.dtype, parts: Parts) -> Components:
    """The components of a folder or of a single file.

    Raises:
        WeightsError: something is missing, damaged, or none of what can be loaded.
    """
    components = _load_single(path, dtype, parts) if path.is_file() else _load_folder(path, dtype, parts)
    if parts.upsampler is None:
        return components
    return components.replaced(latent_upsampler=_load_upsampler(Path(parts.upsampler), dtype))


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        blueprints: its components.
        card: how it wants to be used.
        adapter_rank: of the identity adapter in its folder; None = there is none.
    """

    blueprints: Mapping[str, Blueprint]
    card: ModelCard
    adapter_rank: int | None


def read_model(name: str | os.PathLike[str], parts: Parts) -> Outline:
    """What a model is, without its weights.

    Raises:
        WeightsError: there is no such model, or it is damaged.
    """
    with model_path(name) as path:
        if path.is_file():
            found = {**read_single_blueprints(path), "text_encoder": _gemma_blueprint(_encoder_of(path, parts))}
        else:
            found = read_blueprints(path, parts.transformer)
            if parts.text_encoder is not None:
                found["text_encoder"] = _gemma_blueprint(Path(parts.text_encoder))
        if parts.upsampler is not None:
            found[UPSAMPLER] = _upsampler_blueprint(Path(parts.upsampler))
        generation = generation_of(found["transformer"].full_config())
        card = read_card(path, generation, distilled=is_distilled(generation, parts))
        ranks = read_adapter(path / card.adapter).ranks if card.adapter else {}
        return Outline(found, card, max(ranks.values(), default=None))


def is_distilled(generation: Generation, parts: Parts) -> bool:
    """Whether a model of that generation comes distilled: LTX-2.5 does, but for its full transformer."""
    return generation.name == "2.5" and parts.transformer == Parts.transformer


def _load_folder(folder: Path, dtype: torch.dtype, parts: Parts) -> Components:
    components = load_components(folder, dtype, parts.transformer)
    if parts.text_encoder is None:
        return components
    encoder, tokenizer = _gemma(Path(parts.text_encoder), dtype)
    return components.replaced(text_encoder=encoder, tokenizer=tokenizer)


def _load_single(path: Path, dtype: torch.dtype, parts: Parts) -> Components:
    if parts.transformer != Parts.transformer:
        raise WeightsError(f"{path.name}: an official single file has one transformer; leave {parts.transformer} out")
    encoder, tokenizer = _gemma(_encoder_of(path, parts), dtype)
    networks = {
        name: Source(blueprint, partial(load_single_component, path, blueprint, dtype), dtype, (path,))
        for name, blueprint in read_single_blueprints(path).items()
    }
    return Components(**networks, text_encoder=encoder, tokenizer=tokenizer)


def _encoder_of(path: Path, parts: Parts) -> Path:
    if parts.text_encoder is None:
        raise WeightsError(f"{path.name} holds no text encoder; give the folder of Gemma 3 (--text-encoder)")
    return Path(parts.text_encoder)


def _gemma(folder: Path, dtype: torch.dtype) -> tuple[Source, Any]:
    """Encoder and tokenizer; a model's `text_encoder` folder has the tokenizer beside it."""
    kind = _gemma_blueprint(folder).kind
    home = folder.parent / "tokenizer" if not list(folder.glob("tokenizer*")) else folder
    return component_source(folder, "text_encoder", kind, dtype), load_tokenizer(home)


def _gemma_blueprint(folder: Path) -> Blueprint:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{folder} is no folder of a text encoder as transformers saves it ({error!r}); give Gemma's"
        raise WeightsError(message) from error
    return read_blueprint(folder, "text_encoder", kind)


def _upsampler_blueprint(path: Path) -> Blueprint:
    return (
        read_blueprint(path, UPSAMPLER, "LTX2LatentUpsamplerModel") if path.is_dir() else read_upsampler_blueprint(path)
    )


def _load_upsampler(path: Path, dtype: torch.dtype) -> Any:
    if path.is_dir():
        return load_component(path, UPSAMPLER, "LTX2LatentUpsamplerModel", dtype)
    return load_upsampler(path, dtype)


def digests_of(source: Path, adapter: Path | None, parts: Parts) -> Callable[[], Mapping[str, str]]:
    """What computes the digests of a model and its adapter: reading gigabytes waits until a sidecar wants them."""

    def digests() -> dict[str, str]:
        found = weights_digests(source, parts.transformer)
        for role, place in (("text_encoder", parts.text_encoder), ("upsampler", parts.upsampler)):
            if place is not None:
                found |= {f"{role}: {name}": digest for name, digest in weights_digests(Path(place)).items()}
        return found if adapter is None or adapter.parent == source else found | {adapter.name: sha256_of(adapter)}

    return digests


def weights_digests(source: Path, transformer: str = Parts.transformer) -> dict[str, str]:
    """SHA-256 of a file, or of every safetensors file below a folder but those of other transformers, by its path."""
    if source.is_file():
        return {source.name: _digest(source)}
    names = sorted(path.relative_to(source) for path in source.rglob("*.safetensors"))
    used = [name for name in names if name.parts[0] == transformer or not name.parts[0].startswith(Parts.transformer)]
    return {name.as_posix(): _digest(source / name) for name in used}


def _digest(path: Path) -> str:
    # The hub's cache links to files that are named by their SHA-256; reading gigabytes again would tell no more.
    target = path.resolve().name
    return target if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", target) else sha256_of(path)
