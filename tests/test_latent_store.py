# SPDX-License-Identifier: Apache-2.0
"""Folders of latents: what is added is read back, at any moment they are whole, and what is damaged is made anew."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from idlora.errors import TrainingError
from idlora.networks.text import TextFeatures
from idlora.training.latents.store import INDEX_NAME, NO_TEXT_NAME, Header, Latents, LatentStore, LatentWriter, Row
from signals import truncated

HEADER = Header("2.3", 24, {"vae/x.safetensors": "ab"}, {"num_frames": 9})
ONE = 1  # byte of a shard: one sample each
LARGE = 1 << 30


def latents(seed: int = 0, *, two_streams: bool = True) -> Latents:
    draw = torch.Generator().manual_seed(seed)
    video, audio, reference, text, other = (torch.randn(seed % 3 + 2, size, generator=draw) for size in (6, 5, 5, 4, 3))
    return Latents(video, audio, reference, TextFeatures(text, other if two_streams else text))


def row(name: str, key: str = "k", **more: str) -> Row:
    return Row(name, key, (1, 1, 2), 2, 2, 25.0, 9, **more)


def filled(folder: Path, names: str = "abc", size: int = ONE) -> LatentWriter:
    writer = LatentWriter(folder, HEADER, torch.float32, size)
    for number, name in enumerate(names):
        writer.add(row(name), latents(number))
    writer.flush()
    return writer


def equal(one: Latents, other: Latents) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=8),
    st.sampled_from([ONE, 400, LARGE]),
    st.integers(0, 8),
)
def test_what_is_read_is_what_was_added_last(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[str, bool]], size: int, pause: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    expected: dict[str, Latents] = {}
    for part in (added[:pause], added[pause:]):
        writer = LatentWriter(folder, HEADER, torch.float32, size)
        for name, two_streams in part:
            expected[name] = latents(len(expected) + pause, two_streams=two_streams)
            writer.add(row(name), expected[name])
        writer.write_no_text(latents().text)
        writer.flush()
    store = LatentStore(folder)
    assert {found.id for found in store.rows} == expected.keys()
    assert all(equal(store.read(found), expected[found.id]) for found in store.rows)
    assert {path.name for path in folder.glob("shard-*")} == {found.shard for found in store.rows}
    assert torch.equal(store.no_text.video, latents().text.video)
    assert torch.equal(store.no_text.audio, latents().text.audio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_rounded_to_the_stored_dtype_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    writer = LatentWriter(tmp_path, HEADER, dtype)
    writer.add(row("a"), latents())
    writer.flush()
    store = LatentStore(tmp_path)
    found = store.read(store.rows[0]).tensors()
    for name, tensor in latents().tensors().items():
        assert torch.equal(found[name], tensor.to(dtype).float())


def test_a_folder_keeps_its_header(tmp_path: Path) -> None:
    filled(tmp_path)
    assert LatentStore(tmp_path).header == HEADER
    others: dict[str, Any] = {"generation": "2.0", "max_text_tokens": 8, "codecs": {}, "settings": {"num_frames": 17}}
    for name, value in others.items():
        with pytest.raises(TrainingError, match="num_frames" if name == "settings" else name):
            LatentWriter(tmp_path, dataclasses.replace(HEADER, **{name: value}))


def test_the_digest_names_the_data_and_not_its_order(tmp_path: Path) -> None:
    for folder, names in (("one", "abc"), ("other", "cba"), ("fewer", "ab")):
        filled(tmp_path / folder, names)
    one, other, fewer = (LatentStore(tmp_path / name).digest for name in ("one", "other", "fewer"))
    assert one == other != fewer


def test_samples_of_a_split_are_found_and_corrected(tmp_path: Path) -> None:
    writer = filled(tmp_path)
    writer.describe("b", "ann", "validation")
    assert LatentStore(tmp_path).of_split("validation") == ()
    writer.flush()
    store = LatentStore(tmp_path)
    assert [(found.id, found.speaker) for found in store.of_split("validation")] == [("b", "ann")]
    assert [found.id for found in store.of_split("train")] == ["a", "c"]
    assert equal(store.read(store.of_split("validation")[0]), latents(1))


@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted", "another"])
def test_a_damaged_shard_is_told_and_its_samples_can_be_made_anew(tmp_path: Path, damage: str) -> None:
    filled(tmp_path)
    shard = tmp_path / LatentStore(tmp_path).rows[1].shard
    if damage == "deleted":
        shard.unlink()
    elif damage == "another":
        shard.write_bytes((tmp_path / LatentStore(tmp_path).rows[0].shard).read_bytes())
    else:
        truncated(shard, shard, 0.9 if damage == "cut" else 0)
    store = LatentStore(tmp_path)
    with pytest.raises(TrainingError, match=r"shard-00001.*run `idlora precompute` again"):
        store.read(store.rows[1])
    assert equal(store.read(store.rows[0]), latents(0))
    writer = LatentWriter(tmp_path, HEADER, torch.float32, ONE)
    assert writer.keys().keys() == {"a", "c"}
    writer.add(row("b"), latents(1))
    healed = LatentStore(tmp_path)
    assert {found.id: equal(healed.read(found), latents("abc".index(found.id))) for found in healed.rows} == {
        "a": True,
        "b": True,
        "c": True,
    }


def test_a_number_that_is_none_is_told(tmp_path: Path) -> None:
    writer = LatentWriter(tmp_path, HEADER)
    bad = latents()
    bad.audio[0, 0] = torch.nan
    assert (bad.bad(), latents().bad()) == ("audio", "")
    writer.add(row("a"), bad)
    writer.flush()
    store = LatentStore(tmp_path)
    with pytest.raises(TrainingError, match="audio of the sample a"):
        store.read(store.rows[0])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"header": {}}', '{"header": {"generation": 1}, "samples": 3}'])
def test_a_damaged_index_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"index\.json is damaged"):
        LatentStore(tmp_path)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="idlora precompute"):
        LatentStore(tmp_path)
    writer = filled(tmp_path)
    assert not writer.has_no_text()
    with pytest.raises(TrainingError, match="without text dropout"):
        _ = LatentStore(tmp_path).no_text
    writer.write_no_text(latents().text)
    assert writer.has_no_text()
    truncated(tmp_path / NO_TEXT_NAME, tmp_path / NO_TEXT_NAME, 0.5)
    assert not writer.has_no_text()
