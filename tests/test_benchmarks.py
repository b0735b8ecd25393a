# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run: what they measure is not tested here, only that they come to their end and say it as JSON."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "rehearsal.py"
TINY = "--scale tiny --device cpu --height 128 --width 128 --frames 9 --steps 1".split()


def test_the_rehearsal_tells_what_a_preset_costs() -> None:
    command = [sys.executable, str(SCRIPT), "2.3", "--preset", "two-stage", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["seconds"].keys() == {"text", "connect", "prepare", "denoise", "upscale", "refine", "decode"}
    assert told["weights_bytes"].keys() >= {"transformer", "text_encoder", "latent_upsampler"}
    assert (told["scale"], told["size"]) == ("tiny", [9, 128, 128])
