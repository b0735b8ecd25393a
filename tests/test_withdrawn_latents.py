# SPDX-License-Identifier: Apache-2.0
"""What left a manifest, or fails now, leaves the folder of latents too; what was only not reached yet stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny_training
from idlora.cli import main
from idlora.data.manifest import Fault, Pair, write_manifest
from idlora.networks.codecs import VideoCodec
from idlora.training.latents.encode import EncodeOptions, precompute
from idlora.training.latents.filling import Filling, Report, report_path
from idlora.training.latents.store import Header, LatentStore, LatentWriter
from signals import truncated
from test_precompute import ONE_EACH, OPTIONS, pair
from test_published import run as imported
from test_published import sample
from tiny_pipeline import pipeline

SHARDS = [pytest.param(OPTIONS, id="one shard"), pytest.param(ONE_EACH, id="a shard each")]


def run(pairs: list[Pair], out: Path, options: EncodeOptions = OPTIONS, *, keep_others: bool = False) -> Report:
    return precompute(pairs, [], pipeline(), out, options, keep_others=keep_others)


def names(out: Path) -> set[str]:
    """What the folder holds, all of it readable; and no shard that nothing names."""
    store = LatentStore(out)
    for row in store.rows:
        store.read(row)
    assert {path.name for path in out.glob("shard-*")} == {row.shard for row in store.rows}
    return {row.id for row in store.rows}


@pytest.mark.parametrize("options", SHARDS)
def test_a_withdrawn_pair_leaves_the_folder(options: EncodeOptions, tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "abc"]
    run(pairs, out, options)
    assert run([pairs[0], pairs[2]], out, options) == Report(0, 2, (), 0, 2, dropped=1)
    assert names(out) == {"a", "c"}
    assert json.loads(report_path(out).read_text())["dropped"] == 1
    assert run(pairs, out, options) == Report(1, 2, (), 0, 3)


def test_a_withdrawn_pair_whose_shard_is_damaged_leaves_the_index_too(tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "ab"]
    run(pairs, out, ONE_EACH)
    shard = out / LatentStore(out).rows[0].shard
    truncated(shard, shard, 0.5)
    run(pairs[1:], out, ONE_EACH)
    assert {row.id for row in LatentStore(out).rows} == {"b"}


@pytest.mark.parametrize("keep_others", [False, True])
def test_a_pair_that_fails_now_leaves_no_older_version(keep_others: bool, tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "abc"]
    run(pairs, out)
    pairs[0].video.unlink()
    pairs[1].video.write_text("this is text")
    report = run(pairs, out, keep_others=keep_others)
    assert (report.done, report.skipped, len(report.failed), report.dropped) == (0, 1, 2, 2)
    assert names(out) == {"c"}
    told = precompute([], [Fault("c", 3, "its line is none")], pipeline(), out, OPTIONS, keep_others=keep_others)
    assert told.dropped == 1
    assert names(out) == set()


def test_a_pair_that_is_not_finite_now_leaves_no_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = tmp_path / "out", pair(tmp_path, "a")
    run([made], out)
    encode = VideoCodec.encode
    monkeypatch.setattr(VideoCodec, "encode", lambda self, frames: encode(self, frames) * torch.nan)
    assert run([replace(made, caption="[SPEECH] coffee")], out).dropped == 1
    assert names(out) == set()


def test_a_second_line_of_the_same_id_takes_nothing_from_the_first(tmp_path: Path) -> None:
    out, made = tmp_path / "out", pair(tmp_path, "a")
    for _ in range(2):
        told = precompute([made], [Fault("a", 2, "an earlier line has the id 'a' too")], pipeline(), out, OPTIONS)
        assert told.dropped == 0
    assert names(out) == {"a"}


@pytest.mark.parametrize("options", SHARDS)
def test_an_interruption_drops_nothing(options: EncodeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "abc"]
    run(pairs, out, options)
    pairs[0] = replace(pairs[0], caption="[SPEECH] coffee")

    def stopped(_self: VideoCodec, _frames: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VideoCodec, "encode", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(pairs[:2], out, options)
    assert names(out) == {"a", "b", "c"}
    assert run(pairs[:2], out, options).dropped == 1


def test_several_manifests_share_a_folder_where_that_is_asked_for(tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", [pair(tmp_path, name) for name in "abc"]
    run(pairs[:1], out)
    assert run(pairs[1:], out, keep_others=True) == Report(2, 0, (), 0, 2, others=1)
    assert names(out) == {"a", "b", "c"}
    assert json.loads(report_path(out).read_text())["others"] == 1


def test_published_samples_that_are_gone_leave_the_folder(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        sample(tmp_path, name, "2.3", number)
    imported(tmp_path, tmp_path / "out")
    (tmp_path / "latents" / "a.pt").unlink()
    assert imported(tmp_path, tmp_path / "out") == Report(0, 1, (), 0, 1, dropped=1)
    assert names(tmp_path / "out") == {"b"}


def test_the_command_tells_what_it_dropped_and_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    pairs, manifest, out = [pair(tmp_path, name) for name in "ab"], tmp_path / "manifest.jsonl", tmp_path / "out"
    command = ["precompute", str(manifest), str(out), "--model", str(tmp_path / "model"), "--device", "cpu"]

    def said(named: list[Pair], *options: str) -> str:
        write_manifest(manifest, named)
        assert main([*command, *options]) == 0
        return capsys.readouterr().out.removeprefix(f"{out}: ").strip()

    said(pairs)
    assert said(pairs[:1], "--keep-others") == "0 done, 1 skipped, 0 failed; 1 kept that were not asked for"
    assert said(pairs[:1]) == "0 done, 1 skipped, 0 failed; 1 dropped, which were asked for no more or failed now"
    assert said(pairs[:1]) == "0 done, 1 skipped, 0 failed"


def test_what_the_index_forgets_is_on_disk_before_its_shard_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between the two leaves a file that nothing names, and no row without its file."""
    writer = LatentWriter(tmp_path, Header("2.3", 8), torch.float32, shard_bytes=1)
    with Filling(writer, (), 2) as filling:
        for number, name in enumerate("ab"):
            made = tiny_training.latents(number, "2.3")
            filling.add(replace(tiny_training.row(number, made), id=name), made)

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("shard-"):
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    unlink = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            LatentWriter(tmp_path, Header("2.3", 8), torch.float32).keep({"b"})
    assert [row.id for row in LatentStore(tmp_path).rows] == ["b"]
