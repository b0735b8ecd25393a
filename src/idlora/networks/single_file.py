# SPDX-License-Identifier: Apache-2.0
"""Official single files of LTX-2.0 and 2.3: all five components between their keys and diffusers'.

Transformer keys are checked against the published list of names and shapes. Of the other components no list is at hand:
their names follow Lightricks' loader and diffusers' conversion, and what is proven of them is the round trip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idlora.errors import WeightsError
from idlora.files import write_tensors
from idlora.networks.checkpoints import (
    OFFICIAL_PREFIX,
    diffusers_config,
    filled,
    official_config,
    official_generation,
    open_weights,
    to_official_key,
    transformer_keys,
    transformer_section,
)
from idlora.networks.generations import generation_of
from idlora.networks.published import PUBLISHED, Blueprint

COMPONENTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
# Metadata of files that this package wrote: classes and configurations of components that are not of published size.
_OWN = "idlora_components"

# Dotted parts of keys, official and diffusers'; the first pair that matches at a place is applied.
_Pairs = tuple[tuple[str, str], ...]
_STATISTICS: _Pairs = (
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
)
_PAIRS: Mapping[str, _Pairs] = {
    "connectors": (
        (f"{OFFICIAL_PREFIX}video_embeddings_connector", "video_connector"),
        (f"{OFFICIAL_PREFIX}audio_embeddings_connector", "audio_connector"),
        ("text_embedding_projection.video_aggregate_embed", "video_text_proj_in"),
        ("text_embedding_projection.audio_aggregate_embed", "audio_text_proj_in"),
        ("text_embedding_projection.aggregate_embed", "text_proj_in"),
        ("transformer_1d_blocks", "transformer_blocks"),
        ("q_norm", "norm_q"),
        ("k_norm", "norm_k"),
    ),
    "vae": (
        *_STATISTICS,
        ("res_blocks", "resnets"),
        ("last_time_embedder", "time_embedder"),
        ("last_scale_shift_table", "scale_shift_table"),
    ),
    "audio_vae": _STATISTICS,
    "vocoder": (
        ("downsample.lowpass", "downsample"),
        ("ups", "upsamplers"),
        ("resblocks", "resnets"),
        ("conv_pre", "conv_in"),
        ("conv_post", "conv_out"),
        ("act_post", "act_out"),
    ),
}
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "connectors": tuple(official + "." for official, _ in _PAIRS["connectors"][:5]),
    "vae": ("vae.",),
    "audio_vae": ("audio_vae.",),
    "vocoder": ("vocoder.",),
}


def component_keys(component: str, keys: Iterable[str]) -> dict[str, str]:
    """Official name -> diffusers' name, of one component's keys in a file."""
    if component == "transformer":
        return transformer_keys(keys)
    mine = [key for key in keys if key.startswith(_PREFIXES[component]) and not _unused(key)]
    if component == "connectors":
        return {key: _renamed(key, _PAIRS[component]) for key in mine}
    inner = {key: key.removeprefix(_PREFIXES[component][0]) for key in mine}
    if component == "vae":
        inner = {key: _blocks_to_diffusers(name, inner.values()) for key, name in inner.items()}
    return {key: _renamed(name, _PAIRS[component]) for key, name in inner.items()}


def official_keys(component: str, names: Iterable[str]) -> dict[str, str]:
    """Diffusers' name -> official name with its prefix; the inverse of `component_keys`."""
    names = list(names)
    if component == "transformer":
        return {name: OFFICIAL_PREFIX + to_official_key(name) for name in names}
    back = tuple((theirs, official) for official, theirs in _PAIRS[component])
    if component == "connectors":
        return {name: _renamed(name, back) for name in names}
    inner = {name: _renamed(name, back) for name in names}
    if component == "vae":
        inner = {name: _blocks_to_official(official, inner.values()) for name, official in inner.items()}
    return {name: _PREFIXES[component][0] + official for name, official in inner.items()}


def _unused(key: str) -> bool:
    """Statistics that no network reads."""
    return "per_channel_statistics" in key and not key.endswith(tuple(official for official, _ in _STATISTICS))


def _renamed(key: str, pairs: _Pairs) -> str:
    """Replace whole dotted parts."""
    for given, wanted in pairs:
        key = re.sub(rf"(?<![^.]){re.escape(given)}(?![^.])", wanted, key)
    return key


# Official files number the stages of the video autoencoder in one row: residual blocks and resamplings take turns, and
# the middle stands at the encoder's end and at the decoder's beginning.


def _blocks_to_diffusers(key: str, keys: Iterable[str]) -> str:
    if found := re.match(r"encoder\.down_blocks\.(\d+)\.", key):
        index, rest = int(found[1]), key[found.end() :]
        if index == _middle(keys):
            return f"encoder.mid_block.{rest}"
        return f"encoder.down_blocks.{index // 2}.{'downsamplers.0.' if index % 2 else ''}{rest}"
    if found := re.match(r"decoder\.up_blocks\.(\d+)\.", key):
        index, rest = int(found[1]), key[found.end() :]
        if index == 0:
            return f"decoder.mid_block.{rest}"
        return f"decoder.up_blocks.{(index - 1) // 2}.{'upsamplers.0.' if index % 2 else ''}{rest}"
    return key


def _middle(keys: Iterable[str]) -> int:
    """Official number of the encoder's middle; without any weights there, the one after the last resampling."""
    last = max(int(found[1]) for key in keys if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", key)))
    return last + last % 2


def _blocks_to_official(key: str, keys: Iterable[str]) -> str:
    stages = 1 + max(int(found[1]) for name in keys if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", name)))
    if key.startswith("encoder.mid_block."):
        return key.replace("mid_block", f"down_blocks.{2 * stages}", 1)
    if key.startswith("decoder.mid_block."):
        return key.replace("mid_block", "up_blocks.0", 1)
    if found := re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.((?:down|up)samplers\.0\.)?", key):
        side, index, resampling = found[1], int(found[2]), found[3] is not None
        number = 2 * index + resampling if side == "encoder.down" else 2 * index + 2 - resampling
        return f"{side}_blocks.{number}.{key[found.end() :]}"
    return key


def load_single_file(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The five components of an official single file, in evaluation mode.

    Raises:
        WeightsError: the file is something else, or a weight is missing, unknown or of another shape.
    """
    blueprints = read_single_blueprints(path)
    return {name: load_single_component(path, blueprint, dtype) for name, blueprint in blueprints.items()}


def load_single_component(path: Path, blueprint: Blueprint, dtype: torch.dtype = torch.float32) -> Any:
    """One component of an official single file, in evaluation mode.

    Args:
        path: the file.
        blueprint: from `read_single_blueprints`.
        dtype: of the weights.

    Raises:
        WeightsError: a weight is missing, unknown or of another shape.
    """
    with open_weights(path) as file:
        names = component_keys(blueprint.component, list(file.keys()))
        weights = {name: file.get_tensor(key).to(dtype) for key, name in names.items()}
    return _built(blueprint, weights, path.name)


def read_single_blueprints(path: Path) -> dict[str, Blueprint]:
    """What an official single file holds, without its weights.

    Sizes come from the file: the transformer's from its configuration, the others' from the published ones of its
    generation, or from what this package wrote into its own files.

    Raises:
        WeightsError: it is none of LTX-2.0 or 2.3 with all components.
    """
    with open_weights(path) as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
        _refuse_other(path, keys, metadata)
        return {blueprint.component: blueprint for blueprint in _blueprints(metadata, path.name)}


def _blueprints(metadata: Mapping[str, str], source: str) -> list[Blueprint]:
    config = transformer_section(metadata, source)
    known = dict(PUBLISHED[official_generation(config).name])
    known["transformer"] = Blueprint("transformer", "LTX2VideoTransformer3DModel", diffusers_config(config))
    for component, (kind, own) in json.loads(metadata.get(_OWN, "{}")).items():
        known[component] = Blueprint(component, kind, own)
    return [known[component] for component in COMPONENTS]


def _built(blueprint: Blueprint, weights: Mapping[str, Tensor], source: str) -> Any:
    return filled(blueprint.build, weights, f"{source} ({blueprint.component})")


def _refuse_other(path: Path, keys: list[str], metadata: Mapping[str, str]) -> None:
    """Say what a file looks like if it is none of those that can be loaded."""
    accepted = "an official single file of LTX-2.0 or 2.3 with all components, or a folder in diffusers' layout"
    if looks := _other_kind(keys, metadata):
        raise WeightsError(f"{path} looks like {looks}; needed is {accepted}")


_QUANTISED = (".scale_weight", ".weight_scale", ".scaled_fp8", ".quant_map", ".absmax")


def _other_kind(keys: list[str], metadata: Mapping[str, str]) -> str:
    is_ltx = any(key.startswith(f"{OFFICIAL_PREFIX}transformer_blocks.") for key in keys)
    hints = {
        "an adapter, which is given beside a model (--adapter)": any(".lora_" in key for key in keys),
        "quantised weights, which this package does not read": any(key.endswith(_QUANTISED) for key in keys),
        "one component in diffusers' layout, whose model folder must be given": any(
            key.startswith(("transformer_blocks.", "encoder.", "decoder.")) for key in keys
        ),
        "something else than LTX-2: it has no video transformer": not is_ltx,
        "an LTX video model without sound": f"{OFFICIAL_PREFIX}audio_patchify_proj.weight" not in keys,
        "LTX-2 without its configuration in the metadata": "config" not in metadata,
    }
    for looks, found in hints.items():
        if found:
            return looks
    absent = [name for name in COMPONENTS if not component_keys(name, keys)]
    return f"LTX-2 without {', '.join(absent)}" if absent else ""


def write_single_file(path: Path, components: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write the five components as one official file.

    Args:
        path: file to write.
        components: the networks by name; more than the five are left out.
        dtype: of the parameters in the file; None = as they are. Buffers (filters, statistics of latents) stay exact.

    Raises:
        WeightsError: the transformer is of a generation without official single files.
        OutputError: the file cannot be written.
    """
    transformer = components["transformer"]
    generation = generation_of(transformer.config)
    if generation.name not in ("2.0", "2.3"):
        raise WeightsError(f"LTX-{generation.name} has no official single file; save it in diffusers' layout")
    tensors: dict[str, Tensor] = {}
    for component in COMPONENTS:
        weights, exact = components[component].state_dict(), dict(components[component].named_buffers())
        for name, official in official_keys(component, weights).items():
            kind = None if name in exact else dtype
            tensors[official] = weights[name].detach().to("cpu", kind or weights[name].dtype).contiguous()
    own = {name: _own_config(components[name]) for name in COMPONENTS if name != "transformer"}
    metadata = {
        "config": json.dumps({"transformer": official_config(transformer.config)}),
        "model_version": generation.name,
        _OWN: json.dumps(own),
    }
    write_tensors(path, tensors, metadata)


def _own_config(module: Any) -> tuple[str, dict[str, Any]]:
    return type(module).__name__, {key: value for key, value in module.config.items() if not key.startswith("_")}


# Settings of the official upscaler's file, with the defaults of Lightricks' loader -> diffusers' name.
_UPSAMPLER: Mapping[str, tuple[str, Any]] = {
    "in_channels": ("in_channels", 128),
    "mid_channels": ("mid_channels", 512),
    "num_blocks_per_stage": ("num_blocks_per_stage", 4),
    "dims": ("dims", 3),
    "spatial_upsample": ("spatial_upsample", True),
    "temporal_upsample": ("temporal_upsample", False),
    "spatial_scale": ("rational_spatial_scale", 2.0),
    "rational_resampler": ("use_rational_resampler", False),
}


def load_upsampler(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The spatial upscaler from its official file, in evaluation mode; its keys are diffusers' own.

    Raises:
        WeightsError: the file is something else, or does not fit its own configuration.
    """
    blueprint = read_upsampler_blueprint(path)
    with open_weights(path) as file:
        return _built(blueprint, {key: file.get_tensor(key).to(dtype) for key in list(file.keys())}, path.name)


def read_upsampler_blueprint(path: Path) -> Blueprint:
    """What the spatial upscaler in its official file is, without its weights (WeightsError if it is something else)."""
    with open_weights(path) as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
    if "initial_conv.weight" not in keys or "config" not in metadata:
        raise WeightsError(f"{path} is no latent upscaler of LTX-2; give the file that its model is published with")
    official = json.loads(metadata["config"])
    config = {theirs: official.get(name, default) for name, (theirs, default) in _UPSAMPLER.items()}
    return Blueprint("latent_upsampler", "LTX2LatentUpsamplerModel", config)


def write_upsampler(path: Path, upsampler: Any) -> None:
    """Write a spatial upscaler as an official file."""
    config = {name: upsampler.config[theirs] for name, (theirs, _) in _UPSAMPLER.items()}
    tensors = {key: value.detach().to("cpu").contiguous() for key, value in upsampler.state_dict().items()}
    write_tensors(path, tensors, {"config": json.dumps(config)})
