# SPDX-License-Identifier: Apache-2.0
"""The miniature's protocol as one call: rows of results in JSON, resumable, the same clips on every machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from idlora.data.world.speakers import Split
from idlora.errors import SettingsError
from idlora.evaluation.clips import Plan
from idlora.evaluation.codec_rows import codec_rows
from idlora.evaluation.report import Row, write_results
from idlora.evaluation.scoring import Judges
from idlora.evaluation.store import Store, fingerprint
from idlora.evaluation.vocoder_rows import vocoder_rows, vocoders
from idlora.evaluation.voice_rows import IDENTITY_SCALE, Bench, Subject, voice_rows, wrong_rows
from idlora.evaluation.world_rows import world_rows
from idlora.pipeline.output import versions
from idlora.pipeline.settings import settings_to_json

logger = logging.getLogger(__name__)

GROUPS: Mapping[str, Callable[[Bench], list[Row]]] = {
    "world": lambda bench: world_rows(bench.plan, bench.store, bench.judges),
    "codec": lambda bench: _codec(bench, "test"),
    "vocoder": lambda bench: vocoder_rows(bench.plan, bench.store, bench.judges, vocoders(bench.subject.codec)),
    "voice": lambda bench: voice_rows(bench, "test"),
    "wrong": lambda bench: wrong_rows(bench, "test"),
    "held-out": lambda bench: _other(bench, "held-out voice"),
    "validation": lambda bench: _other(bench, "validation"),
}

PROTOCOL = tuple(name for name in GROUPS if name != "validation")  # what steers training is no result


def _codec(bench: Bench, split: Split) -> list[Row]:
    return codec_rows(bench.plan, bench.store, bench.judges, bench.subject.codec, split)


def _other(bench: Bench, split: Split) -> list[Row]:
    """The rows of codec, voice and wrong reference on another split than the protocol's."""
    rows = [*_codec(bench, split), *voice_rows(bench, split), *wrong_rows(bench, split)]
    return [replace(row, measure=f"{split}: {row.measure}") for row in rows]


def run(
    subject: Subject,
    out: Path,
    groups: Sequence[str] = PROTOCOL,
    plan: Plan | None = None,
    judges: Judges | None = None,
) -> list[Row]:
    """Evaluate, and write `results.json` after every group; raw scores stay in `scores.jsonl` beside it.

    A second call with the same model and settings goes on where the first one stopped.

    Args:
        subject: pipeline, codec and settings.
        out: folder, made if it is missing.
        groups: names in `GROUPS`; all but `validation` by default.
        plan: size; the whole protocol by default.
        judges: Resemblyzer and pocketsphinx by default.

    Raises:
        SettingsError: a group is unknown, or the folder holds scores of something else.
        OutputError: the folder cannot be written.
    """
    _refuse_unknown(groups)
    plan, judges = plan or Plan(), judges or Judges()
    bench = Bench(plan, Store(out / "scores.jsonl", _owner(subject, plan)), judges, subject)
    rows: list[Row] = []
    for group in groups:
        logger.info("rows of group %s", group)
        rows += GROUPS[group](bench)
        write_results(out / "results.json", rows, circumstances(bench))
    return rows


def circumstances(bench: Bench) -> dict[str, Any]:
    """Everything that the rows depend on."""
    judges = (bench.judges.speaker.record, bench.judges.word.record)
    return {
        "protocol": {**asdict(bench.plan), "identity_scale": IDENTITY_SCALE, "interval": "95 %, speakers redrawn"},
        "model": dict(bench.subject.model),
        "settings": settings_to_json(bench.subject.settings_of("reference")),
        "judges": [asdict(judge) for judge in judges],
        "versions": versions(),
    }


def _owner(subject: Subject, plan: Plan) -> str:
    """Names what scores belong to; the number of speakers, prompts and clips at once does not change a score."""
    settings = settings_to_json(subject.settings)
    return fingerprint({"model": dict(subject.model), "settings": settings, "reference": plan.reference_seconds})


def _refuse_unknown(groups: Sequence[str]) -> None:
    for group in groups:
        if group not in GROUPS:
            raise SettingsError(f"there are no rows called {group!r}; choose from {', '.join(GROUPS)}")
