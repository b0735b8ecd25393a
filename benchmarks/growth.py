# SPDX-License-Identifier: Apache-2.0
"""How a guided step grows with the clip: time, memory and operations against frames and against size.

`python benchmarks/growth.py --json --plot docs/growth.png`. The exact step of `step.py` (five passes) through
a network of few narrow blocks at the token counts of the published sizes: seconds of one thread of the CPU, and the
most bytes that tensors took beyond the weights. `products` are the matrix products of the whole published transformer
for the same clip, foretold (`networks/work.py`). An exponent is the slope of the logarithms: of neighbours, and by
least squares over all.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import REFERENCE, SIGMA, TEXT, Size, Where, cycles, network, start, text

from idlora.files import replacing
from idlora.networks.executor import Executor, Sharing
from idlora.networks.footprint import Footprint
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel
from idlora.networks.published import all_sizes
from idlora.networks.work import Tokens, step_work

FRAMES = (25, 49, 97, 121, 241, 361, 481)  # at 512 x 512
SIDES = (256, 384, 512, 768, 1024)  # of a square, 121 frames
CELL, RATE = 32, 25


def clip_size(frames: int, side: int, layers: int) -> Size:
    """The latents of a clip in a narrow network."""
    grid = ((frames - 1) // 8 + 1, side // CELL, side // CELL)
    return Size(layers=layers, grid=grid, audio=round(frames / RATE * 25))


def measured(generation: str, frames: int, side: int, layers: int) -> dict[str, float]:
    """One clip: the least seconds of two steps, as the first one warms up."""
    size, where = clip_size(frames, side, layers), Where("cpu", torch.float32, Sharing())
    net, state = network(generation, size, where), start(size, "cpu")
    texts = text(5, generation, size, where), text(7, generation, size, where)
    plan = cycles(generation, min(GENERATIONS[generation].stg_block, layers - 1))["exact"][0]
    executor = Executor(JointModel(net), *texts)
    seconds = min(where.timed(lambda: executor(state, SIGMA, plan))[0] for _ in range(2))
    with Footprint([net]) as footprint:
        Executor(JointModel(net), *texts)(state, SIGMA, plan)
    config = all_sizes(generation)["transformer"].full_config()
    block = replace(plan[0], perturbed_blocks=())
    full = [each if not each.perturbed_blocks else replace(each, perturbed_blocks=(28,)) for each in plan]
    tokens = Tokens(math.prod(size.grid), size.audio, REFERENCE, TEXT)
    return {
        "frames": frames,
        "side": side,
        "tokens": tokens.video,
        "seconds": seconds,
        "peak_bytes": float(footprint.peak),
        "products": step_work(config, tokens, full).flops,
        "products_of_one_pass": step_work(config, tokens, [block]).flops,
    }


def exponents(rows: Sequence[dict[str, float]], of: str, by: str) -> dict[str, Any]:
    """Slopes of logarithms: between neighbours, and of the straight line through all."""
    x, y = (np.log([row[name] for row in rows]) for name in (by, of))
    return {
        "neighbours": [round(float(each), 3) for each in np.diff(y) / np.diff(x)],
        "all": float(np.polyfit(x, y, 1)[0]),
    }


def drawn(told: dict[str, Any], path: Path) -> None:
    """Three panels, each against the number of video tokens."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "x"}):
        figure = Figure(figsize=(9, 3), layout="constrained")
        names = {"seconds": "seconds a step", "peak_bytes": "peak bytes", "products": "products, published size"}
        for axis, (name, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
            for key, colour, words in (("by_frames", "#3b6fb6", "frames"), ("by_side", "#d1603d", "size")):
                rows = told[key]["rows"]
                axis.loglog(
                    [row["tokens"] for row in rows], [row[name] for row in rows], "o-", ms=3, color=colour, label=words
                )
            axis.set_xlabel("video tokens")
            axis.set_title(label, fontsize=8)
        axis.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.no_grad():
        by_frames = [measured(given.generation, each, 512, given.layers) for each in given.frames]
        by_side = [measured(given.generation, 121, each, given.layers) for each in given.sides]
    told: dict[str, Any] = {}
    for key, rows, name in (("by_frames", by_frames, "frames"), ("by_side", by_side, "side")):
        slopes = {of: exponents(rows, of, name) for of in ("seconds", "peak_bytes", "products")}
        told[key] = {"rows": rows, "exponents": slopes}
    told |= {
        "generation": given.generation,
        "layers": given.layers,
        "device": f"cpu, one thread, {platform.machine()}",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if given.plot:
        drawn(told, given.plot)
    if given.json:
        print(json.dumps(told, indent=1))
        return
    for key, of in (("by_frames", "frames"), ("by_side", "side")):
        for row in told[key]["rows"]:
            print(
                f"{of} {row[of]:.0f}: {row['tokens']:.0f} tokens, {row['seconds']:.2f} s, "
                f"{row['peak_bytes'] / 1e6:.0f} MB, {row['products'] / 1e15:.2f} PFLOP at the published size"
            )
        print({name: round(each["all"], 2) for name, each in told[key]["exponents"].items()})


if __name__ == "__main__":
    main()
