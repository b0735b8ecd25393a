# SPDX-License-Identifier: Apache-2.0
"""What a run looks at: the loss of held-out samples, and clips of held-out speakers made as inference makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from idlora.data.manifest import Pair, read_manifest
from idlora.data.media import read_video, read_voice, write_png
from idlora.errors import InputError, SettingsError
from idlora.pipeline import IDLoraPipeline, Request, Result
from idlora.pipeline.inputs import read_inputs
from idlora.pipeline.overview import Panel, overview
from idlora.training.identity.batches import Batcher
from idlora.training.identity.config import ObjectiveOptions, TrainingConfig
from idlora.training.identity.journal import Journal
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.sampling import Visit, bucket_of
from idlora.training.identity.setup import Bench, fit_of, validation_samples
from idlora.training.latents.spans import clip_picture

Judge = Callable[[Result, Pair], float]

VALIDATION_VISITS = 4  # draws of noise and sigma for each sample, always the same ones
_LONGEST_NAME = 200  # bytes of a file's name, without its ending; file systems take 255


@dataclass(frozen=True, eq=False)
class ValidationLoss:
    """Mean loss of held-out samples under draws that never change, reference and text always there.

    Attributes:
        module: the training step, as accelerate wrapped it or not.
        batcher: makes the batches.
        visits: of all samples, in batches.
        every: steps.
    """

    module: TrainingModule
    batcher: Batcher
    visits: tuple[tuple[Visit, ...], ...]
    every: int

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def look(self, _step: int, _journal: Journal) -> Mapping[str, float]:
        """Losses in total and by stream."""
        video, audio = [], []
        for visits in self.visits:
            losses = self.module(self.batcher.batch(visits, 0))
            video += losses.video_by_sample.tolist()
            audio += losses.audio_by_sample.tolist()
        means = fmean(video), fmean(audio)
        weight = self.module.objective.audio_weight
        return {
            "validation_loss": means[0] + weight * means[1],
            "validation_loss_video": means[0],
            "validation_loss_audio": means[1],
        }


@dataclass(frozen=True, eq=False)
class Samples:
    """Clips of held-out speakers on disk and in TensorBoard, and what judges say of them.

    Attributes:
        pipe: the model with the adapter that is trained.
        pairs: whose caption, first frame and reference are taken.
        folder: of the clips.
        every: steps.
        judges: by the names of their measures.
        arithmetic: in which the networks compute.
    """

    pipe: IDLoraPipeline
    pairs: tuple[Pair, ...]
    folder: Path
    every: int
    judges: Mapping[str, Judge]
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return bool(self.every) and step % self.every == 0

    def look(self, step: int, journal: Journal) -> Mapping[str, float]:
        """Make and judge the clips; means of the judges' measures."""
        folder = self.folder / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        told: dict[str, list[float]] = {name: [] for name in self.judges}
        for pair in self.pairs:
            result = self._clip(pair)
            result.save(folder / f"{file_stem(pair.id)}.mp4")
            self._show(step, pair, result, journal)
            for name, judge in self.judges.items():
                told[name].append(judge(result, pair))
        return {name: fmean(values) for name, values in told.items() if values}

    def _clip(self, pair: Pair) -> Result:
        with torch.no_grad(), self.arithmetic():
            return self.pipe.generate_batch([self._request(pair)])[0]

    def _request(self, pair: Pair) -> Request:
        settings = self.pipe.card.defaults
        picture = clip_picture(read_video(pair.video), pair.start, settings)
        return Request(pair.caption, settings, picture, read_voice(pair.reference))

    def check(self) -> None:
        """Read all that the clips are made after, before a step is spent; a judge may look at a pair too (`check`).

        Raises:
            SettingsError: a pair cannot be used.
        """
        for pair in self.pairs:
            try:
                read_inputs(self._request(pair))
                for judge in self.judges.values():
                    getattr(judge, "check", _unchecked)(pair)
            except (InputError, SettingsError) as error:
                raise SettingsError(
                    f"no clip can be made after the pair {pair.id} of watching.manifest: {error}"
                ) from error

    def _show(self, step: int, pair: Pair, result: Result, journal: Journal) -> None:
        sheet = np.asarray(overview([Panel(f"{pair.id}, step {step}", result.audio, result.sample_rate, result.video)]))
        write_png(self.folder / f"step-{step:06d}" / f"{file_stem(pair.id)}.png", sheet)
        journal.picture(step, pair.id, sheet)
        journal.sound(step, pair.id, result.audio.mean(0), result.sample_rate)


def _unchecked(_pair: Pair) -> None:
    """What a judge without a check of its own says."""


def file_stem(name: str) -> str:
    """A file's name for any text, another for each: letters, digits, `-`, `_` and `.` stay, others become %XX."""
    stem = "".join(each if each.isalnum() else quote(each, safe="") for each in name)
    if stem.startswith("."):  # no hidden file, and no folder above
        stem = f"%2E{stem[1:]}"
    if len(stem.encode()) > _LONGEST_NAME:
        stem = f"{stem[: _LONGEST_NAME // 8]}-{sha256(name.encode()).hexdigest()}"
    return stem


def watchers_of(
    config: TrainingConfig, bench: Bench, batcher: Batcher, accelerator: Any, judges: Callable[[], Mapping[str, Judge]]
) -> tuple[Any, ...]:
    """The watchers that a configuration wants.

    Raises:
        SettingsError: clips are to be made while the weights are sharded, or after a pair that cannot be used.
        TrainingError: there are no held-out samples.
    """
    found: list[Any] = []
    if config.data.validation and config.watching.validate_every:
        found.append(_validation(config, bench, batcher))
    if config.watching.sample_every:
        if accelerator.distributed_type == "FSDP":
            raise SettingsError("clips cannot be made while the weights are sharded: set watching.sample_every to 0")
        if accelerator.is_main_process:
            found.append(_samples(config, bench, judges))
    return tuple(found)


def _validation(config: TrainingConfig, bench: Bench, batcher: Batcher) -> ValidationLoss:
    samples = validation_samples(config, fit_of(bench.pipe))
    size, visits = config.engine.batch, []
    for bucket in sorted({bucket_of(row) for _, row in samples}):
        alike = [each for each in samples if bucket_of(each[1]) == bucket]
        members = [Visit(*each, number) for number in range(VALIDATION_VISITS) for each in alike]
        visits += [tuple(members[first : first + size]) for first in range(0, len(members), size)]
    fixed: ObjectiveOptions = replace(
        config.objective, draws="sample", reference_dropout=0.0, text_dropout=0.0, reference_seconds=()
    )
    return ValidationLoss(bench.module, replace(batcher, options=fixed), tuple(visits), config.watching.validate_every)


def _samples(config: TrainingConfig, bench: Bench, judges: Callable[[], Mapping[str, Judge]]) -> Samples:
    watching = config.watching
    pairs, _ = read_manifest(Path(watching.manifest))
    held_out: dict[str, Pair] = {}
    for pair in pairs:
        if pair.split == "validation":
            held_out.setdefault(pair.speaker or pair.id, pair)
    chosen: Sequence[Pair] = list(held_out.values())[: watching.samples]
    if not chosen:
        raise SettingsError(f"{watching.manifest} has no pair of the split `validation` to make clips after")
    found = Samples(
        pipe=bench.pipe,
        pairs=tuple(chosen),
        folder=Path(config.out) / "samples",
        every=watching.sample_every,
        judges=judges() if watching.judges else {},
        arithmetic=bench.module.arithmetic if config.engine.precision == "bf16" else nullcontext,
    )
    found.check()
    return found
