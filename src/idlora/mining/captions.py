# SPDX-License-Identifier: Apache-2.0
"""Captions in three parts: a captioner's words on what is seen where there is one, and else measured facts alone.

A sentence of the template is there because a number says so; what was not measured is not said.
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idlora.data.media.timeline import frames_between
from idlora.data.prompt import Prompt
from idlora.errors import SettingsError, WeightsError
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import CaptionRules
from idlora.mining.tables import Row

COLUMNS = {
    "clip": "text", "file": "text", "visual": "text", "speech": "text", "sounds": "text", "captioner": "text",
}  # fmt: skip
TEMPLATE = "template of measured facts"

_LOW, _HIGH = 130.0, 190.0  # Hz, below and above which a voice is called low and high
_SLOW, _FAST = 1.6, 3.2  # words a second of speech
_QUIET, _LOUD = -34.0, -18.0  # LUFS
_FLAT, _LIVELY = 0.06, 0.2  # octaves
_CLEAR, _NOISY = 25.0, 14.0  # dB
_DRY, _ECHOING = 0.35, 0.7  # seconds
_MOSTLY = 0.5  # share of the noise's power from which on it is called low or high
_HELD = 0.05  # share of a clip in which a tone stands still, from which on it is told
_REFUSALS = range(400, 500)  # of HTTP: this picture will never be described, unless
_NOT_THE_PICTURE = (401, 402, 403, 404, 407, 408, 429)  # key, account, address, time or number of calls
_LARGE, _SMALLER = 0.5, 0.3  # of the picture's height
_WAIT = 60  # seconds for an answer
_QUESTION = (
    "Describe in one or two plain sentences what is visible in this picture of a person who is speaking: the person, "
    "clothes, place and framing. Say nothing about names, voice, sound or words."
)


def captions_of(item: Item) -> Outcome:
    """The caption of every clip of a file.

    Raises:
        MediaError: a picture is wanted, and the file cannot be decoded.
        SettingsError, WeightsError: the captioner cannot be used.
    """
    rules = CaptionRules(**item["rules"])
    rows: list[Row] = []
    for clip in item["clips"]:
        seen, who = _seen(item, clip, rules)
        rows.append(
            {"clip": clip["clip"], "visual": seen, "speech": clip["text"], "sounds": heard(clip), "captioner": who}
        )
    return {"rows": rows}


def prompt_of(row: Row) -> Prompt:
    """The three parts of a row."""
    return Prompt(row["visual"], row["speech"], row["sounds"])


def _seen(item: Item, clip: Row, rules: CaptionRules) -> tuple[str, str]:
    if not rules.captioner:
        return seen(clip), TEMPLATE
    middle = (clip["start"] + clip["end"]) / 2
    picture = next(frames_between(item["path"], 25.0, middle, middle + 0.02, 768), None)
    if picture is None:
        return seen(clip), TEMPLATE
    try:
        text = _by_service(picture, rules) if "://" in rules.captioner else _by_network(picture, rules.captioner)
    except _RefusedError:
        return seen(clip), TEMPLATE
    return (_one_part(text), rules.model or rules.captioner) if text.strip() else (seen(clip), TEMPLATE)


def seen(clip: Row) -> str:
    """What is known of the picture: one person, how large, and where in it; which way, if the finder can tell that."""
    size = "in close-up" if clip["height"] >= _LARGE else "from the waist up" if clip["height"] < _SMALLER else ""
    centre = clip["left"] + clip["width"] / 2
    side = "on the left of the picture" if centre < 0.4 else "on the right of the picture" if centre > 0.6 else ""
    turned = "facing the camera" if clip["turned"] < 0.35 else "half turned away"
    if clip["turned"] == 0:  # what finders say that cannot tell; by one that measures, nobody is so straight
        turned = ""
    return ", ".join(part for part in (f"one person {size}".strip(), side, turned, "speaking") if part)


def heard(clip: Row) -> str:
    """What is known of the voice and of what is around it; each phrase by a number, none without one."""
    voice = [
        _of_three(clip["hertz"], (_LOW, _HIGH), ("low-pitched", "", "high-pitched")) if clip["hertz"] > 0 else "",
        _of_three(clip["loudness"], (_QUIET, _LOUD), ("quiet", "", "loud")),
        _of_three(clip["spread"], (_FLAT, _LIVELY), ("even", "", "lively")) if clip["hertz"] > 0 else "",
    ]
    said = " ".join(part for part in voice if part)
    parts = [f"a {said} voice" if said else "a voice"]
    parts.append(_of_three(clip["rate"], (_SLOW, _FAST), ("speaking slowly", "", "speaking fast")))
    parts.append(_of_three(clip["snr"], (_NOISY, _CLEAR), (f"{_kind(clip)} around", "", "no background noise")))
    parts.append("a held tone at times" if (clip.get("music") or 0.0) >= _HELD else "")
    if clip["rt60"] is not None:
        parts.append(_of_three(clip["rt60"], (_DRY, _ECHOING), ("a dry room", "", "an echoing room")))
    return ", ".join(part for part in parts if part)


def _kind(clip: Row) -> str:
    """Noise by where its power lies; just noise where that is not known or it lies everywhere."""
    low, high = clip.get("low"), clip.get("high")
    if low is not None and low >= _MOSTLY:
        return "low-frequency noise"
    return "high-frequency noise" if high is not None and high >= _MOSTLY else "noise"


def _of_three(value: float, limits: tuple[float, float], words: Sequence[str]) -> str:
    """A word for low, middle or high."""
    return words[0] if value < limits[0] else words[2] if value > limits[1] else words[1]


def _one_part(text: str) -> str:
    """A captioner's answer without line breaks, quotes around it and tags of prompts."""
    plain = " ".join(text.replace("[", "(").replace("]", ")").split()).strip('" ')
    return plain[:600]


@cache
def _network(folder: str) -> Any:
    from transformers import pipeline

    try:
        return pipeline("image-text-to-text", model=folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder} is no captioner ({' '.join(str(error).split())[:200]})") from error


def _by_network(picture: NDArray[np.uint8], folder: str) -> str:
    """A model of transformers that reads pictures and answers in words."""
    content = [{"type": "image", "image": Image.fromarray(picture)}, {"type": "text", "text": _QUESTION}]
    answer = _network(folder)(text=[{"role": "user", "content": content}], max_new_tokens=80, return_full_text=False)
    return str(answer[0]["generated_text"])


def _by_service(picture: NDArray[np.uint8], rules: CaptionRules) -> str:
    """A service that speaks OpenAI's protocol of chat; its key is read from the environment and written nowhere."""
    if not rules.captioner.startswith(("https://", "http://")) or not rules.model:
        raise SettingsError(f"a captioner at {rules.captioner!r} needs an http(s) address and --captioner-model")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=90)
    image = {"url": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
    content = [{"type": "text", "text": _QUESTION}, {"type": "image_url", "image_url": image}]
    asked = {"model": rules.model, "max_tokens": 120, "messages": [{"role": "user", "content": content}]}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(rules.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{rules.captioner.rstrip('/')}/chat/completions"
    request = urllib.request.Request(address, json.dumps(asked).encode(), headers)  # noqa: S310 - http(s), see above
    try:
        with urllib.request.urlopen(request, timeout=_WAIT) as answer:  # noqa: S310 - likewise
            return str(json.load(answer)["choices"][0]["message"]["content"])
    except (OSError, ValueError, LookupError, TypeError, urllib.error.URLError) as error:
        code = error.code if isinstance(error, urllib.error.HTTPError) else 0
        if code in _REFUSALS and code not in _NOT_THE_PICTURE:
            raise _RefusedError(f"{rules.captioner} describes no such picture: {error}") from error
        raise _UnansweredError(
            f"{rules.captioner} gave no caption: {error}; see that it is reached and run again"
        ) from error


class _UnansweredError(SettingsError):
    """A service that does not answer ends the stage: with the next run it goes on."""


class _RefusedError(SettingsError):
    """A service that will not describe one picture: others may go on."""
