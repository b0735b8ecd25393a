# SPDX-License-Identifier: Apache-2.0
"""Manifests and folders of clips: read as they are described, and every line that is none is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idlora.data.prompt import Prompt
from idlora.errors import InputError
from idlora.evaluation.laboratory.manifest import read_entries


def test_a_manifest_is_read_and_its_faults_are_told(tmp_path: Path) -> None:
    good = {"clip": "a.mp4", "system": "x", "visual": "a man", "speech": "two", "face_box": [1, 2, 3, 4]}
    texts = [
        json.dumps(good),
        "",
        json.dumps({**good, "clip": "b.mp4", "split": "hard", "extra": {"seed": 3}}),
        json.dumps(good),
        "no json",
        "[]",
        json.dumps({**good, "id": "c", "sistem": "x"}),
        json.dumps({**good, "id": "d", "prompt": "two"}),
        json.dumps({**good, "id": "e", "split": "medium"}),
        json.dumps({**good, "id": "f", "face_box": [1, 2]}),
        json.dumps({"system": "x"}),
        json.dumps({**good, "id": 3}),
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(texts))
    entries, faults = read_entries(tmp_path / "m.jsonl")
    assert [entry.id for entry in entries] == ["a", "b"]
    assert entries[0].clip == tmp_path / "a.mp4"
    assert entries[0].asked == Prompt(visual="a man", speech="two")
    assert (entries[0].speaker, entries[0].face_box, entries[1].split) == ("a", (1, 2, 3, 4), "hard")
    assert [fault.line for fault in faults] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert "did you mean 'system'" in faults[3].reason
    for text, reason in (("", "is empty"), ("{}", "clip is missing")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(InputError, match=reason):
            read_entries(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read_entries(tmp_path / "absent.jsonl")


def test_a_folder_is_a_system_for_each_subfolder(tmp_path: Path) -> None:
    for name in ("ours", "theirs", "references", "pictures"):
        (tmp_path / name).mkdir()
    for name in ("ours/a.mp4", "theirs/a.mov", "references/a.wav", "ours/a.face.png", "pictures/a.jpg", "ours/a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "ours" / "a.voice.wav").touch()
    (tmp_path / "ours" / "a.mp4.json").write_text('{"prompt": "[SPEECH] two"}')
    ours, theirs = read_entries(tmp_path)[0]
    assert (ours.system, ours.id, ours.prompt) == ("ours", "a", "[SPEECH] two")
    assert ours.voice == tmp_path / "ours" / "a.voice.wav"
    assert ours.picture == tmp_path / "ours" / "a.face.png"
    assert (theirs.system, theirs.voice, theirs.prompt) == ("theirs", tmp_path / "references" / "a.wav", "")
    assert theirs.picture == tmp_path / "pictures" / "a.jpg"
    with pytest.raises(InputError, match="holds no clips"):
        read_entries(
            tmp_path / "references" / "..",
        )[0] and read_entries(tmp_path / "pictures")
