# SPDX-License-Identifier: Apache-2.0
"""Clips of held-out speakers while an adapter trains are those that inference makes with it afterwards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_pipeline
import tiny_training
from idlora.data.manifest import Pair, write_manifest
from idlora.data.media import read_video, write_mp4, write_wav
from idlora.data.world.pairs import WorldPair
from idlora.errors import SettingsError
from idlora.evaluation.training_judges import judges
from idlora.networks.adapter import AdapterWeights, LowRank
from idlora.pipeline import IDLoraPipeline, Result
from idlora.training.identity.config import TrainingConfig, Watching
from idlora.training.identity.journal import read_log
from idlora.training.identity.run import make_accelerator, make_trainer
from idlora.training.identity.setup import _layer_of, make_bench
from idlora.training.identity.watch import Judge, Samples
from signals import RATE, Frames, gradient_frames, tone


def pair_of(folder: Path, name: str, split: str = "validation") -> Pair:
    video, voice = folder / f"{name}.mp4", folder / f"{name}.wav"
    write_mp4(video, gradient_frames(9, 64, 96), 25.0, tone(0.36), RATE)
    write_wav(voice, tone(1.0, frequency=300.0), RATE)
    return Pair(name, video, voice, "[VISUAL] a man [SPEECH] river garden", speaker=name, split=split)


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    pairs = [pair_of(tmp_path, name) for name in ("ann", "bob", "cid")] + [pair_of(tmp_path, "dee", "train")]
    write_manifest(tmp_path / "manifest.jsonl", pairs)
    watching = Watching(
        log_every=1, validate_every=0, sample_every=2, manifest=str(tmp_path / "manifest.jsonl"), samples=2,
        judges=("word_error",),
    )  # fmt: skip
    data = tiny_training.store(tmp_path / "data")
    return tiny_training.config(tmp_path / "run", data, watching=watching, steps=2)


def loudness(result: Result, _pair: Pair) -> float:
    return float(np.abs(result.audio).mean())


def test_clips_are_made_as_inference_makes_them(config: TrainingConfig) -> None:
    pipe = IDLoraPipeline(tiny_pipeline.components("2.3"), tiny_pipeline.CARD)
    named: dict[str, Judge] = {"word_error": loudness}
    made = make_trainer(config, make_bench(config, pipe), make_accelerator(config), judges=lambda: named)
    made.run()
    folder = made.folder / "samples" / "step-000002"
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["ann.mp4", "bob.mp4"]
    assert {path.suffix for path in folder.iterdir()} == {".mp4", ".json", ".png"}
    measured = [line["word_error"] for line in read_log(made.folder) if "word_error" in line]
    assert len(measured) == 1
    watcher = made.job.watchers[0]
    assert isinstance(watcher, Samples)
    with made.average.applied():
        clips = [watcher._clip(pair) for pair in watcher.pairs]
    assert measured[0] == pytest.approx(np.mean([loudness(clip, watcher.pairs[0]) for clip in clips]))
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in made.average.best().items():
        layer, part = _layer_of(name)
        layers.setdefault(layer, {})[part] = value.detach()
    weights = AdapterWeights({name: LowRank(part["A"], part["B"]) for name, part in layers.items()})
    card = replace(tiny_pipeline.CARD, defaults=pipe.card.defaults)
    later = IDLoraPipeline(tiny_pipeline.components("2.3"), card, weights)
    settings = later.card.defaults
    assert settings.mask_reference_to_video
    assert settings.reference_text == "block"
    for pair, clip in zip(watcher.pairs, clips, strict=True):
        again = later(pair.caption, image=gradient_frames_of(pair), voice=str(pair.reference))
        np.testing.assert_allclose(again.audio, clip.audio, atol=1e-5)


def gradient_frames_of(pair: Pair) -> Frames:
    first: Frames = read_video(pair.video).frames[0]
    return first


def test_nobody_held_out_is_a_fault_of_the_user(config: TrainingConfig, tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.jsonl", [pair_of(tmp_path, "dee", "train")])
    with pytest.raises(SettingsError, match="no pair of the split `validation`"):
        tiny_training.trainer(config)


def test_the_offline_judges_know_the_voice_and_the_words_of_a_true_clip(tmp_path: Path) -> None:
    pytest.importorskip("resemblyzer")
    pytest.importorskip("pocketsphinx")
    for name in ("clips", "references"):
        (tmp_path / name).mkdir()
    pairs = []
    for index in (0, 1):
        made = WorldPair("validation", index)
        made.render(tmp_path)
        pairs.append(made.pair(tmp_path))
    found = judges(("speaker_similarity", "word_error"))
    clips = [_clip_of(pair) for pair in pairs]
    assert found["speaker_similarity"](clips[0], pairs[0]) > 0.95
    assert found["speaker_similarity"](clips[0], pairs[1]) < found["speaker_similarity"](clips[0], pairs[0])
    errors = [[found["word_error"](clip, pair) for pair in pairs] for clip in clips]
    assert errors[0][0] < 0.5 <= errors[0][1]
    assert errors[1][1] < 0.5 <= errors[1][0]
    with pytest.raises(SettingsError, match="does not know"):
        found["word_error"](clips[0], replace(pairs[0], caption="[SPEECH] good gracious"))


def _clip_of(pair: Pair) -> Result:
    video = read_video(pair.video)
    assert video.audio is not None
    return Result(
        video=video.frames, audio=video.audio.samples, sample_rate=video.audio.sample_rate,
        settings=tiny_pipeline.SETTINGS, notes=(), timings={}, peak_bytes={}, provenance={},
    )  # fmt: skip
