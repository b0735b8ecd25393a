# SPDX-License-Identifier: Apache-2.0
"""Where somebody speaks: silero-vad on the sound of a file."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.timeline import read_mono
from idlora.errors import SettingsError
from idlora.evaluation.judges.sounds import refuse_silence
from idlora.mining.mapping import Item, Outcome

RATE = 16_000
COLUMNS = {"file": "text", "start": "number", "end": "number"}
_LEVEL = 0.1  # root mean square to which sounds are brought first: the detector wants speech that is not faint
_LOUDEST = 20.0  # times
_PAUSE, _SHORTEST = 100, 200  # milliseconds


def speech_of(item: Item) -> Outcome:
    """The stretches of speech in a stretch of a file: rows `start` and `end` in seconds.

    Raises:
        InputError: the sound cannot be decoded, or is silent.
        SettingsError: silero-vad is not installed.
    """
    sound = read_mono(item["path"], RATE, item["start"], item["end"])
    refuse_silence(sound)
    rows = [{"start": item["start"] + start, "end": item["start"] + end} for start, end in spoken_spans(sound)]
    return {"rows": rows}


def spoken_spans(sound: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Start and end in seconds of every stretch of speech in a sound (N,) at 16 kHz."""
    from silero_vad import get_speech_timestamps_sequence

    loud = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) + 1e-9
    heard = np.clip(sound * min(_LOUDEST, _LEVEL / loud), -1, 1).astype(np.float32)
    found = get_speech_timestamps_sequence(
        heard, _detector(), min_silence_duration_ms=_PAUSE, min_speech_duration_ms=_SHORTEST, speech_pad_ms=0
    )
    return [(span["start"] / RATE, min(span["end"], len(sound)) / RATE) for span in found]


@cache
def _detector() -> Any:
    try:
        from silero_vad import load_silero_vad

        return load_silero_vad(sequence=True)
    except ImportError as error:
        raise SettingsError("finding speech needs silero-vad: pip install 'idlora[mining]'") from error
