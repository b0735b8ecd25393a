# SPDX-License-Identifier: Apache-2.0
"""Judges whose weights users bring, on random weights: published shapes, hand-made numbers, and wrong files."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError, WeightsError
from idlora.evaluation.clips import target, true_sound
from idlora.evaluation.judges import Footage, Reference
from idlora.evaluation.judges.arcface import (
    LANDMARKS,
    ArcFaceJudge,
    aligned,
    decode,
    largest_face,
    similarity_transform,
)
from idlora.evaluation.judges.clap import ClapJudge
from idlora.evaluation.judges.ecapa import WavLMEcapa
from idlora.evaluation.judges.syncnet import SyncNetJudge
from idlora.evaluation.judges.voxceleb import Ecapa, VoxCelebSpeaker
from idlora.evaluation.judges.wavlm import LARGE, WavLMEcapaSpeaker, WavLMSpeaker, renamed
from idlora.evaluation.judges.weights import tensors_of
from idlora.evaluation.judges.whisper import WhisperListener
from idlora.files import sha256_of
from tiny_networks import byte_vocabulary, write_whisper

TINY_WAVLM: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


def sound() -> NDArray[np.float32]:
    return true_sound(target("test", 0, 0))


# WavLM


def old_names(network: WavLMEcapa) -> dict[str, Tensor]:
    """The tensors as UniSpeech names them."""
    back = (
        (r"^wavlm\.feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
        (r"^wavlm\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"feature_extractor.conv_layers.\1.2.1."),
        (r"^wavlm\.feature_projection\.projection\.", "post_extract_proj."),
        (r"^wavlm\.feature_projection\.layer_norm\.", "layer_norm."),
        (r"^wavlm\.masked_spec_embed$", "mask_emb"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
        (r"pos_conv_embed\.conv\.", "pos_conv.0."),
        (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
        (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
        (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
        (r"\.attention\.", ".self_attn."),
        (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
        (r"\.feed_forward\.output_dense\.", ".fc2."),
        (r"^wavlm\.", ""),
    )
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        old = name
        if name.startswith("wavlm."):
            for pattern, replacement in back:
                old = re.sub(pattern, replacement, old)
            old = f"feature_extract.model.{old}"
        if not name.endswith("num_batches_tracked"):
            found[old] = tensor
    return found


@pytest.fixture
def tiny_ecapa(monkeypatch: pytest.MonkeyPatch) -> WavLMEcapa:
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    monkeypatch.setattr(WavLMEcapaSpeaker, "config", TINY_WAVLM)
    network = WavLMEcapa(WavLMModel(WavLMConfig(**TINY_WAVLM))).eval()
    torch.nn.init.normal_(network.feature_weight)
    return network


def test_unispeechs_checkpoint_is_read_whole_backbone_included(tmp_path: Path, tiny_ecapa: WavLMEcapa) -> None:
    tensors = old_names(tiny_ecapa)
    assert "feature_extract.model.encoder.layers.0.self_attn.relative_attention_bias.weight" in tensors
    assert renamed(tensors).keys() <= tiny_ecapa.state_dict().keys()
    path = tmp_path / "wavlm_large_finetune.pth"
    torch.save({"model": {**tensors, "loss_calculator.projection.weight": torch.zeros(3)}}, path)
    judge = WavLMEcapaSpeaker(str(path))
    given = torch.from_numpy(sound())[None]
    expected = tiny_ecapa(torch.nn.functional.layer_norm(given, given.shape[1:]))[0].detach().numpy()
    embedding = judge.embed(sound(), SAMPLE_RATE)
    assert embedding.shape == (256,)
    assert embedding == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    # Another backbone under the same head is another judge: the fine-tuned one is kept.
    name = "feature_extract.model.encoder.layers.0.fc2.weight"
    other = {**tensors, name: torch.randn_like(tensors[name])}
    torch.save({"model": other}, path)
    assert not np.allclose(WavLMEcapaSpeaker(str(path)).embed(sound(), SAMPLE_RATE), embedding, atol=1e-3)
    del tensors["linear.weight"]
    torch.save({"model": tensors}, path)
    with pytest.raises(WeightsError, match=r"1 missing \(linear.weight\)"):
        WavLMEcapaSpeaker(str(path)).embed(sound(), SAMPLE_RATE)


def test_the_papers_backbone_has_wavlm_larges_sizes() -> None:
    from transformers import WavLMConfig

    config = WavLMConfig(**LARGE)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 24, 16)
    assert config.do_stable_layer_norm
    assert not config.conv_bias


@pytest.fixture(scope="module")
def wavlm_sv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    sizes = {"tdnn_dim": (16, 16, 24), "tdnn_kernel": (3, 3, 1), "tdnn_dilation": (1, 2, 1), "xvector_output_dim": 8}
    folder = tmp_path_factory.mktemp("wavlm-sv")
    WavLMForXVector(WavLMConfig(**TINY_WAVLM, **sizes, num_labels=3)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    return folder


def test_wavlm_sv_is_read_from_its_folder(wavlm_sv: Path, tmp_path: Path) -> None:
    from transformers import WavLMForXVector

    judge = WavLMSpeaker(str(wavlm_sv))
    embedding = judge.embed(sound(), SAMPLE_RATE)
    network = WavLMForXVector.from_pretrained(wavlm_sv).eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(sound())[None]).embeddings[0].numpy()
    assert embedding == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    with pytest.raises(InputError, match="level"):
        judge.embed(0 * sound(), SAMPLE_RATE)
    # A folder that lacks the head is refused, not filled at random.
    tensors = {name: value for name, value in network.state_dict().items() if not name.startswith("feature_extractor.")}
    (tmp_path / "config.json").write_text((wavlm_sv / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks"):
        _ = WavLMSpeaker(str(tmp_path)).network
    with pytest.raises(WeightsError, match="do_normalize"):
        _ = copy.copy(WavLMSpeaker(str(tmp_path)))._normalised


def test_what_is_neither_a_folder_nor_on_the_hub_is_told() -> None:
    for judge in (WavLMSpeaker("nobody/nothing"), ClapJudge("nobody/nothing"), WhisperListener("nobody/nothing")):
        with pytest.raises(WeightsError, match="no folder with weights"):
            _ = judge.record


# ECAPA-TDNN


def made_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The same small numbers on every machine."""
    rng = np.random.default_rng(0)
    drawn = {name: 0.03 * rng.standard_normal(shapes[name]) for name in sorted(shapes)}
    drawn = {name: np.abs(value) + 1 if name.endswith("running_var") else value for name, value in drawn.items()}
    return {name: torch.from_numpy(np.asarray(value)).float() for name, value in drawn.items()}


def test_ecapa_is_that_of_speechbrain(tmp_path: Path) -> None:
    """The first numbers that SpeechBrain 1.1.2 gives for these weights and this sound."""
    own = Ecapa().state_dict()
    assert len(own) == 231
    assert own["blocks.1.res2net_block.blocks.0.conv.conv.weight"].shape == (128, 128, 3)
    shapes = {name: tuple(value.shape) for name, value in own.items() if not name.endswith("num_batches_tracked")}
    torch.save(made_weights(shapes), tmp_path / "embedding_model.ckpt")
    time = np.arange(16_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(6 * np.pi * time)) + 0.01 * np.sin(3998 * np.pi * time)
    found = VoxCelebSpeaker(str(tmp_path)).embed(tone.astype(np.float32), 16_000)
    assert found.shape == (192,)
    assert found[:6] == pytest.approx([-0.011124, -0.075226, -0.135229, -0.086289, 0.074694, -0.01675], abs=2e-5)
    with pytest.raises(WeightsError, match="there are no weights"):
        VoxCelebSpeaker(str(tmp_path / "absent"))


# Files


def test_files_are_read_as_tensors_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"

    torch.save({"model": {"a": torch.zeros(2)}, "code": Path("x")}, path)
    with pytest.raises(WeightsError, match="cannot be read as tensors"):
        tensors_of(path)
    path.write_bytes(b"junk")
    with pytest.raises(WeightsError, match="cannot be read as tensors"):
        tensors_of(path)
    torch.save({"a": 3}, path)
    with pytest.raises(WeightsError, match="no table of tensors"):
        tensors_of(path)
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(tensors_of(tmp_path / "a.safetensors")["a"], torch.ones(2))
    for judge in (SyncNetJudge, WavLMEcapaSpeaker, ArcFaceJudge):
        with pytest.raises(WeightsError, match="there are no weights"):
            judge(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("judge", "source", "name"),
    [
        (VoxCelebSpeaker, "speechbrain/spkrec-ecapa-voxceleb", "embedding_model.ckpt"),
        (WavLMEcapaSpeaker, "some.one/uni-speech/sv/other.pth", "sv/other.pth"),
    ],
)
def test_files_are_taken_from_the_hub_by_name(
    judge: Any, source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"no weights.*{source}.*hub does not give them.*check.*download {name}"):
        judge(source)
    cached = tmp_path / f"models--{'--'.join(source.split('/')[:2])}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    file = cached / "snapshots" / ("1" * 40) / name
    file.parent.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, file)
    assert judge(source).record.weights == sha256_of(file) == judge(str(file)).record.weights
    assert torch.equal(tensors_of(judge(source)._file)["a"], torch.ones(2))
    for path in (f"./{source}", f"/{source}", f"{tmp_path}/{source}"):  # a path is no name
        with pytest.raises(WeightsError, match=r"check the path$"):
            judge(path)


# ArcFace


def planted_outputs(faces: list[tuple[int, int, int, float, float]]) -> list[NDArray[np.float32]]:
    """SCRFD's outputs with faces (level, row, column, score, half side in strides) and nothing else."""
    sides = [320 // stride for stride in (8, 16, 32)]
    scores, boxes, points = ([np.zeros((side * side * 2, width), np.float32) for side in sides] for width in (1, 4, 10))
    for level, row, column, score, half in faces:
        place = (row * sides[level] + column) * 2
        scores[level][place], boxes[level][place] = score, half
        points[level][place] = [0.5, -0.25, 1, 0, 0, 1, 0.25, 1, 1, 1]
    return [*scores, *boxes, *points]


def test_detections_are_decoded_where_they_were_planted() -> None:
    faces = decode(planted_outputs([(1, 4, 6, 0.9, 2.0), (0, 1, 1, 0.2, 1.0)]))
    assert len(faces) == 1
    assert faces[0].box.tolist() == [96 - 32, 64 - 32, 96 + 32, 64 + 32]
    assert faces[0].landmarks[0].tolist() == [96 + 8, 64 - 4]


def test_the_largest_face_is_taken_in_the_pictures_own_pixels() -> None:
    outputs = planted_outputs([(0, 2, 2, 0.99, 1.0), (2, 5, 5, 0.8, 1.5), (1, 10, 10, 0.85, 2.9)])
    found = largest_face(lambda _: outputs, np.zeros((640, 320, 3), np.uint8))
    assert found is not None
    assert found.score == pytest.approx(0.85)  # of two boxes on one face the surer
    assert found.box.tolist() == pytest.approx([2 * (160 - 46.4), 2 * (160 - 46.4), 2 * (160 + 46.4), 2 * (160 + 46.4)])
    assert largest_face(lambda _: planted_outputs([]), np.zeros((64, 64, 3), np.uint8)) is None


def test_alignment_undoes_a_turn_a_scale_and_a_shift() -> None:
    angle = 0.4
    turn = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = LANDMARKS @ turn.T + [30, 12]
    matrix = similarity_transform(moved, LANDMARKS)
    assert moved @ matrix[:, :2].T + matrix[:, 2] == pytest.approx(LANDMARKS)
    picture = np.zeros((400, 400, 3), np.uint8)
    for x, y in moved:
        picture[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] = 255
    face = aligned(picture, moved)
    assert face.shape == (112, 112, 3)
    assert all(face[round(y), round(x)].min() > 200 for x, y in LANDMARKS)


def test_arcface_averages_frames_and_takes_the_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("det_10g.onnx", "w600k_r50.onnx"):
        (tmp_path / name).write_bytes(b"x")
    judge = ArcFaceJudge(str(tmp_path))
    sees = planted_outputs([(1, 10, 10, 0.9, 2.0)])

    def recogniser(pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        assert pixels.shape == (1, 3, 112, 112)
        return [np.array([[pixels.mean() + 1, 1.0]], np.float32)]

    def blind(pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return sees if pixels.max() > -0.9 else planted_outputs([])  # a black frame shows nobody

    monkeypatch.setattr(ArcFaceJudge, "networks", (blind, recogniser))
    frames = np.zeros((9, 320, 320, 3), np.uint8)
    frames[::2] = 255
    values = judge.score(Footage(frames, 25.0, None), Reference(picture=frames[0]), None)
    assert values["similarity"] == pytest.approx(1)
    with pytest.raises(InputError, match="no face"):
        judge.embed(frames[1:2])
    assert len(judge.record.weights) == 64


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer; lengths and numbers below 128 alone."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def identity_onnx() -> bytes:
    """The smallest network: it gives back what it is given."""
    kind = field(1, field(1, 1) + field(2, field(1, field(2, b"n"))))  # float32, of one free dimension
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, field(1, b"x") + field(2, kind))
    graph += field(12, field(1, b"y") + field(2, kind))
    return field(1, 8) + field(8, field(2, 13)) + field(7, graph)


def test_onnx_files_are_run_and_others_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `faces` is not installed")
    (tmp_path / "det_10g.onnx").write_bytes(identity_onnx())
    (tmp_path / "w600k_r50.onnx").write_bytes(identity_onnx())
    detector, _ = ArcFaceJudge(str(tmp_path)).networks
    assert detector(np.array([1.5, 2.5], np.float32))[0].tolist() == [1.5, 2.5]
    (tmp_path / "det_10g.onnx").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="no network that onnxruntime reads"):
        _ = ArcFaceJudge(str(tmp_path)).networks


# CLAP and Whisper


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clap")
    byte_vocabulary(folder, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4})
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 300, "projection_dim": 8, "max_position_embeddings": 130}
    audio = {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    audio |= {"projection_dim": 8}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    ClapModel(config).save_pretrained(folder)
    tokenizer = RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


def test_clap_reads_the_parts_that_prompts_have(clap: Path) -> None:
    judge = ClapJudge(str(clap))
    prompt = Prompt(visual="a person", speech="two", sounds="rain falls")
    clip = Footage(samples=sound())
    values = judge.score(clip, Reference(), prompt)
    assert values.keys() == {"sounds", "speech", "visual", "prompt"}
    assert all(-1 <= value <= 1 for value in values.values())
    assert len(set(values.values())) == 4
    other = judge.score(clip, Reference(), Prompt(sounds="rain falls"))
    assert other["sounds"] == pytest.approx(values["sounds"], abs=1e-5)
    with pytest.raises(InputError, match="nothing that is heard"):
        judge.score(clip, Reference(), None)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder)
    return folder


def test_whisper_is_read_from_its_folder_and_hears_the_same_again(whisper: Path) -> None:
    listener = WhisperListener(str(whisper))
    heard = listener.hear(sound(), SAMPLE_RATE)
    assert [each.word for each in heard] == [each.word for each in listener.hear(sound(), SAMPLE_RATE)]
    assert all(math.isnan(each.start) for each in heard)
    assert listener.hear(0 * sound(), SAMPLE_RATE) == []
    assert len(listener.record.weights) == 64
    with pytest.raises(InputError, match="longer than the 30 s"):
        listener.hear(np.ones(31 * SAMPLE_RATE, np.float32), SAMPLE_RATE)
