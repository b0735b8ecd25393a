# SPDX-License-Identifier: Apache-2.0
"""Named training runs: the published recipes as they are, the mended objective for each generation, the miniature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from idlora.errors import SettingsError, nearest
from idlora.training.identity.config import (
    AdapterShape,
    Engine,
    Model,
    ObjectiveOptions,
    Optimization,
    SigmaLaw,
    TrainingConfig,
    Watching,
)

OURS = ObjectiveOptions()
OFFICIAL = ObjectiveOptions(
    positions="bf16-training",
    reference_text="average",
    equal_lengths=False,
    first_frame_draw="batch",
    mask_padding=False,
    reference_dropout=0.0,
    text_dropout=0.0,
    loss="batch",
    draws="batch",
)
_PUBLISHED = TrainingConfig(
    steps=6000,
    objective=OFFICIAL,
    optimization=Optimization(optimizer="adamw8bit", learning_rate=2e-4, schedule="linear", final=0.1),
)
_OURS = TrainingConfig(
    steps=6000,
    optimization=Optimization(learning_rate=2e-4, ema=0.99),
    engine=Engine(batch=4),
)
_SIGMAS: Mapping[str, SigmaLaw] = {"2.0": "logit-normal", "2.3": "stretched", "2.5": "stretched"}
# Of what was tried on the miniature (docs/log.md); its rotary base, widths and text are small, so its sigmas are wide.
_MINIATURE = TrainingConfig(
    steps=4000,
    adapter=AdapterShape(rank=32),
    objective=replace(
        OURS,
        reference_seconds=(1.0, 5.0),
        reference_text="open",
        sigma="logit-normal",
        sigma_by_size=False,
        sigma_bias=0.5,
        sigma_deviation=1.5,
    ),
    optimization=Optimization(
        learning_rate=1.5e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=50, schedule="cosine", final=0.02, ema=0.998
    ),
    engine=Engine(batch=16, precision="mixed", checkpointing="none"),
    watching=Watching(validate_every=500),
)


def _published(generation: str, *, batch: int, accumulate: int) -> TrainingConfig:
    law = replace(OFFICIAL, sigma=_SIGMAS[generation])
    steps = 6000 if generation == "2.0" else 3000  # of the checkpoints that were released
    engine = Engine(batch=batch, accumulate=accumulate, storage="full" if batch > 1 else "int8")
    return replace(_PUBLISHED, steps=steps, objective=law, engine=engine, model=_HOMES[generation])


def _ours(generation: str) -> TrainingConfig:
    return replace(_OURS, model=_HOMES[generation], objective=replace(OURS, sigma=_SIGMAS[generation]))


_HOMES = {
    "2.0": Model("Lightricks/LTX-2"),
    "2.3": Model(""),  # whose folder or repository must be given
    "2.5": Model("", transformer="transformer_full"),
}
PRESETS: Mapping[str, TrainingConfig] = MappingProxyType(
    {
        "celebvhq-2.0": _published("2.0", batch=4, accumulate=1),
        "celebvhq-2.3": _published("2.3", batch=4, accumulate=1),
        "talkvid-2.0": _published("2.0", batch=1, accumulate=4),
        "talkvid-2.3": _published("2.3", batch=1, accumulate=4),
        "ours-2.0": _ours("2.0"),
        "ours-2.3": _ours("2.3"),
        "ours-2.5": _ours("2.5"),
        "miniature": _MINIATURE,
    }
)
# What presets keep the best adapter by, where it is measured: a preset alone names no data to validate with.
KEEP_BEST: Mapping[str, str] = MappingProxyType(
    dict.fromkeys((name for name in PRESETS if name.startswith("ours-")), "validation_loss")
)


def preset_config(name: str) -> TrainingConfig:
    """The run of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in PRESETS:
        raise SettingsError(f"there is no training preset {name!r}{nearest(name, dict.fromkeys(PRESETS))}")
    return PRESETS[name]
