# SPDX-License-Identifier: Apache-2.0
"""What `idlora pairs` finds, against the truth: `python benchmarks/pairs_truth.py --json`.

Raw recordings of the procedural world are written (two files of a speaker in one place, one in another; cuts,
listeners, dubbed lips, music, whispers, scenery, conversations), mined, and compared with what is known of them. The
pipeline is given the videos, the words of the language and which finder and encoder to use, and nothing else. Both the
recordings and what is mined are kept below --work, and a second call goes on there.

With --json nothing but JSON is printed. `pair_precision`: share of pairs of one speaker. `group_precision`: share of
the pairs of voices in one group that are of one speaker. `clip_recall`: share of the words said in shots that can be
used which lie in a clip; `clip_ends_in_pauses`: how right a clip's ends are. `pair_recall_same` and
`pair_recall_cross`: share of the pairs of files of one speaker, in one place and in two, that were found to be of
one speaker, before pairs are bounded, among the files of which clips were kept. `speaker_leakage`: speakers in
more than one split. `cuts_inside`: clips of pairs with a cut inside.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from idlora.data.world.recordings import (
    MUSIC,
    USABLE,
    WHISPER,
    Recording,
    draw_conversations,
    draw_recordings,
    write_recordings,
)
from idlora.data.world.voice import VOCABULARY
from idlora.mining.report import write_report
from idlora.mining.run import Mined, mine
from idlora.mining.settings import MiningSettings, settings_of
from idlora.mining.sources import find_sources
from idlora.mining.tables import Row
from idlora.mining.workshop import Workshop

SPOKEN_BY_THE_FACE = (*USABLE, MUSIC, WHISPER)
CURVE = 25


@dataclass(frozen=True)
class Truth:
    """What is so, by the name of the file."""

    shots: dict[str, list[dict[str, Any]]]
    places: dict[str, str]

    def shot(self, file: str, second: float) -> dict[str, Any]:
        """The shot of a second of a file."""
        return next((each for each in self.shots[file] if each["start"] <= second < each["end"]), self.shots[file][-1])

    def speaker(self, file: str, row: Row) -> str:
        """Who speaks in the middle of a stretch."""
        return str(self.shot(file, (row["start"] + row["end"]) / 2)["speaker"])


def truth_of(recordings: list[Recording]) -> Truth:
    told = {each["file"]: each for each in (recording.truth() for recording in recordings)}
    return Truth(
        {name: each["shots"] for name, each in told.items()}, {name: each["place"] for name, each in told.items()}
    )


def settings(arguments: argparse.Namespace) -> MiningSettings:
    return settings_of(
        {
            "faces": {"finder": arguments.finder},
            "clips": {"num_frames": 57},
            "speakers": {"encoder": arguments.encoder, "clean": arguments.clean},
            "words": {"vocabulary": VOCABULARY},
            "splits": {"validation": 0.1, "test": 0.1},
        }
    )


def links(mined: Mined, truth: Truth, names: dict[str, str]) -> dict[str, Any]:
    """Pairs of files of one speaker that were found, and the curve over thresholds of the neighbours' scores."""
    clips = {row["clip"]: row for row in mined.tables["clips"].rows}
    groups: dict[tuple[str, str], Counter[str]] = {}
    who: dict[str, tuple[str, str]] = {}
    for row in mined.tables["speakers"].rows:
        file = names[row["file"]]
        key = (file, truth.speaker(file, clips[row["clip"]]))
        who[row["voice"]] = key
        groups.setdefault(key, Counter())[row["speaker"]] += 1
    found: dict[bool, list[bool]] = {True: [], False: []}
    pairs: dict[bool, set[frozenset[tuple[str, str]]]] = {True: set(), False: set()}
    main = {key: counted.most_common(1)[0][0] for key, counted in groups.items()}
    joined = [one[1] == other[1] for one, other in combinations(groups, 2) if main[one] == main[other]]
    for first, second in combinations(groups, 2):
        if first[1] == second[1] and first[0] != second[0]:
            same = truth.places[first[0]] == truth.places[second[0]]
            found[same].append(main[first] == main[second])
            pairs[same].add(frozenset((first, second)))
    rows = [row for row in mined.tables["links"].rows if row["mutual"]]
    scores = np.array([-np.log10(row["strangers"]) for row in rows])
    ends = [frozenset((who[row["first"]], who[row["second"]])) for row in rows]
    curve = []
    for threshold in np.quantile(scores, np.linspace(0.2, 1, CURVE)) if rows else ():
        taken = {end for end, score in zip(ends, scores, strict=True) if score >= threshold and len(end) == 2}
        right = sum(len({who for _, who in end}) == 1 for end in taken)
        shares = {
            name: len(taken & pairs[same]) / max(1, len(pairs[same]))
            for name, same in (("same", True), ("cross", False))
        }
        curve.append(
            {
                "score": round(float(threshold), 2),
                "precision": round(right / max(1, len(taken)), 4),
                **{f"recall_{name}": round(share, 4) for name, share in shares.items()},
            }
        )
    asked = {len(pairs[True]) + len(pairs[False])}
    return {
        "pair_recall_same": float(np.mean(found[True])),
        "pair_recall_cross": float(np.mean(found[False])),
        "group_precision": float(np.mean(joined)) if joined else 0.0,
        "file_pairs": {"same": len(found[True]), "cross": len(found[False])},
        "links": sum(asked),
        "threshold": {key: float(f"{rows[0][key]:.3g}") for key in ("linked", "doubtful", "foretold")} if rows else {},
        "curve": curve,
    }


def pairs(mined: Mined, truth: Truth, names: dict[str, str]) -> dict[str, Any]:
    """Precision of the manifest's pairs, speakers in several splits, cuts inside clips."""
    clips = {row["clip"]: row for row in mined.tables["clips"].rows}
    right, cuts, splits = [], 0, dict[str, set[str]]()
    kinds: Counter[str] = Counter()
    for line in mined.lines:
        clip, reference = (clips[Path(line[key]).stem] for key in ("video", "reference"))
        files = [names[clip["file"]], names[reference["file"]]]
        speakers = [truth.speaker(file, row) for file, row in zip(files, (clip, reference), strict=True)]
        right.append(speakers[0] == speakers[1])
        kinds[truth.shot(files[0], (clip["start"] + clip["end"]) / 2)["kind"]] += 1
        inner = [shot["start"] for shot in truth.shots[files[0]]]
        cuts += any(clip["start"] + 0.02 < cut < clip["end"] - 0.02 for cut in inner)
        for speaker in speakers:
            splits.setdefault(speaker, set()).add(line["split"])
    hard = [good for good, line in zip(right, mined.lines, strict=True) if line["extra"]["difficulty"] == "hard"]
    return {
        "pair_precision": float(np.mean(right)) if right else 0.0,
        "speaker_leakage": sum(len(where) > 1 for where in splits.values()),
        "cuts_inside": cuts,
        "pairs": len(right),
        "hard_pairs": len(hard),
        "hard_pair_precision": float(np.mean(hard)) if hard else 0.0,
        "speakers_in_pairs": len(splits),
        "splits": dict(Counter(line["split"] for line in mined.lines)),
        "kinds_of_clips": dict(kinds),
    }


def stages(mined: Mined, truth: Truth, names: dict[str, str]) -> dict[str, Any]:
    """How right the stages before are: who speaks, where clips begin and end, what is let through."""
    said = [(names[row["file"]], row) for row in mined.tables["active"].rows]
    seen = [truth.shot(file, (row["start"] + row["end"]) / 2)["kind"] for file, row in said]
    spans: dict[str, list[tuple[float, float]]] = {}
    for file, row in said:
        spans.setdefault(file, []).append((row["start"], row["end"]))
    wanted = [
        (file, word)
        for file in set(names.values())
        for shot in truth.shots[file]
        if shot["kind"] in SPOKEN_BY_THE_FACE
        for word in shot["words"]
    ]
    heard = [
        any(low - 0.1 <= (word[1] + word[2]) / 2 <= high + 0.1 for low, high in spans.get(file, ()))
        for file, word in wanted
    ]
    cuts: dict[str, list[tuple[float, float]]] = {}
    for row in mined.tables["clips"].rows:
        cuts.setdefault(names[row["file"]], []).append((row["start"], row["end"]))
    inside = [
        any(low <= (word[1] + word[2]) / 2 <= high for low, high in cuts.get(file, ()))
        for file, word in wanted
        if truth.shot(file, (word[1] + word[2]) / 2)["kind"] in USABLE
    ]
    good = {row["clip"] for row in mined.tables["quality"].rows}
    cut, kinds = [], Counter[str]()
    for row in mined.tables["clips"].rows:
        file = names[row["file"]]
        words = [word for shot in truth.shots[file] for word in shot["words"]]
        cut += [
            all(not word[1] + 0.03 < edge < word[2] - 0.03 for word in words) for edge in (row["start"], row["end"])
        ]
        if row["clip"] in good:
            kinds[truth.shot(file, (row["start"] + row["end"]) / 2)["kind"]] += 1
    return {
        "active_precision": float(np.mean([kind in SPOKEN_BY_THE_FACE for kind in seen])),
        "active_recall": float(np.mean(heard)),
        "clip_ends_in_pauses": float(np.mean(cut)),
        "clip_recall": float(np.mean(inside)),
        "kinds_after_quality": dict(kinds),
        "dropped": {
            name: dict(Counter(row["reason"] for row in table.dropped))
            for name, table in mined.tables.items()
            if table.dropped
        },
    }


def corpus_name(speakers: int, files: int, talks: int, first: int) -> str:
    """Of the folders of a corpus."""
    return f"{speakers}-{files}-{talks}" + (f"-from-{first}" if first else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first speaker: others are other people")
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--talks", type=int, default=2, help="usable shots of a file, of two sentences each")
    parser.add_argument("--conversations", type=int, default=5)
    parser.add_argument("--encoder", default="speaker-world", help="of voices: speaker-world, or speaker (Resemblyzer)")
    parser.add_argument("--finder", default="world", help="of faces: world, mesh or cascade")
    parser.add_argument("--clean", action="store_true", help="embed denoised sound")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/pairs-truth"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began = time.time()
    recordings = draw_recordings(arguments.speakers, arguments.files, arguments.talks, arguments.first)
    recordings += draw_conversations(arguments.speakers, arguments.conversations, arguments.first)
    name = corpus_name(arguments.speakers, arguments.files, arguments.talks, arguments.first)
    videos = arguments.work / f"videos-{name}"
    videos.mkdir(parents=True, exist_ok=True)
    for _ in write_recordings(recordings, videos, arguments.workers):
        pass
    drawn = time.time()
    told_by = arguments.encoder + f"-{arguments.finder}" * (arguments.finder != "world") + "-clean" * arguments.clean
    out = arguments.work / f"mined-{name}-{told_by}"
    mined = mine(find_sources(videos), Workshop(out, arguments.workers, notice=notice), settings(arguments))
    ended = time.time()
    write_report(out, mined)
    truth = truth_of(recordings)
    names = {row["file"]: Path(row["path"]).name for row in mined.tables["files"].rows}
    told = {**pairs(mined, truth, names), **links(mined, truth, names), **stages(mined, truth, names)}
    told |= {"speakers": arguments.speakers, "first": arguments.first}
    told |= {"files": len(names), "encoder": arguments.encoder, "finder": arguments.finder}
    told["seconds"] = {
        "drawing": round(drawn - began),
        "mining": round(ended - drawn),
        "reporting": round(time.time() - ended),
    }
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        for name, value in told.items():
            print(f"{name}: {value}")


def notice(stage: str, done: int, total: int) -> None:
    if done in (0, total):
        print(f"{time.strftime('%H:%M:%S')} {stage} {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
