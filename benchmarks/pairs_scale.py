# SPDX-License-Identifier: Apache-2.0
"""How the stages of `idlora pairs` grow: `python benchmarks/pairs_scale.py`, one JSON object a line.

Four kinds of things are measured, in time and in peak memory of their own process:

- `clips N`: the stages that read tables alone (who is who, splits, pairs, manifest, and the tables themselves) on N
  synthetic clips, four a file, three files a speaker, with vectors drawn for them. What opens files is linear in their
  length by construction, and is measured by `pairs_truth.py`.
- `grouping N`: who is who among N synthetic voices, one clip of 64 numbers each, three recordings a speaker.
- `often N`: the same of N speakers in thirty recordings each: what many neighbours cost.
- `speaker N`: the pairs of one speaker with N clips in forty recordings.
- `neighbours N`: the search for the twelve nearest of each of N vectors of 50 numbers, exact or by cells, with the
  share of the true nearest that cells find, on a sample.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZE, COUNT = 50, 12
SAMPLE = 500
WORDS = [f"word{number}" for number in range(400)]


def tables_of(count: int) -> dict[str, list[dict[str, Any]]]:
    """What the stages before would have written about so many clips."""
    rng = np.random.default_rng(count)
    files, clips, quality, vectors, words = [], [], [], [], []
    for file in range(count // 4):
        name, own = f"{file:08d}", np.random.default_rng([7, file // 3]).standard_normal(64)
        files.append({"file": name, "recording": name, "sha256": name, "label": "", "consent": "given"})
        for clip in range(4):
            key = f"{name}-{clip * 5000:08d}"
            span = {
                "start": 5.0 * clip,
                "end": 5.0 * clip + 4.8,
                "reference_start": 5.0 * clip,
                "reference_end": 5.0 * clip + 4.8,
            }
            heard = own + 0.3 * rng.standard_normal((3, 64))
            heard /= np.linalg.norm(heard, axis=1, keepdims=True)
            text = " ".join(rng.choice(WORDS, 10))
            facts = {
                "loudness": -20.0 + 3 * rng.standard_normal(),
                "contrast": 20.0,
                "rt60": 0.4,
                "hertz": 150.0,
                "spread": 0.1,
            }
            clips.append({"clip": key, "file": name, "track": f"{name}-t{clip // 2}", "speech": 4.0, **span})
            quality.append({"clip": key, "file": name, "spectrum": [0.0] * 6, **facts})
            vectors.append(
                {"clip": key, "file": name, "vector": heard[0].tolist(), "copies": heard[1:].ravel().tolist()}
            )
            words.append({"clip": key, "file": name, "text": text, "reference_text": text, "listener": "", "rate": 2.0})
    return {"files": files, "clips": clips, "quality": quality, "voices": vectors, "words": words}


def clips(count: int) -> dict[str, Any]:
    """Seconds of the stages over tables of so many clips."""
    from idlora.mining import clips as cutting
    from idlora.mining import pairing, voices
    from idlora.mining.grouping import GROUPS, grouped
    from idlora.mining.run import shared
    from idlora.mining.settings import MiningSettings
    from idlora.mining.splits import Frozen
    from idlora.mining.tables import Table, read_table, write_table

    settings, told, drawn = MiningSettings(), {}, tables_of(count)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for name, columns in (("clips", cutting.COLUMNS), ("voices", voices.COLUMNS)):
            write_table(Path(folder), Table(name, "key", drawn[name]), columns)
            read_table(Path(folder), name)
    told["tables"], began = time.time() - began, time.time()
    found = grouped(drawn["files"], drawn["clips"], drawn["voices"], settings.speakers)
    told["speakers"], began = time.time() - began, time.time()
    known = {name: Table(name, "", rows) for name, rows in drawn.items()}
    known |= {"speakers": Table("speakers", "", found.clips), "links": Table("links", "", found.links)}
    rows, _ = shared(known, Frozen({}, {}), settings)
    told["splits"], began = time.time() - began, time.time()
    by_clip = {name: {row["clip"]: row for row in drawn[name]} for name in ("quality", "words")}
    speakers = {row["clip"]: row["speaker"] for row in rows}
    candidates = pairing.candidates(
        drawn["clips"],
        by_clip["quality"],
        by_clip["words"],
        speakers,
        {row["file"]: row for row in drawn["files"]},
    )
    pairs, _ = pairing.pairs_of(candidates, settings.pairs)
    told["pairs"] = time.time() - began
    assert GROUPS
    groups = len({row["speaker"] for row in found.clips})
    return {"seconds": {name: round(value, 2) for name, value in told.items()}, "pairs": len(pairs), "groups": groups}


def grouping(count: int, recordings: int = 3) -> dict[str, Any]:
    """Seconds of finding speakers among so many voices."""
    from idlora.mining.grouping import grouped
    from idlora.mining.settings import SpeakerRules

    rng = np.random.default_rng(count)
    files, clips, vectors = [], [], []
    for number in range(count):
        name, own = f"{number:08d}", np.random.default_rng([7, number // recordings]).standard_normal(64)
        heard = own + 0.3 * rng.standard_normal((3, 64))
        files.append({"file": name, "recording": name, "label": ""})
        clips.append({"clip": name, "file": name, "track": name})
        vectors.append({"clip": name, "vector": heard[0].tolist(), "copies": heard[1:].ravel().tolist()})
    began = time.time()
    found = grouped(files, clips, vectors, SpeakerRules())
    members: dict[str, set[int]] = {}
    for row in found.clips:
        members.setdefault(row["speaker"], set()).add(int(row["clip"]) // recordings)
    return {
        "seconds": round(time.time() - began, 2),
        "groups": len(members),
        "speakers": -(-count // recordings),
        "mixed": sum(len(each) > 1 for each in members.values()),
    }


def often(count: int) -> dict[str, Any]:
    """Seconds of finding so many speakers in thirty recordings each."""
    return grouping(30 * count, 30)


def speaker(count: int) -> dict[str, Any]:
    """Seconds of pairing so many clips of one speaker."""
    from idlora.evaluation.judges.conditions import Acoustics
    from idlora.mining.pairing import Candidate, pairs_of
    from idlora.mining.settings import PairRules

    rng = np.random.default_rng(count)
    told = []
    for number in range(count):
        said, span = frozenset(rng.choice(WORDS, 6)), (5.0 * number, 5.0 * number + 4.8)
        sound = Acoustics(-20 + 5 * rng.standard_normal(), 20 + 5 * rng.standard_normal(), 0.4, rng.standard_normal(6))
        recording = f"r{number % 40}"
        told.append(Candidate(f"{number:06d}", recording, recording, "s", said, said, span, span, sound))
    began = time.time()
    rows, gone = pairs_of(told, PairRules())
    return {"seconds": round(time.time() - began, 2), "pairs": len(rows), "left": len(gone)}


def neighbours(count: int) -> dict[str, Any]:
    """Seconds of the search among so many vectors."""
    from idlora.mining.neighbours import EXACT, index_of

    rng = np.random.default_rng(count)
    centres = rng.standard_normal((max(1, count // 12), SIZE)).astype(np.float32)
    keys = (
        np.repeat(centres, 12, axis=0)[:count]
        + 0.3 * rng.standard_normal((len(centres) * 12, SIZE)).astype(np.float32)[:count]
    )
    began = time.time()
    index = index_of(keys)
    built, began = time.time() - began, time.time()
    asked = min(count, 20_000)
    index.search(keys[:asked], COUNT)
    searched = time.time() - began
    sample = keys[:: max(1, count // SAMPLE)][:SAMPLE]
    true = np.argpartition(-(sample @ keys.T), COUNT, axis=1)[:, :COUNT]
    _, found = index.search(sample, COUNT)
    recall = np.mean([len(set(a) & set(b)) / COUNT for a, b in zip(true, found, strict=True)])
    return {
        "index": "flat" if count <= EXACT else "inverted lists",
        "seconds": {"build": round(built, 2), "search_all": round(searched * count / asked, 2)},
        "recall": round(float(recall), 4),
        "vectors_mb": round(keys.nbytes / 1e6),
    }


KINDS = {"clips": clips, "grouping": grouping, "often": often, "speaker": speaker, "neighbours": neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--grouping", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--often", type=int, nargs="*", default=[100])
    parser.add_argument("--speaker", type=int, nargs="*", default=[100, 400, 2000])
    parser.add_argument("--neighbours", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, count = arguments.one[0], int(arguments.one[1])
        told = KINDS[name](count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({name: count, **told, "peak_mb": round(peak)}))
        return
    for name in KINDS:
        for count in getattr(arguments, name):
            # Each in a process of its own, so that its peak is its own.
            subprocess.run([sys.executable, __file__, "--one", name, str(count)], check=True)  # noqa: S603 - this file


if __name__ == "__main__":
    main()
