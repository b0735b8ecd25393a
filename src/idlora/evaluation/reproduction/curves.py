# SPDX-License-Identifier: Apache-2.0
"""Plots: all rows with their intervals, curves along a setting or along an amount of training, acoustic distance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from idlora.evaluation.figures import Plot, drawn
from idlora.evaluation.reproduction.ablations import LONG, NEGATIVE, RANKS
from idlora.evaluation.reproduction.arms import BASE, CASCADE, HARD, Arm, of_scale, of_seconds
from idlora.evaluation.reproduction.claims import STYLE, VOICE, WORDS, curve
from idlora.evaluation.reproduction.findings import NOT_REPRODUCED, REPRODUCED, Finding
from idlora.evaluation.reproduction.scores import Number, score, scores_of
from idlora.evaluation.reproduction.training_rows import arm_of
from idlora.evaluation.reproduction.trials import Trials

_COLOURS = {REPRODUCED: "#4c9a6a", NOT_REPRODUCED: "#d1603d"}
_LINES = ("#3b6fb6", "#d1603d", "#8a5aa8")
_MEASURES: dict[str, Number] = {
    "similarity to the true clip": VOICE,
    "WER": WORDS,
    "style as asked": STYLE,
}
_OF_GUIDANCE: dict[str, Number] = {
    **_MEASURES,
    "lips": score("lips-world", "correlation"),
    "share of clipped samples": score("levels", "clipped"),
}


def drawings(trials: Trials, findings: Sequence[Finding]) -> list[Plot]:
    """All that can be drawn of what is known (SettingsError if matplotlib is not installed)."""
    scales = [(scale, of_scale(scale)) for scale in trials.extent.scales]
    usual = {*trials.extent.seconds, HARD.seconds}
    lengths = [(seconds, of_seconds(seconds)) for seconds in sorted(usual)]
    pairs = [(float(each.config.data.limit), arm_of(each)) for each in LONG]
    ranks = [(float(each.config.adapter.rank), arm_of(each)) for each in (NEGATIVE[0], *RANKS)]
    draws: dict[str, Callable[[Any], bool]] = {
        "rows": lambda figure: _rows(figure, findings),
        "identity-guidance": lambda figure: _curves(figure, trials, scales, "scale of identity guidance", _OF_GUIDANCE),
        "reference-length": lambda figure: _curves(figure, trials, lengths, "seconds of reference"),
        "training-pairs": lambda figure: _curves(figure, trials, pairs, "pairs trained with, equal steps"),
        "ranks": lambda figure: _curves(figure, trials, ranks, "rank of the adapter, equal steps"),
        "acoustic-distance": lambda figure: _distances(figure, trials),
    }
    return drawn(draws, font_size=8, dpi=80)


def _rows(figure: Any, findings: Sequence[Finding]) -> bool:
    """A line for each measured row: value and interval, coloured by verdict."""
    shown = [row for row in findings if row.ours is not None and row.interval is not None]
    if not shown:
        return False
    figure.set_size_inches(9, 0.6 + 0.32 * len(shown))
    axis = figure.subplots()
    for place, row in enumerate(reversed(shown)):
        value, (low, high) = row.ours or 0.0, row.interval or (0.0, 0.0)
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar(value, place, xerr=error, fmt="o", ms=4, capsize=2, color=_COLOURS[row.verdict])
    axis.axvline(0, color="#999999", lw=0.7)
    labels = [textwrap.shorten(row.claim, 84, placeholder=" ...") for row in reversed(shown)]
    axis.set_yticks(range(len(shown)), labels)
    axis.set_xlabel("ours with 95 % interval; green: reproduced, red: not")
    return True


def _curves(
    figure: Any,
    trials: Trials,
    arms: Sequence[tuple[float, Arm]],
    label: str,
    measures: Mapping[str, Number] = _MEASURES,
) -> bool:
    """A panel for each measure along a setting."""
    axes = _panels(figure, len(measures))
    some = False
    for axis, (name, number) in zip(axes, measures.items(), strict=True):
        for (x, _), found in zip(arms, curve(trials, [arm for _, arm in arms], number), strict=True):
            if found is None:
                continue
            some, estimate = True, found.estimate
            reach = None
            if not math.isnan(estimate.low):
                reach = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
            axis.errorbar(x, estimate.value, yerr=reach, fmt="o", ms=4, capsize=2, color=_LINES[0])
        axis.set_title(name, fontsize=8)
        axis.set_xlabel(label)
    return some


def _distances(figure: Any, trials: Trials) -> bool:
    """Similarity of every clip over the acoustic distance of its reference."""
    far = scores_of(trials, HARD, score("conditions", "distance"))
    axis = _panels(figure, 1)[0]
    some = False
    for arm, colour in zip((HARD, CASCADE, BASE), _LINES, strict=True):
        found = scores_of(trials, arm, VOICE)
        places = [place for place in found if place in far]
        some = some or bool(places)
        spots = [far[place][1] for place in places], [found[place][1] for place in places]
        axis.plot(*spots, "o", ms=4, color=colour, label=arm.name)
    axis.set_xlabel("acoustic distance of the reference to the true clip")
    axis.set_ylabel("similarity to the true clip")
    axis.legend(frameon=False)
    return some


def _panels(figure: Any, count: int) -> list[Any]:
    figure.set_size_inches(3.4 * count + (1.0 if count == 1 else 0.0), 2.6)
    return list(figure.subplots(1, count, squeeze=False).ravel())
