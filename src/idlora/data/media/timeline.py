# SPDX-License-Identifier: Apache-2.0
"""Long recordings by their own clock: what a file holds, its frames at any constant rate, and its sound as mono.

Frames are taken by the times that the file gives them, not by their number, so a phone's variable rate keeps step with
its sound; rotation that is stored beside the picture is applied.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from idlora.data.media.containers import opened
from idlora.errors import MediaError

_IRREGULAR = 0.25  # of the median step; what differs by more is a variable rate
_CUT_SHORT = 0.95  # of the stated length that must be there
_SLACK = 0.2  # seconds of it that may always be missing
_SEEK_MARGIN = 0.5  # seconds before a span where decoding begins at the latest
# Seconds further back, where a file without an index (MPEG-TS, MPEG-PS) has led past what was looked for.
_BACK = (0.0, 2.0, 8.0, 32.0)
_SETTLED = 2.0  # seconds after seeking from which on times are sure in MPEG-PS, which has one for many small pictures
_NEAR = 1e-3  # seconds by which a first frame may be late


@dataclass(frozen=True)
class Probe:
    """What a video file holds.

    Attributes:
        container, video_codec, audio_codec: as FFmpeg names them; no audio codec where there is no audio track.
        width, height: pixels, upright.
        rotation: degrees by which the stored picture is turned.
        frame_rate: frames a second on average.
        variable: whether the steps between frames differ by more than a quarter.
        seconds: from the first frame to the end of the last.
        sample_rate, channels: of the sound; 0 without one.
    """

    container: str
    video_codec: str
    audio_codec: str
    width: int
    height: int
    rotation: int
    frame_rate: float
    variable: bool
    seconds: float
    sample_rate: int
    channels: int


def probe(path: str | os.PathLike[str]) -> Probe:
    """Look into a video file without decoding more than its first frame.

    Raises:
        MediaError: it is missing, no video, damaged, or shorter than it says.
    """
    with opened(path) as container:
        stream = _video_of(container, path)
        sound = container.streams.audio[0] if container.streams.audio else None
        times = _packet_times(container, stream, path)
        rotation = _rotation(path)
        turned = rotation % 180 == 90
        steps = np.diff(times)
        step = float(np.median(steps)) if len(steps) else 1 / float(stream.average_rate or 25)
        seconds = float(times[-1] - times[0] + step)
        return Probe(
            container=container.format.name.split(",")[0],
            video_codec=stream.codec_context.name,
            audio_codec=sound.codec_context.name if sound is not None else "",
            width=stream.height if turned else stream.width,
            height=stream.width if turned else stream.height,
            rotation=rotation,
            frame_rate=round(len(times) / seconds, 4),
            variable=bool(len(steps) and np.abs(steps - step).max() > _IRREGULAR * step),
            seconds=round(seconds, 4),
            sample_rate=(sound.rate or 0) if sound is not None else 0,
            channels=sound.layout.nb_channels if sound is not None else 0,
        )


def _video_of(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    if not container.streams.video:
        raise MediaError(f"{path} has no video track; choose a video file")
    return container.streams.video[0]


def _packet_times(container: InputContainer, stream: VideoStream, path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Seconds (F,) at which frames are shown, in order."""
    stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size]
    if not stamps or stream.time_base is None:
        raise MediaError(f"{path} holds no video frames; choose another file")
    times = np.sort(np.asarray(stamps, np.float64)) * float(stream.time_base)
    declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
    there = float(times[-1] - times[0])
    if there < _CUT_SHORT * declared - _SLACK:
        raise MediaError(f"{path} is cut short: {there:.1f} of {declared:.1f} s are there; copy it anew")
    return times


def _rotation(path: str | os.PathLike[str]) -> int:
    with opened(path) as container:
        for frame in container.decode(video=0):
            return round(frame.rotation / 90) * 90 % 360
    raise MediaError(f"{path} holds no video frames; choose another file")


def frames_between(
    path: str | os.PathLike[str], rate: float, start: float = 0.0, end: float = math.inf, max_side: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """Yield upright RGB frames (H, W, 3) at `rate` a second from `start` up to `end` seconds, each the nearest in time.

    Time runs from the beginning of the sound, where there is one, else of the pictures. The last frame stands until
    the end that its own step gives it.

    Args:
        path: a video file.
        rate: frames a second.
        start: seconds.
        end: seconds.
        max_side: longest side in pixels; larger frames are scaled down. 0 = as they are.

    Raises:
        MediaError: the file is damaged or has no video track.
    """
    for seek in _seeks(start if start > _SEEK_MARGIN else 0.0):
        with opened(path) as container:
            stream = _video_of(container, path)
            origin = _origin(container)
            shown = _shown(container, origin, max_side)
            first = _first(container, shown, seek, origin)
            if seek is not None and (first is None or first[0] > _latest(container, start)):
                continue
            begun = chain(() if first is None else (first,), shown)
            yield from _paced(begun, rate, start, end, 1 / float(stream.average_rate or rate))
            return


def _seeks(start: float) -> Iterator[float | None]:
    """Seconds to seek to, one after the other, until a span from `start` on is met; None = the beginning, unsought.

    A container with an index leads to the key frame before. Without one it leads to about the time that was asked for,
    and the decoder drops what it cannot use until the next key frame, which may be after it.
    """
    yield from (start - back for back in _BACK if start > back)
    yield None


def _latest(container: InputContainer, start: float) -> float:
    """Seconds up to which decoding has to begin after seeking for what is from `start` on."""
    return start - _SETTLED if container.format.name == "mpeg" else start + _NEAR


def _first(
    container: InputContainer, shown: Iterator[tuple[float, NDArray[np.uint8]]], seek: float | None, origin: float
) -> tuple[float, NDArray[np.uint8]] | None:
    """The first frame after seeking, if any; one that cannot be decoded is none."""
    if seek is None:
        return next(shown, None)
    try:
        container.seek(round((seek + origin) * av.time_base), backward=True)
        return next(shown, None)
    except av.FFmpegError:
        return None


def _origin(container: InputContainer) -> float:
    """Seconds on the file's clock at which its sound, else its video, begins."""
    stream = container.streams.audio[0] if container.streams.audio else container.streams.video[0]
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def _shown(container: InputContainer, origin: float, max_side: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Time in seconds and pixels of each frame in order; those without a time are passed over."""
    scaler = VideoReformatter()  # one for all frames: each new one sets itself up for as long as it then works
    for frame in container.decode(video=0):
        if frame.pts is None:
            continue
        scale = min(1.0, max_side / max(frame.width, frame.height)) if max_side else 1.0
        size = {"width": max(2, round(frame.width * scale)), "height": max(2, round(frame.height * scale))}
        pixels = scaler.reformat(frame, format="rgb24", threads=1, **size).to_ndarray()
        yield frame.time - origin, np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))


def _paced(
    shown: Iterator[tuple[float, NDArray[np.uint8]]], rate: float, start: float, end: float, step: float
) -> Iterator[NDArray[np.uint8]]:
    number, before = 0, None
    for time, pixels in shown:
        if before is not None:
            half = (before[0] + time) / 2
            while start + number / rate < min(half, end):
                yield before[1]
                number += 1
            step = time - before[0]
        before = (time, pixels)
        if time > end + step:
            return
    if before is not None:
        while start + number / rate < min(before[0] + step - 1e-6, end):
            yield before[1]
            number += 1


def read_mono(
    path: str | os.PathLike[str], rate: int = 16_000, start: float = 0.0, end: float = math.inf
) -> NDArray[np.float32]:
    """The sound (N,) of a file at `rate` Hz from `start` up to `end` seconds, the mean of its channels.

    Raises:
        MediaError: the file is damaged, or has no audio track or an empty one.
    """
    for seek in _seeks(max(0.0, start - _SEEK_MARGIN)):
        with opened(path) as container:
            if not container.streams.audio:
                raise MediaError(f"{path} has no audio track; choose a video with sound")
            stream = container.streams.audio[0]
            origin = _origin(container)
            sound = _sound(container, stream, seek, origin)
            first = next(sound, None)
            if seek is not None and (first is None or _time(first) - origin > _latest(container, start)):
                continue
            if first is None:
                break
            if seek is not None and container.format.name == "mpeg":
                # Where samples are is told by the first frame alone: by one that has a time of its own.
                sure = _time(first) + _SETTLED / 2
                first = next((frame for frame in sound if _time(frame) >= sure), first)
            begins = _time(first) - origin
            return _span(_mixed(chain((first,), sound), rate, end + origin), begins, rate, start, end)
    raise MediaError(f"{path} holds no sound: its audio track is 0 s long; choose another recording")


def _time(frame: AudioFrame) -> float:
    return frame.time or 0.0


def _sound(container: InputContainer, stream: AudioStream, seek: float | None, origin: float) -> Iterator[AudioFrame]:
    """Frames of sound; after seeking without what comes before the first of a known time: parts of cut packets."""
    begun = seek is None
    try:
        if seek is not None:
            container.seek(round((seek + origin) * av.time_base), backward=True)
    except av.FFmpegError:
        return
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            if begun:
                raise
            continue
        for frame in frames:
            begun = begun or frame.time is not None
            if begun:
                yield frame


def _mixed(frames: Iterator[AudioFrame], rate: int, end: float) -> NDArray[np.float32]:
    """Frames as one sound (N,) at `rate` Hz, the mean of their channels, until a second after `end`."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    chunks: list[NDArray[np.float32]] = []
    for frame in frames:
        chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        if _time(frame) > end + 1.0:
            break
    chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def _span(samples: NDArray[np.float32], begins: float, rate: int, start: float, end: float) -> NDArray[np.float32]:
    """Of samples that begin at `begins` seconds those from `start` to `end`; silence before the beginning."""
    first = round((start - begins) * rate)
    if first < 0:
        samples, first = np.pad(samples, (-first, 0)), 0
    last = len(samples) if math.isinf(end) else first + round((end - start) * rate)
    return np.ascontiguousarray(samples[first:last], np.float32)
