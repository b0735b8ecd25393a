# SPDX-License-Identifier: Apache-2.0
"""Who trains, who validates and who tests: whole speakers, frozen, so that more files never move one of them.

A speaker of validation or test may be in no other split, not even unrecognised. So voices that may be one of them, by
the lower of two thresholds, are left out of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idlora.errors import InputError
from idlora.files import write_text
from idlora.mining.settings import SplitRules
from idlora.mining.tables import Row, dropped

TRAIN, VALIDATION, TEST = "train", "validation", "test"
BRIDGE, DOUBT = "joins speakers of two splits", "may be a speaker who is held out"
COLUMNS = {"clip": "text", "file": "text", "speaker": "text", "split": "text"}


@dataclass(frozen=True)
class Frozen:
    """What was decided before.

    Attributes:
        speakers: split of every speaker.
        clips: speaker of every clip that was in a split.
    """

    speakers: Mapping[str, str]
    clips: Mapping[str, str]

    def text(self) -> str:
        """As JSON, with a digest of every split's speakers and clips, so that a change is seen."""
        told: dict[str, object] = {}
        for split in (TRAIN, VALIDATION, TEST):
            names = sorted(name for name, where in self.speakers.items() if where == split)
            clips = {name: sorted(clip for clip, who in self.clips.items() if who == name) for name in names}
            told[split] = {"sha256": _digest(clips), "speakers": clips}
        return json.dumps(told, indent=1) + "\n"


def read_frozen(path: Path) -> Frozen:
    """The splits of a file; none if it is not there.

    Raises:
        InputError: it is no such file, or a split was changed by hand.
    """
    if not path.is_file():
        return Frozen({}, {})
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        splits = {split: dict(told[split]["speakers"]) for split in (TRAIN, VALIDATION, TEST)}
        wrong = [split for split, clips in splits.items() if told[split]["sha256"] != _digest(clips)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no splits ({error}); restore it, or remove it to draw new ones") from error
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} is not what its digest says; restore it, or draw new splits")
    speakers = {name: split for split, clips in splits.items() for name in clips}
    return Frozen(speakers, {clip: name for clips in splits.values() for name, own in clips.items() for clip in own})


def write_frozen(path: Path, frozen: Frozen) -> None:
    """Write splits so that `read_frozen` finds them (OutputError if that fails)."""
    write_text(path, frozen.text())


def _digest(clips: Mapping[str, Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps(clips, sort_keys=True).encode()).hexdigest()


def settled(groups: Mapping[str, str], frozen: Frozen) -> tuple[dict[str, str], set[str]]:
    """Speakers by clip with frozen ones under their old names, and the clips that would join two splits.

    Args:
        groups: speaker of every clip as this run finds it.
        frozen: what was decided before: clips of one frozen speaker stay together, whatever this run finds.
    """
    members: dict[str, list[str]] = {}
    for clip, name in groups.items():
        members.setdefault(name, []).append(clip)
    found: dict[str, str] = {}
    bridging: set[str] = set()
    for name, clips in members.items():
        known = sorted({frozen.clips[clip] for clip in clips if clip in frozen.clips})
        splits = {frozen.speakers[who] for who in known}
        new = known[0] if known else name
        for clip in clips:
            if clip in frozen.clips:
                found[clip] = frozen.clips[clip]
            elif len(splits) > 1:
                bridging.add(clip)
            else:
                found[clip] = new
    return found, bridging


def shared_out(
    speakers: Iterable[str], eligible: set[str], doubts: Mapping[str, set[str]], frozen: Frozen, rules: SplitRules
) -> dict[str, str]:
    """The split of every speaker: frozen ones stay, new ones fill what validation and test lack.

    Args:
        speakers: all of them.
        eligible: those that may be held out: with pairs of two recordings.
        doubts: speakers that each one may be too.
        frozen: what was decided before.
        rules: shares and seed. Held out are first those whom nobody resembles, in an order drawn by their names.
    """
    names = sorted(speakers)
    found = {name: frozen.speakers[name] for name in names if name in frozen.speakers}
    counts = {split: sum(where == split for where in found.values()) for split in (VALIDATION, TEST)}
    wanted = {TEST: round(rules.test * len(eligible)), VALIDATION: round(rules.validation * len(eligible))}
    settled_training = {name for name, where in found.items() if where == TRAIN}
    held = set(found) - settled_training
    new = (name for name in names if name not in found)
    for name in sorted(new, key=lambda each: (len(doubts.get(each, ())), _lot(each, rules))):
        lacking = next((split for split in (TEST, VALIDATION) if counts[split] < wanted[split]), None)
        if lacking is None or name not in eligible or doubts.get(name, set()) & (held | settled_training):
            found[name] = TRAIN
            continue
        found[name] = lacking
        held.add(name)
        counts[lacking] += 1
    return found


def people_of(labels: Mapping[str, str], speakers: Mapping[str, str]) -> dict[str, str]:
    """The person of every speaker, by the name of one: speakers of whom clips have one label are one person.

    A label may hold a voice that speaks against it: a speaker of its own, who yet is in the label's split.

    Args:
        labels: of clips; empty where nobody has said.
        speakers: of the same clips.
    """
    found = {name: name for name in speakers.values()}
    bearer: dict[str, str] = {}

    def person(name: str) -> str:
        while found[name] != name:
            name = found[name]
        return name

    for clip in sorted(clip for clip, label in labels.items() if label):
        first, second = sorted((person(speakers[clip]), person(bearer.setdefault(labels[clip], speakers[clip]))))
        found[second] = first
    return {name: person(name) for name in found}


def shared_by_people(
    people: Mapping[str, str], eligible: set[str], doubts: Mapping[str, set[str]], frozen: Frozen, rules: SplitRules
) -> tuple[dict[str, str], set[str]]:
    """The split of every speaker, as `shared_out` has it, all speakers of a person in one; and new speakers in none.

    These are of persons whose speakers were in two splits before anybody said that they are one.

    Args:
        people: person of every speaker.
        eligible: speakers that may be held out.
        doubts: speakers that each one may be too.
        frozen: what was decided before, of speakers.
        rules: shares and seed.
    """
    before: dict[str, set[str]] = {}
    unsure: dict[str, set[str]] = {}
    for name, person in people.items():
        before.setdefault(person, set()).update({frozen.speakers[name]} if name in frozen.speakers else ())
        unsure.setdefault(person, set()).update(people[other] for other in doubts.get(name, ()) if other in people)
    for person, others in unsure.items():
        others.discard(person)
    # Of a torn person any split counts: it is read for those alone whom the person may be.
    settled_people = Frozen({person: min(where) for person, where in before.items() if where}, {})
    may = {people[name] for name in eligible}
    shares = shared_out(before, may, unsure, settled_people, rules)
    found = {name: frozen.speakers.get(name, shares[person]) for name, person in people.items()}
    torn = {name for name, person in people.items() if len(before[person]) > 1 and name not in frozen.speakers}
    return found, torn


def _lot(name: str, rules: SplitRules) -> str:
    return hashlib.sha256(f"{rules.seed} {name}".encode()).hexdigest()


def in_doubt(splits: Mapping[str, str], doubts: Mapping[str, set[str]], frozen: Frozen) -> set[str]:
    """Speakers to be left out: those of training that may be one who is held out, and new ones that may be two.

    Between two frozen speakers nothing is changed: that was decided before.
    """
    left = set()
    for name, split in splits.items():
        others = {other for other in doubts.get(name, set()) if splits.get(other, split) != split}
        if name not in frozen.speakers and (others if split == TRAIN else others & frozen.speakers.keys()):
            left.add(name)
    return left


def rows_of(
    clips: Sequence[tuple[str, str]],
    speakers: Mapping[str, str],
    splits: Mapping[str, str],
    out: set[str],
    bridging: set[str],
) -> tuple[list[Row], list[Row]]:
    """The table of clips (name, file) with speaker and split, and what is left out."""
    rows: list[Row] = []
    gone: list[Row] = []
    for clip, file in clips:
        if clip in bridging:
            gone.append(dropped(clip, file, BRIDGE))
        elif clip in speakers and speakers[clip] in out:
            gone.append(dropped(clip, file, DOUBT, f"speaker {speakers[clip]}"))
        elif clip in speakers:
            who = speakers[clip]
            rows.append({"clip": clip, "file": file, "speaker": who, "split": splits[who]})
    return rows, gone
