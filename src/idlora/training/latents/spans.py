# SPDX-License-Identifier: Apache-2.0
"""The span of a video that is a training clip: its frames at the model's rate and size, and the sound beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idlora.core.positions import SAMPLING_RATE
from idlora.data.media import Video, fit_image, resample
from idlora.errors import MediaError
from idlora.pipeline.inputs import in_stereo
from idlora.pipeline.settings import Settings

SAME_RATE = 1e-3  # of a rate: 24.98 frames a second are 25
SILENCE = 1e-3  # peak of a sound that counts as none, -60 dB


def clip_frames(video: Video, start: float, settings: Settings) -> NDArray[np.uint8]:
    """The frames (F, height, width, 3) from `start` seconds on, scaled to cover the size and cut to it at the centre.

    A file of another frame rate gives for each frame the one nearest in time.

    Raises:
        MediaError: the file does not state its frame rate, or ends too early.
    """
    chosen = video.frames[_indices(video, start, settings)]
    height, width = settings.height, settings.width
    if chosen.shape[1:3] == (height, width):
        return chosen
    return np.stack([np.asarray(fit_image(Image.fromarray(frame), height, width)) for frame in chosen])


def clip_picture(video: Video, start: float, settings: Settings) -> NDArray[np.uint8]:
    """The frame (H, W, 3) at `start` seconds in the file's own size: the first of the clip.

    Raises:
        MediaError: the file does not state its frame rate, or ends too early.
    """
    index = _indices(video, start, replace(settings, num_frames=1))[0] if start else 0
    picture: NDArray[np.uint8] = video.frames[index]
    return picture


def _indices(video: Video, start: float, settings: Settings) -> NDArray[np.int64]:
    """Numbers (F,) of the frames."""
    rate, there = video.frame_rate, len(video.frames)
    if not rate > 0:
        raise MediaError("the video does not state its frame rate; export it anew")
    numbers = np.arange(settings.num_frames)
    if abs(rate - settings.frame_rate) <= SAME_RATE * settings.frame_rate:
        places = np.round(start * rate) + numbers
    else:
        places = (start + numbers / settings.frame_rate) * rate
    if places[-1] >= there:
        raise MediaError(
            f"the video has {max(0.0, there / rate - start):.2f} s from {start:g} s on; {settings.num_frames} frames "
            f"at {settings.frame_rate:g} a second need {settings.seconds:.2f} s"
        )
    nearest: NDArray[np.int64] = np.minimum(np.floor(places + 0.5), there - 1).astype(np.int64)
    return nearest


def clip_sound(video: Video, start: float, settings: Settings) -> NDArray[np.float32]:
    """The sound (2, N) at 16 kHz that is heard with the clip, cut or padded with silence to its duration.

    Raises:
        MediaError: there is none, or it is silent.
    """
    if video.audio is None:
        raise MediaError("the video has no sound; a clip of somebody speaking is needed")
    samples = resample(video.audio.samples, video.audio.sample_rate, SAMPLING_RATE)
    first, length = round(start * SAMPLING_RATE), round(settings.seconds * SAMPLING_RATE)
    span = samples[:, first : first + length]
    if float(np.abs(span).max(initial=0.0)) < SILENCE:
        raise MediaError(f"the video is silent from {start:g} to {start + settings.seconds:g} s; choose another span")
    return in_stereo(np.pad(span, ((0, 0), (0, length - span.shape[1]))))
