# SPDX-License-Identifier: Apache-2.0
"""One clip before all judges: what each says, or why it cannot; never a crash, never a number for want of one."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from idlora.data.prompt import Prompt
from idlora.errors import IDLoraError, InputError, SettingsError, WeightsError
from idlora.evaluation.judges.base import Footage, Judge, Reference, Unjudged, Verdict
from idlora.evaluation.laboratory.manifest import Entry
from idlora.evaluation.store import Values, fingerprint
from idlora.files import sha256_of

logger = logging.getLogger(__name__)

# By judge: {"values": ...} or {"unjudged": reason}, this with "again": True where the clip may be judged the next time.
Outcome = dict[str, Values]


def judge_footage(clip: Footage, reference: Reference, prompt: Prompt | None, judges: Mapping[str, Judge]) -> Verdict:
    """All scores of a clip in memory; the judges that could not give one are named with their reasons."""
    return verdict_of(outcome_of(clip, reference, prompt, judges))


def outcome_of(clip: Footage, reference: Reference, prompt: Prompt | None, judges: Mapping[str, Judge]) -> Outcome:
    """The same with what `verdict_of` leaves out: whether what a judge could not score is to be tried again."""
    return {name: _asked(name, judge, clip, reference, prompt) for name, judge in judges.items()}


def judge_entry(entry: Entry, judges: Mapping[str, Judge]) -> Outcome:
    """The same for files: a clip that cannot be read is a reason of every judge, a reference of those that use it."""
    try:
        clip, prompt = Footage.read(entry.clip), entry.asked
    except IDLoraError as error:
        return {name: {"unjudged": _named(entry, _told(error))} for name in judges}
    except Exception as error:  # noqa: BLE001 - a codec's own fault must not end a night's work
        reason = f"it cannot be read: {type(error).__name__}: {_told(error)}"
        return {name: failed(_named(entry, reason)) for name in judges}
    reference = Reference.read(entry.voice, entry.picture, entry.truth, entry.said, entry.face_box)
    return outcome_of(clip, reference, prompt, judges)


def failed(reason: str) -> Values:
    """What could not be judged by no fault of the clip's: for want of memory, say. It is tried again the next time."""
    return {"unjudged": reason, "again": True}


def verdict_of(outcome: Mapping[str, Values]) -> Verdict:
    """Scores and reasons apart."""
    scores = {name: told["values"] for name, told in outcome.items() if "values" in told}
    reasons = tuple(Unjudged(name, told["unjudged"]) for name, told in outcome.items() if "unjudged" in told)
    return Verdict(scores, reasons)


def _asked(name: str, judge: Judge, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
    try:
        values = judge.score(clip, reference, prompt)
        _refuse_no_numbers(values)
    except (WeightsError, SettingsError):
        raise  # of the judge, not of the clip: every other clip would meet it too
    except IDLoraError as error:
        return {"unjudged": _told(error)}
    except Exception as error:
        logger.warning("judge %s failed", name, exc_info=True)
        return failed(f"the judge failed: {type(error).__name__}: {_told(error)}")
    return {"values": values}


def _refuse_no_numbers(values: Values) -> None:
    wrong = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if wrong:
        raise InputError(f"the judge's {', '.join(wrong)} is not a finite number")


def _named(entry: Entry, reason: str) -> str:
    """The reason without where the clip lies: equal faults are told as one."""
    return reason.replace(str(entry.clip), "the clip")


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def content_of(entry: Entry) -> str:
    """Names what an entry's scores depend on: the contents of its files, wherever they lie, and its words.

    A file that is missing or unreadable counts by its name, so that it is looked at again once it is there.
    """
    files = {key: _digest(getattr(entry, key)) for key in ("clip", "voice", "picture", "truth")}
    told: dict[str, Any] = {**files, "prompt": entry.prompt, "said": entry.said, "face_box": entry.face_box}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _digest(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return sha256_of(path)
    except InputError:
        return f"unreadable {path.name}"


def judge_key(name: str, judge: Judge) -> str:
    """Names a judge's scores: another version or other weights are another judge."""
    return f"{name}-{fingerprint(asdict(judge.record))}"
