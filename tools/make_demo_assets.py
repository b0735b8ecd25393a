# SPDX-License-Identifier: Apache-2.0
"""Make the portrait and the voice of `idlora demo`: a face and a speaker that training never sees.

Run once by a maintainer: `python tools/make_demo_assets.py`. Writes demo_portrait.png and demo_voice.flac into
src/idlora/data/world/assets, which ships with the package.
"""

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from idlora.data.world.look import Face, portrait
from idlora.data.world.speakers import speaker
from idlora.data.world.voice import SAMPLE_RATE
from idlora.training.miniature.latents import reference_sound, reference_spec

ASSETS = Path(__file__).parents[1] / "src/idlora/data/world/assets"
SPEAKER = 3  # of the test split
FACE_SEED = 2
SECONDS = 4.2
AVOID = ("river", "garden", "coffee")  # the words of the demo's prompt


def main() -> None:
    """Render both."""
    face = Face.draw(np.random.default_rng([7, FACE_SEED]))
    Image.fromarray(portrait(face, "quiet room", 384)).save(ASSETS / "demo_portrait.png", optimize=True)
    voice = speaker("test", SPEAKER)
    seed = next(seed for seed in range(100) if reference_spec(voice, 6, seed, AVOID).place == "quiet room")
    samples = reference_sound(voice, SECONDS, seed, AVOID)
    soundfile.write(ASSETS / "demo_voice.flac", samples, SAMPLE_RATE, subtype="PCM_16")
    print(face.describe(), voice)


if __name__ == "__main__":
    main()
