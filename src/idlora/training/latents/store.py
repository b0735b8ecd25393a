# SPDX-License-Identifier: Apache-2.0
"""A folder of encoded pairs: `shard-<n>.safetensors`, many samples each, and `index.json`, which names them all.

A shard is on disk before the index names it, so a folder is whole at any moment. The tensors of a sample are
`<id>/video`, `/audio`, `/reference`, `/text` and, where the streams read different features, `/text_audio`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from idlora.errors import OutputError, TrainingError
from idlora.files import write_tensors, write_text
from idlora.networks.text import TextFeatures

INDEX_NAME = "index.json"
NO_TEXT_NAME = "no-text.safetensors"
FORMAT = 1
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Header:
    """What all samples of a folder have in common.

    Attributes:
        generation: of the model whose codecs made them.
        max_text_tokens: to which text features are padded.
        codecs: SHA-256 of the weights that encoded them, by file; empty if nobody knows.
        settings: of the encoding, for people.
    """

    generation: str
    max_text_tokens: int
    codecs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One sample in the index.

    Attributes:
        id: unique in the folder.
        key: SHA-256 of everything that the sample was made from.
        shard: file that holds it.
        grid: frames, rows and columns of its video latents.
        num_audio, num_reference: audio tokens; an encoded target may be a token longer than a generated one.
        frame_rate: pictures a second.
        num_frames: pictures.
        speaker, split, caption: as in the manifest.
    """

    id: str
    key: str
    grid: tuple[int, int, int]
    num_audio: int
    num_reference: int
    frame_rate: float
    num_frames: int
    speaker: str = ""
    split: str = "train"
    caption: str = ""
    shard: str = ""


@dataclass(frozen=True, eq=False)
class Latents:
    """The tensors of a sample."""

    video: Tensor  # (T_video, C), frame by frame, row by row
    audio: Tensor  # (T_audio, C)
    reference: Tensor  # (T_reference, C)
    text: TextFeatures  # (S, D) each, without padding

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the files."""
        found = {"video": self.video, "audio": self.audio, "reference": self.reference, "text": self.text.video}
        return found if self.text.audio is self.text.video else {**found, "text_audio": self.text.audio}

    def to(self, dtype: torch.dtype) -> Latents:
        """In main memory and another dtype."""
        parts = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in self.tensors().items()}
        text = parts.pop("text")
        features = TextFeatures(text, parts.pop("text_audio", text))
        return Latents(**parts, text=features)

    def bad(self) -> str:
        """Name of the first tensor that is not finite; empty if all are."""
        return next((name for name, each in self.tensors().items() if not bool(torch.isfinite(each).all())), "")


class LatentWriter:
    """Adds samples to a folder, a shard at a time; what an earlier run has finished stays.

    Samples whose shard is missing or damaged are forgotten, so that making what is missing heals a folder.

    Args:
        folder: made if missing.
        header: of the folder; an older one must be equal.
        dtype: of the tensors in the files.
        shard_bytes: a shard is written when its samples take so many.

    Raises:
        TrainingError: the folder was made otherwise, or is damaged.
        OutputError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path, header: Header, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder, self.header, self.dtype, self.shard_bytes = folder, header, dtype, shard_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another folder") from error
        self.rows: list[Row] = []
        self._corrected = False
        if (folder / INDEX_NAME).exists():
            found = LatentStore(folder)
            if found.header != header:
                raise TrainingError(f"{folder} was made {_difference(found.header, header)}; choose another folder")
            self.rows = [row for row in found.rows if found.has(row)]
            self._corrected = len(self.rows) < len(found.rows)
        self._waiting: dict[str, tuple[Row, dict[str, Tensor]]] = {}
        self._bytes = 0

    def keys(self) -> dict[str, str]:
        """Keys of the finished samples by id."""
        return {row.id: row.key for row in self.rows}

    def describe(self, name: str, speaker: str, split: str) -> None:
        """Correct what the index says of a finished sample; on disk with the next shard, or after `flush`."""
        for place, row in enumerate(self.rows):
            if row.id == name and (row.speaker, row.split) != (speaker, split):
                self.rows[place] = replace(row, speaker=speaker, split=split)
                self._corrected = True

    def add(self, row: Row, latents: Latents) -> bool:
        """Add a sample; it is on disk after the shard is full, or after `flush`. Returns whether one was written."""
        tensors = latents.to(self.dtype).tensors()
        self._waiting[row.id] = row, tensors
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        full = self._bytes >= self.shard_bytes
        if full:
            self.flush()
        return full

    def keep(self, names: Set[str]) -> int:
        """Forget the finished samples of all other ids, and delete shards that hold none any more; returns how many."""
        before = self.rows
        self.rows = [row for row in before if row.id in names]
        if len(self.rows) < len(before):
            self._write_index()
            self._delete({row.shard for row in before})
        return len(before) - len(self.rows)

    def _delete(self, before: Set[str]) -> None:
        """Delete those of some shards that hold no sample any more."""
        for shard in before - {row.shard for row in self.rows}:
            (self.folder / shard).unlink(missing_ok=True)

    def flush(self) -> None:
        """Write what waits; samples of the same id are replaced, and shards that hold none any more are deleted."""
        if self._waiting:
            self._write_shard()
        elif self._corrected:
            self._write_index()

    def _write_shard(self) -> None:
        name = f"shard-{self._next():05d}.safetensors"
        tensors = {f"{row.id}/{part}": each for row, parts in self._waiting.values() for part, each in parts.items()}
        write_tensors(self.folder / name, tensors, {"format": "pt"})
        fresh = {row.id: replace(row, shard=name) for row, _ in self._waiting.values()}
        before = {row.shard for row in self.rows}
        self.rows = [row for row in self.rows if row.id not in fresh] + list(fresh.values())
        self._waiting, self._bytes = {}, 0
        self._write_index()
        self._delete(before)

    def has_no_text(self) -> bool:
        """Whether the features of a prompt that says nothing can be read."""
        try:
            with safe_open(self.folder / NO_TEXT_NAME, "pt") as file:
                return "text" in file.keys()  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return False

    def write_no_text(self, features: TextFeatures) -> None:
        """Keep the features (S, D) of a prompt that says nothing."""
        same = features.audio is features.video
        tensors = {"text": features.video} if same else {"text": features.video, "text_audio": features.audio}
        kept = {name: tensor.to("cpu", self.dtype).contiguous() for name, tensor in tensors.items()}
        write_tensors(self.folder / NO_TEXT_NAME, kept, {"format": "pt"})
        self._write_index()

    def _next(self) -> int:
        taken = [int(row.shard.removeprefix("shard-").partition(".")[0]) for row in self.rows]
        return max(taken, default=-1) + 1

    def _write_index(self) -> None:
        content = {"format": FORMAT, "header": asdict(self.header), "samples": [asdict(row) for row in self.rows]}
        write_text(self.folder / INDEX_NAME, json.dumps(content, indent=0) + "\n")
        self._corrected = False


def _difference(old: Header, new: Header) -> str:
    before, after = ({**asdict(each), **each.settings, "settings": None} for each in (old, new))
    name = next(name for name in before | after if before.get(name) != after.get(name))
    return f"with another {name} ({before.get(name)}, now {after.get(name)})"


class LatentStore:
    """A finished folder, read by memory map.

    Raises:
        TrainingError: there is no index, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
            self.header = Header(**content["header"])
            self.rows = tuple(_row(each) for each in content["samples"])
        except FileNotFoundError as error:
            raise TrainingError(f"{folder} holds no encoded pairs; make them with `idlora precompute`") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TrainingError(
                f"{folder / INDEX_NAME} is damaged ({error!r}); precompute into a new folder"
            ) from error
        self._open: dict[str, Any] = {}

    def of_split(self, split: str) -> tuple[Row, ...]:
        """The samples of a split, in the index's order."""
        return tuple(row for row in self.rows if row.split == split)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids and keys, whatever their order: names the data that an adapter was trained on."""
        lines = sorted(f"{row.id} {row.key}\n" for row in self.rows)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def has(self, row: Row) -> bool:
        """Whether a sample can be read, as far as its shard's table of contents tells."""
        try:
            names = self._names(row.shard)
        except TrainingError:
            return False
        return all(f"{row.id}/{part}" in names for part in ("video", "audio", "reference", "text"))

    def widths(self) -> dict[str, int]:
        """Numbers of a token by tensor, as far as they can be told: of a sample, for all have the same."""
        for row in self.rows:
            with suppress(TrainingError, SafetensorError):
                file, names = self._file(row.shard)
                parts = ("video", "audio", "reference", "text", "text_audio")
                there = [part for part in parts if f"{row.id}/{part}" in names]
                found = {part: int(file.get_slice(f"{row.id}/{part}").get_shape()[-1]) for part in there}
                return {"text_audio": found["text"], **found} if "text" in found else found
        return {}

    def read(self, row: Row) -> Latents:
        """The tensors of a sample, in float32.

        Raises:
            TrainingError: the shard is missing or damaged, or a number is not finite.
        """
        tensors = {name: self._tensor(row, name) for name in ("video", "audio", "reference", "text")}
        streams = f"{row.id}/text_audio" in self._names(row.shard)
        video = tensors.pop("text")
        found = Latents(**tensors, text=TextFeatures(video, self._tensor(row, "text_audio") if streams else video))
        if bad := found.bad():
            raise TrainingError(f"{bad} of the sample {row.id} in {row.shard} is not finite; precompute it again")
        return found

    @cached_property
    def no_text(self) -> TextFeatures:
        """Features (S, D) of a prompt that says nothing (TrainingError if there are none)."""
        try:
            found = {name: tensor.float() for name, tensor in load_file(self.folder / NO_TEXT_NAME).items()}
            return TextFeatures(found["text"], found.get("text_audio", found["text"]))
        except (OSError, SafetensorError, KeyError) as error:
            raise TrainingError(
                f"{self.folder / NO_TEXT_NAME} cannot be read ({error}); precompute it, or train without text dropout"
            ) from error

    def _names(self, shard: str) -> frozenset[str]:
        return self._file(shard)[1]

    def _file(self, shard: str) -> tuple[Any, frozenset[str]]:
        if shard not in self._open:
            try:
                file = safe_open(self.folder / shard, "pt")
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"{self.folder / shard} is damaged or missing ({error}); run `idlora precompute` again: it makes "
                    "what that shard held anew"
                ) from error
            self._open[shard] = file, frozenset(file.keys())
        found: tuple[Any, frozenset[str]] = self._open[shard]
        return found

    def _tensor(self, row: Row, name: str) -> Tensor:
        file, names = self._file(row.shard)
        if f"{row.id}/{name}" not in names:
            raise TrainingError(f"{row.shard} lacks {name} of the sample {row.id}; run `idlora precompute` again")
        tensor: Tensor = file.get_tensor(f"{row.id}/{name}")
        return tensor.float()


def _row(data: Mapping[str, Any]) -> Row:
    return Row(**{**data, "grid": tuple(data["grid"])})
