# SPDX-License-Identifier: Apache-2.0
"""Run every golden case of a folder through this package and compare: `python tests/parity.py FOLDER`.

Prints one line a case with the largest absolute difference and its tolerance; exits 1 if any is over, was not run, or
left a stored tensor uncompared. `--device cuda` runs the cases that have a network on a GPU, without TF32 and to 1e-4
of each tensor's scale; `--attention` names the one kernel that attention may use there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from parity_cases import CASES
from parity_inputs import Generation

# Relative to the largest absolute value of the stored tensor.
TOLERANCES: dict[str, float] = {
    "fp32": 1e-5,
    "rotary": 1e-5,
    "trajectory": 1e-4,
    "gradient norm": 1e-4,
    "bf16": 2e-2,
    "exact": 0.0,
}
WITHOUT_NETWORK = ("model_official", "lora", "g_positions", "g_sigmas")  # a device changes nothing of these
GPU_TOLERANCE = 1e-4  # of float32; other kernels sum in another order


@dataclass
class Line:
    """What is printed for one case: the tensor that came closest to its tolerance, or farthest over it."""

    case: str
    difference: float = 0.0
    tolerance: float = float("nan")
    fault: str = ""
    _worst: float = -1.0

    def add(self, name: str, difference: float, tolerance: float) -> None:
        """Keep this comparison if it is the worst so far."""
        ratio = difference / tolerance if tolerance else (0.0 if difference == 0 else float("inf"))
        if not ratio <= self._worst:  # also true for NaN
            self._worst, self.difference, self.tolerance = ratio, difference, tolerance
        if not difference <= tolerance:
            self.fault = self.fault or f"{name} is over"

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it is within tolerance."""
        return not self.fault and self._worst >= 0

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"FAILED: {self.fault or 'nothing was compared'}"
        return f"{self.case:58} {self.difference:9.2e}  <= {self.tolerance:9.2e}  {verdict}"


@dataclass
class Vectors:
    """The stored tensors of one file, and the lines of the cases that they belong to."""

    name: str
    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    lines: dict[str, Line] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(key)
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def optional(self, key: str) -> Tensor | None:
        """The stored tensor, or None where the case has none."""
        if key not in self:
            return None
        return self[key]

    def line(self, case: str) -> Line:
        """The line of a case of this file."""
        return self.lines.setdefault(case, Line(f"{self.name} {case}".rstrip()))

    def compare(self, case: str, key: str, actual: Tensor, kind: str = "fp32") -> None:
        """Compare with the stored tensor `key`."""
        self.against(case, key, actual, self[key], kind)

    def against(
        self, case: str, key: str, actual: Tensor, expected: Tensor, kind: str, scale: float | None = None
    ) -> None:
        """Compare with any tensor of equal shape; `scale` is what the kind's tolerance is relative to."""
        line = self.line(case)
        if kind not in TOLERANCES:
            line.fault = f"no tolerance is stated for {kind!r}"
        elif actual.shape != expected.shape:
            line.fault = f"{key} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        else:
            actual, expected = actual.detach().double(), expected.double().to(actual.device)
            own = expected.abs().max().item() if expected.numel() else 0.0
            difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
            line.add(key, difference, TOLERANCES[kind] * (own if scale is None else scale))

    def leftovers(self) -> list[str]:
        """Stored results that nothing looked at."""
        return sorted(key for key in self.tensors.keys() - self.used if not key.startswith("in."))


def read_vectors(folder: Path, name: str, meta: Mapping[str, Any]) -> Vectors:
    """Read one file; its own metadata stand in where the manifest says nothing."""
    with safe_open(folder / name, framework="pt") as file:
        there = torch.get_default_device()
        tensors = {key: file.get_tensor(key).to(there) for key in file.keys()}  # noqa: SIM118 - not a mapping
        own = file.metadata() or {}
    return Vectors(name.removesuffix(".safetensors"), {**own, **meta}, tensors)


def _runner(stem: str) -> Callable[[Generation, Vectors], None] | None:
    """The case of a file: its name is the case's, then any tag."""
    found = [prefix for prefix in CASES if re.fullmatch(rf"{re.escape(prefix)}([_.-].*)?", stem)]
    return CASES[max(found, key=len)] if found else None


def run_file(folder: Path, name: str, meta: Mapping[str, Any]) -> list[Line]:
    """All lines of one file of the manifest; whatever goes wrong inside it becomes a failed line."""
    runner = _runner(Path(name).stem)
    if runner is None:
        return [Line(name, fault="no case of this name is known")]
    try:
        vectors = read_vectors(folder, name, meta)
        runner(Generation(folder / Path(name).parent, read_vectors), vectors)
    except Exception as error:  # noqa: BLE001 - the other cases must still run
        return [Line(name, fault=f"{type(error).__name__}: {error}")]
    lines = list(vectors.lines.values())
    if vectors.leftovers():
        lines.append(Line(name, fault=f"not compared: {', '.join(vectors.leftovers()[:5])}"))
    return lines or [Line(name, fault="nothing was compared")]


def run_folder(folder: Path, skipped: Sequence[str] = ()) -> Iterator[Line]:
    """Every case of the folder's manifest but some; folders that it does not list are ignored."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        if not Path(name).stem.startswith(tuple(skipped)):
            yield from run_file(folder, name, entry.get("meta", {}))


def main(arguments: list[str]) -> int:
    """Print the lines; the exit code is 0 if all cases passed, 1 if not, 2 without a folder of golden vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with manifest.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", choices=[name.lower() for name in SDPBackend.__members__])
    given = parser.parse_args(arguments)
    if not (given.folder / "manifest.json").is_file():
        parser.error(f"{given.folder} has no manifest.json")
    torch.set_num_threads(1)
    on_cpu = given.device == "cpu"
    if not on_cpu:
        torch.set_default_device(given.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        TOLERANCES.update(dict.fromkeys(("fp32", "rotary", "trajectory"), GPU_TOLERANCE))
    failed, total = 0, 0
    kernel = nullcontext() if given.attention is None else sdpa_kernel(getattr(SDPBackend, given.attention.upper()))
    with kernel:
        for line in run_folder(given.folder, () if on_cpu else WITHOUT_NETWORK):
            print(line, flush=True)
            total, failed = total + 1, failed + (not line.passed)
    print(f"{total - failed} of {total} cases passed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
