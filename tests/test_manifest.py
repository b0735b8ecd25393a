# SPDX-License-Identifier: Apache-2.0
"""Manifests of training pairs: what a line may say, that a bad one stops nothing, and that none raises."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from idlora.data.manifest import SPLITS, Pair, read_manifest, write_manifest
from idlora.data.prompt import Prompt, parse_prompt
from idlora.errors import InputError

GOOD = {"video": "a.mp4", "reference": "voices/a.wav", "caption": 'a man says "river"'}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_says_everything_of_a_pair(tmp_path: Path) -> None:
    full = {"id": "7", "speaker": "ann", "split": "validation", "start": 2, "extra": {"anything": [1]}}
    parts = {"visual": "a man", "speech": "river", "sounds": "calm"}
    lines = {**GOOD, **full}, "", {"video": "b.mp4", "reference": "b.mp4", **parts}
    pairs, faults = read_manifest(written(tmp_path, *lines))
    assert faults == []
    first = Pair("7", tmp_path / "a.mp4", tmp_path / "voices/a.wav", "", "ann", "validation", 2.0, line=1)
    assert pairs[0] == Pair(**{**vars(first), "caption": parse_prompt(str(GOOD["caption"])).text()})
    assert (pairs[1].id, pairs[1].caption, pairs[1].split, pairs[1].line) == ("b", Prompt(**parts).text(), "train", 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "no object"),
        ({"caption": "x", "reference": "r"}, "video is missing"),
        ({"video": "v", "caption": "x"}, "reference is missing"),
        ({"video": "v", "reference": "r"}, "prompt is empty"),
        ({**GOOD, "caption": 3}, "caption is '3'"),
        ({**GOOD, "speech": "x"}, "both caption and speech"),
        ({**GOOD, "referense": "x"}, "did you mean 'reference'"),
        ({**GOOD, "split": "dev"}, "train, validation, test"),
        ({**GOOD, "start": -1}, "0 or more"),
        ({**GOOD, "start": True}, "0 or more"),
        ('{"video": "v", "reference": "r", "caption": "x", "start": NaN}', "0 or more"),
        ({**GOOD, "id": ""}, "id is empty"),
        ({**GOOD, "id": "first"}, "earlier line has the id 'first'"),
        ({**GOOD, "speaker": "\ud800"}, "must be text"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_stops_nothing(tmp_path: Path, line: object, words: str) -> None:
    pairs, faults = read_manifest(written(tmp_path, {**GOOD, "id": "first"}, line, {**GOOD, "id": "last"}))
    assert [pair.id for pair in pairs] == ["first", "last"]
    assert [fault.line for fault in faults] == [2]
    assert words in faults[0].reason


def test_videos_of_one_name_get_ids_of_their_own(tmp_path: Path) -> None:
    lines = [{**GOOD, "video": f"{folder}/clip.mp4"} for folder in "abc"]
    pairs, faults = read_manifest(written(tmp_path, *lines, {**GOOD, "id": "clip-2"}, {**GOOD, "id": "clip"}))
    assert faults == []
    assert [pair.id for pair in pairs] == ["clip-1", "clip-2_", "clip-3", "clip-2", "clip"]


@pytest.mark.parametrize("lines", [[], ["", " "], ["{"], [{"video": "v"}]])
def test_a_manifest_without_a_pair_is_refused(tmp_path: Path, lines: list[object]) -> None:
    with pytest.raises(InputError, match="no line that can be used"):
        read_manifest(written(tmp_path, *lines))


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "binary"):
        with pytest.raises(InputError, match="cannot read"):
            read_manifest(path)


words = st.text(string.ascii_letters + string.digits + " äß,'", min_size=1, max_size=12).filter(str.strip)
names = st.text(string.ascii_letters + "ä-_.", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@st.composite
def pairs_in(draw: st.DrawFn, folder: Path) -> list[Pair]:
    ids = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    return [
        Pair(
            id=name,
            video=folder / draw(names),
            reference=folder / "voices" / draw(names),
            caption=parse_prompt(draw(words)).text(),
            speaker=draw(words),
            split=draw(st.sampled_from(SPLITS)),
            start=draw(st.floats(0, 1e6)),
            line=number,
        )
        for number, name in enumerate(ids, 1)
    ]


@given(st.data())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    pairs = data.draw(pairs_in(folder))
    write_manifest(folder / "round.jsonl", pairs)
    assert read_manifest(folder / "round.jsonl") == (pairs, [])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
lines_of_junk = st.lists(
    st.text(max_size=20)
    | junk.map(json.dumps)
    | st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "video", "reference", "caption", "start"), junk)).map(
        json.dumps
    ),
    max_size=6,
)


@given(lines_of_junk)
def test_no_line_raises_anything(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    text = "\n".join([json.dumps({**GOOD, "id": "good one"}), *lines])
    assume(all(not 0xD800 <= ord(letter) <= 0xDFFF for letter in text))
    file = tmp_path_factory.getbasetemp() / "junk.jsonl"
    file.write_text(text, encoding="utf-8")
    pairs, faults = read_manifest(file)
    assert pairs[0].id == "good one"
    assert len({pair.id for pair in pairs}) == len(pairs)
    filled = sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").split("\n"))
    assert len(pairs) + len(faults) == filled
