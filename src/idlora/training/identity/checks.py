# SPDX-License-Identifier: Apache-2.0
"""What no training run can have: values out of their range, and options that contradict one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idlora.training.identity.config import ObjectiveOptions, Saving, TrainingConfig, Watching

MEASURES = {"validation_loss": -1, "speaker_similarity": 1, "word_error": -1}  # 1 = more is better
JUDGES = ("speaker_similarity", "word_error")
DEVICES = ("auto", "cpu", "cuda", "mps")
_SEEDS = 1 << 63  # as many as PyTorch takes


def problems(config: TrainingConfig) -> Iterator[str]:
    """A line for each, with the value, the limit and the remedy."""
    yield from _counts(config)
    yield from _shares(config)
    yield from _numbers(config)
    yield from _contradictions(config)


def _counts(config: TrainingConfig) -> Iterator[str]:
    """Whole numbers below their least one."""
    engine, saving, watching = config.engine, config.saving, config.watching
    ones = {"steps": config.steps, "rank": config.adapter.rank, "batch": engine.batch, "accumulate": engine.accumulate}
    ones |= {"saving.every": saving.every, "keep_last": saving.keep_last}
    ones |= {"log_every": watching.log_every, "samples": watching.samples}
    for name, value in ones.items():
        if value < 1:
            yield f"{name} {value}: it must be at least 1"
    if config.data.limit < 0:
        yield f"data.limit {config.data.limit}: it must be at least 0, which is all"
    nevers = {"validate_every": watching.validate_every, "sample_every": watching.sample_every}
    for name, value in nevers.items():
        if value < 0:
            yield f"{name} {value}: it must be at least 0, which is never"
    for name, value in {"kept_blocks": engine.kept_blocks, "warmup": config.optimization.warmup}.items():
        if value < 0:
            yield f"{name} {value}: it must be at least 0"
    if not 0 <= config.seed < _SEEDS:
        yield f"seed {config.seed}: it must be at least 0 and below 2^63"


def _shares(config: TrainingConfig) -> Iterator[str]:
    objective, rates = config.objective, config.optimization
    shares = {name: getattr(objective, name) for name in ("first_frame", "reference_dropout", "text_dropout")}
    for name, share in {**shares, "final": rates.final}.items():
        if not 0 <= share <= 1:
            yield f"{name} {share}: it is a share, from 0 to 1"
    for name, share in {"dropout": config.adapter.dropout, "ema": rates.ema}.items():
        if not 0 <= share < 1:
            yield f"{name} {share}: it must be at least 0 and below 1"
    if len(rates.betas) != 2 or not all(0 <= each < 1 for each in rates.betas):
        yield f"betas {list(rates.betas)}: two are needed, each at least 0 and below 1; [0.9, 0.999] is usual"


def _numbers(config: TrainingConfig) -> Iterator[str]:
    objective, rates = config.objective, config.optimization
    above = {"learning_rate": rates.learning_rate, "sigma_deviation": objective.sigma_deviation}
    for name, value in above.items():
        if not value > 0:
            yield f"{name} {value}: it must be above 0"
    least = {"weight_decay": rates.weight_decay, "audio_weight": objective.audio_weight}
    for name, value in least.items():
        if not value >= 0:
            yield f"{name} {value}: it must be at least 0"
    if not rates.max_grad_norm >= 0:
        yield f"max_grad_norm {rates.max_grad_norm}: it must be at least 0, which shortens none"
    if not config.adapter.alpha >= 0:
        yield f"alpha {config.adapter.alpha}: it must be at least 0, which is the rank"
    if not config.adapter.targets or not all(config.adapter.targets):
        yield f"targets {list(config.adapter.targets)}: name the ends of the layers' names, or leave targets out"
    if config.engine.device not in DEVICES:
        yield f"engine.device {config.engine.device!r}: choose auto, cpu, cuda or mps; which GPU, accelerate decides"


def _contradictions(config: TrainingConfig) -> Iterator[str]:
    watching = config.watching
    yield from _objective_contradictions(config.objective)
    if config.engine.compile and not config.objective.mask_padding:
        yield "compiled blocks have padded shapes: compile needs mask_padding"
    if unknown := set(watching.judges) - set(JUDGES):
        yield f"judges {sorted(unknown)}: choose among {', '.join(JUDGES)}"
    if watching.sample_every and not watching.manifest:
        yield "sample_every needs a manifest of held-out pairs: give watching.manifest, or 0"
    if watching.judges and not watching.sample_every:
        yield (
            f"judges {list(watching.judges)} have no clips to judge: give watching.sample_every, or leave "
            "watching.judges empty"
        )
    validated = bool(config.data.validation and watching.validate_every)
    yield from _best_contradictions(config.saving, watching, validated=validated)


def _best_contradictions(saving: Saving, watching: Watching, *, validated: bool) -> Iterator[str]:
    """A measure that nobody makes would keep no adapter, without a word."""
    name = saving.keep_best
    if name not in ("", *MEASURES):
        yield f"keep_best {name!r}: choose one of {', '.join(MEASURES)}"
    elif name == "validation_loss" and not validated:
        yield (
            "keep_best 'validation_loss' is never measured: give data.validation and watching.validate_every, or leave "
            "saving.keep_best empty"
        )
    elif name in JUDGES and name not in watching.judges:
        yield f"keep_best {name!r} is never measured: name it in watching.judges, or leave saving.keep_best empty"


def _objective_contradictions(objective: ObjectiveOptions) -> Iterator[str]:
    if objective.draws == "batch" and (objective.reference_dropout or objective.text_dropout):
        yield "draws by batch have no dropout of reference or text: set both to 0, or draw by sample"
    if objective.draws == "batch" and objective.reference_seconds:
        yield "draws by batch take whole references: leave reference_seconds empty, or draw by sample"
    if (window := objective.reference_seconds) and not (len(window) == 2 and 0 < window[0] <= window[1]):
        yield f"reference_seconds {list(window)}: a shortest and a longest window, both above 0, or nothing"
    if objective.reference_dropout and not objective.mask_padding:
        yield "a dropped reference is padding: reference_dropout needs mask_padding"
