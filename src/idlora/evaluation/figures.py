# SPDX-License-Identifier: Apache-2.0
"""Plots in one look as PNG and SVG, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from idlora.errors import SettingsError


@dataclass(frozen=True)
class Plot:
    """A picture by name, as PNG and as SVG."""

    name: str
    png: bytes
    svg: bytes


def drawn(draws: Mapping[str, Callable[[Any], bool]], *, font_size: int = 9, dpi: int = 110) -> list[Plot]:
    """The plots, by name, that have something to show.

    Args:
        draws: put a plot into a matplotlib figure and say whether there was something to draw.
        font_size: of text, in points.
        dpi: of the PNG.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plots need matplotlib: pip install 'idlora[eval]'") from error
    found = []
    # No dates and no random names inside, so that equal results give equal files.
    style = {"svg.hashsalt": "idlora", "font.size": font_size, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, draw in draws.items():
            figure = Figure(layout="constrained")
            if draw(figure):
                png, svg = _saved(figure, "png", {"Software": None}, dpi), _saved(figure, "svg", {"Date": None}, dpi)
                found.append(Plot(name, png, svg))
    return found


def _saved(figure: Any, form: str, metadata: dict[str, None], dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
