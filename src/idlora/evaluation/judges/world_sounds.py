# SPDX-License-Identifier: Apache-2.0
"""Whether a clip of the miniature's world sounds as its prompt says: place, style and object told by ear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from idlora.data.prompt import Prompt
from idlora.data.world.captions import HEARD_OBJECT, HEARD_PLACE, HEARD_STYLE
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError
from idlora.evaluation.classifier import sound_features
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.learnt import facts, learnt_classifier, weights_hash
from idlora.evaluation.judges.sounds import Sound
from idlora.evaluation.store import Values

ASPECTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "place": HEARD_PLACE,
    "style": HEARD_STYLE,
    "object": HEARD_OBJECT,
}
_LEAST_SECONDS = 0.4  # of which the place is told rightly in nine of ten true clips; of 0.12 s, in seven
_FRAME, _FLOOR, _RISE_DB, _LEAST_RISEN = 0.02, 10, 2.0, 0.1  # seconds, percent, dB, seconds


def heard_aspects(sound: Sound) -> dict[str, str]:
    """The likeliest place, style and object of a sound (N,) at 16 kHz."""
    features = sound_features(sound)[None]
    return {aspect: learnt_classifier(aspect).predict(features)[0] for aspect in ASPECTS}


def risen_seconds(sound: Sound) -> float:
    """Seconds of a sound (N,) at 16 kHz that rise 2 dB out of its floor, the level that 10 % of its 20 ms stay below.

    Noise, a hum and a constant have none, a click 0.02, whoever whispers in the rain 0.16 or more. WebRTC's detector of
    speech is no judge of that: it takes all rain for speech, and one whisper in the rain of twenty for none.
    """
    length = round(_FRAME * SAMPLE_RATE)
    frames = sound[: len(sound) // length * length].reshape(-1, length).astype(np.float64)
    levels = 10 * np.log10(np.maximum(np.mean(np.square(frames), axis=1), 1e-12))
    return float((levels > np.percentile(levels, _FLOOR) + _RISE_DB).sum()) * _FRAME


def _aspects_of(footage: Footage) -> dict[str, str]:
    """As `heard_aspects`; raises InputError if there is too little to tell them by."""
    seconds = len(footage.audible) / SAMPLE_RATE
    if seconds < _LEAST_SECONDS:
        raise InputError(f"{seconds:.2f} s do not tell a place, a style or an object; at least {_LEAST_SECONDS} s do")
    return heard_aspects(footage.audible)


def asked_aspects(prompt: Prompt | None) -> dict[str, str]:
    """What the [SOUNDS] of a prompt ask for, in the captions' own phrases; aspects without a known phrase are left out.

    Raises:
        InputError: it asks for nothing that is known.
    """
    text = "" if prompt is None else prompt.sounds.lower()
    found = {aspect: _label(text, phrases) for aspect, phrases in ASPECTS.items()}
    asked = {aspect: label for aspect, label in found.items() if label is not None}
    if set(asked) <= {"object"}:
        raise InputError("the prompt's [SOUNDS] name no place or style of the miniature's world; see its captions")
    return asked


def _label(text: str, phrases: Mapping[str, tuple[str, ...]]) -> str | None:
    """The label with the longest phrase in the text; that of the empty phrase if no other is there."""
    known = [(len(phrase), label) for label, options in phrases.items() for phrase in options if phrase in text]
    return max(known)[1] if known else None


class WorldSoundsJudge:
    """Linear classifiers of place, style and object, trained on sounds of the world, true ones and coded ones.

    Limits: for the sounds of the procedural world alone; how often they are right about unseen speakers stands in their
    record, and bounds what can be read from a rate. A style is judged where something rises out of the noise, be it
    speech, traffic or a struck object: who asks whether anybody speaks asks the judges of words.
    """

    @property
    def record(self) -> JudgeRecord:
        """With the accuracy on true and on coded clips of unseen speakers."""
        shown = "; ".join(f"{name} {value:.2f}" for name, value in facts()["accuracy"].items())
        return JudgeRecord("sounds of the world", "1", f"accuracy on unseen speakers: {shown}", weights_hash())

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        """For each aspect what is heard, and whether it is `right`; `place_copied`: the reference's, not the prompt's.

        `place_copied` is there where the reference's place differs from the one asked for. What cannot be judged is
        left out, and `style_unjudged` (nobody speaks in the clip) or `place_copied_unjudged` (the reference) says why.

        Raises:
            InputError: the clip is silent or shorter than 0.4 s, or the prompt asks for nothing that is known.
        """
        asked, heard = asked_aspects(prompt), _aspects_of(clip)
        found: Values = {}
        risen = risen_seconds(clip.audible)
        if risen < _LEAST_RISEN:
            del heard["style"]
            found["style_unjudged"] = (
                f"nobody speaks in it: {risen:.2f} s rise out of its noise, {_LEAST_RISEN} s of speech have a style"
            )
        found |= {f"{aspect}_heard": label for aspect, label in heard.items()}
        found |= {f"{aspect}_right": int(heard[aspect] == label) for aspect, label in asked.items() if aspect in heard}
        if reference.voice is not None and "place" in asked:
            found |= _copied(reference.voice, asked["place"], heard["place"])
        return found


def _copied(voice: Footage, asked: str, heard: str) -> Values:
    """Whether the place that is heard is the reference's, where that is another than was asked for."""
    try:
        place = _aspects_of(voice)["place"]
    except InputError as error:
        return {"place_copied_unjudged": str(error)}
    found: Values = {"reference_place_heard": place}
    return found if place == asked else {**found, "place_copied": int(heard == place)}
