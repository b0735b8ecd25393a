# SPDX-License-Identifier: Apache-2.0
"""The voice of every clip as a vector, and the same voice in other rooms and noises."""

from __future__ import annotations

import zlib
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idlora.data.media import Voice, clean_voice
from idlora.data.media.timeline import read_mono
from idlora.errors import InputError, SettingsError
from idlora.evaluation.judges import JudgeRecord
from idlora.evaluation.judges.voices import SpeakerEncoder, SpeakerSimilarity
from idlora.mining.degrading import Sound, degraded
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import SpeakerRules
from idlora.mining.tables import Row, dropped

RATE = 16_000
COLUMNS = {"clip": "text", "file": "text", "vector": "numbers", "copies": "numbers"}
WORLD = "speaker-world"
NO_VOICE = "no voice to tell"


class Encoder(NamedTuple):
    """What makes vectors of voices, and who it is."""

    encoder: SpeakerEncoder
    record: JudgeRecord


@cache
def encoder_of(name: str, weights: str) -> Encoder:
    """The network of a judge of voices, by the judge's name; `speaker-world` is that of the miniature's world.

    Raises:
        SettingsError: there is no such judge, it makes no vectors of voices, or it lacks its weights or a package.
    """
    if name == WORLD:
        from idlora.evaluation.judges.world_voices import WorldVoices

        known = WorldVoices()
        return Encoder(known, known.record)
    from idlora.evaluation.laboratory.panel import Panel

    judge = Panel.of([name], {name: weights} if weights else {}).judges[name]
    if not isinstance(judge, SpeakerSimilarity):
        raise SettingsError(f"{name!r} makes no vectors of voices; say `speaker` or one of its kin")
    return Encoder(judge.encoder, judge.record)


def voices_of(item: Item) -> Outcome:
    """The vector of every clip of a file, and those of its degraded copies, on end.

    Raises:
        MediaError: the sound cannot be decoded.
        SettingsError: the encoder or the denoiser is not installed.
    """
    rules = SpeakerRules(**item["rules"])
    encoder, _ = encoder_of(rules.encoder, rules.weights)
    rows: list[Row] = []
    gone: list[Row] = []
    for clip in item["clips"]:
        span = (clip["start"], clip["end"])
        sound = read_mono(item["path"], RATE, *span)
        try:
            vectors = embedded(sound, encoder, rules, clip["clip"])
        except InputError as error:
            gone.append(dropped(clip["clip"], item["file"], NO_VOICE, str(error), span))
            continue
        first, *copies = ([float(value) for value in vector] for vector in vectors)
        rows.append({"clip": clip["clip"], "vector": first, "copies": [value for copy in copies for value in copy]})
    return {"rows": rows, "dropped": gone}


def embedded(sound: Sound, encoder: SpeakerEncoder, rules: SpeakerRules, name: str) -> NDArray[np.float32]:
    """Vectors (1 + copies, D) of a sound (N,) at 16 kHz; the copies are drawn by the clip's name."""
    rng = np.random.default_rng([rules.seed, zlib.crc32(name.encode())])
    heard = [sound, *(degraded(sound, rng) for _ in range(rules.copies))]
    if rules.clean:
        heard = [clean_voice(Voice(each[None], RATE)).samples[0] for each in heard]
    return np.stack([encoder.embed(each, RATE) for each in heard]).astype(np.float32)
