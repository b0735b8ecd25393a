# SPDX-License-Identifier: Apache-2.0
"""Official single files: every name of the full-size models maps, with equal shapes, none left over on either side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from idlora.errors import WeightsError
from idlora.networks.checkpoints import (
    OFFICIAL_PREFIX,
    check_fit,
    diffusers_config,
    load_official_transformer,
    read_official_config,
    to_official_key,
    transformer_keys,
)
from stored_keys import GOLDEN, stored

BOTH = pytest.mark.parametrize("generation", ["2.0", "2.3"])


def official_keys(generation: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in stored(f"keys_transformer_{generation}").items()}


def published_config(generation: str) -> dict[str, Any]:
    config: dict[str, Any] = stored(f"config_{generation}")["transformer"]
    return config


def full_size(generation: str) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        return LTX2VideoTransformer3DModel(**published_config(generation))


@BOTH
def test_every_full_size_key_maps(generation: str) -> None:
    shapes = official_keys(generation)
    names = transformer_keys(shapes)
    assert len(names) == len(shapes) == len(set(names.values()))
    check_fit({names[key]: shape for key, shape in shapes.items()}, full_size(generation), generation)


@BOTH
def test_keys_map_back(generation: str) -> None:
    for key, name in transformer_keys(official_keys(generation)).items():
        assert OFFICIAL_PREFIX + to_official_key(name) == key


@BOTH
def test_configuration_maps(generation: str) -> None:
    official = read_official_config(GOLDEN / f"ltx{generation}/model_official.safetensors")
    full = {
        **official,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "cross_attention_dim": 4096,
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "audio_cross_attention_dim": 2048,
        "caption_channels": 3840,
        "num_layers": 48,
    }
    published = published_config(generation)
    made = diffusers_config(full)
    assert made == {key: published[key] for key in made}


def test_connectors_under_the_same_prefix_are_left_to_their_component() -> None:
    keys = [f"{OFFICIAL_PREFIX}patchify_proj.weight", f"{OFFICIAL_PREFIX}video_embeddings_connector.x", "vae.x"]
    assert transformer_keys(keys) == {keys[0]: "proj_in.weight"}


def test_misfits_are_named() -> None:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        network = LTX2VideoTransformer3DModel(**{**published_config("2.3"), "num_layers": 1})
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    check_fit(shapes, network, "file")
    for change, message in (
        ({"unknown.weight": (1,)}, "unknown"),
        ({"proj_in.weight": (1, 1)}, "another shape.*proj_in"),
    ):
        with pytest.raises(WeightsError, match=message):
            check_fit({**shapes, **change}, network, "file")
    del shapes["proj_in.bias"]
    with pytest.raises(WeightsError, match=r"lacks 1 weights \(proj_in.bias"):
        check_fit(shapes, network, "file")


def test_a_file_without_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="config"):
        load_official_transformer(path)
