# SPDX-License-Identifier: Apache-2.0
"""Raw recordings to an adapter: `python benchmarks/pairs_chain.py`, pairs -> precompute -> train -> voices compared.

Recordings of the procedural world are mined (as `pairs_truth.py` does, whose folder is used if it is there), the pairs
of training speakers are encoded, an identity adapter is trained on the miniature's base, and clips are made for the
hard test pairs, of speakers that neither has seen: by the base, which knows nothing to do with a reference and gets
none, and by the adapter. The similarity is that of the clip's voice to the true clip; the difference is paired, its
interval by bootstrap over speakers. Every step goes on where it stopped. JSON is printed.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pairs_truth import corpus_name

from idlora.data.manifest import Pair, read_manifest
from idlora.data.media import read_video, write_png
from idlora.evaluation.judges import mono
from idlora.evaluation.judges.voices import SpeakerJudge
from idlora.evaluation.judges.world_voices import WorldVoices
from idlora.pipeline import IDLoraPipeline

COMMAND = [sys.executable, "-c", "import sys; from idlora.cli import main; sys.exit(main())"]


def run(*words: object) -> None:
    """A command of idlora, its words on stderr."""
    subprocess.run([*COMMAND, *map(str, words)], check=True, stdout=sys.stderr)  # noqa: S603 - our own


def mined(work: Path, speakers: int, first: int) -> Path:
    """The folder of mined pairs."""
    script = Path(__file__).with_name("pairs_truth.py")
    people = ["--speakers", str(speakers), "--first", str(first)]
    command = [sys.executable, str(script), "--json", "--work", str(work), *people]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - our own
    return work / f"mined-{corpus_name(speakers, 3, 2, first)}-speaker-world"


def trained(folder: Path, steps: int) -> Path:
    """An adapter trained on the training pairs of a folder."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    own = folder / "chain-train.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines if line["split"] == "train"))
    latents, out = folder / "chain-latents", folder / f"chain-run-{steps}"
    run("precompute", own, latents, "--store", "float16")
    given = {"steps": steps, "engine.batch": 8, "optimization.ema": 0.99, "watching.validate_every": 0}
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    run("train", "--preset", "miniature", "--set", f"data.train=[{latents}]", "--out", out, *options)
    return out / "adapter.safetensors"


def in_turn(pairs: list[Pair], most: int) -> list[Pair]:
    """So many pairs, a first one of every speaker, then a second one."""
    seen: Counter[str] = Counter()
    turns = []
    for pair in pairs:
        turns.append(seen[pair.speaker])
        seen[pair.speaker] += 1
    order = sorted(range(len(pairs)), key=lambda place: (turns[place], place))
    return [pairs[place] for place in order[:most]]


def compared(folder: Path, adapter: Path, most: int) -> dict[str, Any]:
    """Similarity of clips by base and adapter to the true clips of unseen speakers."""
    chosen = in_turn(read_manifest(folder / "test-hard.jsonl")[0], most)
    judges = {"speaker-world": WorldVoices(), "resemblyzer": SpeakerJudge()}
    pipes = {
        "base": IDLoraPipeline.from_pretrained("miniature", adapter_strength=0.0),
        "adapter": IDLoraPipeline.from_pretrained("miniature", adapter=adapter),
    }
    scores: dict[str, dict[str, list[float]]] = {name: {judge: [] for judge in judges} for name in pipes}
    for number, pair in enumerate(chosen):
        true = read_video(pair.video)
        assert true.audio is not None
        picture = folder / "chain-first.png"
        write_png(picture, true.frames[0])
        for name, pipe in pipes.items():
            voice = pair.reference if name == "adapter" else None
            made = pipe(pair.caption, image=picture, voice=voice, seed=number)
            for judge, each in judges.items():
                heard = each.embed(mono(made.audio), made.sample_rate)
                said = each.embed(mono(true.audio.samples), true.audio.sample_rate)
                scores[name][judge].append(float(heard @ said))
        print(f"{number + 1} of {len(chosen)}", file=sys.stderr, flush=True)
    speakers = [pair.speaker for pair in chosen]
    return {
        "clips": len(chosen),
        "speakers": len(set(speakers)),
        **{judge: _difference(scores, judge, speakers) for judge in judges},
    }


def _difference(scores: dict[str, dict[str, list[float]]], judge: str, speakers: list[str]) -> dict[str, Any]:
    base, adapter = (np.array(scores[name][judge]) for name in ("base", "adapter"))
    gain, names, rng = adapter - base, sorted(set(speakers)), np.random.default_rng(0)
    of = {name: gain[[who == name for who in speakers]] for name in names}
    drawn = [np.concatenate([of[name] for name in rng.choice(names, len(names))]).mean() for _ in range(2000)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    told = {"base": base.mean(), "adapter": adapter.mean(), "gain": gain.mean(), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first speaker")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/pairs-truth"))
    arguments = parser.parse_args()
    folder = mined(arguments.work, arguments.speakers, arguments.first)
    adapter = trained(folder, arguments.steps)
    print(json.dumps({"steps": arguments.steps, **compared(folder, adapter, arguments.clips)}, indent=1))


if __name__ == "__main__":
    main()
