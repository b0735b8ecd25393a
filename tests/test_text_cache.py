# SPDX-License-Identifier: Apache-2.0
"""A prompt is read once: what the cache knows needs no text encoder and makes the same clip, byte for byte."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_pipeline
from idlora.cli.generate import text_cache_of
from idlora.networks.joint import TextContext
from idlora.pipeline import IDLoraPipeline, Placement, Request, TextCache
from idlora.pipeline.jobs import read_jobs, run_jobs
from idlora.pipeline.meter import Meter
from idlora.pipeline.texts import READERS, joined
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, digest, voice

CPU = torch.device("cpu")
OTHER = 'a man says "coffee"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.saved_model(tmp_path_factory.mktemp("cached") / "model")


def load(folder: Path, cache: Path | None, **options: Any) -> tuple[IDLoraPipeline, list[str]]:
    """A pipeline, and the names of its networks as they are loaded."""
    pipe = IDLoraPipeline.from_pretrained(folder, **options)
    pipe.text_cache = None if cache is None else TextCache(cache)
    arrived: list[str] = []
    pipe.components.on_arrival(lambda name, _: arrived.append(name))
    return pipe, arrived


def clip(pipe: IDLoraPipeline, prompt: str = PROMPT, **options: Any) -> str:
    return digest(pipe(prompt, image=PICTURE, voice=voice(), **options))


def meter() -> Meter:
    return Meter(CPU)


@pytest.mark.parametrize("where", ["whole", "offload"])
def test_a_known_prompt_needs_no_reader_and_makes_the_same_clip(folder: Path, where: Any, tmp_path: Path) -> None:
    plain, _ = load(folder, None)
    expected, other = clip(plain), clip(plain, OTHER)
    assert expected != other
    for prompt, digest_of_it, readers in ((PROMPT, expected, set(READERS)), (PROMPT, expected, set())):
        pipe, arrived = load(folder, tmp_path, placement=Placement(where))
        assert clip(pipe, prompt) == digest_of_it
        assert set(READERS) & set(arrived) == readers
    pipe, arrived = load(folder, tmp_path, placement=Placement(where))
    assert clip(pipe, OTHER) == other
    assert set(READERS) <= set(arrived)


def test_a_prompt_is_read_alone_whatever_else_the_batch_asks_for(folder: Path) -> None:
    pipe, _ = load(folder, None)
    alone = pipe.reader.contexts([pipe.tokens.tokens([PROMPT])], meter())[0]
    three = pipe.reader.contexts([pipe.tokens.tokens([text]) for text in (OTHER, PROMPT, OTHER)], meter())
    assert torch.equal(three[1].video, alone.video)
    assert three[0] is three[2]
    assert torch.equal(joined(three).audio[1:2], alone.audio)


def test_other_weights_another_dtype_and_other_text_are_read_anew(folder: Path, tmp_path: Path) -> None:
    first, _ = load(folder, tmp_path / "cache")
    clip(first)
    stored = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(stored) == 2  # prompt and negative prompt
    pipe, arrived = load(folder, tmp_path / "cache", dtype=torch.bfloat16)
    clip(pipe)
    assert set(READERS) <= set(arrived)
    weights = next((folder / "connectors").glob("*.safetensors"))
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    pipe, arrived = load(folder, tmp_path / "cache")
    clip(pipe)
    assert set(READERS) <= set(arrived)
    clip(pipe, negative_prompt="coffee")
    assert len(list((tmp_path / "cache").iterdir())) == 7


def test_networks_that_came_from_no_file_are_never_taken_for_others(tmp_path: Path) -> None:
    pipe = IDLoraPipeline(tiny_pipeline.components("2.3"), CARD)
    pipe.text_cache = TextCache(tmp_path / "cache")
    pipe(PROMPT)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_no_clip(folder: Path, tmp_path: Path) -> None:
    expected = clip(load(folder, None)[0])
    assert clip(load(folder, tmp_path / "cache")[0]) == expected
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    assert clip(load(folder, tmp_path / "cache")[0]) == expected
    pipe, arrived = load(folder, tmp_path / "cache")
    assert clip(pipe) == expected
    assert not set(READERS) & set(arrived)
    (tmp_path / "file").write_text("in the way")
    assert clip(load(folder, tmp_path / "file")[0]) == expected


def test_the_least_used_go_when_the_cache_is_full(tmp_path: Path) -> None:
    context = TextContext(torch.zeros(1, 100, 4), torch.zeros(1, 100, 2), torch.ones(1, 100))
    TextCache(tmp_path).put("a", context)
    size = (tmp_path / "a.safetensors").stat().st_size
    cache = TextCache(tmp_path, limit=2 * size)
    for number, key in enumerate("bcd"):
        for older in tmp_path.iterdir():
            os.utime(older, (number, number) if older.stem != "a" else (number + 0.5, number + 0.5))
        cache.put(key, context)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "d"}


@pytest.mark.parametrize("masked", [True, False])
def test_a_context_comes_back_as_it_went(masked: bool, tmp_path: Path) -> None:
    mask = torch.tensor([[0, 1, 1]]) if masked else None
    kept = TextContext(torch.randn(1, 3, 4, dtype=torch.bfloat16), torch.randn(1, 3, 2), mask)
    TextCache(tmp_path).put("key", kept)
    found = TextCache(tmp_path).get("key", CPU)
    assert found is not None
    assert torch.equal(found.video, kept.video)
    assert torch.equal(found.audio, kept.audio)
    assert (found.mask is None) == (mask is None)
    assert mask is None or torch.equal(found.mask, mask)  # type: ignore[arg-type]
    assert TextCache(tmp_path).get("other", CPU) is None


def test_prompts_with_and_without_padding_join() -> None:
    full = TextContext(torch.ones(1, 3, 4), torch.ones(1, 3, 2))
    padded = replace(full, mask=torch.tensor([[0, 1, 1]]))
    assert joined([full, full]).mask is None
    mask = joined([full, padded]).mask
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1]]


def test_jobs_load_the_readers_once_for_all_their_prompts(folder: Path, tmp_path: Path) -> None:
    texts = ["zero one", "river", "garden", "coffee man"]
    lines = [f'{{"prompt": "[VISUAL] {text}"}}' for text in texts] + ['{"prompt": "  "}']
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    pipe, arrived = load(folder, tmp_path / "cache", placement=Placement("offload"))
    jobs = read_jobs(tmp_path / "jobs.jsonl", SETTINGS, pipe.generation)
    outcomes = run_jobs(pipe, jobs, tmp_path / "out")
    assert [each.state for each in outcomes] == ["done"] * 4 + ["failed"]
    assert [arrived.count(name) for name in READERS] == [1, 1]
    plain, _ = load(folder, None)
    again = run_jobs(plain, jobs[:1], tmp_path / "plain")
    assert again[0].state == "done"
    assert (tmp_path / "plain" / "0001.mp4").read_bytes() == (tmp_path / "out" / "0001.mp4").read_bytes()


def test_learning_without_a_cache_reads_nothing(folder: Path) -> None:
    pipe, arrived = load(folder, None)
    before = list(arrived)
    pipe.learn_prompts([Request(PROMPT, SETTINGS)])
    assert arrived == before


def test_the_option_names_a_folder_the_users_own_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_cache_of("off") is None
    assert text_cache_of(str(tmp_path)) == TextCache(tmp_path)
    monkeypatch.setenv("IDLORA_CACHE", str(tmp_path / "mine"))
    assert text_cache_of("auto") == TextCache(tmp_path / "mine" / "texts")
    monkeypatch.delenv("IDLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert text_cache_of("auto") == TextCache(tmp_path / "idlora" / "texts")
