# SPDX-License-Identifier: Apache-2.0
"""The look of the world: laws of the renderer, of the faces it draws, and of the reader of mouths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from idlora.data.world.face import CLOTHES_COLOURS, HAIR_COLOURS, HAIR_STYLES
from idlora.data.world.look import OBJECTS, PLACES, Face, Look, portrait, render
from idlora.data.world.reader import mouth_box, read_mouth_opening
from idlora.errors import InputError

Frames = NDArray[np.uint8]
FRAMES = 57


def speech(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A mouth that opens and shuts as in speech: opening and width, (57,) each."""
    seconds = np.arange(FRAMES) / 25
    syllables = np.cumsum(rng.uniform(0.12, 0.3, 14))
    pulses = np.exp(-(((seconds - syllables[:, None]) / 0.05) ** 2)) * rng.uniform(0.2, 1, (14, 1))
    return pulses.max(axis=0), np.interp(seconds, np.arange(0, 4, 0.15), rng.uniform(-1, 1, 27))


def clips(seed: int, count: int) -> list[tuple[NDArray[np.float64], Frames]]:
    """True openings and clips of random persons, places and objects."""
    rng, made = np.random.default_rng(seed), []
    for index in range(count):
        opening, width = speech(rng)
        look = Look(Face.draw(rng), PLACES[index % 4], OBJECTS[index // 4 % 4], index)
        made.append((opening, render(look, opening, width, [0.5, 1.5])))
    return made


def correlation(truth: NDArray[np.float64], frames: Frames) -> float:
    return float(np.corrcoef(truth, read_mouth_opening(frames))[0, 1])


def distance(first: Frames, second: Frames) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first.astype(float) - second).mean())


def face(seed: int = 0, **changes: Any) -> Face:
    return replace(Face.draw(np.random.default_rng(seed)), **changes)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not() -> None:
    opening, width = speech(np.random.default_rng(1))
    first, again, other = (render(Look(face(), "rain", "bell", seed), opening, width, [1.0]) for seed in (3, 3, 4))
    assert first.shape == (FRAMES, 96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_clip_begins_like_a_longer_one() -> None:
    """No frame depends on those after it: a clip may be cut anywhere."""
    opening, width = speech(np.random.default_rng(2))
    look = Look(face(), "street", "drum", 5)
    assert np.array_equal(render(look, opening, width)[:9], render(look, opening[:9], width[:9]))


@pytest.mark.parametrize("width", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("beard", [False, True])
def test_a_wider_opening_darkens_more_of_the_mouth_box(width: float, beard: bool) -> None:
    openings = np.linspace(0, 1, 9)
    # Each opening is its own clip of one frame, so that neither sway nor blink differs.
    look = Look(face(beard=beard, skin=(0.9, 0.7, 0.6)))
    frames = np.concatenate([render(look, [opening], [width]) for opening in openings])
    read = read_mouth_opening(frames)
    assert np.all(np.diff(read) > 0.05)
    assert 0.5 < read[-1] < 1.3


def test_the_mouth_moves_only_pixels_of_the_head_and_mostly_those_of_its_box() -> None:
    shut, wide = (render(Look(face()), [opening], [0.0])[0].astype(float) for opening in (0.0, 1.0))
    change = np.abs(shut - wide).sum(axis=2)
    rows, columns = mouth_box(96)
    assert rows.stop - rows.start >= 18
    assert columns.stop - columns.start >= 28
    assert change[rows, columns].sum() > 0.75 * change.sum()
    assert change[: rows.start - 2].max() <= 1


def test_the_reader_follows_true_clips() -> None:
    scores = [correlation(*clip) for clip in clips(seed=10, count=32)]
    assert min(np.mean(scores), np.median(scores)) >= 0.99
    assert min(scores) >= 0.95


def test_the_reader_bears_blur_and_noise() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for truth, frames in clips(seed=11, count=24):
        blurred = gaussian_filter(frames.astype(float), (0, 1, 1, 0)) + rng.normal(0, 6, frames.shape)
        scores.append(correlation(truth, np.clip(blurred, 0, 255).round().astype(np.uint8)))
    assert min(np.mean(scores), np.median(scores)) >= 0.97
    assert min(scores) >= 0.93


def test_the_reader_can_fail() -> None:
    """Against another clip's truth it finds nothing, so the high figures come from the pixels."""
    made = clips(seed=12, count=17)
    shifted = [correlation(made[i][0], made[i + 1][1]) for i in range(16)]
    assert abs(np.mean(shifted)) < 0.3


def test_other_sizes_show_the_same_picture() -> None:
    opening, width = speech(np.random.default_rng(3))
    look = Look(face(4), "hall", "glass", 1)
    small, large = (render(look, opening[:9], width[:9], [0.2], size=size) for size in (96, 192))
    halved = large.reshape(9, 96, 2, 96, 2, 3).mean(axis=(2, 4))
    assert distance(small, halved) < 3
    assert correlation(opening[:9], large) > 0.98


@pytest.mark.parametrize("name", OBJECTS[1:])
def test_a_strike_shows_in_its_frame_and_not_before(name: str) -> None:
    still = np.zeros(FRAMES)
    look = Look(face(), "quiet room", name, 2)
    struck, at_rest = (render(look, still, still, times)[:, 72:, 67:].astype(float) for times in ([1.0], []))
    change = np.abs(struck - at_rest).mean(axis=(1, 2, 3))
    assert change[:21].max() == 0  # the mallet waits
    assert change.argmax() == 25
    assert change[25] > 3 * change[24]
    assert change[35:].max() == 0  # at rest again


def test_strikes_outside_the_clip_change_nothing() -> None:
    look, still = Look(face(), object="bell"), np.zeros(9)
    assert np.array_equal(render(look, still, still, [-1.0, 7.0]), render(look, still, still))


def test_drawn_faces_cover_every_style_and_word() -> None:
    rng = np.random.default_rng(6)
    people = [Face.draw(rng) for _ in range(200)]
    assert {p.hair_style for p in people} == set(HAIR_STYLES)
    assert {p.hair_colour for p in people} == set(HAIR_COLOURS)
    assert {p.clothes for p in people} == set(CLOTHES_COLOURS)
    assert {(p.glasses, p.beard) for p in people} == {(a, b) for a in (False, True) for b in (False, True)}
    assert len({p.skin for p in people}) == 200
    assert max(len(p.describe().split()) for p in people) <= 14


def test_descriptions_name_what_is_seen() -> None:
    person = face(hair_style="short", hair_colour="red", glasses=True, beard=False, clothes="green")
    assert person.describe() == "a person with short red hair, glasses and a green shirt"
    bald = face(hair_style="bald", glasses=False, beard=True, clothes="blue")
    assert bald.describe() == "a bald person with a beard and a blue shirt"


@pytest.mark.parametrize(
    "change",
    [
        {"glasses": True},
        {"beard": True},
        {"clothes_rgb": CLOTHES_COLOURS["blue"]},
        {"hair_rgb": HAIR_COLOURS["blond"]},
        *({"hair_style": style} for style in HAIR_STYLES if style != "short"),
    ],
)
def test_every_described_attribute_is_visible(change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {
        "glasses": False,
        "beard": False,
        "clothes_rgb": CLOTHES_COLOURS["red"],
        "hair_rgb": HAIR_COLOURS["black"],
        "hair_style": "short",
    }
    seen = np.abs(portrait(face(**plain)).astype(float) - portrait(face(**{**plain, **change}))).max(axis=2)
    assert (seen > 40).sum() >= 80  # pixels that plainly differ


def test_places_differ_and_two_of_them_move() -> None:
    still = np.zeros(25)
    views = {place: render(Look(face(), place), still, still)[:, :72, :14] for place in PLACES}
    for index, place in enumerate(PLACES):
        for other in PLACES[index + 1 :]:
            assert distance(views[place], views[other]) > 20
    for place in PLACES:
        moves = np.ptp(render(Look(face(), place), still, still)[:, :84, :10].astype(int), axis=0).max()
        assert (moves > 60) == (place in ("rain", "street"))


def test_a_portrait_is_the_first_frame_with_the_mouth_shut() -> None:
    shut = render(Look(face(), "hall"), [0.0, 1.0], [0.0, 0.0])
    assert np.array_equal(portrait(face(), "hall"), shut[0])


def test_the_person_blinks_and_sways_a_little() -> None:
    still, person = np.zeros(100), face(glasses=False, hair_style="short", skin=(0.95, 0.8, 0.7))
    clip = render(Look(person, seed=8), still, still).astype(float)
    pupils = (clip[:, 36:46, 32:64].mean(axis=3) < 70).sum(axis=(1, 2))  # dark pixels between the lids
    shut = pupils == 0
    assert np.median(pupils) >= 4
    assert 1 <= shut.sum() <= 12
    outline = np.abs(np.diff(clip[:, 60], axis=0)).max()
    assert 0 < outline < 90  # never a jump


def test_unknown_places_and_uneven_rows_are_refused() -> None:
    with pytest.raises(InputError, match="'sea' is not in the world; choose one of quiet room"):
        Look(face(), place="sea")
    with pytest.raises(InputError, match="'gong'"):
        Look(face(), object="gong")
    with pytest.raises(InputError, match="must be two equal"):
        render(Look(face()), np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="non-empty"):
        render(Look(face()), [], [])
