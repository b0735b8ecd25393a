# SPDX-License-Identifier: Apache-2.0
"""Clips of held-out speakers while an adapter trains are those that inference makes with it afterwards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_pipeline
import tiny_training
from idlora.data.manifest import Pair, write_manifest
from idlora.data.media import read_video, write_mp4, write_wav
from idlora.data.world.pairs import WorldPair
from idlora.errors import MediaError, SettingsError
from idlora.evaluation.judges import SpeakerJudge
from idlora.evaluation.training_judges import judges
from idlora.networks.adapter import AdapterWeights, LowRank
from idlora.pipeline import IDLoraPipeline, Result
from idlora.training.identity.config import TrainingConfig, Watching
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import read_log
from idlora.training.identity.run import make_accelerator, make_trainer
from idlora.training.identity.setup import _layer_of, make_bench
from idlora.training.identity.watch import Judge, Samples, ValidationLoss, file_stem
from idlora.training.latents.store import LatentStore, LatentWriter
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


def trainer(config: TrainingConfig, **named: Judge) -> Trainer:
    pipe = IDLoraPipeline(tiny_pipeline.components("2.3"), tiny_pipeline.CARD)
    return make_trainer(config, make_bench(config, pipe), make_accelerator(config), judges=lambda: named)


def gone(pair: Pair) -> Pair:
    pair.video.unlink()
    return pair


def no_clip(pair: Pair) -> Pair:
    pair.video.write_text("this is text")
    return pair


def no_voice(pair: Pair) -> Pair:
    pair.reference.unlink()
    return pair


def too_late(pair: Pair) -> Pair:
    return replace(pair, start=2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gone, "bob.mp4"),
        (no_clip, "bob.mp4"),
        (no_voice, "bob.wav"),
        (too_late, "from 2 s on"),
    ],
)
def test_a_pair_that_no_clip_can_be_made_after_is_told_before_the_first_step(
    change: Callable[[Pair], Pair], words: str, config: TrainingConfig, tmp_path: Path
) -> None:
    write_manifest(tmp_path / "manifest.jsonl", [pair_of(tmp_path, "ann"), change(pair_of(tmp_path, "bob"))])
    with pytest.raises(SettingsError, match=r"after the pair bob of watching\.manifest") as caught:
        trainer(config, word_error=loudness)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_pair_that_cannot_be_judged_is_told_before_the_first_step(config: TrainingConfig, tmp_path: Path) -> None:
    pytest.importorskip("resemblyzer")
    pytest.importorskip("pocketsphinx")
    trainer(config, **judges(("speaker_similarity", "word_error")))
    ann, bob = (pair_of(tmp_path, name) for name in ("ann", "bob"))
    write_manifest(tmp_path / "manifest.jsonl", [ann, replace(bob, caption="[SPEECH] good gracious")])
    with pytest.raises(SettingsError, match=r"pair bob .*'good', 'gracious'.*leave word_error out"):
        trainer(config, **judges(("word_error",)))
    write_mp4(bob.video, gradient_frames(9, 64, 96), 25.0)
    write_manifest(tmp_path / "manifest.jsonl", [ann, bob])
    with pytest.raises(SettingsError, match=r"pair bob .*bob\.mp4.*(no|sound)"):
        trainer(config, **judges(("speaker_similarity",)))


def test_a_clip_begins_where_its_pair_says(config: TrainingConfig, tmp_path: Path) -> None:
    pair = pair_of(tmp_path, "ann")
    frames = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 64 * 96 * 3).reshape(24, 64, 96, 3)
    write_mp4(pair.video, frames, 25.0, tone(0.96), RATE)
    write_manifest(tmp_path / "manifest.jsonl", [pair, replace(pair, id="late", speaker="late", start=0.4)])
    watcher = trainer(config, word_error=loudness).job.watchers[0]
    assert isinstance(watcher, Samples)
    pictures = [np.asarray(watcher._request(each).image) for each in watcher.pairs]
    read = read_video(pair.video).frames
    assert np.array_equal(pictures[0], read[0])
    assert np.array_equal(pictures[1], read[10])
    assert abs(float(pictures[1].mean()) - 100) < 5


def test_the_voice_is_that_of_the_clip_and_not_of_the_rest_of_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resemblyzer")
    pytest.importorskip("pocketsphinx")
    sound = np.concatenate([np.full((1, RATE), 0.1 * step, np.float32) for step in range(4)], axis=1)
    pair = replace(pair_of(tmp_path, "ann"), video=tmp_path / "long.wav", start=2.0)
    write_wav(pair.video, sound, RATE)
    heard: list[np.ndarray[Any, Any]] = []

    def similarity(_self: SpeakerJudge, _ours: Any, _rate: int, true: Any, _true_rate: int) -> float:
        heard.append(true)
        return 0.5

    monkeypatch.setattr(SpeakerJudge, "similarity", similarity)
    judge = judges(("speaker_similarity",))["speaker_similarity"]
    result = replace(_clip_of(pair_of(tmp_path, "bob")), audio=tone(0.68))
    assert judge(result, pair) == 0.5
    assert len(heard[0]) == round(0.68 * RATE)
    np.testing.assert_allclose(heard[0], 0.2, atol=1e-3)
    judge(result, replace(pair, start=3.5))
    assert len(heard[1]) == round(0.5 * RATE)  # all that there is
    with pytest.raises(MediaError, match="no sound from 9 s on"):
        judge.check(replace(pair, start=9.0))


ODD = ["ann/17", "../../../esc", "..", ".", ".hidden", "a%2F", "a/", "a b", "Ännä", "x" * 400, "x" * 401, "ü/" * 90]


def test_names_of_clips_are_files_of_their_folder_each_its_own(tmp_path: Path) -> None:
    stems = [file_stem(name) for name in ODD]
    assert len(set(stems)) == len(ODD)
    assert [file_stem(name) for name in ("train-000017", "Ännä", "a_b.c-d~")] == ["train-000017", "Ännä", "a_b.c-d~"]
    for stem in stems:
        path = tmp_path / f"{stem}.mp4.json"
        path.write_text("")
        assert path.parent.resolve() == path.resolve().parent == tmp_path.resolve()
        assert not path.name.startswith(".")
    assert len(list(tmp_path.iterdir())) == len(ODD)


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=2, unique=True))
def test_two_names_are_two_files(names: list[str]) -> None:
    first, second = map(file_stem, names)
    assert first != second
    for stem in (first, second):
        assert not {"/", "\\", "\0", ":"} & set(stem)
        assert len(stem.encode()) <= 200
        assert not stem.startswith(".")


def test_pairs_of_any_name_are_made_clips_after(config: TrainingConfig, tmp_path: Path) -> None:
    pairs = [replace(pair_of(tmp_path, "ann"), id="ann/17"), replace(pair_of(tmp_path, "bob"), id="../../../esc")]
    write_manifest(tmp_path / "manifest.jsonl", pairs)
    before = set(tmp_path.iterdir())
    made = trainer(config, word_error=loudness)
    made.run()
    folder = made.folder / "samples" / "step-000002"
    assert {path.name for path in folder.glob("*.mp4")} == {"ann%2F17.mp4", "%2E.%2F..%2F..%2Fesc.mp4"}
    assert len(list(folder.iterdir())) == 6
    assert set(tmp_path.iterdir()) - before == {made.folder}


def validation(data: Path, out: Path, **changes: Any) -> ValidationLoss:
    config = tiny_training.config(out, data)
    config = replace(config, objective=replace(config.objective, reference_seconds=()), **changes)
    watcher = tiny_training.trainer(config).job.watchers[0]
    assert isinstance(watcher, ValidationLoss)
    return watcher


def test_held_out_samples_of_one_batch_have_one_size_and_one_rate(tmp_path: Path) -> None:
    """Positions are those of the first sample of a batch."""
    data = tiny_training.store(tmp_path / "data")
    writer = LatentWriter(data, LatentStore(data).header, torch.float32)
    for index, rate in ((8, 25.0), (9, 50.0)):
        made = tiny_training.latents(index, "2.3")
        writer.add(replace(tiny_training.row(index, made, "validation"), frame_rate=rate), made)
    writer.flush()
    watcher = validation(data, tmp_path / "run")
    rates = [{visit.row.frame_rate for visit in visits} for visits in watcher.visits]
    assert all(len(each) == 1 for each in rates)
    assert {rate for each in rates for rate in each} == {25.0, 50.0}
    seen = sorted((visit.row.id, visit.number) for visits in watcher.visits for visit in visits)
    assert seen == [(f"pair-{index}", number) for index in (6, 7, 8, 9) for number in range(4)]


@pytest.mark.parametrize("equal_lengths", [True, False])
def test_compiled_blocks_take_held_out_samples_that_are_longer_than_all_others(
    equal_lengths: bool, tmp_path: Path
) -> None:
    """All shapes are the longest ones of both."""
    data = tiny_training.store(tmp_path / "data")
    writer = LatentWriter(data, LatentStore(data).header, torch.float32)
    made = tiny_training.latents(8, "2.3", audio=15, reference=30)
    writer.add(tiny_training.row(8, made, "validation"), made)
    writer.flush()
    config = tiny_training.config(tmp_path / "run", data)
    objective = replace(config.objective, reference_seconds=(), equal_lengths=equal_lengths)
    config = replace(config, objective=objective, engine=replace(config.engine, compile=True))
    trained = tiny_training.trainer(config)
    watcher = trained.job.watchers[0]
    assert isinstance(watcher, ValidationLoss)
    batches = [watcher.batcher.batch(visits, 0) for visits in watcher.visits] + [trained._batch(0)]
    assert {each.reference.shape[1] for each in batches if each.reference is not None} == {30}
    assert {each.audio.shape[1] for each in batches} == {9 if equal_lengths else 15}
    unwatched = replace(config, watching=replace(config.watching, validate_every=0))
    reference = tiny_training.trainer(unwatched)._batch(0).reference
    assert reference is not None
    assert reference.shape[1] == 13


def _clip_of(pair: Pair) -> Result:
    video = read_video(pair.video)
    assert video.audio is not None
    return Result(
        video=video.frames, audio=video.audio.samples, sample_rate=video.audio.sample_rate,
        settings=tiny_pipeline.SETTINGS, notes=(), timings={}, peak_bytes={}, provenance={},
    )  # fmt: skip
