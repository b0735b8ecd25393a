# SPDX-License-Identifier: Apache-2.0
"""Persons by picture: the record of a face, how one is drawn at random, and its words for a caption.

A face is drawn from its own generator and knows nothing of a voice, so a picture never tells the voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idlora.data.world.shapes import Colour, mix

HAIR_STYLES = ("short", "long", "curly", "bun", "bob", "bald")
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.13, 0.11, 0.12),
    "brown": (0.38, 0.24, 0.15),
    "blond": (0.89, 0.73, 0.40),
    "red": (0.72, 0.33, 0.14),
    "grey": (0.68, 0.68, 0.70),
}
CLOTHES_COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.24, 0.24),
    "green": (0.24, 0.58, 0.36),
    "blue": (0.22, 0.40, 0.76),
    "yellow": (0.93, 0.77, 0.27),
    "white": (0.92, 0.92, 0.90),
    "purple": (0.50, 0.32, 0.66),
    "black": (0.19, 0.20, 0.24),
}
SKIN_SCALE: tuple[Colour, ...] = (
    (0.98, 0.86, 0.77),
    (0.94, 0.78, 0.65),
    (0.84, 0.65, 0.49),
    (0.68, 0.48, 0.34),
    (0.50, 0.34, 0.24),
    (0.37, 0.25, 0.19),
)
EYE_COLOURS: tuple[Colour, ...] = ((0.30, 0.19, 0.11), (0.24, 0.44, 0.66), (0.28, 0.50, 0.32), (0.42, 0.44, 0.48))


@dataclass(frozen=True)
class Face:
    """What makes a person recognisable by picture. Sizes are factors of the usual face unless said otherwise."""

    skin: Colour
    hair_colour: str  # a key of HAIR_COLOURS
    hair_rgb: Colour
    hair_style: str  # one of HAIR_STYLES
    clothes: str  # a key of CLOTHES_COLOURS
    clothes_rgb: Colour
    eye_rgb: Colour
    glasses: bool
    beard: bool
    head_width: float
    head_height: float
    jaw: float  # power of the lower outline: 2 round, 3 square
    eye_spacing: float
    eye_size: float
    brow_weight: float
    brow_tilt: float  # radians, positive lifts the inner ends
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_fullness: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Face:
        """One random person; equal generators give equal faces."""
        hair, clothes = str(rng.choice(list(HAIR_COLOURS))), str(rng.choice(list(CLOTHES_COLOURS)))
        return cls(
            skin=_along(SKIN_SCALE, rng.uniform()),
            hair_colour=hair,
            hair_rgb=_near(HAIR_COLOURS[hair], rng),
            hair_style=str(rng.choice(HAIR_STYLES)),
            clothes=clothes,
            clothes_rgb=_near(CLOTHES_COLOURS[clothes], rng),
            eye_rgb=EYE_COLOURS[int(rng.integers(len(EYE_COLOURS)))],
            glasses=bool(rng.uniform() < 0.3),
            beard=bool(rng.uniform() < 0.25),
            head_width=rng.uniform(0.90, 1.10),
            head_height=rng.uniform(0.96, 1.04),
            jaw=rng.uniform(2.0, 2.8),
            eye_spacing=rng.uniform(0.90, 1.12),
            eye_size=rng.uniform(0.88, 1.15),
            brow_weight=rng.uniform(0.7, 1.5),
            brow_tilt=rng.uniform(-0.25, 0.25),
            nose_length=rng.uniform(0.8, 1.2),
            nose_width=rng.uniform(0.75, 1.3),
            mouth_width=rng.uniform(0.90, 1.12),
            lip_fullness=rng.uniform(0.7, 1.4),
        )

    def describe(self) -> str:
        """A caption phrase of at most 14 words, such as `a person with short red hair, glasses and a green shirt`."""
        hair = [] if self.hair_style == "bald" else [self._hair_words()]
        extras = ["a beard"] * self.beard + ["glasses"] * self.glasses
        parts = [*hair, *extras, f"a {self.clothes} shirt"]
        person = "a bald person" if self.hair_style == "bald" else "a person"
        listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        return f"{person} with {listed}"

    def _hair_words(self) -> str:
        if self.hair_style in ("bun", "bob"):
            return f"a {self.hair_colour} {self.hair_style}"
        return f"{self.hair_style} {self.hair_colour} hair"


def _along(scale: tuple[Colour, ...], share: float) -> Colour:
    """The colour at `share` in [0, 1] of a scale of colours."""
    place = share * (len(scale) - 1)
    lower = min(int(place), len(scale) - 2)
    return mix(scale[lower], scale[lower + 1], place - lower)


def _near(colour: Colour, rng: np.random.Generator) -> Colour:
    """The colour a little darker or lighter, so that two persons of one word still differ."""
    target = (0.0, 0.0, 0.0) if rng.uniform() < 0.5 else (1.0, 1.0, 1.0)
    return mix(colour, target, rng.uniform(0.0, 0.12))
