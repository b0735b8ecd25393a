# SPDX-License-Identifier: Apache-2.0
"""Whether a clip of the miniature's world sounds as its prompt says: place, style and object told by ear."""

from __future__ import annotations

from collections.abc import Mapping

from idlora.data.prompt import Prompt
from idlora.data.world.captions import HEARD_OBJECT, HEARD_PLACE, HEARD_STYLE
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


def heard_aspects(sound: Sound) -> dict[str, str]:
    """The likeliest place, style and object of a sound (N,) at 16 kHz."""
    features = sound_features(sound)[None]
    return {aspect: learnt_classifier(aspect).predict(features)[0] for aspect in ASPECTS}


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
    record, and bounds what can be read from a rate.
    """

    @property
    def record(self) -> JudgeRecord:
        """With the accuracy on true and on coded clips of unseen speakers."""
        shown = "; ".join(f"{name} {value:.2f}" for name, value in facts()["accuracy"].items())
        return JudgeRecord("sounds of the world", "1", f"accuracy on unseen speakers: {shown}", weights_hash())

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        """For each aspect what is heard, and whether it is `right`; `place_copied`: the reference's, not the prompt's.

        `place_copied` is there where the reference's place differs from the one asked for.
        """
        asked, heard = asked_aspects(prompt), heard_aspects(clip.audible)
        found: Values = {f"{aspect}_heard": label for aspect, label in heard.items()}
        found |= {f"{aspect}_right": int(heard[aspect] == label) for aspect, label in asked.items()}
        if reference.voice is not None and "place" in asked:
            place = heard_aspects(reference.voice.audible)["place"]
            found["reference_place_heard"] = place
            if place != asked["place"]:
                found["place_copied"] = int(heard["place"] == place)
        return found
