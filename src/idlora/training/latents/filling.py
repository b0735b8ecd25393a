# SPDX-License-Identifier: Apache-2.0
"""What becomes of every sample while a folder of latents is filled: done, skipped, dropped, or failed with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from idlora.data.manifest import Fault
from idlora.files import write_text
from idlora.training.latents.store import Latents, LatentWriter, Row

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class Report:
    """How far the filling of a folder is.

    Attributes:
        done: samples made now.
        skipped: samples that were there, made from the same.
        failed: samples that could not be made.
        cut: captions among those made that were longer than the model reads.
        total: samples that there will be of all kinds.
        dropped: samples that were there and are forgotten, since they were not asked for any more, or failed now.
        others: samples that were there and stay, though they were not asked for.
    """

    done: int = 0
    skipped: int = 0
    failed: tuple[Fault, ...] = ()
    cut: int = 0
    total: int = 0
    dropped: int = 0
    others: int = 0

    @property
    def seen(self) -> int:
        """Samples that have come to an end."""
        return self.done + self.skipped + len(self.failed)


Notice = Callable[[Report], None]


def silent(_: Report) -> None:
    """Tell nobody."""


class Filling:
    """Adds samples to a folder and keeps account of them in its `report.json`.

    A context: however it ends, Ctrl-C included, what is finished is on disk and the report says so. If it comes to its
    end, the folder holds what was asked for and no more: what was withdrawn, or failed now, is forgotten.

    Args:
        writer: of the folder.
        faults: samples that are known to have failed.
        total: samples that will come, without these.
        notice: told of every one.
        keep_others: keep samples that were not asked for, of another manifest.
    """

    def __init__(
        self,
        writer: LatentWriter,
        faults: Sequence[Fault],
        total: int,
        notice: Notice = silent,
        *,
        keep_others: bool = False,
    ) -> None:
        self.writer, self._notice, self._keep_others = writer, notice, keep_others
        self._known, self._total = {row.id: row for row in writer.rows}, total + len(faults)
        self._done = self._skipped = self._cut = self._dropped = self._others = 0
        self._failed = list(faults)
        self._good: set[str] = set()

    def __enter__(self) -> Self:
        self._notice(self.report)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.flush()
        if kind is None:  # else some were not reached yet
            self._drop()
        self._write()

    def _drop(self) -> None:
        kept = set(self._good)
        if self._keep_others:
            kept |= {row.id for row in self.writer.rows} - {fault.id for fault in self._failed}
        self._dropped = self.writer.keep(kept)
        self._others = len(self.writer.rows) - len(self._good)

    @property
    def report(self) -> Report:
        """How far it is."""
        counts = self._cut, self._total, self._dropped, self._others
        return Report(self._done, self._skipped, tuple(self._failed), *counts)

    def skips(self, name: str, key: str, speaker: str = "", split: str = "train") -> bool:
        """Whether a sample is there, made from the same; then it is counted, its speaker and split are corrected."""
        row = self._known.get(name)
        if row is None or row.key != key:
            return False
        if (row.speaker, row.split) != (speaker, split):
            self.writer.describe(name, speaker, split)
        self._skipped += 1
        self._good.add(name)
        self._notice(self.report)
        return True

    def add(self, row: Row, latents: Latents, line: int = 0, *, cut: bool = False) -> None:
        """Add a sample of a line; one with a number that the folder's dtype cannot hold is a failed one."""
        stored = latents.to(self.writer.dtype)
        if bad := stored.bad():
            dtype = str(self.writer.dtype).removeprefix("torch.")
            self.fail(Fault(row.id, line, f"its {bad} is not finite in {dtype}; look at the files, or store float32"))
            return
        self._done, self._cut = self._done + 1, self._cut + cut
        self._good.add(row.id)
        if self.writer.add(row, stored):
            self._write()
        self._notice(self.report)

    def fail(self, fault: Fault) -> None:
        """Take note of a sample that cannot be made."""
        self._failed.append(fault)
        self._notice(self.report)

    def _write(self) -> None:
        report = self.report
        failed = [asdict(fault) for fault in report.failed]
        content = {"done": report.done, "skipped": report.skipped, "cut_captions": report.cut, "failed": failed}
        content |= {"dropped": report.dropped, "others": report.others}
        write_text(self.writer.folder / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def report_path(folder: Path) -> Path:
    """Where the report of a folder is."""
    return folder / REPORT_NAME
