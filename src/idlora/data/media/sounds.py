# SPDX-License-Identifier: Apache-2.0
"""Sound: the audio track of any sound or video file as float32, resampling, and WAV files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from idlora.data.media.containers import opened
from idlora.errors import InputError, MediaError
from idlora.files import write_bytes

MAX_SECONDS = 600.0
"""Of a longer file the first ten minutes are read: more than enough to find a voice, and bounded in memory."""

# Containers that store the length of a stream; others, MP3 among them, only estimate it from the bit rate.
_EXACT_CONTAINERS = frozenset({"flac", "mov", "aiff", "w64"})
_MAX_PADDING = 2048
_OPEN_ENDED = frozenset({0, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFDB})


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording: `samples` (channels, n) float32, nominally in [-1, 1], at `sample_rate` Hz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return float(self.samples.shape[-1] / self.sample_rate)


def read_voice(path: str | os.PathLike[str]) -> Voice:
    """Read the first audio track of a sound or video file, mono or stereo, at the rate it was recorded.

    More than two channels are folded to stereo with FFmpeg's matrix for their layout (ITU-R BS.775: centre and
    surrounds at -3 dB, no LFE); where the file does not say which channel is which, both get the
    mean. At most `MAX_SECONDS` are read.

    Raises:
        MediaError: the file is missing, damaged or cut short, has no audio track, or its track is empty.
    """
    with opened(path) as container:
        _refuse_cut_wave(path)
        samples, rate = _read_track(container, path)
    if samples.shape[1] == 0:
        raise MediaError(f"{path} holds no sound: its audio track is 0 s long; choose another recording")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path} holds samples that are not numbers; export the sound anew")
    return Voice(samples, rate)


def resample(samples: NDArray[np.float32], source_rate: int, target_rate: int) -> NDArray[np.float32]:
    """Resample (channels, n) float32 from `source_rate` to `target_rate` Hz (soxr, very high quality).

    Raises:
        InputError: a rate is not positive.
    """
    if source_rate < 1 or target_rate < 1:
        raise InputError(f"cannot resample from {source_rate} to {target_rate} Hz; rates start at 1 Hz")
    if source_rate == target_rate:
        return samples
    resampled = soxr.resample(samples.T, source_rate, target_rate, quality="VHQ")
    return np.ascontiguousarray(resampled.T, dtype=np.float32)


def write_wav(path: str | os.PathLike[str], samples: NDArray[np.float32], sample_rate: int) -> None:
    """Write (channels, n) float32 as a 16-bit WAV file in one step; values beyond [-1, 1] are clipped.

    Raises:
        OutputError: the file cannot be written.
    """
    # By way of memory, since libsndfile answers a full disk with an assertion.
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples.T, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def _read_track(container: InputContainer, path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    if not container.streams.audio:
        raise MediaError(f"{path} has no audio track; choose a sound file or a video with sound")
    stream = container.streams.audio[0]
    rate = stream.rate
    if not rate:
        raise MediaError(f"{path} does not state its sample rate; export the sound anew")
    limit = int(MAX_SECONDS * rate)
    chunks = [np.zeros((min(stream.layout.nb_channels, 2), 0), np.float32)]
    total = 0
    for chunk in _folded_chunks(container, stream):
        chunks.append(chunk)
        total += chunk.shape[1]
        if total >= limit:
            break
    end = min(limit, _end_of_sound(path, total, stream, exact=_states_its_length(container)))
    return np.concatenate(chunks, axis=1)[:, :end], rate


def _end_of_sound(path: str | os.PathLike[str], total: int, stream: AudioStream, exact: bool) -> int:
    """Return how many of the `total` decoded samples are meant, by the length that the file states."""
    if not exact or stream.duration is None or stream.time_base is None:
        return total
    declared = round(stream.duration * stream.time_base * stream.rate)
    # Encoder delay and padding are a few frames of 1,024 samples; a cut file lacks far more.
    if total < min(0.95 * declared, MAX_SECONDS * stream.rate) - 0.1 * stream.rate:
        raise MediaError(f"{path} is cut short: {total:,} of {declared:,} samples are there; copy it anew")
    return declared if declared <= total < declared + _MAX_PADDING else total


def _folded_chunks(container: InputContainer, stream: AudioStream) -> Iterator[NDArray[np.float32]]:
    """Yield (1 or 2, n) float32 pieces; the channel count is that of the stream throughout."""
    channels = stream.layout.nb_channels
    # FFmpeg names a layout that the file leaves open "6 channels" and refuses to fold it.
    unknown = channels > 2 and stream.layout.name.endswith("channels")
    layout = "stereo" if channels > 2 and not unknown else stream.layout.name
    # Packed samples, because PyAV reads beyond its eight plane pointers when a planar frame has as many channels.
    resampler = av.AudioResampler(format="flt", layout=layout, rate=stream.rate)
    for frame in chain(container.decode(stream), [None]):
        for piece in resampler.resample(frame):
            samples = _unpacked(piece)
            yield _averaged(samples) if unknown else samples


def _unpacked(frame: av.AudioFrame) -> NDArray[np.float32]:
    return frame.to_ndarray().astype(np.float32, copy=False).reshape(-1, frame.layout.nb_channels).T


def _averaged(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)


def _states_its_length(container: InputContainer) -> bool:
    return bool(_EXACT_CONTAINERS.intersection(container.format.name.split(",")))


def _refuse_cut_wave(path: str | os.PathLike[str]) -> None:
    """Compare a WAV file's data size with the bytes that are there: FFmpeg and libsndfile take what they get."""
    with open(path, "rb") as stream:
        if stream.read(4) != b"RIFF" or stream.seek(8) != 8 or stream.read(4) != b"WAVE":
            return
        while len(header := stream.read(8)) == 8:
            size = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                break
            stream.seek(size + size % 2, os.SEEK_CUR)
        else:
            return
        present = os.fstat(stream.fileno()).st_size - stream.tell()
    # Programs that write to a pipe cannot know the size and leave 0 or the largest number.
    if size not in _OPEN_ENDED and present < size:
        raise MediaError(f"{path} is cut short: {present:,} of {size:,} bytes of sound are there; copy it anew")
