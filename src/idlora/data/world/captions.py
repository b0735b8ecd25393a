# SPDX-License-Identifier: Apache-2.0
"""What is said about a clip: the three-part prompt of a `ClipSpec`, in the first or in varied words."""

from __future__ import annotations

import numpy as np

from idlora.data.prompt import Prompt
from idlora.data.world.clip import ClipSpec

SEEN_PLACE = {
    "quiet room": ("in a quiet room", "in a calm room at home", "indoors in a room"),
    "hall": ("in a large hall", "in a big empty hall", "inside a church hall"),
    "rain": ("outside in the rain", "in heavy rain", "standing in the rain"),
    "street": ("in a street at night", "on a busy street", "in the city beside traffic"),
}
HEARD_PLACE = {
    "quiet room": ("a quiet room", "silence around", "no background noise"),
    "hall": ("echo of a large hall", "long reverberation", "the hall echoes"),
    "rain": ("rain falls", "the sound of rain", "heavy rain"),
    "street": ("street noise", "traffic passes", "cars drive by"),
}
HEARD_STYLE = {
    "calm": ("a calm voice", "speaking calmly", "a normal quiet tone"),
    "loud": ("a loud voice", "shouting loudly", "speaking very loud"),
    "fast": ("a fast voice", "speaking fast", "talking quickly"),
    "whispered": ("a whispered voice", "whispering", "speaking in a whisper"),
}
SEEN_OBJECT = {
    "none": ("",),
    "bell": (", a bell beside them is struck", ", striking a bell"),
    "drum": (", a drum beside them is struck", ", hitting a drum"),
    "glass": (", a glass beside them is struck", ", tapping a glass"),
}
HEARD_OBJECT = {
    "none": ("",),
    "bell": (", a bell rings", ", the bell is heard"),
    "drum": (", a drum beats", ", a drum hit"),
    "glass": (", a glass clinks", ", the glass rings"),
}


def prompt_of(spec: ClipSpec, rng: np.random.Generator | None = None) -> Prompt:
    """The prompt of a clip; with `rng` its phrases vary, without it they are the first of each list."""

    def phrase(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    return Prompt(
        visual=f"{spec.face.describe()} {phrase(SEEN_PLACE[spec.place])}{phrase(SEEN_OBJECT[spec.object])}",
        speech=" ".join(spec.words),
        sounds=f"{phrase(HEARD_STYLE[spec.style])}, {phrase(HEARD_PLACE[spec.place])}"
        f"{phrase(HEARD_OBJECT[spec.object])}",
    )


def caption(spec: ClipSpec, rng: np.random.Generator | None = None) -> str:
    """The prompt of a clip as one text; see `prompt_of`."""
    return prompt_of(spec, rng).text()
