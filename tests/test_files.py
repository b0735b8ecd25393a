# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from idlora.errors import IDLoraError, InputError, OutputError
from idlora.files import replacing, sha256_of, write_bytes, write_tensors, write_text


def test_the_result_takes_the_place_of_the_old_file_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_tensors_come_back_with_their_metadata_and_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    write_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, {"step": "4"})
    with safe_open(tmp_path / "x.safetensors", "pt") as stored:
        assert stored.metadata()["step"] == "4"
        assert torch.equal(stored.get_tensor("a"), torch.arange(3))

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write_tensors(tmp_path / "y.safetensors", {"a": torch.arange(3)}, {})
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_folder_in_the_way_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    reached = False
    with pytest.raises(OutputError, match="taken"), replacing(tmp_path / "taken"):
        reached = True
    assert not reached


def _write_half(target: Path, fault: BaseException) -> None:
    with replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise fault


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ValueError("broken"), SystemExit(1)])
def test_a_block_that_ends_early_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(type(fault)):
        _write_half(target, fault)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_a_full_disk_is_told_as_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"result\.bin.*No space left.*free space"),
        replacing(tmp_path / "result.bin"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_and_a_folder_in_the_way_are_output_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="another folder"):
        write_bytes(tmp_path / "missing" / "x.bin", b"x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):
        write_bytes(tmp_path / "taken", b"x")
    assert os.listdir(tmp_path) == ["taken"]


def test_the_mode_is_that_of_a_plain_open(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_very_long_names_still_fit(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 250 + ".txt"), "x")
    assert len(os.listdir(tmp_path)) == 1


@given(content=st.binary(max_size=4096))
def test_bytes_come_back_and_their_digest_is_sha256(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("digest") / "x.bin"
    write_bytes(path, content)
    assert path.read_bytes() == content
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_missing_file_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.bin.*check the path"):
        sha256_of(tmp_path / "absent.bin")


_FULL_DISK = """
import resource, sys
import numpy as np
from idlora.data.media import write_mp4, write_png, write_wav
from idlora.errors import OutputError

limit, folder = int(sys.argv[1]), sys.argv[2]
noise = np.random.default_rng(0)
frames = noise.integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
sound = noise.uniform(-0.5, 0.5, (1, 32_000)).astype(np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for write in (
    lambda: write_mp4(f"{folder}/a.mp4", frames, 25, sound),
    lambda: write_wav(f"{folder}/a.wav", sound, 16_000),
    lambda: write_png(f"{folder}/a.png", frames[0]),
):
    try:
        write()
    except OutputError:
        continue
    sys.exit(1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a matter of POSIX")
@pytest.mark.parametrize("limit", [0, 3_000, 10_000])
def test_media_that_do_not_fit_on_the_disk_leave_nothing(tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(limit), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_every_error_is_an_idlora_error_with_its_plain_python_kin() -> None:
    assert issubclass(OutputError, IDLoraError)
    assert issubclass(OutputError, OSError)
    assert issubclass(InputError, ValueError)
