# SPDX-License-Identifier: Apache-2.0
"""All stages in order: what each one reads of those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from idlora.mining import (
    active,
    captions,
    clips,
    cutting,
    faces,
    pairing,
    probing,
    quality,
    scenes,
    speech,
    voices,
    words,
)
from idlora.mining.finders.base import finder_named
from idlora.mining.grouping import GROUPS, LINKS, grouped
from idlora.mining.mapping import Item
from idlora.mining.settings import MiningSettings
from idlora.mining.sources import Source, row_of
from idlora.mining.tables import Row, Table, digest_of, dropped
from idlora.mining.withdrawal import Withdrawn, without
from idlora.mining.workshop import Workshop

_LAW = 2  # of grouping: another number when the same voices make other groups
STAGES = (
    "probe", "files", "scenes", "speech", "faces", "active", "clips", "quality", "voices", "speakers", "links",
    "pairable", "words", "splits", "pairs", "media", "captions",
)  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """The stages over one workshop.

    Attributes:
        shop: where.
        settings: how.
    """

    shop: Workshop
    settings: MiningSettings

    def files(self, sources: Sequence[Source], withdrawn: Sequence[str]) -> tuple[Table, Table]:
        """What the files hold, and which are looked at."""
        items = [probing.item_of(row_of(source)) for source in sources]
        columns = {**probing.COLUMNS, "name": "text"}
        probe = self.shop.mapped("probe", columns, probing.probed, items)
        rules = self.settings.files
        given = [asdict(rules), sorted(withdrawn)]
        return probe, self.shop.pure(
            "files", probing.COLUMNS, lambda: probing.chosen(probe.rows, rules, withdrawn), [probe], given
        )

    def scenes(self, files: Table) -> Table:
        """Shots."""
        return self.shop.mapped("scenes", scenes.COLUMNS, scenes.scenes_of, [_span(row) for row in files.rows])

    def speech(self, files: Table) -> Table:
        """Stretches of speech."""
        return self.shop.mapped("speech", speech.COLUMNS, speech.speech_of, [_span(row) for row in files.rows])

    def spared(self, files: Table, spans: Table, withdrawn: Withdrawn) -> Table:
        """A table of stretches without those that were taken back: nothing is derived from them."""
        if not withdrawn.spans:
            return spans
        digests = {row["file"]: row["sha256"] for row in files.rows}
        gone = {file: withdrawn.of(digest) for file, digest in digests.items()}
        rows = [
            {**row, "start": start, "end": end}
            for row in spans.rows
            for start, end in without((row["start"], row["end"]), gone[row["file"]])
        ]
        return Table(spans.name, digest_of([spans.key, withdrawn.spans]), rows, spans.dropped)

    def faces(self, files: Table, shots: Table) -> Table:
        """Tracks of one face."""
        rules, spans = asdict(self.settings.faces), _spans(shots.rows)
        finder = finder_named(self.settings.faces.finder).name
        items = [
            {"file": name, "path": row["path"], "scenes": spans[name], "rules": rules, "finder": finder}
            for row in files.rows
            if (name := row["file"]) in spans
        ]
        return self.shop.mapped("faces", faces.COLUMNS, faces.tracks_of, items)

    def active(self, files: Table, tracks: Table, spoken: Table) -> Table:
        """Utterances that a seen face says."""
        rules, spans, seen = asdict(self.settings.faces), _spans(spoken.rows), by(tracks.rows, "file")
        names = ("track", "start", "end", "opening")
        items = [
            {
                **_span(row),
                "speech": spans[row["file"]],
                "tracks": [{name: track[name] for name in names} for track in seen.get(row["file"], [])],
                "rules": rules,
            }
            for row in files.rows
            if row["file"] in spans
        ]
        return self.shop.mapped("active", active.COLUMNS, active.active_of, items)

    def clips(self, tracks: Table, spoken: Table, said: Table) -> Table:
        """Clips of the training length."""
        rules = self.settings.clips

        def make() -> tuple[list[Row], list[Row]]:
            spans, talk = _spans(spoken.rows), by(said.rows, "file")
            made = [
                clips.clips_of(file, own, talk.get(file, []), [(low, high) for low, high in spans.get(file, [])], rules)
                for file, own in by(tracks.rows, "file").items()
            ]
            return [row for rows, _ in made for row in rows], [row for _, gone in made for row in gone]

        return self.shop.pure("clips", clips.COLUMNS, make, [tracks, spoken, said], asdict(rules))

    def quality(self, files: Table, tracks: Table, spoken: Table, cut: Table) -> Table:
        """Measures of every clip."""
        boxes = {row["track"]: [row[name] for name in ("left", "top", "width", "height")] for row in tracks.rows}
        spans = _spans(spoken.rows)

        def clip_of(row: Row) -> Item:
            inside = [span for span in spans[row["file"]] if span[1] > row["start"] and span[0] < row["end"]]
            told = {name: row[name] for name in ("clip", "start", "end")}
            return {**told, "speech": inside, "face": boxes[row["track"]]}

        given = {"rules": asdict(self.settings.quality), "frame_rate": self.settings.clips.frame_rate}
        return self._by_file("quality", quality.COLUMNS, quality.quality_of, (files, cut), clip_of, given)

    def voices(self, files: Table, cut: Table) -> Table:
        """Vectors of voices."""
        names = ("clip", "start", "end")
        given = {"rules": asdict(self.settings.speakers)}
        for unused in ("neighbours", "false_links"):
            del given["rules"][unused]
        if cut.rows:  # other weights of the same name make other vectors
            given["by"] = asdict(
                voices.encoder_of(self.settings.speakers.encoder, self.settings.speakers.weights).record
            )
        return self._by_file("voices", voices.COLUMNS, voices.voices_of, (files, cut), _taking(names), given)

    def words(self, files: Table, cut: Table) -> Table:
        """What is said."""
        names = ("clip", "start", "end", "reference_start", "reference_end")

        def clip_of(row: Row) -> Item:
            return {**_taking(names)(row), "spoken": row["speech"]}

        rules = self.settings.words
        given: Item = {"rules": {**asdict(rules), "vocabulary": list(rules.vocabulary)}}
        if cut.rows:
            given["by"] = asdict(words.listener_of(rules.whisper, rules.vocabulary).record)
        return self._by_file("words", words.COLUMNS, words.words_of, (files, cut), clip_of, given)

    def speakers(self, files: Table, cut: Table, vectors: Table) -> tuple[Table, Table]:
        """Who speaks in every clip, and the links between voices by which that is known."""
        rules = self.settings.speakers
        before, given = [files, cut, vectors], {**asdict(rules), "law": _LAW}
        made: list[Any] = []

        def once() -> Any:
            if not made:
                made.append(grouped(files.rows, cut.rows, vectors.rows, rules))
            return made[0]

        groups = self.shop.pure("speakers", GROUPS, lambda: (once().clips, []), before, given)
        links = self.shop.pure("links", LINKS, lambda: (once().links, []), before, given)
        return groups, links

    def pairable(self, files: Table, speakers: Table) -> Table:
        """Clips of speakers who are heard in several recordings; all where pairs may be of one."""
        alike = self.settings.pairs.same_recording

        def make() -> tuple[list[Row], list[Row]]:
            recordings = {row["file"]: row["recording"] for row in files.rows}
            heard: dict[str, set[str]] = {}
            for row in speakers.rows:
                heard.setdefault(row["speaker"], set()).add(recordings[row["file"]])
            good = [row for row in speakers.rows if alike or len(heard[row["speaker"]]) > 1]
            kept = {row["clip"] for row in good}
            alone = [row for row in speakers.rows if row["clip"] not in kept]
            return good, [
                dropped(row["clip"], row["file"], pairing.ALONE, f"speaker {row['speaker']}") for row in alone
            ]

        return self.shop.pure("pairable", GROUPS, make, [files, speakers], alike)

    def pairs(self, files: Table, kept: Table, measured: Table, said: Table, split: Table) -> Table:
        """Clips with their references."""
        rules = self.settings.pairs

        def make() -> tuple[list[Row], list[Row]]:
            speakers = {row["clip"]: row["speaker"] for row in split.rows}
            told = pairing.candidates(
                kept.rows,
                one_by(measured.rows, "clip"),
                one_by(said.rows, "clip"),
                speakers,
                one_by(files.rows, "file"),
            )
            tested = {row["speaker"] for row in split.rows if row["split"] == "test"}
            return pairing.pairs_of(told, rules, tested)

        before = [files, kept, measured, said, split]
        return self.shop.pure("pairs", pairing.COLUMNS, make, before, asdict(rules))

    def media(self, files: Table, cut: Table, pairs: Table) -> Table:
        """The files of pairs; those that are gone are cut again."""
        out, rules = self.shop.out, self.settings.clips
        targets, references = ({row[name] for row in pairs.rows} for name in ("clip", "reference"))
        given = {"frame_rate": rules.frame_rate, "num_frames": rules.num_frames, "clean": self.settings.pairs.clean}
        paths = one_by(files.rows, "file")
        items = [
            {
                **{name: row[name] for name in ("clip", "file", "start", "reference_start", "reference_end")},
                **given,
                "sample_rate": paths[row["file"]]["sample_rate"],
                "as_clip": row["clip"] in targets,
                "as_reference": row["clip"] in references,
                "out": out.as_posix(),
                "path": paths[row["file"]]["path"],
            }
            for row in cut.rows
            if row["clip"] in targets or row["clip"] in references
        ]
        return self.shop.written_files("media", cutting.COLUMNS, cutting.cut, items, ("video", "original", "reference"))

    def captions(self, files: Table, cut: Table, tables: Mapping[str, Table]) -> Table:
        """Captions of the clips of pairs."""
        wanted = {row["clip"] for row in tables["pairs"].rows}
        measured, said = one_by(tables["quality"].rows, "clip"), one_by(tables["words"].rows, "clip")
        boxes = one_by(tables["faces"].rows, "track")

        def clip_of(row: Row) -> Item:
            name = row["clip"]
            known = ("hertz", "spread", "loudness", "snr", "rt60", "music", "low", "high")
            facts = {key: measured[name].get(key) for key in known}  # tables of older versions lack some
            box = {key: boxes[row["track"]][key] for key in ("left", "width", "height", "turned")}
            told = {"text": said[name]["text"], "rate": said[name]["rate"]}
            return {**_taking(("clip", "start", "end"))(row), **facts, **box, **told}

        chosen = Table("clips", digest_of(sorted(wanted)), [row for row in cut.rows if row["clip"] in wanted])
        given = {"rules": asdict(self.settings.captions)}
        return self._by_file("captions", captions.COLUMNS, captions.captions_of, (files, chosen), clip_of, given)

    def _by_file(
        self,
        name: str,
        columns: Mapping[str, str],
        work: Callable[[Item], dict[str, Any]],
        tables: tuple[Table, Table],
        clip_of: Callable[[Row], Item],
        given: Mapping[str, Any],
    ) -> Table:
        """A stage over files, each with its clips: a file is opened once."""
        files, cut = tables
        own = by(cut.rows, "file")
        items = [
            {
                "file": row["file"],
                "path": row["path"],
                "sample_rate": row["sample_rate"],
                "clips": [clip_of(clip) for clip in own[row["file"]]],
                **given,
            }
            for row in files.rows
            if row["file"] in own
        ]
        return self.shop.mapped(name, columns, work, items)


def by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Rows by the value of a column, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def one_by(rows: Sequence[Row], name: str) -> dict[str, Row]:
    """The row of each value of a column."""
    return {row[name]: row for row in rows}


def kept_of(cut: Table, *tables: Table) -> Table:
    """Clips that are in all of some tables."""
    names = [{row["clip"] for row in table.rows} for table in tables]
    rows = [row for row in cut.rows if all(row["clip"] in known for known in names)]
    return Table(cut.name, digest_of([cut.key, *(table.key for table in tables)]), rows)


def _span(row: Row) -> Item:
    return {"file": row["file"], "path": row["path"], "start": row["start"], "end": row["end"]}


def _spans(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    return {file: [[row["start"], row["end"]] for row in own] for file, own in by(rows, "file").items()}


def _taking(names: Sequence[str]) -> Callable[[Row], Item]:
    return lambda row: {name: row[name] for name in names}
