# SPDX-License-Identifier: Apache-2.0
"""Training pairs to latents and text features, by the networks and on the paths that a generation uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from idlora.core.positions import SAMPLING_RATE
from idlora.data.manifest import Fault, Pair
from idlora.data.media import Voice, clean_voice, read_video
from idlora.errors import InputError, SettingsError
from idlora.files import sha256_of
from idlora.networks.codecs import VideoGrid
from idlora.networks.text import PromptEncoder, TextFeatures
from idlora.pipeline import IDLoraPipeline
from idlora.pipeline.generation import reference_tokens
from idlora.pipeline.inputs import Request, read_inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.settings import Settings
from idlora.training.latents.filling import Filling, Notice, Report, silent
from idlora.training.latents.spans import clip_frames, clip_sound
from idlora.training.latents.store import SHARD_BYTES, Header, Latents, LatentWriter, Row

BLOCK = 64  # pairs whose texts wait for their media: half a gigabyte of features at full size
STORED = ("bfloat16", "float16", "float32")
UNUSABLE = (InputError, SettingsError)  # what one pair can be at fault for, and the others not
# What encodes no pair, by the beginning of its files' names; a change of it makes nothing anew.
_OTHERS = ("transformer", "vocoder", "latent_upsampler", "upsampler", "adapter")


@dataclass(frozen=True)
class EncodeOptions:
    """How pairs are encoded.

    Attributes:
        num_frames, height, width, frame_rate: of the clips, as in `Settings`.
        max_voice_seconds: references are cut to their best window of this length.
        clean_voice: takes noise out of the references first.
        dtype: of the stored tensors: bfloat16, float16 or float32.
        shard_bytes: size of a file.

    Raises:
        SettingsError: no such dtype, or shards of no bytes.
    """

    num_frames: int = 121
    height: int = 512
    width: int = 512
    frame_rate: float = 25.0
    max_voice_seconds: float = 5.0
    clean_voice: bool = False
    dtype: str = "bfloat16"
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        checked_store(self.dtype)
        if self.shard_bytes < 1:
            raise SettingsError(f"shards of {self.shard_bytes} bytes; make them at least 1 byte, 256 MiB is usual")

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As a model makes its clips."""
        names = ("num_frames", "height", "width", "frame_rate", "max_voice_seconds")
        return cls(**{name: getattr(settings, name) for name in names})

    def settings(self, base: Settings) -> Settings:
        """As settings of a generation (InputError or SettingsError if no model can do them)."""
        values = vars(self).copy()
        del values["dtype"], values["shard_bytes"]
        return replace(base, aspect="size", **values)


def checked_store(name: str) -> str:
    """The name of a dtype that latents can be stored in (SettingsError if they cannot)."""
    if name not in STORED:
        raise SettingsError(f"latents cannot be stored as {name!r}; choose one of {', '.join(STORED)}")
    return name


def precompute(
    pairs: Sequence[Pair],
    faults: Sequence[Fault],
    pipe: IDLoraPipeline,
    out: Path,
    options: EncodeOptions,
    notice: Notice = silent,
    *,
    keep_others: bool = False,
) -> Report:
    """Encode pairs into a folder that `LatentStore` reads; what is there, made from the same, is not made again.

    A pair that cannot be used is told in the folder's `report.json`, and the next one begins. At the end what is there
    of no pair is forgotten, and what is there of one that cannot be used any more.

    Args:
        pairs: of a manifest.
        faults: its lines that are none.
        pipe: the model; its transformer is not needed.
        out: folder, made if it is missing.
        options: how.
        notice: told of every pair.
        keep_others: keep what is there of no pair: of another manifest.

    Raises:
        InputError: the size is off the model's grid.
        SettingsError: an option is out of its range, or cleaning is asked for where the denoiser is not installed.
        TrainingError: the folder was made otherwise.
        OutputError: a file cannot be written.
        DeviceMemoryError: the device is too small for the placement.
    """
    if options.clean_voice:  # fails here, not for every pair
        clean_voice(Voice(np.zeros((1, SAMPLING_RATE), np.float32), SAMPLING_RATE))
    encoder = PairEncoder(pipe, options)
    writer = LatentWriter(out, encoder.header, getattr(torch, options.dtype), options.shard_bytes)
    with Filling(writer, faults, len(pairs), notice, keep_others=keep_others) as filling:
        if not writer.has_no_text():
            writer.write_no_text(encoder.features([""])[0])
        for block in encoder.missing(pairs, filling):
            texts = encoder.features([item.pair.caption for item in block])
            with encoder.media():
                for item, text in zip(block, texts, strict=True):
                    _add(encoder, item, text, filling)
    return filling.report


def _add(encoder: PairEncoder, item: Item, text: TextFeatures, filling: Filling) -> None:
    try:
        row, latents = encoder.encoded(item, text)
    except UNUSABLE as error:
        filling.fail(Fault(item.pair.id, item.pair.line, str(error)))
        return
    filling.add(row, latents, item.pair.line, cut=encoder.cuts(item.pair.caption))


@dataclass(frozen=True)
class Item:
    """A pair that is to be encoded, and the digest of all that it is made from."""

    pair: Pair
    key: str


class PairEncoder:
    """The networks that pairs go through.

    Args:
        pipe: the model.
        options: how.

    Raises:
        InputError: the size is off the model's grid.
        SettingsError: an option is out of its range.
    """

    def __init__(self, pipe: IDLoraPipeline, options: EncodeOptions) -> None:
        self.pipe, self.settings = pipe, options.settings(pipe.card.defaults)
        self._meter = Meter(pipe.device)
        self.grid: VideoGrid = pipe.codecs.grid(self.settings)
        codecs = {name: digest for name, digest in pipe.digests.items() if not name.startswith(_OTHERS)}
        told = {**vars(options), "networks": str(pipe.components.dtype).removeprefix("torch.")}
        del told["shard_bytes"]
        self.header = Header(pipe.generation.name, pipe.card.max_text_tokens, codecs, told)
        self._digests: dict[Path, str] = {}

    def missing(self, pairs: Sequence[Pair], filling: Filling) -> Iterator[list[Item]]:
        """Blocks of the pairs that are not in the folder yet, or made from something else."""
        block: list[Item] = []
        for pair in pairs:
            try:
                key = self._key(pair)
            except UNUSABLE as error:
                filling.fail(Fault(pair.id, pair.line, str(error)))
                continue
            if not filling.skips(pair.id, key, pair.speaker, pair.split):
                block.append(Item(pair, key))
            if len(block) == BLOCK:
                yield block
                block = []
        if block:
            yield block

    def _key(self, pair: Pair) -> str:
        made_from = {
            "files": [self._digest(pair.video), self._digest(pair.reference)],
            "caption": pair.caption,
            "start": pair.start,
            "header": asdict(self.header),
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            self._digests[file] = sha256_of(file)
        return self._digests[file]

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> list[TextFeatures]:
        """Features (S, D) of texts, without padding.

        One text at a time: the hidden states of a text, 0.4 GB at full size, are gone before the next one is read.
        """
        pipe, found = self.pipe, []
        with pipe.residence.stage("text", self._meter), pipe.residence.stage("connect", self._meter):
            parts = pipe.components
            networks = pipe.tokens.tokenizer, parts.text_encoder, parts.connectors
            encoder = PromptEncoder(*networks, pipe.tokens.max_length, pipe.device)
            for text in texts:
                ids, mask = encoder.tokens([text])
                features = encoder.features(encoder.hidden_states(ids, mask), mask)
                found.append(_without_padding(features, mask[0].bool()))
        return found

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than the model reads."""
        return self.pipe.tokens.num_tokens(text) > self.pipe.tokens.max_length

    def media(self) -> AbstractContextManager[None]:
        """The codecs are at work inside this context."""
        return self.pipe.residence.stage("prepare", self._meter)

    @torch.no_grad()
    def encoded(self, item: Item, text: TextFeatures) -> tuple[Row, Latents]:
        """A pair as tokens; raises MediaError if a file of it cannot be used."""
        pair, codecs, device = item.pair, self.pipe.codecs, self.pipe.device
        # As a generation hears a voice.
        heard = read_inputs(Request(pair.caption, self.settings, voice=pair.reference), self.pipe.card.vocabulary)
        video = read_video(pair.video)
        frames, sound = clip_frames(video, pair.start, self.settings), clip_sound(video, pair.start, self.settings)
        latents = Latents(
            video=codecs.video.encode(torch.from_numpy(frames)[None].to(device))[0],
            audio=codecs.audio.encode(torch.from_numpy(sound)[None].to(device))[0],
            reference=reference_tokens(heard, codecs, device),
            text=text,
        )
        return self._row(item, latents), latents

    def _row(self, item: Item, latents: Latents) -> Row:
        pair = item.pair
        return Row(
            id=pair.id,
            key=item.key,
            grid=(self.grid.frames, self.grid.height, self.grid.width),
            num_audio=len(latents.audio),
            num_reference=len(latents.reference),
            frame_rate=self.settings.frame_rate,
            num_frames=self.settings.num_frames,
            speaker=pair.speaker,
            split=pair.split,
            caption=pair.caption,
        )


def _without_padding(features: TextFeatures, mask: Tensor) -> TextFeatures:
    """Rows (S, D) of the real tokens of features (1, max_length, D), in main memory."""
    video = features.video[0][mask.to(features.video.device)].cpu()
    if features.audio is features.video:
        return TextFeatures(video, video)
    return TextFeatures(video, features.audio[0][mask.to(features.audio.device)].cpu())
