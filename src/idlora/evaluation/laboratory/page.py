# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing beside it: tables, plots, and clips to play."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from idlora.evaluation.figures import Plot
from idlora.evaluation.laboratory.manifest import Entry
from idlora.evaluation.laboratory.results import Judged
from idlora.evaluation.laboratory.tables import Sheet

MAX_EXAMPLE_BYTES = 4 << 20
_TYPES = {
    ".mp4": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #22242a;
  background: #fbfbf9; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dcdcd6; vertical-align: top; }
th { background: #f0f0ea; position: sticky; top: 0; }
img { max-width: 100%; } figure { margin: 1rem 0; }
.examples { display: flex; flex-wrap: wrap; gap: 1rem; } .examples > div { max-width: 16rem; font-size: 13px; }
video, audio { width: 15rem; display: block; } .about { color: #55585f; }
@media (prefers-color-scheme: dark) { body { background: #1b1c20; color: #e4e4e0; } th { background: #2a2b31; }
  th, td { border-color: #3a3b42; } .about { color: #a4a6ad; } figure { background: #fff; } }
"""


def page(title: str, about: str, sheets: Sequence[Sheet], plots: Sequence[Plot], examples: str) -> str:
    """The whole file; `examples` is what `example_section` made."""
    figures = "".join(
        f'<figure><img alt="{escape(plot.name)}" src="data:image/png;base64,{_coded(plot.png)}"></figure>'
        for plot in plots
    )
    first, *rest = [_table(sheet) for sheet in sheets] or [""]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="about">{escape(about)}</p>'
        f"{first}{figures}{''.join(rest)}{examples}</body></html>\n"
    )


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in sheet.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows)
    return (
        f'<h2>{escape(sheet.title)}</h2><p class="about">{escape(sheet.about)}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def example_section(judged: Sequence[Judged], systems: Sequence[str], count: int) -> str:
    """Clips of the requests that most systems answered, evenly spread, side by side with the reference."""
    answers: dict[str, dict[str, Entry]] = {}
    for each in judged:
        answers.setdefault(each.entry.id, {})[each.entry.system] = each.entry
    most = max((len(of) for of in answers.values()), default=0)
    names = [name for name, of in answers.items() if len(of) == most]
    if not names or count < 1:
        return ""
    chosen = dict.fromkeys(names[place * (len(names) - 1) // max(1, count - 1)] for place in range(count))
    return "<h2>Examples</h2>" + "".join(_example(name, answers[name], systems) for name in chosen)


def _example(name: str, of: dict[str, Entry], systems: Sequence[str]) -> str:
    entry = next(iter(of.values()))
    players = [("reference", entry.voice)] if entry.voice else []
    players += [(system, of[system].clip) for system in systems if system in of]
    shown = "".join(f"<div><b>{escape(label)}</b>{_player(path)}</div>" for label, path in players)
    prompt = f'<p class="about">{escape(entry.prompt)}</p>' if entry.prompt else ""
    return f'<h3>{escape(name)}</h3>{prompt}<div class="examples">{shown}</div>'


def _player(path: Path) -> str:
    """A player with the file inside; a word instead of what is missing, too large, or of no kind that browsers play."""
    kind = _TYPES.get(path.suffix.lower())
    try:
        size = path.stat().st_size
        if kind is None or size > MAX_EXAMPLE_BYTES:
            return f"<p>{escape(path.name)}: not embedded ({size / 1e6:.1f} MB)</p>"
        content = path.read_bytes()
    except OSError as error:
        return f"<p>{escape(path.name)}: {escape(error.strerror or str(error))}</p>"
    tag = kind.split("/")[0]
    return f'<{tag} controls preload="metadata" src="data:{kind};base64,{_coded(content)}"></{tag}>'


def _coded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
