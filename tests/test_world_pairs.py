# SPDX-License-Identifier: Apache-2.0
"""Training pairs of the world: made once, the same by one process or by several."""

from pathlib import Path

import pytest

from idlora.cli import main
from idlora.data.manifest import read_manifest
from idlora.data.media import read_video, read_voice


def test_pairs_of_the_world_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["world", "pairs", str(tmp_path), "--split", "validation", "--workers", "1", "--count"]
    assert main([*command, "2"]) == 0
    pairs, faults = read_manifest(tmp_path / "manifest.jsonl")
    assert (faults, [each.speaker for each in pairs]) == ([], ["validation-0000", "validation-0001"])
    states = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.suffix != ".jsonl"}
    assert len(states) == 4
    assert main([*command, "1", "--first", "2"]) == 0
    assert [each.id for each in read_manifest(tmp_path / "manifest.jsonl")[0]] == [
        "validation-000000",
        "validation-000001",
        "validation-000002",
    ]
    assert all(path.stat().st_mtime_ns == state for path, state in states.items())
    clip = read_video(pairs[0].video)
    assert (clip.frames.shape, clip.frame_rate) == ((57, 96, 96, 3), 25.0)
    voice = read_voice(pairs[0].reference)
    assert (voice.seconds, voice.sample_rate) == (5.0, 16_000)
    capsys.readouterr()
    for wrong in (["0"], ["1", "--first", "-1"], ["1", "--split", "held-out voice"]):
        assert main([*command, *wrong]) == 2


@pytest.mark.slow
def test_processes_make_the_pairs_that_one_makes(tmp_path: Path) -> None:
    for folder, workers in (("one", "1"), ("two", "2")):
        assert main(["world", "pairs", str(tmp_path / folder), "--count", "2", "--workers", workers]) == 0
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
