# SPDX-License-Identifier: Apache-2.0
"""Official single-file transformers of LTX-2.0 and 2.3: their configuration and keys onto diffusers'."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idlora.errors import WeightsError
from idlora.networks.generations import GENERATIONS, Generation

OFFICIAL_PREFIX = "model.diffusion_model."

# Parts of a dotted key, official -> diffusers.
_RENAMES: Mapping[str, str] = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_INVERSE = {theirs: official for official, theirs in _RENAMES.items()}


def to_diffusers_key(key: str) -> str:
    """One official key (without prefix) in diffusers' names."""
    return ".".join(_RENAMES.get(part, part) for part in key.split("."))


def to_official_key(key: str) -> str:
    """The inverse of `to_diffusers_key`."""
    return ".".join(_INVERSE.get(part, part) for part in key.split("."))


def transformer_keys(keys: Iterable[str]) -> dict[str, str]:
    """Official name in the file -> diffusers' name, for the transformer's keys only.

    The single files hold the text connectors under the same prefix; they belong to another component.
    """
    inner = {key: key.removeprefix(OFFICIAL_PREFIX) for key in keys if key.startswith(OFFICIAL_PREFIX)}
    return {key: to_diffusers_key(name) for key, name in inner.items() if "embeddings_connector" not in name}


# Official setting -> diffusers' setting, where only the name differs.
_SAME: Mapping[str, str] = {
    "num_attention_heads": "num_attention_heads",
    "attention_head_dim": "attention_head_dim",
    "cross_attention_dim": "cross_attention_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "audio_num_attention_heads": "audio_num_attention_heads",
    "audio_attention_head_dim": "audio_attention_head_dim",
    "audio_cross_attention_dim": "audio_cross_attention_dim",
    "audio_in_channels": "audio_in_channels",
    "audio_out_channels": "audio_out_channels",
    "num_layers": "num_layers",
    "activation_fn": "activation_fn",
    "norm_elementwise_affine": "norm_elementwise_affine",
    "norm_eps": "norm_eps",
    "caption_channels": "caption_channels",
    "attention_bias": "attention_bias",
    "positional_embedding_theta": "rope_theta",
    "timestep_scale_multiplier": "timestep_scale_multiplier",
    "av_ca_timestep_scale_multiplier": "cross_attn_timestep_scale_multiplier",
    "rope_type": "rope_type",
}


def official_generation(official: Mapping[str, Any]) -> Generation:
    """The generation of an official configuration: from 2.3 on the text attention is modulated too."""
    return GENERATIONS["2.3" if official.get("cross_attention_adaln", False) else "2.0"]


def diffusers_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """An official transformer configuration as keyword arguments of `LTX2VideoTransformer3DModel`.

    Settings that the official files leave out keep diffusers' defaults, which are those of the published models.
    """
    config = {theirs: official[name] for name, theirs in _SAME.items() if name in official}
    video_max = official.get("positional_embedding_max_pos", [20, 2048, 2048])
    audio_max = official.get("audio_positional_embedding_max_pos", [20])
    config |= {
        "pos_embed_max_pos": video_max[0],
        "base_height": video_max[1],
        "base_width": video_max[2],
        "audio_pos_embed_max_pos": audio_max[0],
        "qk_norm": "rms_norm_across_heads",
        "rope_double_precision": official.get("frequencies_precision") == "float64",
        "rope_type": official.get("rope_type", "split"),
    }
    return config | dict(official_generation(official).config)


# Official settings that say the same in every published file; Lightricks' loader checks them.
_ALWAYS: Mapping[str, Any] = {
    "dropout": 0.0,
    "num_vector_embeds": None,
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    "attention_type": "default",
}


def official_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers transformer configuration as an official one; the inverse of `diffusers_config`."""
    official = {name: config[theirs] for name, theirs in _SAME.items()} | dict(_ALWAYS)
    official |= {
        "positional_embedding_max_pos": [config["pos_embed_max_pos"], config["base_height"], config["base_width"]],
        "audio_positional_embedding_max_pos": [config["audio_pos_embed_max_pos"]],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
    }
    if not config["cross_attn_mod"]:
        return official
    since_2_3 = ("apply_gated_attention", "cross_attention_adaln", "caption_proj_before_connector")
    return official | dict.fromkeys(since_2_3, True)


def read_official_config(path: Path) -> dict[str, Any]:
    """The transformer's configuration in the metadata of an official single file.

    Raises:
        WeightsError: the file is missing, broken or carries no configuration.
    """
    with open_weights(path) as file:
        return transformer_section(file.metadata() or {}, path.name)


def transformer_section(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """The transformer's configuration in the metadata of an official file.

    Raises:
        WeightsError: there is none, or it is no JSON.
    """
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
        inner: dict[str, Any] = config.get("transformer", config)
    except (KeyError, ValueError, AttributeError) as error:
        raise WeightsError(f"{source}: the metadata has no usable 'config'; fetch the official file again") from error
    return inner


def open_weights(path: Path) -> Any:
    """A safetensors file opened for reading.

    Raises:
        WeightsError: the file is missing or broken.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        message = f"{path}: cannot be read as safetensors ({error}); check the path or fetch the file again"
        raise WeightsError(message) from error


def aligned(module: Any) -> Any:
    """Move weights that lie askew in a mapped file: matrix products round differently there, so bytes would differ."""
    for parameter in module.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module


_ALIGNMENT = 64  # bytes, as torch allocates


def read_official_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The transformer's weights of an official single file under diffusers' names."""
    with open_weights(path) as file:
        return {name: file.get_tensor(key).to(dtype) for key, name in transformer_keys(file.keys()).items()}


def load_official_transformer(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """An `LTX2VideoTransformer3DModel` from an official single file of LTX-2.0 or 2.3, in evaluation mode.

    Raises:
        WeightsError: the file is broken, or a weight is missing, unknown or of another shape.
    """
    from diffusers import LTX2VideoTransformer3DModel

    config = diffusers_config(read_official_config(path))
    return filled(lambda: LTX2VideoTransformer3DModel(**config), read_official_weights(path, dtype), path.name)


def filled(build: Callable[[], Any], weights: Mapping[str, Tensor], source: str) -> Any:
    """A network made of exactly these weights, by diffusers' names, in evaluation mode.

    Raises:
        WeightsError: a weight is missing, unknown or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        module = build()
    check_fit({name: tuple(value.shape) for name, value in weights.items()}, module, source)
    module.load_state_dict(weights, assign=True)
    return aligned(module).eval()


def check_fit(shapes: Mapping[str, tuple[int, ...]], transformer: Any, source: str) -> None:
    """Refuse weights that do not fit: every name on both sides, with equal shapes.

    Raises:
        WeightsError: names the first weights that are missing, unknown or of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in transformer.state_dict().items()}
    for problem, names in (
        ("lacks", wanted.keys() - shapes.keys()),
        ("has unknown", shapes.keys() - wanted.keys()),
        ("has of another shape", {key for key in wanted.keys() & shapes.keys() if wanted[key] != shapes[key]}),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise WeightsError(f"{source} {problem} {len(names)} weights ({listed}, ...): is it of another generation?")
