# SPDX-License-Identifier: Apache-2.0
"""Adapters that differ from one small recipe in one thing each: what rows on training are measured with.

The recipe is the miniature's own with rank 2, short, on float32: an adapter that ships must be small, and what is
compared is trained alike. A file's name has the digest of its recipe, so that one of another recipe is never taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from idlora.data.manifest import read_manifest, write_manifest
from idlora.data.world.pairs import WorldPair, render_pairs
from idlora.errors import OutputError
from idlora.evaluation.store import fingerprint
from idlora.networks.adapter import AdapterWeights, read_adapter, write_adapter
from idlora.pipeline import IDLoraPipeline, Settings
from idlora.pipeline.card import ModelCard, defaults_for
from idlora.pipeline.records import from_json
from idlora.training.identity.config import (
    AdapterShape,
    Data,
    Engine,
    Saving,
    TrainingConfig,
    Watching,
    config_to_json,
)
from idlora.training.identity.presets import preset_config
from idlora.training.identity.run import run_training
from idlora.training.latents.encode import EncodeOptions, precompute
from idlora.training.latents.filling import Report
from idlora.training.latents.store import LatentStore

Notice = Callable[[str], None]
ADAPTERS = "adapters"  # below the folder of a reproduction
PAIRS = 1000
SEEDS = (0, 1, 2)
_NEWER = {"reference_attention": "joint"}  # options younger than the first adapters, as it was without them
_MINIATURE = preset_config("miniature")
RECIPE = replace(
    _MINIATURE,
    steps=100,
    adapter=AdapterShape(rank=2),
    data=Data(limit=PAIRS),
    objective=replace(_MINIATURE.objective, reference_seconds=(2.0, 4.0)),
    optimization=replace(_MINIATURE.optimization, learning_rate=4e-3, warmup=10, ema=0.97),
    engine=Engine(batch=8, precision="fp32", checkpointing="none"),
    saving=Saving(every=50, keep_last=1),
    watching=Watching(validate_every=0),
)


@dataclass(frozen=True)
class Ablation:
    """An adapter of the recipe with one change.

    Attributes:
        name: of the change.
        seed: of its first weights, its order and its draws.
        changes: of the configuration, as in a YAML file.
    """

    name: str
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """By which arms name it."""
        return f"{self.name}-{self.seed}"

    @property
    def config(self) -> TrainingConfig:
        """How it is trained; folders are still empty."""
        return replace(from_json(RECIPE, self.changes, self.name), seed=self.seed)

    @property
    def file_name(self) -> str:
        """Key and digest of the recipe; speed alone is not in it."""
        told = config_to_json(self.config)
        told = {name: value for name, value in told.items() if name not in ("out", "engine", "saving", "watching")}
        told["objective"] = {name: value for name, value in told["objective"].items() if _NEWER.get(name) != value}
        return f"{self.key}-{fingerprint(told)[:8]}.safetensors"


def _placed(time: str) -> tuple[Ablation, ...]:
    changes = {} if time == "negative" else {"objective": {"reference_time": time}}
    return tuple(Ablation(time, seed, changes) for seed in SEEDS)


NEGATIVE, SHARED, FAR, ADJACENT = (_placed(time) for time in ("negative", "shared", "far", "adjacent"))
ROUNDED = Ablation("rounded", 0, {"objective": {"positions": "bf16-training"}})
NO_DROPOUT = Ablation("no-dropout", 0, {"objective": {"reference_dropout": 0.0}})
UNMASKED = Ablation("unmasked", 0, {"objective": {"mask_reference_to_video": False}})
BLOCKED = Ablation("blocked", 0, {"objective": {"reference_text": "block"}})
# The branch is scaled by alpha / rank: with the recipe's alpha the first steps move the layers alike at every rank.
RANKS = tuple(Ablation(f"rank-{rank}", 0, {"adapter": {"rank": rank, "alpha": 2.0}}) for rank in (4, 32, 128))
ALONE = Ablation("alone", 0, {"objective": {"reference_attention": "alone"}})
FEW_PAIRS = Ablation("few-pairs", 0, {"data": {"limit": 100}})
FEW_STEPS = Ablation("few-steps", 0, {"steps": 25})
# Only so many steps see each of 3,000 pairs once.
_LONGER: Mapping[str, Any] = {"steps": 375, "optimization": {"warmup": 20, "ema": 0.99}}
LONG = tuple(Ablation(f"long-{pairs}", 0, {**_LONGER, "data": {"limit": pairs}}) for pairs in (100, 1000, 3000))
ABLATIONS: tuple[Ablation, ...] = (
    *(*NEGATIVE, *SHARED, *FAR, *ADJACENT),
    *(ROUNDED, NO_DROPOUT, UNMASKED, BLOCKED, ALONE),
    *(FEW_PAIRS, FEW_STEPS, *LONG, *RANKS),
)


@dataclass(frozen=True)
class Trained:
    """An adapter's file, the digest of its numbers, and the settings that its clips are made with."""

    file: Path
    digest: str
    settings: Settings


def shipped_folder() -> Path:
    """Where those that ship are."""
    import idlora

    return Path(idlora.__file__).parent / "weights" / "ablations"


def found(folders: Iterable[Path], card: ModelCard) -> dict[str, Trained]:
    """Those of the recipe that lie in some folders, by key; the first folder that has one counts.

    Raises:
        WeightsError: a file is damaged.
    """
    places = tuple(folders)
    files = {each.key: [path for place in places if (path := place / each.file_name).is_file()] for each in ABLATIONS}
    return {key: _trained(paths[0], card) for key, paths in files.items() if paths}


def _trained(file: Path, card: ModelCard) -> Trained:
    weights = read_adapter(file)
    return Trained(file, weights.digest, defaults_for(card, weights.metadata, file).defaults)


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where ablations are found and trained.

    Attributes:
        pipe: the model, which encodes the pairs.
        latents: folder of encoded pairs of the world; None = they are made.
        workers: processes that render them.
    """

    pipe: IDLoraPipeline
    latents: Path | None = None
    workers: int = 1

    def found(self, out: Path) -> dict[str, Trained]:
        """Those in the folder of a reproduction and those that ship (WeightsError if a file is damaged)."""
        return found((out / ADAPTERS, shipped_folder()), self.pipe.card)

    def train(self, keys: Iterable[str], out: Path, moved: Notice) -> None:
        """Train some into the folder of a reproduction; what an interruption left of one is gone on with.

        Raises:
            TrainingError: the encoded pairs are missing or damaged, or a loss is not finite.
            OutputError: a file cannot be written.
        """
        wanted = [each for each in ABLATIONS if each.key in keys]
        most = max((each.config.data.limit for each in wanted), default=0)
        latents = self.latents or encoded_pairs(self.pipe, out / "data", most, moved, self.workers)
        for ablation in wanted:
            _train(ablation, latents, out / ADAPTERS, moved)


def _train(ablation: Ablation, latents: Path, out: Path, moved: Notice) -> None:
    run = out / "runs" / ablation.file_name.removesuffix(".safetensors")
    config = ablation.config
    config = replace(config, out=str(run), data=replace(config.data, train=(str(latents),)))

    def told(step: int, values: Mapping[str, float]) -> None:
        moved(f"training {ablation.key}: step {step} of {config.steps}, loss {values.get('loss', float('nan')):.4f}")

    trained = run_training(config, told)
    found = read_adapter(trained)
    metadata = {name: value for name, value in found.metadata.items() if name != "targets"}  # the layers' names say it
    write_adapter(out / ablation.file_name, AdapterWeights(found.layers, metadata), stacked=True)


def encoded_pairs(pipe: IDLoraPipeline, folder: Path, most: int, moved: Notice, workers: int = 1) -> Path:
    """The first `most` pairs of the world, rendered and encoded below a folder; what is there is not made again.

    Raises:
        OutputError: a file cannot be written.
    """
    pairs, latents = folder / "pairs", folder / "latents"
    if (latents / "index.json").is_file() and len(LatentStore(latents).of_split("train")) >= most:
        return latents
    try:
        for part in (pairs / "clips", pairs / "references", latents):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another --out") from error
    wanted = [WorldPair("train", index) for index in range(most)]
    for number in render_pairs(wanted, pairs, workers):
        if number % 100 == 0:
            moved(f"rendering pairs: {number} of {most}")
    manifest = pairs / "manifest.jsonl"
    write_manifest(manifest, [each.pair(pairs) for each in wanted])
    options = replace(EncodeOptions.of(pipe.card.defaults), dtype="float16")

    def told(report: Report) -> None:
        if report.seen % 100 == 0:
            moved(f"encoding pairs: {report.seen} of {most}")

    precompute(*read_manifest(manifest), pipe, latents, options, told)
    return latents
