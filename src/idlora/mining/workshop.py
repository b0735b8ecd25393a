# SPDX-License-Identifier: Apache-2.0
"""Where pairs are made: the folder of tables, and the two ways in which a stage makes one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idlora.errors import OutputError
from idlora.mining.ledger import Entry, Ledger
from idlora.mining.mapping import FAULT, Item, Outcome, Work, mapped, passing
from idlora.mining.tables import Columns, Row, Table, digest_of, dropped, key_of, read_table, write_table

VERSION = 1
"""Another number when what a stage makes of the same input changes."""

UNREADABLE = "cannot be read"
FOLDERS = ("tables", "cache", "clips", "references", "originals", "plots")
"""Folders below `out` in which files are written and removed."""

_WHERE = ("path", "out")  # of an item: what it is does not depend on them
_STRAY = re.compile(r"\..*\.[0-9a-f]{12}(\.\w+)?")  # as `idlora.files.replacing` names what is not whole yet

Notice = Callable[[str, int, int], None]
Made = tuple[list[Row], list[Row]]
"""Rows, and what was left out."""


def silent(stage: str, done: int, total: int) -> None:
    """A notice that says nothing."""


@dataclass(frozen=True)
class Workshop:
    """How and where stages work.

    Attributes:
        out: folder of everything that is made.
        workers: processes.
        ray: by Ray Data.
        notice: told of every item: the stage, how many items are done, and of how many.
    """

    out: Path
    workers: int = 1
    ray: bool = False
    notice: Notice = silent

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.out / "tables"

    def ledger(self, name: str) -> Ledger:
        """What is known of the items of a stage."""
        return Ledger(self.out / "cache" / f"{name}.jsonl")

    def prepare(self) -> None:
        """Make the folders, and remove what an interrupted writer left (OutputError if that fails)."""
        try:
            for folder in FOLDERS:
                (self.out / folder).mkdir(parents=True, exist_ok=True)
                for stray in (self.out / folder).glob(".*.*"):
                    if _STRAY.fullmatch(stray.name):
                        stray.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.out}: {error.strerror or error}; choose another folder") from error

    def mapped(self, name: str, columns: Columns, work: Work, items: Sequence[Item]) -> Table:
        """A stage that works on items one by one: what is known already is not done again.

        An item says all that its outcome depends on; its `path` alone does not count, so that files may be moved.

        Args:
            name: of the stage.
            columns: of its table.
            work: a function of a module; its outcome has `rows` and perhaps `dropped`.
            items: each with `file`, which its rows are of.
        """
        keys = [_key(name, item) for item in items]
        key = digest_of([name, keys])
        known = self._known(name, key)
        if known is not None:
            return known
        ledger = self.ledger(name)
        todo = [place for place, each in enumerate(keys) if each not in ledger]
        self.notice(name, 0, len(todo))
        again: dict[str, Outcome] = {}
        done = mapped(work, [items[place] for place in todo], self.workers, ray=self.ray)
        for count, (place, outcome) in enumerate(done, 1):
            each = keys[todo[place]]
            if passing(outcome):
                again[each] = outcome
            else:
                ledger.put(each, str(items[todo[place]]["file"]), outcome)
            self.notice(name, count, len(todo))
        outcomes = [again[each] if each in again else ledger[each] for each in keys]
        rows, gone = _gathered(items, outcomes)
        if again:  # another key than that of the whole table, so that the next run tries again
            key = digest_of([name, keys, sorted(again)])
        return self._written(Table(name, key, rows, gone), columns)

    def written_files(
        self, name: str, columns: Columns, work: Work, items: Sequence[Item], files: Sequence[str]
    ) -> Table:
        """As `mapped`, for a stage that writes files: an item whose files are gone is done again.

        Args:
            name: see `mapped`, as are:
            columns: of its table.
            work: a function.
            items: each with `file`.
            files: columns that name files, relative to `out`.
        """

        def there(row: Row) -> bool:
            return all((self.out / row[column]).is_file() for column in files if row[column])

        # Files are named by their clip alone, whatever the settings. So of several outcomes of one clip only the last
        # one's files are there; and those that this call overwrites are forgotten before it begins.
        ledger = self.ledger(name)
        known = [(key, entry) for key, entry in ledger.entries() if entry["outcome"].get("rows")]
        valid = {_clip_of(entry): key for key, entry in known}
        valid |= {str(item.get("clip", item["file"])): _key(name, item) for item in items}
        stale = [
            key
            for key, entry in known
            if valid[_clip_of(entry)] != key or not all(there(row) for row in entry["outcome"]["rows"])
        ]
        if ledger.forget(stale):
            (self.tables / f"{name}.parquet").unlink(missing_ok=True)
        return self.mapped(name, columns, work, items)

    def pure(self, name: str, columns: Columns, make: Callable[[], Made], before: Sequence[Table], given: Any) -> Table:
        """A stage that makes its table of whole tables.

        Args:
            name: of the stage.
            columns: of its table.
            make: returns rows and what was left out.
            before: tables that it reads.
            given: what else it depends on, as JSON can say it.
        """
        key = digest_of([name, VERSION, [table.key for table in before], given])
        known = self._known(name, key)
        if known is not None:
            return known
        self.notice(name, 0, 1)
        rows, gone = make()
        table = self._written(Table(name, key, rows, gone), columns)
        self.notice(name, 1, 1)
        return table

    def settled(self, name: str, columns: Columns, rows: list[Row], gone: list[Row]) -> Table:
        """A table whose key is its contents: of a stage that also reads what is no table."""
        key = digest_of([name, VERSION, rows, gone])
        known = self._known(name, key)
        return self._written(Table(name, key, rows, gone), columns) if known is None else known

    def _known(self, name: str, key: str) -> Table | None:
        return read_table(self.tables, name) if key_of(self.tables, name) == key else None

    def _written(self, table: Table, columns: Columns) -> Table:
        """A table as its file says it, so that what follows is the same whether it was made or read."""
        write_table(self.tables, table, columns)
        return read_table(self.tables, table.name) or table


def _key(name: str, item: Item) -> str:
    return digest_of([name, VERSION, {key: value for key, value in item.items() if key not in _WHERE}])


def _clip_of(entry: Entry) -> str:
    return str(entry["outcome"]["rows"][0].get("clip", entry["file"]))


def _gathered(items: Sequence[Item], outcomes: Sequence[Outcome]) -> Made:
    rows: list[Row] = []
    gone: list[Row] = []
    for item, outcome in zip(items, outcomes, strict=True):
        file = str(item["file"])
        if FAULT in outcome:
            gone.append(dropped(file, file, UNREADABLE, str(outcome[FAULT])))
            continue
        rows += [{**row, "file": file} for row in outcome["rows"]]
        gone += outcome.get("dropped", [])
    return rows, gone
