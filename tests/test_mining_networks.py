# SPDX-License-Identifier: Apache-2.0
"""Words and captions of mined clips by networks of a folder, as `--whisper` and `--captioner` name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_networks
from idlora.data.media import write_mp4
from idlora.errors import WeightsError
from idlora.evaluation.judges.words import spoken_words
from idlora.mining import captions
from idlora.mining.settings import CaptionRules
from idlora.mining.words import WORDLESS, words_of
from signals import gradient_frames, tone
from test_mining_pairs import FACTS

RATE = 16_000


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of sound and two of silence."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    sound = np.concatenate([tone(3.0, rate=RATE), np.zeros((1, 2 * RATE), np.float32)], axis=1)
    write_mp4(path, gradient_frames(125), 25.0, sound, RATE)
    return path


def test_words_are_heard_by_a_whisper_of_a_folder(video: Path, tmp_path: Path) -> None:
    tiny_networks.write_whisper(tmp_path, constant=True)
    around = {"reference_start": 0.0, "reference_end": 3.0, "spoken": 2.0}
    clips = [
        {"clip": "loud", "start": 0.5, "end": 2.5, **around},
        {"clip": "silent", "start": 3.5, "end": 4.5, **around},
    ]
    rules = {"whisper": str(tmp_path), "vocabulary": ()}
    found = words_of({"path": str(video), "file": "a", "clips": clips, "rules": rules})
    (row,) = found["rows"]
    (word,) = spoken_words(row["text"])
    assert set(word) == {tiny_networks.SAID_BY_WHISPER}
    assert (row["clip"], row["text"], row["rate"]) == ("loud", row["reference_text"], 0.5)
    assert row["listener"].startswith("Whisper, ")
    assert [(gone["item"], gone["reason"]) for gone in found["dropped"]] == [("silent", WORDLESS)]


def test_pictures_are_described_by_a_captioner_of_a_folder(video: Path, tmp_path: Path) -> None:
    tiny_networks.write_captioner(tmp_path)
    item: dict[str, Any] = {"rules": vars(CaptionRules(str(tmp_path))), "clips": [FACTS], "path": str(video)}
    row = captions.captions_of(item)["rows"][0]
    assert set(row["visual"].split()) == {tiny_networks.SAID_BY_CAPTIONER}
    assert row["captioner"] == str(tmp_path)
    assert (row["speech"], row["sounds"]) == ("river garden", captions.heard(FACTS))


def test_a_folder_that_is_no_captioner_is_told(video: Path, tmp_path: Path) -> None:
    item = {"rules": vars(CaptionRules(str(tmp_path))), "clips": [FACTS], "path": str(video)}
    with pytest.raises(WeightsError, match="is no captioner"):
        captions.captions_of(item)
