# SPDX-License-Identifier: Apache-2.0
"""Latents in the published layout: both generations become ours, and no file of it is ever run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from idlora.cli import main
from idlora.core.tokens import tokens_to_audio, tokens_to_video
from idlora.errors import InputError
from idlora.training.latents.filling import Report
from idlora.training.latents.published import find_published, import_published
from idlora.training.latents.store import LatentStore
from signals import truncated

LENGTH, TOKENS = 12, 5  # of a text, with and without its padding in front
GENERATIONS = ["2.0", "2.3"]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(generation: str, seed: int = 0) -> dict[str, Tensor]:
    mask = torch.tensor([0] * (LENGTH - TOKENS) + [1] * TOKENS)
    if generation == "2.0":
        return {"prompt_embeds": drawn(seed, LENGTH, 6), "prompt_attention_mask": mask}
    return {
        "video_prompt_embeds": drawn(seed, LENGTH, 6),
        "audio_prompt_embeds": drawn(seed + 1, LENGTH, 4),
        "prompt_attention_mask": mask.bool(),
    }


def audio(seed: int, length: int) -> dict[str, Any]:
    return {"latents": drawn(seed, 8, length, 16), "num_time_steps": length, "frequency_bins": 16, "duration": 0.5}


def video(seed: int) -> dict[str, Any]:
    sizes = {"num_frames": torch.tensor(3), "height": 2, "width": torch.tensor(4)}
    return {"latents": drawn(seed, 10, 3, 2, 4), **sizes, "fps": torch.tensor(24.0)}


def save(folder: Path, data: Any) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, folder)
    return folder


def sample(folder: Path, name: str, generation: str, seed: int = 0, reference: str = "reference_audio_latents") -> None:
    save(folder / "latents" / f"{name}.pt", video(seed))
    save(folder / "audio_latents" / f"{name}.pt", audio(seed + 1, 7))
    save(folder / reference / f"{name}.pt", audio(seed + 2, 9))
    save(folder / "conditions" / f"{name}.pt", text(generation, seed + 3))


def run(folder: Path, out: Path) -> Report:
    return import_published(find_published(folder), out, torch.float32)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("reference", ["reference_audio_latents", "audio_latents_clean"])
def test_published_latents_become_ours_without_a_change_of_numbers(
    tmp_path: Path, generation: str, reference: str
) -> None:
    for number, name in enumerate(("a", "videos/b")):
        sample(tmp_path, name, generation, 10 * number, reference)
    assert run(tmp_path, tmp_path / "out") == Report(2, 0, (), 0, 2)
    store = LatentStore(tmp_path / "out")
    assert (store.header.generation, store.header.max_text_tokens, store.header.codecs) == (generation, LENGTH, {})
    assert [row.id for row in store.rows] == ["a", "videos/b"]
    row, latents = store.rows[1], store.read(store.rows[1])
    assert (row.grid, row.num_frames, row.frame_rate, row.split) == ((3, 2, 4), 17, 24.0, "train")
    assert (row.num_audio, row.num_reference) == (7, 9)
    assert torch.equal(tokens_to_video(latents.video[None], row.grid)[0], drawn(10, 10, 3, 2, 4))
    assert torch.equal(tokens_to_audio(latents.audio[None])[0], drawn(11, 8, 7, 16))
    assert torch.equal(tokens_to_audio(latents.reference[None])[0], drawn(12, 8, 9, 16))
    assert torch.equal(latents.text.video, drawn(13, LENGTH, 6)[-TOKENS:])
    if generation == "2.0":
        assert latents.text.audio is latents.text.video
    else:
        assert torch.equal(latents.text.audio, drawn(14, LENGTH, 4)[-TOKENS:])


@pytest.mark.parametrize("name", ["a", "latent_a", "x/latent_a"])
def test_older_names_of_texts_are_found(tmp_path: Path, name: str) -> None:
    sample(tmp_path, name, "2.0")
    there = tmp_path / "conditions" / f"{name}.pt"
    there.rename(there.with_name("condition_a.pt"))
    assert run(tmp_path, tmp_path / "out").done == 1


def test_a_second_run_imports_only_what_has_changed(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        sample(tmp_path, name, "2.3", number)
    run(tmp_path, tmp_path / "out")
    save(tmp_path / "audio_latents" / "b.pt", audio(99, 7))
    assert run(tmp_path, tmp_path / "out") == Report(1, 1, (), 0, 2)
    store = LatentStore(tmp_path / "out")
    changed = next(row for row in store.rows if row.id == "b")
    assert torch.equal(tokens_to_audio(store.read(changed).audio[None])[0], drawn(99, 8, 7, 16))


class Malice:
    """What makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


SPOILT: dict[str, tuple[str, Any, str]] = {
    "cut": ("latents", lambda path: truncated(path, path, 0.5), "damaged"),
    "empty": ("latents", lambda path: path.write_bytes(b""), "damaged"),
    "text": ("audio_latents", lambda path: path.write_text("hello", encoding="utf-8"), "damaged"),
    "missing": ("reference_audio_latents", lambda path: path.unlink(), "cannot read"),
    "list": ("latents", lambda path: save(path, [1, 2]), "no named tensors"),
    "no rate": ("latents", lambda path: save(path, {"latents": drawn(0, 10, 3, 2, 4)}), "fps"),
    "axes": ("latents", lambda path: save(path, {"latents": drawn(0, 10, 3, 2), "fps": 24}), "4 plain axes"),
    "no latents": ("audio_latents", lambda path: save(path, {"sound": drawn(0, 2)}), "no tensor latents"),
    "not finite": ("audio_latents", lambda path: save(path, {"latents": drawn(0, 8, 7, 16) / 0}), "not finite"),
    "generation": ("conditions", lambda path: save(path, text("2.0")), "of LTX-2.0"),
    "no text": ("conditions", lambda path: save(path, {"embeds": drawn(0, 2)}), "no text features"),
    "no words": (
        "conditions",
        lambda path: save(path, {**text("2.3"), "prompt_attention_mask": torch.zeros(LENGTH)}),
        "with 0 tokens",
    ),
    "mask": (
        "conditions",
        lambda path: save(path, {**text("2.3"), "prompt_attention_mask": torch.ones(3)}),
        "a mask of 3",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_bad_file_is_told_and_stops_nothing(tmp_path: Path, kind: str) -> None:
    for number, name in enumerate("abc"):
        sample(tmp_path, name, "2.3", number)
    folder, spoil, words = SPOILT[kind]
    spoil(tmp_path / folder / "b.pt")
    report = run(tmp_path, tmp_path / "out")
    assert [(fault.id, fault.line) for fault in report.failed] == [("b", 0)]
    assert words in report.failed[0].reason
    assert [row.id for row in LatentStore(tmp_path / "out").rows] == ["a", "c"]


@pytest.mark.parametrize("folder", ["latents", "audio_latents", "reference_audio_latents", "conditions"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_would_run_something_is_refused_by_name(tmp_path: Path, folder: str, plain: bool) -> None:
    for number, name in enumerate("ab"):
        sample(tmp_path, name, "2.3", number)
    file, mark = tmp_path / folder / "a.pt", tmp_path / "mark"
    data = {"latents": drawn(0, 8, 7, 16), "more": Malice(mark)}
    if plain:
        file.write_bytes(pickle.dumps(data))
    else:
        save(file, data)
    report = run(tmp_path, tmp_path / "out")
    assert not mark.exists()
    assert [fault.id for fault in report.failed] == ["a"]
    assert f"{file} is refused" in report.failed[0].reason
    assert report.done == 1


def test_what_is_no_such_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have the folders"):
        find_published(tmp_path)
    for name in ("latents", "audio_latents", "conditions", "audio_latents_clean"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"no \.pt file"):
        find_published(tmp_path)
    sample(tmp_path, "a", "2.3")
    (tmp_path / "conditions" / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 text files.*a\.pt"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_imports_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(tmp_path / "data", "a", "2.3")
    command = ["precompute", str(tmp_path / "data"), str(tmp_path / "out"), "--store", "float32"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "1 done, 0 skipped, 0 failed" in captured.out
    assert "without text dropout" in captured.err
    assert main([*command, "--frames", "9"]) == 2
    assert "leave sizes" in capsys.readouterr().err
    assert main(["precompute", str(tmp_path), str(tmp_path / "other")]) == 2
