# SPDX-License-Identifier: Apache-2.0
"""The command `idlora`: its options, what it writes, and its faults: exit code 2, one line, nothing left behind."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from idlora.cli import main
from idlora.cli.generate import checked_device
from idlora.cli.options import TABLE, settings_json
from idlora.data.media import read_image, read_video, write_mp4, write_png, write_wav
from idlora.networks.adapter import AdapterWeights, write_adapter
from idlora.pipeline import Settings, settings_from_json, settings_to_json
from idlora.pipeline.settings import Options
from signals import RATE, gradient_frames, tone, truncated
from tiny_pipeline import CARD, SETTINGS, adapter_for, pipeline

PROMPT = "[SPEECH] river garden"

# The promise to users: an option is added here on purpose, and none goes away unseen.
OPTIONS = """
--prompt --jobs --ray/--no-ray --workers --image --keyframe --voice --negative-prompt --preset --settings --out
--preview --frames --height --width --aspect --fps --steps --sigmas --refine-sigmas --seed --sampler --shift
--text-video-scale --text-audio-scale --text-star/--no-text-star --text-interval --text-every --identity-scale
--identity-video-scale --identity-base/--no-identity-base --identity-audio-only/--identity-both --identity-interval
--identity-every --stg-video-scale --stg-audio-scale --stg-blocks --stg-interval --stg-every --modality-video-scale
--modality-audio-scale --modality-interval --modality-every --first-block-cache --rescale-video --rescale-audio
--reference-mask/--no-reference-mask --reference-text --reference-attention --positions --reference-time
--official-noise/--own-noise --voice-seconds --clean-voice/--raw-voice --model --text-encoder --upsampler --transformer
--adapter --adapter-strength --distilled --distilled-strength --refine-strength --style --fuse/--keep-apart
--compile/--eager --graphs/--no-graphs --attention --threads --device --dtype --text-cache --placement --storage
--tiled/--not-tiled --max-branches
""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a picture and a voice."""
    write_png(tmp_path / "face.png", gradient_frames(1, 64, 96)[0])
    write_wav(tmp_path / "voice.wav", tone(1.0), RATE)
    return tmp_path


def generate(model: Path, out: Path, *options: str | Path) -> int:
    return main(["generate", "--model", str(model), "--prompt", PROMPT, "--out", str(out), *map(str, options)])


def test_the_options_are_these() -> None:
    assert [row.flag for row in TABLE] == OPTIONS


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield from leaves(value, f"{path}{name}.") if isinstance(value, dict) else [path + name]


EXAMPLES = {
    "negative_prompt": "x",
    "sampler": "res2s",
    "shift": "by-size",
    "aspect": "picture",
    "reference_text": "block",
    "reference_attention": "alone",
    "positions": "bf16-training",
    "reference_time": "far",
    "num_frames": 17,
    "height": 96,
    "width": 128,
    "guidance.stg.blocks": "0, 1",
    "guidance.rescale.video": 0.5,
    "guidance.rescale.audio": 0.5,
    "sigmas": "1, 0.5, 0",
    "refine.sigmas": "0.7,0.3, 0",
}


def example(row: Any) -> Any:
    if row.kind == tuple[float, float]:
        return (0.25, 0.75)
    return EXAMPLES.get(row.setting, {bool: True, int: 3, float: 2.5}.get(row.kind))


def test_every_setting_has_its_option_and_every_option_its_effect() -> None:
    default = settings_to_json(Settings())
    rows = [row for row in TABLE if row.setting]
    reached = set()
    for row in rows:  # one by one, since some exclude each other
        given = settings_json({row.name: example(row)})
        changed = settings_to_json(settings_from_json(given, Settings()))
        for path in leaves(given):
            before, after = default, changed
            for name in path.split("."):
                before, after = before[name], after[name]
            assert before != after, path
            reached.add(path)
    assert reached == set(leaves(default))
    assert {path.split(".")[0] for path in reached} == set(Options.__annotations__)


def test_help_and_version_need_no_networks() -> None:
    code = "import sys; from idlora.cli import main; main(['generate', '--help']); main(['--version'])"
    code += "; print(sys.modules.keys() & {'torch', 'numpy', 'diffusers', 'transformers'} or 'nothing heavy')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--identity-scale" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["idlora 0.1.0", "nothing heavy"]


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("generate", "demo", "push", "evaluate", "world"))


def test_an_adapter_is_described(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "info", str(model / "adapter.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "identity adapter, rank 4" in text
    assert "generation: 2.3" in text
    assert main(["adapter", "info", str(model / "adapter.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == [0, 1]
    assert main(["adapter", "info", str(model / "model_index.json")]) == 2


def test_generate_writes_a_clip_and_its_sidecar(model: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = inputs / "clip.mp4"
    given = ("--image", inputs / "face.png", "--voice", inputs / "voice.wav")
    assert generate(model, out, *given, "--seed", "5", "--identity-scale", "0.5", "--frames", "17") == 0
    clip = read_video(out)
    assert clip.frames.shape == (17, 64, 96, 3)
    assert clip.audio is not None
    sidecar = json.loads((inputs / "clip.mp4.json").read_text(encoding="utf-8"))
    assert sidecar["settings"]["seed"] == 5
    assert sidecar["settings"]["guidance"]["identity"]["scale"] == 0.5
    assert sidecar["inputs"].keys() == {"image", "voice"}
    printed = capsys.readouterr()
    assert "0.68 s of video" in printed.out
    assert printed.err == ""


def test_threads_are_as_many_as_wanted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", wanted.append)
    assert generate(model, tmp_path / "clip.mp4", "--threads", "3", "--steps", "1", "--frames", "9") == 0
    assert wanted == [3]


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_best_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert checked_device("auto") == chosen


def test_keyframes_are_given_by_file_and_frame(model: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keyframes = ("--keyframe", f"{inputs}/face.png@-1:0.5", "--keyframe", f"{inputs}/face.png@0")
    assert generate(model, inputs / "clip.mp4", *keyframes) == 0
    sidecar = json.loads((inputs / "clip.mp4.json").read_text(encoding="utf-8"))
    assert sidecar["inputs"].keys() == {"frame -1", "frame 0"}
    capsys.readouterr()
    for wrong, words in (("face.png", "FILE@FRAME"), ("face.png@x", "FILE@FRAME"), ("face.png@1:2", "at most 1")):
        assert generate(model, inputs / "other.mp4", "--keyframe", wrong) == 2
        assert words in one_line(capsys)


def test_a_sidecar_given_as_settings_makes_the_same_clip(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    assert generate(model, first, "--seed", "9", "--steps", "1") == 0
    assert generate(model, second, "--settings", tmp_path / "first.mp4.json") == 0
    assert np.array_equal(read_video(first).frames, read_video(second).frames)


def test_options_win_over_the_settings_file_and_that_over_the_model(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"seed": 4, "num_inference_steps": 1}', encoding="utf-8")
    assert generate(model, tmp_path / "clip.mp4", "--settings", path, "--seed", "6") == 0
    said = json.loads((tmp_path / "clip.mp4.json").read_text(encoding="utf-8"))["settings"]
    expected = {**settings_to_json(SETTINGS), "seed": 6, "num_inference_steps": 1}
    assert settings_from_json(said, Settings()) == settings_from_json(expected, Settings())


def test_unknown_words_give_a_notice_and_the_clip_is_made(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.mp4"
    assert main(["generate", "--model", str(model), "--prompt", "[SPEECH] zero", "--out", str(out)]) == 0
    assert out.exists()
    line = capsys.readouterr().err
    assert line.startswith("note: ")
    assert line.rstrip().endswith(", ".join(CARD.vocabulary))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a fault printed: one line on stderr, nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("idlora: ")
    return printed.err


FAULTS: dict[str, tuple[list[str], str]] = {
    "missing picture": (["--image", "absent.png"], "absent.png"),
    "broken picture": (["--image", "broken.png"], "broken.png"),
    "picture that is none": (["--image", "voice.wav"], "not a picture"),
    "missing sound": (["--voice", "absent.wav"], "absent.wav"),
    "broken sound": (["--voice", "broken.wav"], "cut short"),
    "sound that is none": (["--voice", "junk.mp3"], "junk.mp3"),
    "broken video": (["--voice", "broken.mp4"], "broken.mp4"),
    "missing video": (["--voice", "absent.mp4"], "absent.mp4"),
    "video without sound": (["--voice", "mute.mp4"], "no audio track"),
    "silent voice": (["--voice", "silent.wav"], "silent"),
    "short voice": (["--voice", "short.wav"], "at least 0.5 s"),
    "empty prompt": (["--prompt", " "], "prompt is empty"),
    "height off the grid": (["--height", "100"], "use 96"),
    "width off the grid": (["--width", "1"], "use 64"),
    "frames off the grid": (["--frames", "10"], "use 9"),
    "zero steps": (["--steps", "0"], "at least 1"),
    "negative seed": (["--seed", "-1"], "seed -1"),
    "scale that is no number": (["--identity-scale", "nan"], "finite number"),
    "interval the wrong way": (["--text-interval", "0.8", "0.2"], "interval"),
    "block that is no number": (["--stg-blocks", "a"], "whole number"),
    "block that is not there": (["--stg-video-scale", "1", "--stg-blocks", "7"], "7"),
    "unknown sampler": (["--sampler", "heun"], "euler, res2s"),
    "unknown setting": (["--settings", "unknown.json"], "did you mean 'num_frames'"),
    "broken settings": (["--settings", "junk.mp3"], "junk.mp3"),
    "unknown device": (["--device", "abacus"], "choose auto, cpu"),
    "unknown attention": (["--attention", "flashy"], "did you mean 'flash'"),
    "attention that works elsewhere": (["--attention", "_native_cudnn"], "does not work on cpu in float32"),
    "no threads": (["--threads", "0"], "at least 1"),
    "unknown dtype": (["--dtype", "int3"], "bfloat16"),
    "unknown model": (["--model", "./absent"], "there is no model"),
    "missing adapter": (["--adapter", "absent.safetensors"], "absent.safetensors"),
    "wrong adapter": (["--adapter", "wrong.safetensors"], "does not fit"),
    "missing folder": (["--out", "absent/clip.mp4"], "no folder"),
    "other format": (["--out", "clip.avi"], "does not end in .mp4"),
    "no number": (["--frames", "many"], "--frames"),
    "unknown option": (["--colour", "red"], "--colour"),
}


@pytest.fixture(scope="module")
def rubbish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs of which none can be used."""
    folder = tmp_path_factory.mktemp("rubbish")
    frames = gradient_frames(9, 64, 64)
    write_wav(folder / "voice.wav", tone(1.0), RATE)
    write_wav(folder / "short.wav", tone(0.3), RATE)
    write_wav(folder / "silent.wav", 0 * tone(1.0), RATE)
    write_mp4(folder / "mute.mp4", frames, 25.0)
    write_mp4(folder / "whole.mp4", frames, 25.0, tone(0.36))
    write_png(folder / "whole.png", frames[0])
    truncated(folder / "broken.wav", folder / "voice.wav", 0.5)
    truncated(folder / "broken.mp4", folder / "whole.mp4", 0.5)
    truncated(folder / "broken.png", folder / "whole.png", 0.5)
    (folder / "junk.mp3").write_bytes(b"\xff\x00junk" * 50)
    (folder / "unknown.json").write_text('{"num_frame": 9}', encoding="utf-8")
    layers = adapter_for(pipeline(adapted=False).components.transformer).layers
    renamed = {name.replace("blocks.1", "blocks.40"): layer for name, layer in layers.items()}
    write_adapter(folder / "wrong.safetensors", AdapterWeights(renamed))
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_user_is_one_line_and_leaves_nothing(
    fault: str, model: Path, rubbish: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, message = FAULTS[fault]
    monkeypatch.chdir(rubbish)
    before = sorted(rubbish.rglob("*"))
    assert generate(model, Path("clip.mp4"), *options) == 2
    assert message in one_line(capsys)
    assert sorted(rubbish.rglob("*")) == before


INCOMPLETE = [["generate"], ["nothing"], ["push", "x"], ["evaluate"], ["world"], ["world", "sample"]]


@pytest.mark.parametrize("arguments", INCOMPLETE)
def test_a_command_that_is_not_complete_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    one_line(capsys)


def full_disk(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", [(os, "replace"), (Path, "write_text")], ids=["replace", "write"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Any
) -> None:
    monkeypatch.setattr(call[0], call[1], full_disk)
    assert generate(model, tmp_path / "clip.mp4", "--steps", "1") == 2
    assert "No space left" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def interrupted(*_: object) -> NoReturn:
    """What Python's own handler of SIGINT does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["denoise", "decode"])
def test_ctrl_c_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    monkeypatch.setattr(f"idlora.pipeline.pipeline.{moment}", interrupted)
    assert generate(model, tmp_path / "clip.mp4") == 2
    assert one_line(capsys).startswith("idlora: stopped")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idlora.data.media.videos._encode_audio", interrupted)
    assert generate(model, tmp_path / "clip.mp4", "--steps", "1") == 2
    assert list(tmp_path.iterdir()) == []


def test_world_sample_writes_clips_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "sample", str(tmp_path / "clips"), "--count", "2"]) == 0
    captions = json.loads((tmp_path / "clips" / "captions.json").read_text(encoding="utf-8"))
    assert list(captions) == ["clip-000.mp4", "clip-001.mp4"]
    assert all("[SPEECH]" in caption for caption in captions.values())
    clip = read_video(tmp_path / "clips" / "clip-001.mp4")
    assert clip.frames.shape == (57, 96, 96, 3)
    assert clip.audio is not None
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["clips", "--count", "0"], ["file/clips"]])
def test_world_sample_refuses_what_it_cannot_do(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["world", "sample", *arguments]) == 2
    one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def demo_with_tiny_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo on random networks, with a portrait, a voice and a judge of the test's own."""
    assets = tmp_path / "assets"
    assets.mkdir()
    write_png(assets / "demo_portrait.png", gradient_frames(1, 96, 96)[0])
    write_wav(assets / "demo_voice.flac", tone(1.0), RATE)

    @contextmanager
    def packaged() -> Iterator[Path]:
        yield assets

    scores = iter([0.75, 0.5])
    monkeypatch.setattr("idlora.cli.demo.packaged", packaged)
    monkeypatch.setattr("idlora.pipeline.IDLoraPipeline.from_pretrained", lambda _: pipeline())
    monkeypatch.setattr("idlora.evaluation.judges.SpeakerJudge.similarity", lambda *_: next(scores))
    return tmp_path


def test_the_demo_writes_both_clips_a_picture_and_the_similarities(
    demo_with_tiny_networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demo_with_tiny_networks / "demo"
    assert main(["demo", "--out", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    clips = ("result.mp4", "no_reference.mp4")
    assert names == {"overview.png", *clips, *(f"{name}.json" for name in clips)}
    sounds = [read_video(folder / name).audio for name in clips]
    assert sounds[0] is not None
    assert sounds[1] is not None
    assert not np.array_equal(sounds[0].samples, sounds[1].samples)
    assert np.ptp(np.asarray(read_image(folder / "overview.png"))) > 64
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "speaker similarity to the voice: 0.750 with the reference, 0.500 without"


def test_the_demo_goes_on_without_a_judge(
    demo_with_tiny_networks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "idlora.evaluation.judges", None)
    assert main(["demo", "--out", str(demo_with_tiny_networks / "demo")]) == 0
    assert "not measured" in capsys.readouterr().out
