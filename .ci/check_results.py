# SPDX-License-Identifier: Apache-2.0
"""Look at what `idlora reproduce --quick` wrote: rows with their keys, enough of them measured, the first as it was."""

import json
import sys
from pathlib import Path
from typing import Any

KEYS = {"claim", "paper", "ours", "interval", "n", "verdict", "command"}
VERDICTS = {"reproduced", "not reproduced", "cannot be tested here"}
LEAST_ROWS, LEAST_SPEAKERS = 8, 8
HEADLINE = "The adapter carries the voice over from another place (above 0)"
TRAINED = "The small recipe learns the voice (above 0)"  # measured with adapters that ship, if they are of this recipe


def checked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were measured; exits 1 with a sentence where a promise is broken."""
    for row in rows:
        if missing := KEYS - row.keys():
            raise SystemExit(f"{row}: without {', '.join(sorted(missing))}")
        if row["verdict"] not in VERDICTS:
            raise SystemExit(f"{row['claim']}: {row['verdict']!r} is no verdict")
    measured = [row for row in rows if row["n"] > 0]
    if len(measured) < LEAST_ROWS:
        raise SystemExit(f"{len(measured)} rows are measured; {LEAST_ROWS} are promised")
    few = [row["claim"] for row in measured if row["speakers"] < LEAST_SPEAKERS]
    if few:
        raise SystemExit(f"fewer than {LEAST_SPEAKERS} speakers stand behind: {'; '.join(few)}")
    return measured


def main(folder: Path) -> None:
    """Check a folder of results."""
    measured = checked(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    if not any(row["claim"] == HEADLINE and row["verdict"] == "reproduced" for row in measured):
        raise SystemExit(f"not reproduced: {HEADLINE}")
    if not any(row["claim"] == TRAINED for row in measured):
        raise SystemExit(f"not measured: {TRAINED}; the adapters in weights/ablations are of another recipe")
    for name in ("results.md", "plots"):
        if not (folder / name).exists():
            raise SystemExit(f"{folder / name} is missing")
    sys.stdout.write(f"{folder}: {len(measured)} rows are measured\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
