# SPDX-License-Identifier: Apache-2.0
"""Who speaks in training, who steers it and who is kept for tests: disjoint sets of speakers and clips, by seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from idlora.data.world.clip import ClipSpec, draw_clip
from idlora.data.world.voice import BASE_VOICES, HELD_OUT_VOICE, Voice

Split = Literal["train", "validation", "test", "held-out voice"]
NUM_SPEAKERS: dict[Split, int] = {"train": 400, "validation": 40, "test": 40, "held-out voice": 40}
# A split's first seed; far apart, so that no speaker or clip belongs to two of them.
_SEEDS: dict[Split, int] = {"train": 1_000_003, "validation": 4_000_037, "test": 2_000_003, "held-out voice": 3_000_017}


def speaker(split: Split, index: int) -> Voice:
    """Voice number `index` of a split, 0 <= index < NUM_SPEAKERS[split]."""
    bases = (HELD_OUT_VOICE,) if split == "held-out voice" else BASE_VOICES
    return Voice.draw(np.random.default_rng([_SEEDS[split], index]), bases)


def clip(split: Split, index: int) -> ClipSpec:
    """Clip number `index` of a split; its speaker is `index % NUM_SPEAKERS[split]`; all but train: unseen orders."""
    voice = speaker(split, index % NUM_SPEAKERS[split])
    return draw_clip(np.random.default_rng([_SEEDS[split], 7, index]), voice, held_out=split != "train")
