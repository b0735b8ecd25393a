# SPDX-License-Identifier: Apache-2.0
"""Cuts: where one shot ends and another begins, by PySceneDetect on frames of the file's own clock."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.timeline import frames_between
from idlora.errors import SettingsError
from idlora.mining.mapping import Item, Outcome

RATE = 25.0
"""Frames a second that are compared."""

_SIDE = 256  # pixels; a cut is seen in a small picture
_SHORTEST = 8  # frames of a shot
_RATIO, _LEAST = 3.0, 8.0  # of a frame's change to its neighbours', and of it alone: see `AdaptiveDetector`
_PLAIN = 24.0  # change that is a cut whatever surrounds it, such as a flash of cuts

COLUMNS = {"file": "text", "start": "number", "end": "number"}


def scenes_of(item: Item) -> Outcome:
    """The shots of a stretch of a file: rows `start` and `end` in seconds.

    Raises:
        MediaError: it cannot be decoded.
        SettingsError: PySceneDetect is not installed.
    """
    start, end = item["start"], item["end"]
    frames = frames_between(item["path"], RATE, start, end, _SIDE)
    cuts, count = cuts_of(frames, RATE)
    edges = [0, *cuts, count]
    return {"rows": [{"start": start + a / RATE, "end": start + b / RATE} for a, b in pairwise(edges) if b > a]}


def cuts_of(frames: Iterable[NDArray[np.uint8]], rate: float) -> tuple[list[int], int]:
    """Numbers of the frames with which a new shot begins, and how many frames there are.

    Two detectors of PySceneDetect: one compares a frame's change with that of its neighbours, so that moving cameras
    are no cuts; the other takes any great change.
    """
    from_content, code = _detectors()
    cuts: set[int] = set()
    count = 0
    for number, pixels in enumerate(frames):
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        for detector in from_content:
            cuts.update(cut.frame_num for cut in detector.process_frame(code(number, rate), bgr))
        count = number + 1
    for detector in from_content:
        cuts.update(cut.frame_num for cut in detector.post_process(code(count, rate)))
    return sorted(cut for cut in cuts if 0 < cut < count), count


def _detectors() -> tuple[list[Any], Any]:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
    except ImportError as error:
        raise SettingsError("finding cuts needs PySceneDetect: pip install 'idlora[mining]'") from error
    adaptive = AdaptiveDetector(adaptive_threshold=_RATIO, min_content_val=_LEAST, min_scene_len=_SHORTEST)
    return [adaptive, ContentDetector(threshold=_PLAIN, min_scene_len=_SHORTEST)], FrameTimecode
