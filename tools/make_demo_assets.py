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
from idlora.training.miniature.latents import reference_sound

ASSETS = Path(__file__).parents[1] / "src/idlora/data/world/assets"
SPEAKER = 3  # of the test split
FACE_SEED = 2
SECONDS = 4.2


def main() -> None:
    """Render both."""
    face = Face.draw(np.random.default_rng([7, FACE_SEED]))
    Image.fromarray(portrait(face, "quiet room", 384)).save(ASSETS / "demo_portrait.png", optimize=True)
    samples = reference_sound(speaker("test", SPEAKER), SECONDS, seed=4, avoid=("river", "garden", "coffee"))
    soundfile.write(ASSETS / "demo_voice.flac", samples, SAMPLE_RATE, subtype="PCM_16")
    print(face.describe(), speaker("test", SPEAKER))


if __name__ == "__main__":
    main()
