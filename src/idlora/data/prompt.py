# SPDX-License-Identifier: Apache-2.0
"""Prompts in three parts: what is seen, what is said, and how it sounds."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from idlora.errors import InputError

_TAG = re.compile(r"\[\s*(visual|speech|sounds)\s*\]:?", re.IGNORECASE)
_QUOTED = re.compile(r"\"([^\"]+)\"|\u201c([^\u201c\u201d]+)\u201d")


@dataclass(frozen=True)
class Prompt:
    """What a clip shows (`visual`), the words spoken in it (`speech`), and its voice and noises (`sounds`).

    White space inside a part is reduced to single blanks, so that `parse_prompt(prompt.text()) == prompt`.

    Raises:
        InputError: all parts are empty, or a part holds one of the tags.
    """

    visual: str = ""
    speech: str = ""
    sounds: str = ""

    def __post_init__(self) -> None:
        """Normalise white space and refuse what could not be written as a prompt and read back."""
        for field in fields(self):
            part = " ".join(getattr(self, field.name).split())
            if _TAG.search(part):
                raise InputError(f"the {field.name} part holds a tag ({part[:60]!r}); give the parts without tags")
            object.__setattr__(self, field.name, part)
        if not (self.visual or self.speech or self.sounds):
            raise InputError("the prompt is empty; say what is seen, spoken or heard")

    def text(self) -> str:
        """Return the tagged form that the text encoder is given; empty parts are left out."""
        parts = {field.name.upper(): getattr(self, field.name) for field in fields(self)}
        return " ".join(f"[{tag}] {part}" for tag, part in parts.items() if part)


def parse_prompt(text: str) -> Prompt:
    """Read `[VISUAL] ... [SPEECH] ... [SOUNDS] ...`: any order, any case, an optional colon, parts may be missing.

    Words before the first tag belong to the visual part, and a tag that comes twice adds to its part. A prompt
    without tags is free English: all of it is visual, and what stands in double quotes is also the speech.

    Raises:
        InputError: nothing is said.
    """
    head, *rest = _TAG.split(text)
    if not rest:
        return Prompt(visual=head, speech=_quoted_words(head))
    parts = {"visual": head, "speech": "", "sounds": ""}
    for tag, part in zip(rest[::2], rest[1::2], strict=True):
        parts[tag.lower()] += f" {part}"
    return Prompt(**parts)


def _quoted_words(text: str) -> str:
    return " ".join(straight or curly for straight, curly in _QUOTED.findall(text))


WORDS_A_SECOND = 2.5  # of a speaker who is not known
_SLOWEST, _FASTEST = 1.5, 4.0  # words a second; a measured pace outside is taken for a mistake


def advice(prompt: Prompt, seconds: float, words_per_second: float | None = None) -> tuple[str, ...]:
    """What is known to go wrong with a prompt, each with its remedy; nothing for a good one.

    Args:
        prompt: in its parts.
        seconds: duration of the clip.
        words_per_second: the speaker's pace, kept within 1.5 to 4; None = 2.5.
    """
    pace = min(max(words_per_second or WORDS_A_SECOND, _SLOWEST), _FASTEST)
    words = len(re.findall(r"[\w'\u2019]+", prompt.speech))
    missing = [field.name for field in fields(prompt) if not getattr(prompt, field.name)]
    found = []
    if missing:
        tags = ", ".join(f"[{name.upper()}]" for name in missing)
        found.append(f"the prompt has no {tags}: the model was trained on all three parts, so say that as well")
    if (prompt.speech and not prompt.visual) or _QUOTED.match(prompt.visual):
        found.append("the prompt begins with the speech, which is known to spoil the first half second: describe first")
    if words > pace * seconds:
        needed = words / pace
        found.append(
            f"{words} words need about {needed:.1f} s at {pace:.1f} words a second, the clip has {seconds:.1f} s: "
            "shorten the speech or make the clip longer"
        )
    return tuple(found)
