# SPDX-License-Identifier: Apache-2.0
"""Files of a pipeline: its model folder, written and read back or refused, and the clips that it saves."""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from idlora.data.media import read_video, write_png, write_wav
from idlora.errors import InputError, OutputError, WeightsError
from idlora.networks.adapter import AdapterWeights, write_adapter
from idlora.pipeline import IDLoraPipeline, Result
from signals import RATE, gradient_frames, tone
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, adapter_for, components, digest, pipeline, voice


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline().save_pretrained(folder)
    return folder


def test_a_saved_pipeline_comes_back_the_same(saved: Path) -> None:
    loaded = IDLoraPipeline.from_pretrained(saved)
    assert loaded.card == replace(CARD, adapter="adapter.safetensors")
    before, after = (pipe(PROMPT, image=PICTURE, voice=voice()) for pipe in (pipeline(), loaded))
    assert digest(before) == digest(after)


def test_a_saved_pipeline_is_in_the_layout_of_diffusers(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text(encoding="utf-8"))
    assert index["transformer"] == ["diffusers", "LTX2VideoTransformer3DModel"]
    assert index["connectors"] == ["ltx2", "LTX2TextConnectors"]
    assert index["vocoder"] == ["idlora.networks.codecs", "GriffinLimVocoder"]
    binaries = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert binaries <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]
    modes = {path.stat().st_mode for path in saved.glob("*/*") if path.is_file()}
    assert len(modes) == 1, "weights that only their owner can read are of no use in a package"


def test_saving_leaves_the_pipeline_and_its_adapter_as_they_were(tmp_path: Path) -> None:
    made = components()
    pipe = IDLoraPipeline(made, replace(CARD, adapter_strength=0.5), adapter_for(made.transformer))
    before = digest(pipe(PROMPT, voice=voice()))
    pipe.save_pretrained(tmp_path / "model")
    assert digest(pipe(PROMPT, voice=voice())) == before
    loaded = IDLoraPipeline.from_pretrained(tmp_path / "model")
    assert digest(loaded(PROMPT, voice=voice())) == before
    other = IDLoraPipeline.from_pretrained(tmp_path / "model", adapter_strength=1.0)
    assert digest(other(PROMPT, voice=voice())) != before


def test_a_saved_model_does_not_tell_where_it_was_loaded_from(saved: Path, tmp_path: Path) -> None:
    IDLoraPipeline.from_pretrained(saved).save_pretrained(tmp_path / "again")
    configs = list((tmp_path / "again").rglob("*.json"))
    assert len(configs) > 6
    assert not [path for path in configs if str(saved) in path.read_text(encoding="utf-8")]


def test_weights_can_be_stored_smaller(saved: Path, tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [
        sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for folder in (saved, tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = IDLoraPipeline.from_pretrained(tmp_path / "half")
    assert loaded.components.transformer.dtype == torch.float32
    weight = pipeline(adapted=False).components.transformer.proj_in.weight
    assert torch.equal(loaded.components.transformer.proj_in.weight, weight.half().float())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match="something else than a model"):
        pipeline().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_saving_replaces_an_older_model_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipeline().save_pretrained(folder)
    (folder / "old.txt").touch()
    pipeline(adapted=False).save_pretrained(folder)
    assert not (folder / "old.txt").exists()
    assert not (folder / "adapter.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model_index.json").unlink(),
        lambda folder: (folder / "model_index.json").write_text("{}", encoding="utf-8"),
        lambda folder: next((folder / "transformer").glob("*.safetensors")).write_bytes(b"junk"),
        lambda folder: next((folder / "vae").glob("*.safetensors")).unlink(),
        lambda folder: (folder / "adapter.safetensors").unlink(),
        lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()],
        lambda folder: swap_class(folder / "model_index.json", "transformer", "UNet2DModel"),
    ],
    ids=["no index", "empty index", "junk", "no weights", "no adapter", "no tokenizer", "other class"],
)
def test_a_damaged_model_is_refused(saved: Path, tmp_path: Path, damage: Any) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    damage(folder)
    with pytest.raises(WeightsError):
        IDLoraPipeline.from_pretrained(folder)


def swap_class(path: Path, component: str, name: str) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    index[component][1] = name
    path.write_text(json.dumps(index), encoding="utf-8")


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"there is no model \./absent"):
        IDLoraPipeline.from_pretrained("./absent")
    with pytest.raises(WeightsError, match="cannot be fetched"):
        IDLoraPipeline.from_pretrained("nobody/nothing")


def test_an_adapter_of_another_network_is_refused(saved: Path, tmp_path: Path) -> None:
    fitting = adapter_for(components().transformer)
    elsewhere = {name.replace("blocks.0", "blocks.9"): layer for name, layer in fitting.layers.items()}
    write_adapter(tmp_path / "other.safetensors", AdapterWeights(elsewhere))
    with pytest.raises(WeightsError, match="does not fit"):
        IDLoraPipeline.from_pretrained(saved, adapter=tmp_path / "other.safetensors")


def from_files(folder: Path, saved: Path) -> Result:
    write_png(folder / "face.png", Image.fromarray(PICTURE))
    write_wav(folder / "voice.wav", voice().samples, RATE)
    pipe = IDLoraPipeline.from_pretrained(saved)
    return pipe(PROMPT, image=folder / "face.png", voice=folder / "voice.wav")


def test_a_result_is_saved_with_a_sidecar_that_says_how_it_was_made(saved: Path, tmp_path: Path) -> None:
    result = from_files(tmp_path, saved)
    sidecar = result.save(tmp_path / "clip.mp4")
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.frames.shape == result.video.shape
    assert clip.audio is not None
    assert sidecar.name == "clip.mp4.json"
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.metadata["ai_generated"] == "true"
        assert "AI-generated" in container.metadata["comment"]
    text = sidecar.read_text(encoding="utf-8")
    said = json.loads(text)
    assert said["ai_generated"] is True
    assert said["settings"]["seed"] == 0
    for kind, name in (("image", "face.png"), ("voice", "voice.wav")):
        expected = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert said["inputs"][kind] == {"name": name, "sha256": expected}
    weights = hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest()
    assert said["model"]["weights"]["adapter.safetensors"] == weights
    assert set(said["timings"]) == {"load", "text", "connect", "prepare", "denoise", "decode"}
    assert {"idlora", "torch", "diffusers"} <= said["versions"].keys()
    assert str(tmp_path) not in text


@pytest.fixture
def result() -> Result:
    frames: NDArray[np.uint8] = gradient_frames(9, 64, 64)
    return Result(frames, tone(0.36, channels=2), RATE, SETTINGS, (), {}, {})


@pytest.mark.parametrize("full", ["replace", "write_text"])
def test_a_full_disk_leaves_nothing_behind(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if full == "replace" else Path, full, refuse)
    with pytest.raises(OutputError, match="No space left"):
        result.save(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_is_an_mp4(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.mp4"):
        result.save(tmp_path / "clip.avi")
