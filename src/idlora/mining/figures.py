# SPDX-License-Identifier: Apache-2.0
"""The report's plots: the scores by which voices are linked, and histograms of what pairs are like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.evaluation.figures import Plot, drawn
from idlora.mining.tables import Row, Table

_RAREST = 20.0  # all beyond is shown there
_BLUE, _RED, _GREY = "#3b6fb6", "#d1603d", "#9aa0a6"


def figures(tables: Mapping[str, Table]) -> list[Plot]:
    """All plots of which there is something to show (SettingsError if matplotlib is not installed)."""
    return drawn(
        {
            "speaker-scores": lambda figure: _scores(figure, tables),
            "clips-and-pairs": lambda figure: _histograms(figure, tables),
        }
    )


def _scores(figure: Any, tables: Mapping[str, Table]) -> bool:
    """Scores of neighbours, linked and not, with both thresholds; logarithmic, since links are few."""
    links = tables["links"].rows
    if not links:
        return False
    figure.set_size_inches(7, 3.2)
    axis = figure.subplots()
    scores = _rarity([row["strangers"] for row in links])
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1), 61)
    groups: list[tuple[str, str, Callable[[Row], bool]]] = [
        ("one speaker", _BLUE, lambda row: bool(row["same"])),
        ("in doubt", _RED, lambda row: bool(row["doubt"] and not row["same"])),
        ("different", _GREY, lambda row: not row["same"] and not row["doubt"]),
    ]
    for label, colour, chosen in groups:
        values = _rarity([row["strangers"] for row in links if chosen(row)])
        axis.hist(values, edges, label=f"{label} ({len(values)})", color=colour, alpha=0.75)
    for name, style in (("linked", "-"), ("doubtful", "--")):
        bar = float(_rarity([links[0][name]])[0])
        axis.axvline(bar, color="black", lw=1, ls=style, label=f"{name} from {bar:.1f} on")
    axis.set_yscale("log")
    axis.set_xlabel("how rare so alike a stranger is: -log10 of the strangers expected, of neighbouring voices")
    axis.legend(fontsize=8, frameon=False)
    return True


def _rarity(strangers: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(np.minimum(-np.log10(np.maximum(strangers, 1e-300)), _RAREST))


def _histograms(figure: Any, tables: Mapping[str, Table]) -> bool:
    quality, pairs, links = (tables[name].rows for name in ("quality", "pairs", "links"))
    if not quality:
        return False
    same, other = ([row["score"] for row in links if bool(row["same"]) is wanted] for wanted in (True, False))
    panels: list[tuple[str, Sequence[tuple[str, Sequence[float]]]]] = [
        ("seconds of the file's stretches of one face", [("", _seconds(tables["faces"].rows))]),
        ("speech to noise of clips, dB", [("", [row["snr"] for row in quality])]),
        ("pitch of clips, Hz", [("", [row["hertz"] for row in quality if row["hertz"] > 0])]),
        ("acoustic distance of pairs", [("", [row["distance"] for row in pairs])]),
        ("score of neighbouring voices", [("same", same), ("different", other)]),
        ("pairs of a speaker", [("", list(_counts(pairs).values()))]),
    ]
    figure.set_size_inches(10.5, 5)
    for axis, (title, groups) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        for (label, values), colour in zip(groups, (_BLUE, _RED), strict=False):
            if len(values):
                low, high = float(min(values)), float(max(values))
                edges = np.linspace(low, max(high, low + 1e-6 + abs(low) * 1e-6), 31)
                axis.hist(values, edges, color=colour, alpha=0.7, label=label or None)
        axis.set_title(title, fontsize=9)
        if len(groups) > 1:
            axis.legend(fontsize=8, frameon=False)
    return True


def _seconds(rows: Sequence[Row]) -> list[float]:
    return [row["end"] - row["start"] for row in rows]


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row["speaker"]] = found.get(row["speaker"], 0) + 1
    return found
