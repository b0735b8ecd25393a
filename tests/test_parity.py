# SPDX-License-Identifier: Apache-2.0
"""The golden vectors, case by case, and proof that the comparison can fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import parity

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
CASE = "ltx2.3/g_sigmas.safetensors"


@pytest.mark.parametrize("name", sorted(MANIFEST["files"]))
def test_golden_case(name: str) -> None:
    lines = parity.run_file(GOLDEN, name, MANIFEST["files"][name]["meta"])
    assert lines
    assert [str(line) for line in lines if not line.passed] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of golden vectors with one case, to be spoilt."""
    (tmp_path / "ltx2.3").mkdir()
    shutil.copy(GOLDEN / CASE, tmp_path / CASE)
    entry = MANIFEST["files"][CASE]
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {CASE: entry}}), encoding="utf-8")
    return tmp_path


def _rewrite(path: Path, **changes: torch.Tensor) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file({**tensors, **changes}, path, metadata=metadata)


def test_an_untouched_folder_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(folder)]) == 0
    assert "2 of 2 cases passed" in capsys.readouterr().out


def test_a_changed_number_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "sigmas.steps8.default4096"
    with safe_open(folder / CASE, framework="pt") as file:
        stored = file.get_tensor(key)
    _rewrite(folder / CASE, **{key: stored + 2e-5})
    assert parity.main([str(folder)]) == 1
    assert f"{key} is over" in capsys.readouterr().out


def test_nan_fails(folder: Path) -> None:
    _rewrite(folder / CASE, **{"sigmas.steps8.default4096": torch.full((9,), float("nan"))})
    assert parity.main([str(folder)]) == 1


@pytest.mark.parametrize("name", ["ltx2.3/z_future_s1.safetensors", "ltx2.3/g_sigmas_missing.safetensors"])
def test_a_case_that_cannot_run_fails(folder: Path, name: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": {name: {"meta": {}}}}), encoding="utf-8")
    assert parity.main([str(folder)]) == 1


def test_a_tensor_that_nothing_compares_fails() -> None:
    vectors = parity.Vectors("case", {}, {"in.x": torch.zeros(1), "out.y": torch.zeros(1)})
    assert vectors.leftovers() == ["out.y"]


def test_a_kind_without_tolerance_fails() -> None:
    vectors = parity.Vectors("case", {}, {"out.y": torch.zeros(1)})
    vectors.compare("only", "out.y", torch.zeros(1), "approximately")
    assert not vectors.line("only").passed


def test_tags_of_any_kind_are_known() -> None:
    assert parity._runner("bcd_ref_b3-24fps") is parity._runner("bcd_ref_s1")
    assert parity._runner("bcd_reference") is None


def test_diffusers_layout_is_optional(tmp_path: Path) -> None:
    name = "ltx2.0/model_official.safetensors"
    (tmp_path / "ltx2.0").mkdir()
    shutil.copy(GOLDEN / name, tmp_path / name)
    assert all(line.passed for line in parity.run_file(tmp_path, name, {}))


def test_without_vectors_it_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parity.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "manifest.json" in capsys.readouterr().err
