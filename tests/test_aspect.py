# SPDX-License-Identifier: Apache-2.0
"""The first picture's shape as the clip's: the nearest sides on the grid, said in the notes, and stable."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from idlora.errors import InputError, SettingsError
from idlora.pipeline import Refinement, Request
from idlora.pipeline.inputs import nearest_size, read_inputs, sized_by_picture
from tiny_pipeline import PROMPT, SETTINGS, pipeline, settings

TALL = np.zeros((160, 90, 3), np.uint8)


@given(st.floats(0.2, 5), st.integers(256, 2048), st.sampled_from([24, 32, 64]))
def test_sides_lie_on_the_grid_next_to_the_shape_and_stay_there(shape: float, side: int, step: int) -> None:
    height, width = nearest_size(shape, side * side, step)
    assert height % step == width % step == 0
    assert min(height, width) >= 2 * step
    exact = side * shape**0.5, side / shape**0.5
    for found, wanted in zip((height, width), exact, strict=True):
        assert abs(found - wanted) <= step / 2 + 1e-6 or found == 2 * step > wanted
    assert nearest_size(height / width, height * width, step) == (height, width)


@pytest.mark.parametrize(
    ("picture", "area", "expected"),
    [
        ((1920, 1080), (512, 512), (672, 384)),
        ((1080, 1920), (512, 512), (384, 672)),
        ((1000, 1000), (480, 640), (544, 544)),
        ((100, 4000), (512, 512), (96, 3232)),
    ],
)
def test_known_sizes(picture: tuple[int, int], area: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest_size(picture[0] / picture[1], area[0] * area[1], 32) == expected


def test_a_clip_in_the_pictures_shape_says_its_size() -> None:
    asked = settings(aspect="picture", height=96, width=96)
    result = pipeline()(PROMPT, image=TALL, settings=asked)
    assert result.video.shape[1:3] == (128, 64)
    assert (result.settings.height, result.settings.width) == (128, 64)
    assert "the clip is 64 x 128 pixels, by the first picture's shape" in result.notes
    again = pipeline()(PROMPT, image=TALL, settings=result.settings)
    assert np.array_equal(again.video, result.video)
    given_size = pipeline()(PROMPT, image=TALL, settings=replace(asked, aspect="size", height=128, width=64))
    assert np.array_equal(given_size.video, result.video)


def test_two_stages_take_steps_of_two_cells() -> None:
    pipe = pipeline()
    asked = settings(aspect="picture", height=128, width=128, refine=Refinement((0.9, 0.0), distilled=0.0))
    if "latent_upsampler" not in pipe.components.names:
        with pytest.raises(SettingsError, match="upscaler"):
            pipe(PROMPT, image=TALL, settings=asked)
    assert sized_by_picture(Request(PROMPT, asked, TALL), 64).settings.height == 192


def test_without_a_first_picture_there_is_no_shape() -> None:
    with pytest.raises(InputError, match="needs a picture"):
        pipeline()(PROMPT, settings=settings(aspect="picture"))


def test_pictures_of_other_shapes_in_one_batch_are_refused() -> None:
    asked = settings(aspect="picture", height=96, width=96)
    with pytest.raises(SettingsError, match="batch"):
        pipeline().generate_batch([Request(PROMPT, asked, TALL), Request(PROMPT, asked, TALL.transpose(1, 0, 2))])


def test_the_sidecar_of_a_job_is_recognised() -> None:
    asked = Request(PROMPT, settings(aspect="picture", height=96, width=96), TALL)
    pipe = pipeline()
    sidecar = pipe.generate_batch([asked])[0].sidecar()
    assert {key: sidecar[key] for key in pipe.record(asked)} == pipe.record(asked)


@pytest.mark.parametrize(
    ("size", "told"),
    [((96, 64), ()), ((98, 64), ()), ((64, 96), ("56%", "top and bottom")), ((300, 64), ("68%", "left and right"))],
)
def test_what_is_cut_off_is_said(size: tuple[int, int], told: tuple[str, ...]) -> None:
    notes = [note for note in read_inputs(Request(PROMPT, SETTINGS, Image.new("RGB", size))).notes if "cut off" in note]
    assert len(notes) == bool(told)
    assert all(part in notes[0] for part in told)
