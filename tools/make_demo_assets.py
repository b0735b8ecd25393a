# SPDX-License-Identifier: Apache-2.0
"""Make the portrait and the voice of `idlora demo`: a face and a speaker that training never sees.

Run once by a maintainer: `python tools/make_demo_assets.py`. Writes demo_portrait.png and demo_voice.flac into
src/idlora/data/world/assets, which ships with the package.
"""

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from idlora.data.world.clip import draw_reference, render_sound
from idlora.data.world.look import Face, portrait
from idlora.data.world.speakers import speaker
from idlora.data.world.voice import SAMPLE_RATE

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
    drawn = (draw_reference(np.random.default_rng(seed), voice, SECONDS, AVOID) for seed in range(100))
    spec = next(spec for spec in drawn if spec.place == "quiet room")
    samples = render_sound(spec, round(SECONDS * SAMPLE_RATE)).samples
    soundfile.write(ASSETS / "demo_voice.flac", samples, SAMPLE_RATE, subtype="PCM_16")
    print(face.describe(), voice)


if __name__ == "__main__":
    main()
