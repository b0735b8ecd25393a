# SPDX-License-Identifier: Apache-2.0
"""From stored scores to what rows are made of: one number a clip, and how a difference grows with distance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from idlora.evaluation.comparisons import wide_level
from idlora.evaluation.reproduction.arms import CLEAR, Arm, asked
from idlora.evaluation.reproduction.findings import Measured, Score
from idlora.evaluation.reproduction.studio import Place
from idlora.evaluation.reproduction.trials import Trials
from idlora.evaluation.statistics import Draw, bootstrap
from idlora.evaluation.store import Values

Scores = dict[Place, Score]
Number = Callable[[Values, Place], tuple[float, float] | None]  # sum and weight of a clip; None = it has none
Wanted = Callable[[int, int], str]  # of speaker and prompt


def scores_of(trials: Trials, arm: Arm, number: Number) -> Scores:
    """A number of every clip of an arm that has it."""
    found = {place: number(values, place) for place, values in trials.verdicts(arm).items()}
    return {place: (f"{place[0]:04d}", *parts) for place, parts in found.items() if parts is not None}


def score(judge: str, name: str, per: str = "") -> Number:
    """A judge's score, over another one where `per` names it."""

    def number(values: Values, _: Place) -> tuple[float, float] | None:
        given: Mapping[str, Any] = values["scores"].get(judge, {})
        if given.get(name) is None or (per and not given.get(per)):
            return None
        return float(given[name]), float(given[per]) if per else 1.0

    return number


def beyond_chance(trials: Trials, arm: Arm, what: str, wanted: Wanted) -> Scores:
    """Whether what is wanted of a clip is heard in it (1 or 0), less how often it is heard in all clips of the arm.

    So a classifier that always hears the same has 0, whatever is asked for. `what` is `place`, `style` or `object`.
    """
    verdicts = trials.verdicts(arm)
    given = {place: values["scores"].get("sounds-world", {}).get(f"{what}_heard") for place, values in verdicts.items()}
    heard = {place: said for place, said in given.items() if said is not None}
    often = Counter(heard.values())
    found: Scores = {}
    for place, said in heard.items():
        asked_for = wanted(*place)
        found[place] = (f"{place[0]:04d}", float(said == asked_for) - often[asked_for] / len(heard), 1.0)
    return found


def nearer(values: Values, _: Place) -> tuple[float, float] | None:
    """By how much the sound is nearer to the place asked for than to the reference's, in units of acoustic distance."""
    found = values.get("place", {})
    return (found["copied"] - found["asked"], 1.0) if "asked" in found else None


def clear(arm: Arm, number: Number) -> Number:
    """The number in clips where words can be heard."""

    def within(values: Values, place: Place) -> tuple[float, float] | None:
        return number(values, place) if asked(arm, *place).place in CLEAR else None

    return within


def strike_errors(trials: Trials, seen: Arm, heard: Arm) -> Scores:
    """Seconds between the strike that is seen in one arm's clip and the one that is heard in another's."""
    pictures, sounds = trials.verdicts(seen), trials.verdicts(heard)
    found: Scores = {}
    for place in pictures.keys() & sounds.keys():
        picture, sound = pictures[place].get("struck", {}), sounds[place].get("struck", {})
        if "picture" in picture and "sound" in sound:
            found[place] = (f"{place[0]:04d}", abs(picture["picture"] - sound["sound"]), 1.0)
    return dict(sorted(found.items()))


def slope_of(difference: Mapping[Place, float], distance: Mapping[Place, float]) -> Measured | None:
    """How a difference grows with the acoustic distance (least squares), speakers drawn again; None below three."""
    places = [place for place in difference if place in distance]
    speakers = sorted({place[0] for place in places})
    if len(speakers) < 3 or np.ptp([distance[place] for place in places]) < 1e-6:
        return None
    rows = [[place for place in places if place[0] == who] for who in speakers]

    def slope(drawn: Draw) -> float:
        chosen = [place for index in drawn for place in rows[index]]
        x, y = (np.array([values[place] for place in chosen]) for values in (distance, difference))
        spread = x - x.mean()
        return float(spread @ y / max(float(spread @ spread), 1e-9))

    estimate = bootstrap(slope, len(speakers), level=wide_level(len(speakers)))
    return Measured(estimate, len(places), len(speakers))
