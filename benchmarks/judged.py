# SPDX-License-Identifier: Apache-2.0
"""Clips made in several ways from the same requests, judged by the laboratory, each way against the exact one.

Speakers are those of the split `test`, whom nothing was trained on or chosen by; orders of words are unseen, the
reference is of another place. Scores are kept in `scores.jsonl` of a folder, so that a second call goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from idlora.evaluation.reproduction.arms import HARD, Arm, Extent
from idlora.evaluation.reproduction.claims import VOICE, WORDS
from idlora.evaluation.reproduction.findings import difference_of, mean_of
from idlora.evaluation.reproduction.makers import PipelineMaker
from idlora.evaluation.reproduction.scores import Number, score, scores_of
from idlora.evaluation.reproduction.studio import Place
from idlora.evaluation.reproduction.trials import Owner, Trials, offline_judges
from idlora.evaluation.store import Values
from idlora.pipeline import IDLoraPipeline, Settings

Change = Callable[[Settings], Settings]
EXACT = "exact"


def as_asked(values: Values, _: Place) -> tuple[float, float] | None:
    """Share of place and style that are as asked."""
    given = values["scores"].get("sounds-world", {})
    if "place_right" not in given or "style_right" not in given:
        return None
    return (given["place_right"] + given["style_right"]) / 2, 1.0


MEASURES: Mapping[str, Number] = {
    "similarity": VOICE,
    "WER": WORDS,
    "lips": score("lips-world", "correlation"),
    "place and style": as_asked,
}


@dataclass(frozen=True)
class Ways(Trials):
    """Trials whose arms differ in settings, by the arm's name; the exact one has those of `shipped`."""

    changes: Mapping[str, Change] = field(default_factory=dict)

    def settings(self, arm: Arm) -> Settings:
        """Those of an arm's clips."""
        change = self.changes.get(arm.name)
        return self.shipped if change is None else change(self.shipped)


def judged(
    pipe: IDLoraPipeline, settings: Settings, changes: Mapping[str, Change], people: tuple[int, int], out: Path
) -> dict[str, dict[str, list[float]]]:
    """Of the exact way each measure, of the others its change against it: value and 95 % interval by speaker, n.

    `people` are how many speakers, and the clips of each.
    """
    (speakers, prompts), steps = people, settings.num_inference_steps
    extent = Extent("ways", speakers, prompts=prompts, steps=steps, scales=(1.0,), seconds=(3.0,), batch=10)
    owner = Owner(pipe.digests, {name: judge for name, judge in offline_judges().items() if name != "onset"})
    trials = Ways.of(PipelineMaker(pipe), settings, extent, out, owner)
    trials = replace(trials, changes=changes, moved=lambda text: print(text, file=sys.stderr, flush=True))
    arms = {name: replace(HARD, name=name, onset=False) for name in (EXACT, *changes)}
    told: dict[str, dict[str, list[float]]] = {}
    for name, arm in arms.items():
        trials.run(trials.missing(arm))
        told[name] = _row(trials, arm, None if name == EXACT else arms[EXACT])
    return told


def _row(trials: Trials, arm: Arm, exact: Arm | None) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, number in MEASURES.items():
        own = scores_of(trials, arm, number)
        measured = (
            mean_of(list(own.values())) if exact is None else difference_of(own, scores_of(trials, exact, number))
        )
        if measured is not None:
            estimate = measured.estimate
            found[name] = [estimate.value, estimate.low, estimate.high, float(measured.n)]
    return found
