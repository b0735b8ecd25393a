# SPDX-License-Identifier: Apache-2.0
"""Clips: MP4 files with H.264 video and AAC sound, written whole, and any video file read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from idlora.data.media.containers import opened
from idlora.data.media.sounds import Voice, read_voice, resample
from idlora.errors import InputError, MediaError
from idlora.files import replacing

MAX_VIDEO_BYTES = 2 << 30
"""Largest decoded video, as RGB in memory, that `read_video` returns."""

PEAK_LIMIT = 10.0 ** (-3.0 / 20.0)
"""Sound is attenuated to this peak, -3 dB full scale: AAC overshoots, and what is decoded must stay below -1 dB."""

_BT709 = 1
_LIMITED_RANGE = 1
_AAC_RATES = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000})
_FALLBACK_RATE = 48_000


class Video(NamedTuple):
    """A clip: `frames` (F, H, W, 3) uint8 at `frame_rate` per second, and its sound or None."""

    frames: NDArray[np.uint8]
    frame_rate: float
    audio: Voice | None


def write_mp4(
    path: str | os.PathLike[str],
    frames: NDArray[np.uint8],
    frame_rate: float,
    audio: NDArray[np.float32] | None = None,
    sample_rate: int = 16_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a clip as MP4 in one step: H.264 (yuv420p, BT.709, crf 16) and AAC, index first.

    The sound is cut or padded with silence to the length of the video and attenuated to a peak of -3 dB where it is
    louder. Rates that AAC lacks are resampled to 48 kHz.

    Args:
        path: the file to write.
        frames: (F, H, W, 3) uint8 RGB with even height and width.
        frame_rate: frames per second, in (0, 240].
        audio: (1 or 2, samples) float32, or None for a silent film without an audio track.
        sample_rate: of the audio, Hz.
        metadata: text stored in the file under any key.

    Raises:
        InputError: an array, rate or size cannot be written.
        OutputError: the file cannot be written.
    """
    _check_frames(frames, frame_rate)
    sound = None if audio is None else _fit_sound(audio, sample_rate, frames.shape[0] / frame_rate)
    options = {"movflags": "+faststart+use_metadata_tags"}
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        container.metadata.update(metadata or {})
        video_stream = _add_video(container, frames.shape[1], frames.shape[2], frame_rate)
        audio_stream = None if sound is None else _add_audio(container, sound)
        _encode_video(container, video_stream, frames)
        if sound is not None and audio_stream is not None:
            _encode_audio(container, audio_stream, sound)


def read_video(path: str | os.PathLike[str]) -> Video:
    """Read the first video track, upright, and the first audio track if there is one.

    Raises:
        MediaError: the file is missing, damaged, has no video track, or is larger than `MAX_VIDEO_BYTES` in memory.
    """
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path} has no video track; choose a video file")
        frames = _decode_frames(container, path)
        rate = container.streams.video[0].average_rate
        has_sound = bool(container.streams.audio)
    return Video(frames, float(rate or 0), read_voice(path) if has_sound else None)


def _check_frames(frames: NDArray[np.uint8], frame_rate: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise InputError(f"frames are {frames.dtype} {frames.shape}; uint8 (F, H, W, 3) is needed")
    num_frames, height, width, _ = frames.shape
    if num_frames < 1 or height < 2 or width < 2 or height % 2 or width % 2:
        raise InputError(
            f"{num_frames} frames of {height} x {width} cannot be written; sides must be even, frames >= 1"
        )
    if not 0 < frame_rate <= 240:
        raise InputError(f"frame rate {frame_rate} is outside (0, 240]; 24 or 25 are usual")


def _fit_sound(audio: NDArray[np.float32], sample_rate: int, seconds: float) -> Voice:
    """Bring sound to a rate AAC has, to `seconds`, and below the peak limit."""
    if audio.ndim != 2 or audio.shape[0] not in (1, 2) or not np.isfinite(audio).all():
        raise InputError(f"audio of shape {audio.shape} cannot be written; finite (1 or 2, samples) is needed")
    rate = sample_rate if sample_rate in _AAC_RATES else _FALLBACK_RATE
    samples = resample(audio.astype(np.float32, copy=False), sample_rate, rate)
    num_samples = round(seconds * rate)
    samples = samples[:, :num_samples]
    samples = np.pad(samples, ((0, 0), (0, num_samples - samples.shape[1])))
    peak = float(np.abs(samples).max(initial=0.0))
    return Voice(samples * np.float32(min(1.0, PEAK_LIMIT / max(peak, 1e-9))), rate)


# Without mbtree: with AVX-512 it reads what it never wrote, and equal frames make another file now and then.
_X264 = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}


def _add_video(container: OutputContainer, height: int, width: int, frame_rate: float) -> VideoStream:
    rate = Fraction(frame_rate).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate, options=_X264)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def _add_audio(container: OutputContainer, sound: Voice) -> AudioStream:
    layout = "mono" if sound.samples.shape[0] == 1 else "stereo"
    return container.add_stream("aac", rate=sound.sample_rate, layout=layout, bit_rate=128_000)


def _encode_video(container: OutputContainer, stream: VideoStream, frames: NDArray[np.uint8]) -> None:
    scaler = VideoReformatter()  # one for all frames: setting one up costs more than the work
    for index, pixels in enumerate(frames):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = scaler.reformat(rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = index, stream.codec_context.time_base
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode_audio(container: OutputContainer, stream: AudioStream, sound: Voice) -> None:
    layout = "mono" if sound.samples.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = sound.sample_rate, 0, Fraction(1, sound.sample_rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _decode_frames(container: InputContainer, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    frames: list[NDArray[np.uint8]] = []
    num_bytes, scaler = 0, VideoReformatter()
    for frame in container.decode(video=0):
        pixels = _upright(frame, scaler)
        num_bytes += pixels.nbytes
        if num_bytes > MAX_VIDEO_BYTES or (frames and pixels.shape != frames[0].shape):
            raise MediaError(f"{Path(path).name} is too large or changes its size; cut it shorter or scale it down")
        frames.append(pixels)
    if not frames:
        raise MediaError(f"{path} holds no video frames; choose another file")
    return np.stack(frames)


def _upright(frame: av.VideoFrame, scaler: VideoReformatter) -> NDArray[np.uint8]:
    """Return RGB pixels with the rotation that phones store beside the picture applied."""
    pixels = scaler.reformat(frame, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))
