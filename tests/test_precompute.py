# SPDX-License-Identifier: Apache-2.0
"""Pairs to latents: the same as a generation's own, resumable by contents, and no bad pair stops the others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idlora.cli import main
from idlora.data.manifest import Fault, Pair, write_manifest
from idlora.data.media import Video, Voice, read_video, write_mp4, write_wav
from idlora.errors import InputError, SettingsError, TrainingError
from idlora.networks.codecs import VideoCodec
from idlora.networks.text import PromptEncoder, TextFeatures
from idlora.pipeline.components import Components
from idlora.pipeline.generation import given_frames, prepare
from idlora.pipeline.inputs import Request, read_inputs
from idlora.pipeline.meter import Meter
from idlora.training.latents.encode import EncodeOptions, precompute
from idlora.training.latents.filling import Report, report_path
from idlora.training.latents.spans import clip_frames, clip_sound
from idlora.training.latents.store import Latents, LatentStore
from signals import RATE, gradient_frames, tone, truncated
from tiny_pipeline import MAX_TOKENS, SETTINGS, pipeline

CAPTION = "[VISUAL] a man in a quiet room [SPEECH] river garden [SOUNDS] calm"
OPTIONS = replace(EncodeOptions.of(SETTINGS), dtype="float32")
ONE_EACH = replace(OPTIONS, shard_bytes=1)
SIZE = {"height": SETTINGS.height, "width": SETTINGS.width}


def pair(folder: Path, name: str, **more: Any) -> Pair:
    """A clip of twelve frames with sound, and a reference, both with numbers of the name's own."""
    folder.mkdir(exist_ok=True)
    pitch = 200 + 10 * (sum(name.encode()) % 40)
    if not (folder / f"{name}.mp4").exists():
        write_mp4(folder / f"{name}.mp4", gradient_frames(12, **SIZE), 25.0, tone(0.48, pitch), RATE)
    write_wav(folder / f"{name}.wav", tone(1.0, 2 * pitch), RATE)
    return Pair(name, folder / f"{name}.mp4", folder / f"{name}.wav", CAPTION, **more)


def run(pairs: list[Pair], out: Path, options: EncodeOptions = OPTIONS, generation: str = "2.3") -> Report:
    return precompute(pairs, [], pipeline(generation), out, options)


def contents(folder: Path) -> dict[str, dict[str, Tensor]]:
    store = LatentStore(folder)
    return {row.id: store.read(row).tensors() for row in store.rows}


def equal(one: Path, other: Path) -> bool:
    mine, theirs = contents(one), contents(other)
    return mine.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name][part]) for name, parts in mine.items() for part, tensor in parts.items()
    )


def attended(latents: TextFeatures, pipe: Any) -> Any:
    """What the connectors make of stored features, padded in front again."""
    rows = [torch.zeros(1, MAX_TOKENS, each.shape[1]) for each in (latents.video, latents.audio)]
    for padded, each in zip(rows, (latents.video, latents.audio), strict=True):
        padded[0, MAX_TOKENS - len(each) :] = each
    mask = (torch.arange(MAX_TOKENS) >= MAX_TOKENS - len(latents.video)).long()[None]
    connectors = pipe.components.connectors
    return PromptEncoder(pipe.components.tokenizer, None, connectors, MAX_TOKENS).attended(TextFeatures(*rows), mask)


@torch.no_grad()
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_a_sample_is_what_a_generation_makes_of_the_same_files(tmp_path: Path, generation: str) -> None:
    pipe, made = pipeline(generation), pair(tmp_path, "a", speaker="ann", split="validation")
    assert run([made], tmp_path / "out", generation=generation).done == 1
    store = LatentStore(tmp_path / "out")
    row = store.rows[0]
    latents = store.read(row)
    video = read_video(made.video)
    picture, sound = video.frames[0], video.audio
    assert sound is not None
    asked = Request(CAPTION, SETTINGS, picture, made.reference)
    inputs = read_inputs(asked, pipe.card.vocabulary)
    prepared = prepare([inputs], SETTINGS, pipe.codecs, pipe.device)
    rows = pipe.codecs.audio.num_tokens(SETTINGS.seconds)
    assert torch.equal(prepared.audio.tokens[0, :-rows], latents.reference)
    first = given_frames(inputs, SETTINGS, pipe.codecs, pipe.device)[0][0][0]
    torch.testing.assert_close(latents.video[: len(first)], first, rtol=1e-4, atol=1e-5)
    wave = np.repeat(sound.samples[:, : round(SETTINGS.seconds * RATE)], 2, axis=0)
    assert torch.equal(latents.audio, pipe.codecs.audio.encode(torch.from_numpy(wave)[None])[0])
    assert len(latents.audio) == rows + 1
    texts = pipe.texts([inputs], Meter(pipe.device)).positive
    again = attended(latents.text, pipe)
    torch.testing.assert_close(again.video, texts.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.audio, texts.audio, rtol=1e-4, atol=1e-5)
    assert (latents.text.audio is latents.text.video) == (generation == "2.0")
    empty, mask = pipe.tokens.tokens([""])
    encoder = PromptEncoder(pipe.components.tokenizer, pipe.components.text_encoder, pipe.components.connectors)
    said = encoder.context(empty, mask)
    torch.testing.assert_close(attended(store.no_text, pipe).video, said.video, rtol=1e-4, atol=1e-5)
    assert (row.grid, row.num_frames, row.frame_rate, row.num_audio) == ((2, 2, 3), 9, 25.0, len(latents.audio))
    assert (row.num_reference, row.speaker, row.split, row.caption) == (
        len(latents.reference),
        "ann",
        "validation",
        CAPTION,
    )
    assert (store.header.generation, store.header.max_text_tokens) == (generation, MAX_TOKENS)


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every clip that is encoded."""
    counted: list[int] = []
    encode = VideoCodec.encode

    def counting(self: VideoCodec, frames: Tensor) -> Tensor:
        counted.append(1)
        return encode(self, frames)

    monkeypatch.setattr(VideoCodec, "encode", counting)
    return counted


def test_a_second_run_makes_only_what_is_missing_or_has_changed(tmp_path: Path, encodes: list[int]) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "abc"]
    assert run(pairs[:2], out) == Report(2, 0, (), 0, 2)
    assert run(pairs, out) == Report(1, 2, (), 0, 3)
    assert len(encodes) == 3
    write_wav(pairs[0].reference, tone(1.0, 111.0), RATE)  # its contents
    pairs[1] = replace(pairs[1], caption="[SPEECH] coffee")
    pairs[2] = replace(pairs[2], speaker="ann", split="test")  # of no effect on what is encoded
    before = contents(out)
    assert run(pairs, out) == Report(2, 1, (), 0, 3)
    after = contents(out)
    assert not torch.equal(before["a"]["reference"][-5:], after["a"]["reference"][-5:])
    assert torch.equal(before["a"]["video"], after["a"]["video"])
    assert before["b"]["text"].shape != after["b"]["text"].shape
    assert [(row.id, row.speaker) for row in LatentStore(out).of_split("test")] == [("c", "ann")]
    (tmp_path / "moved").mkdir()
    moved = replace(pairs[0], video=pairs[0].video.rename(tmp_path / "moved" / "other.mp4"))
    assert run([moved, *pairs[1:]], out).skipped == 3
    assert len(encodes) == 5
    with pytest.raises(TrainingError, match="num_frames"):
        run(pairs, out, replace(OPTIONS, num_frames=1))


@pytest.mark.parametrize("options", [OPTIONS, ONE_EACH])
def test_ctrl_c_leaves_what_is_finished_and_the_next_run_ends_alike(
    tmp_path: Path, encodes: list[int], monkeypatch: pytest.MonkeyPatch, options: EncodeOptions
) -> None:
    pairs = [pair(tmp_path, name) for name in "abcd"]
    run(pairs, tmp_path / "whole", options)
    encode = VideoCodec.encode

    def stopped(self: VideoCodec, frames: Tensor) -> Tensor:
        if len(encodes) == 6:
            raise KeyboardInterrupt
        return encode(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(VideoCodec, "encode", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(pairs, tmp_path / "out", options)
    assert contents(tmp_path / "out").keys() == {"a", "b"}
    assert json.loads(report_path(tmp_path / "out").read_text(encoding="utf-8"))["done"] == 2
    assert run(pairs, tmp_path / "out", options) == Report(2, 2, (), 0, 4)
    assert equal(tmp_path / "out", tmp_path / "whole")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_truncated_shard_is_made_anew_and_nothing_else(tmp_path: Path, encodes: list[int]) -> None:
    pairs = [pair(tmp_path, name) for name in "abc"]
    for folder in ("out", "whole"):
        run(pairs, tmp_path / folder, ONE_EACH)
    shard = tmp_path / "out" / LatentStore(tmp_path / "out").rows[1].shard
    truncated(shard, shard, 0.5)
    assert run(pairs, tmp_path / "out", ONE_EACH) == Report(1, 2, (), 0, 3)
    assert len(encodes) == 7
    assert equal(tmp_path / "out", tmp_path / "whole")


def missing(made: Pair) -> None:
    made.video.unlink()


def no_video(made: Pair) -> None:
    made.video.write_text("this is text", encoding="utf-8")


def cut_short(made: Pair) -> None:
    truncated(made.video, made.video, 0.4)


def no_sound(made: Pair) -> None:
    write_mp4(made.video, gradient_frames(12, **SIZE), 25.0)


def silent_video(made: Pair) -> None:
    write_mp4(made.video, gradient_frames(12, **SIZE), 25.0, 0 * tone(0.5), RATE)


def too_short(made: Pair) -> None:
    write_mp4(made.video, gradient_frames(8, **SIZE), 25.0, tone(0.4), RATE)


def no_reference(made: Pair) -> None:
    made.reference.unlink()


def silent_reference(made: Pair) -> None:
    write_wav(made.reference, 0 * tone(1.0), RATE)


def short_reference(made: Pair) -> None:
    write_wav(made.reference, tone(0.3), RATE)


def cut_reference(made: Pair) -> None:
    truncated(made.reference, made.reference, 0.5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "cannot read"),
        (no_video, "cannot be decoded"),
        (cut_short, "b.mp4"),
        (no_sound, "no sound"),
        (silent_video, "is silent"),
        (too_short, "0.32 s from 0 s on; 9 frames at 25 a second need 0.36 s"),
        (no_reference, "cannot read"),
        (silent_reference, "voice is silent"),
        (short_reference, "at least 0.5 s"),
        (cut_reference, "cut short"),
    ],
)
def test_a_bad_pair_is_told_and_stops_no_other(tmp_path: Path, spoil: Callable[[Pair], None], words: str) -> None:
    pairs = [pair(tmp_path, name, line=number) for number, name in enumerate("abc", 1)]
    spoil(pairs[1])
    told: list[Report] = []
    report = precompute(pairs, [Fault("x", 9, "no pair")], pipeline(), tmp_path / "out", OPTIONS, told.append)
    assert (report.done, report.skipped, len(report.failed), report.seen) == (2, 0, 2, report.total)
    assert [(fault.id, fault.line) for fault in report.failed] == [("x", 9), ("b", 2)]
    assert words in report.failed[1].reason
    assert contents(tmp_path / "out").keys() == {"a", "c"}
    written = json.loads(report_path(tmp_path / "out").read_text(encoding="utf-8"))
    assert written["failed"][1] == {"id": "b", "line": 2, "reason": report.failed[1].reason}
    assert (written["done"], written["skipped"]) == (2, 0)
    assert sorted({each.seen for each in told}) == [1, 2, 3, 4]


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, "float32"), (1e6, "float16")])
def test_latents_that_are_not_finite_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: str
) -> None:
    encode = VideoCodec.encode
    monkeypatch.setattr(VideoCodec, "encode", lambda self, frames: encode(self, frames) * 0 + value)
    report = run([pair(tmp_path, "a", line=5)], tmp_path / "out", replace(OPTIONS, dtype=dtype))
    assert (report.done, report.failed[0].line) == (0, 5)
    assert f"video is not finite in {dtype}" in report.failed[0].reason
    assert contents(tmp_path / "out") == {}


def test_long_captions_are_counted(tmp_path: Path) -> None:
    long = replace(pair(tmp_path, "a"), caption="[VISUAL] " + "a man " * MAX_TOKENS)
    assert run([long, pair(tmp_path, "b")], tmp_path / "out").cut == 1
    assert len(contents(tmp_path / "out")["a"]["text"]) == MAX_TOKENS


def test_what_no_pair_can_mend_is_refused_at_once(tmp_path: Path) -> None:
    pairs = [pair(tmp_path, "a")]
    with pytest.raises(InputError, match="8k \\+ 1"):
        run(pairs, tmp_path / "out", replace(OPTIONS, num_frames=10))
    with pytest.raises(InputError, match="multiple of 32"):
        run(pairs, tmp_path / "out", replace(OPTIONS, height=70))
    with pytest.raises(SettingsError, match="max_voice_seconds"):
        run(pairs, tmp_path / "out", replace(OPTIONS, max_voice_seconds=0.1))
    with pytest.raises(SettingsError, match="bfloat16, float16, float32"):
        replace(OPTIONS, dtype="int8")
    assert not (tmp_path / "out").exists()


def numbered(num_frames: int, rate: float, height: int = 64, width: int = 96) -> Video:
    """A video whose frames tell their numbers, with a sound that tells the time."""
    frames = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, height, width, 3))
    ramp = (np.arange(round(num_frames / rate * RATE))[None] / RATE).astype(np.float32)
    return Video(frames, rate, Voice(ramp, RATE))


@pytest.mark.parametrize(
    ("rate", "start", "expected"),
    [
        (25.0, 0.0, range(9)),
        (25.0, 0.4, range(10, 19)),
        (24.99, 0.4, range(10, 19)),  # of one rate within a thousandth
        (50.0, 0.1, range(5, 22, 2)),
        (12.5, 0.08, [1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (30.0, 0.0, [0, 1, 2, 4, 5, 6, 7, 8, 10]),
    ],
)
def test_frames_are_those_nearest_in_time(rate: float, start: float, expected: Any) -> None:
    assert clip_frames(numbered(40, rate), start, SETTINGS)[:, 0, 0, 0].tolist() == list(expected)


def test_frames_are_fitted_as_pictures_are(tmp_path: Path) -> None:
    wide = np.zeros((9, 64, 192, 3), np.uint8)
    wide[:, :, 48:144] = gradient_frames(9, **SIZE)
    assert np.array_equal(clip_frames(Video(wide, 25.0, None), 0, SETTINGS), wide[:, :, 48:144])
    large = replace(pair(tmp_path, "large"))
    write_mp4(large.video, gradient_frames(9, 128, 192), 25.0, tone(0.4), RATE)
    assert run([large], tmp_path / "out").done == 1


def test_the_sound_is_that_of_the_same_span() -> None:
    sound = clip_sound(numbered(40, 25.0), 0.4, SETTINGS)
    assert sound.shape == (2, round(SETTINGS.seconds * RATE))
    np.testing.assert_allclose(sound[:, 0], 0.4, atol=1e-4)
    ending = clip_sound(numbered(10, 25.0), 0.2, SETTINGS)
    assert ending.shape == sound.shape
    assert ending[0, round(0.2 * RATE) - 1] > 0.39
    assert not ending[0, round(0.2 * RATE) :].any()


def test_the_command_makes_a_folder_and_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    pairs = [pair(tmp_path / "data", name) for name in "ab"]
    manifest, out = tmp_path / "data" / "manifest.jsonl", tmp_path / "out"
    write_manifest(manifest, pairs)
    command = ["precompute", str(manifest), str(out), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*command, "--max-voice-seconds", "0.5", "--store", "float16"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 done, 0 skipped, 0 failed\n"
    store = LatentStore(out)
    assert store.header.settings["max_voice_seconds"] == 0.5
    assert {name.split("/")[0] for name in store.header.codecs} == {"vae", "audio_vae", "text_encoder", "connectors"}
    assert max(row.num_reference for row in store.rows) < 14
    pairs[1].reference.unlink()
    assert main([*command, "--max-voice-seconds", "0.5", "--store", "float16"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{out}: 0 done, 1 skipped, 1 failed; 1 dropped")
    assert "report.json says why" in captured.err
    assert main([*command, "--frames", "1"]) == 2
    assert main([*command[:2], str(out), "--placement", "nowhere"]) == 2
    assert main(["precompute", str(tmp_path / "absent"), str(out)]) == 2


def test_a_network_that_no_pair_needs_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive = Components._arrive
    pipeline().save_pretrained(tmp_path / "model")
    write_manifest(tmp_path / "manifest.jsonl", [pair(tmp_path, "a")])
    loaded: list[str] = []

    def noted(self: Components, name: str) -> None:
        loaded.append(name)
        arrive(self, name)

    monkeypatch.setattr(Components, "_arrive", noted)
    command = ["precompute", str(tmp_path / "manifest.jsonl"), str(tmp_path / "out"), "--device", "cpu"]
    for placement in ("whole", "offload"):
        assert main([*command, "--model", str(tmp_path / "model"), "--placement", placement]) == 0
        (tmp_path / "out" / "index.json").unlink()
    assert "transformer" not in loaded
    assert {"text_encoder", "vae"} <= set(loaded)


def test_a_latent_knows_its_bad_tensor() -> None:
    fine = torch.zeros(1, 1)
    assert Latents(fine, fine, fine, TextFeatures(fine, fine + torch.inf)).bad() == "text_audio"
