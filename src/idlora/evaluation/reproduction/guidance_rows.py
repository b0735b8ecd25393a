# SPDX-License-Identifier: Apache-2.0
"""The claims on where identity guidance acts: on one stream or both, at which levels of noise."""

from __future__ import annotations

from collections.abc import Iterator

from idlora.evaluation.reproduction.arms import BOTH_STREAMS, CLEAN_ONLY, NOISY_ONLY, Arm, of_scale
from idlora.evaluation.reproduction.claims import VOICE, WORDS, Row, against
from idlora.evaluation.reproduction.findings import Claim
from idlora.evaluation.reproduction.scores import score

_TO_TRUTH = "similarity (Resemblyzer) to the true clip of the speaker in the place asked for"
_WER = "WER (pocketsphinx), quiet room and hall"
_ASIDE = "not in the paper"


def guidance_rows() -> Iterator[Row]:
    """All of them."""
    yield from _streams()
    yield from _between(NOISY_ONLY, "above sigma 0.5")
    yield from _between(CLEAN_ONLY, "below sigma 0.5")


def _streams() -> Iterator[Row]:
    alone, both, paper = of_scale(3.0), BOTH_STREAMS, "audio alone"
    told = "Identity guidance 3 on the audio alone is better than on both streams"
    lips = Claim(f"{told}: lips (above 0)", paper)
    yield against(alone, both, score("lips-world", "correlation"), lips, "correlation of lips and speech")
    yield against(alone, both, VOICE, Claim(f"{told}: the voice (above 0)", paper), _TO_TRUTH)
    yield against(alone, both, WORDS, Claim(f"{told}: words (below 0)", paper, "below"), _WER)


def _between(arm: Arm, where: str) -> Iterator[Row]:
    always, told = of_scale(3.0), f"Identity guidance 3 {where} alone"
    kept = Claim(f"{told} keeps the voice: lost at most 0.02 (above -0.02)", _ASIDE, bound=-0.02)
    yield against(arm, always, VOICE, kept, _TO_TRUTH)
    yield against(arm, always, WORDS, Claim(f"{told} saves words (below 0)", _ASIDE, "below"), _WER)
