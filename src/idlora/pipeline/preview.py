# SPDX-License-Identifier: Apache-2.0
"""What a clip is becoming, shown while it is made: the sound and a small picture, every so many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.core.samplers import Step
from idlora.errors import SettingsError
from idlora.networks.codecs import vocoder_rate
from idlora.pipeline.generation import decoded, stages
from idlora.pipeline.meter import Meter
from idlora.pipeline.settings import Settings

if TYPE_CHECKING:
    from idlora.pipeline.pipeline import IDLoraPipeline

LONGEST_SIDE = 256  # pixels


class Preview(NamedTuple):
    """What a step of the sampler believes the clips of a batch to be."""

    number: int  # of steps taken
    num_steps: int
    video: NDArray[np.uint8]  # (B, F, H, W, 3), no side longer than `LONGEST_SIDE`
    frame_rate: float
    audio: NDArray[np.float32]  # (B, channels, samples)
    sample_rate: int


Show = Callable[[Preview], None]


class Previews:
    """A callback for samplers that decodes the last prediction of the clean clip and hands it to `show`.

    It costs a decoding each time, and where networks come to the device for their stage, their way there and back;
    the clip itself is not changed by it.

    Args:
        pipe: that makes the clip.
        settings: of the clip.
        every: steps from one to the next, at least 1.
        show: gets it.

    Raises:
        SettingsError: `every` is below 1.
    """

    def __init__(self, pipe: IDLoraPipeline, settings: Settings, every: int, show: Show) -> None:
        if every < 1:
            raise SettingsError(f"a preview every {every} steps; every step (1) is the most often")
        self._pipe, self._settings, self._every, self._show = pipe, settings, every, show

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        """Decode what the step before made, if it is due."""
        if step.x0 is None or step.number % self._every:
            return
        pipe, state = self._pipe, step.x0
        settings = next(
            each for each in stages(self._settings) if pipe.codecs.grid(each).num_tokens == state.video.tokens.shape[1]
        )
        with pipe.residence.stage("decode", Meter(pipe.device)):
            frames, samples = decoded(
                state.with_tokens(state.video.tokens.float(), state.audio.tokens.float()), pipe.codecs, settings
            )
        rate = vocoder_rate(pipe.codecs.vocoder)
        small = _small(frames).cpu().numpy()
        self._show(Preview(step.number, step.num_steps, small, settings.frame_rate, samples.cpu().numpy(), rate))


def _small(frames: Tensor) -> Tensor:
    """Frames (B, F, H, W, 3) uint8 with no side longer than `LONGEST_SIDE`, both even."""
    height, width = frames.shape[2:4]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    if scale == 1:
        return frames
    size = [max(2, round(side * scale / 2) * 2) for side in (height, width)]
    flat = frames.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B * F, 3, H, W)
    shrunk: Tensor = torch.nn.functional.interpolate(flat, size, mode="area").round().to(torch.uint8)
    return shrunk.permute(0, 2, 3, 1).reshape(*frames.shape[:2], *size, 3)
