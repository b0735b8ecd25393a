# SPDX-License-Identifier: Apache-2.0
"""Plots of results with their intervals, as PNG and SVG: measures by system, and by acoustic distance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from idlora.evaluation.figures import Plot, drawn
from idlora.evaluation.laboratory.results import ALL, BINS, Line, Results

_COLOURS = ("#3b6fb6", "#d1603d", "#4c9a6a", "#8a5aa8", "#c49a2a", "#5b6770")  # the baseline first
_COLUMNS = 3
_OF_DISTANCE = (
    "speaker similarity",
    "speaker similarity, WavLM-Large and ECAPA",
    "WER",
    "place as asked, world",
    "CLAP, sounds",
)


def plots(results: Results) -> list[Plot]:
    """All that can be drawn (SettingsError if matplotlib is not installed)."""
    draws: dict[str, Callable[[Any], bool]] = {"measures": lambda figure: _measures(figure, results)}
    if results.distances:
        draws["acoustic-distance"] = lambda figure: _by_distance(figure, results)
    return drawn(draws)


def _measures(figure: Any, results: Results) -> bool:
    """A panel for each measure, a point with its interval for each system."""
    names = list(dict.fromkeys(line.measure.name for line in results.lines if line.split == ALL))
    if not names:
        return False
    axes = _grid(figure, len(names), 1.2 + 0.28 * len(results.systems))
    for axis, name in zip(axes, names, strict=False):
        lines = [results.line(system, name) for system in results.systems]
        _points(axis, [(len(lines) - place, line) for place, line in enumerate(lines)], results.systems, upright=False)
        axis.set_title(_titled(lines), fontsize=9)
        axis.set_yticks([len(lines) - place for place in range(len(lines))], [*map(_literal, results.systems)])
        axis.set_ylim(0.4, len(lines) + 0.6)
    return True


def _titled(lines: Sequence[Line | None]) -> str:
    measure = next(line.measure for line in lines if line is not None)
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}[measure.better]
    return textwrap.fill(f"{measure.name}{arrow}", 44)


def _by_distance(figure: Any, results: Results) -> bool:
    """A panel for each measure, a curve for each system over the mean distance of the bins."""
    names = [name for name in _OF_DISTANCE if any(line.measure.name == name for line in results.lines)]
    if not names:
        return False
    axes = _grid(figure, len(names), 2.6)
    for axis, name in zip(axes, names, strict=False):
        for place, system in enumerate(results.systems):
            lines = [results.line(system, name, split) for split in BINS]
            spots = list(zip(results.distances, lines, strict=True))
            shown = [(x, line.estimate.value) for x, line in spots if line is not None]
            axis.plot(*zip(*shown, strict=True), color=_colour(place), lw=1, label=_literal(system)) if shown else None
            _points(axis, spots, [system] * len(spots), upright=True, colour=_colour(place))
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("acoustic distance of the reference to the clip asked for")
    axes[0].legend(fontsize=8, frameon=False)
    return True


def _grid(figure: Any, count: int, height: float) -> list[Any]:
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure.set_size_inches(3.9 * columns, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes


def _points(
    axis: Any, spots: Sequence[tuple[float, Line | None]], systems: Sequence[str], *, upright: bool, colour: str = ""
) -> None:
    """Points with intervals at places along the x axis if `upright`, else along the y axis."""
    for index, (place, line) in enumerate(spots):
        if line is None:
            continue
        value, low, high = line.estimate.value, line.estimate.low, line.estimate.high
        error = None if math.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]]
        style: dict[str, Any] = {"fmt": "o", "ms": 4, "capsize": 2, "color": colour or _colour(index % len(systems))}
        if upright:
            axis.errorbar(place, value, yerr=error, **style)
        else:
            axis.errorbar(value, place, xerr=error, **style)


def _literal(name: str) -> str:
    """A stranger's text as matplotlib shows it unchanged: what stands between two `$` would be read as a formula."""
    return name.replace("$", "\\$")


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
