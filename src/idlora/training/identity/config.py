# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a training run, as one tree of frozen records, read from strict YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from idlora.core.positions import ReferenceTime, Rounding
from idlora.errors import SettingsError
from idlora.networks.adapter import IDENTITY_TARGETS
from idlora.networks.blocks import ReferenceAttention, ReferenceText
from idlora.networks.packing import Storage
from idlora.pipeline.records import from_json, to_json
from idlora.training.identity.checks import problems

Draws = Literal["sample", "batch"]
SigmaLaw = Literal["logit-normal", "stretched"]
RateLaw = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw", "adamw8bit"]
Precision = Literal["bf16", "mixed", "fp32"]
Checkpointing = Literal["all", "attention", "none"]


@dataclass(frozen=True)
class Model:
    """What the adapter is trained on.

    Attributes:
        name: `miniature`, a folder or hub repository in diffusers' layout, or an official single file.
        text_encoder: folder of Gemma, which a single file needs.
        transformer: subfolder of the transformer; of LTX-2.5 `transformer_full` is the one that is not distilled.
    """

    name: str = "miniature"
    text_encoder: str = ""
    transformer: str = "transformer"


@dataclass(frozen=True)
class Data:
    """What it is trained with.

    Attributes:
        train: folders that `idlora precompute` made; all samples of the split `train` in them.
        validation: the same for the split `validation`, from which the validation loss is computed; may be empty.
        limit: the first so many training samples alone, by their ids, to learn what more of them bring; 0 = all.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    limit: int = 0


@dataclass(frozen=True)
class AdapterShape:
    """The adapter.

    Attributes:
        rank: of every layer.
        alpha: the branch is scaled by alpha / rank, which the saved file has in B; 0 = the rank.
        dropout: of the branch's input.
        targets: ends of the names of the layers in every block; the published list by default.
        start: file of an adapter to go on from, with its rank, alpha and targets; empty = A random, B zero.
    """

    rank: int = 128
    alpha: float = 0.0
    dropout: float = 0.0
    targets: tuple[str, ...] = IDENTITY_TARGETS
    start: str = ""

    @property
    def scale(self) -> float:
        """Of the branch; an adapter to go on from has its own in B."""
        return 1.0 if self.start else (self.alpha or self.rank) / self.rank


@dataclass(frozen=True)
class ObjectiveOptions:
    """What is predicted from what; each option says what it mends. The defaults are the preset `ours`.

    Attributes:
        positions: `bf16-training` rounds them as the published adapters were trained with, which lets half of the
            reference tokens of 5 s fall together; fp32 keeps all apart.
        reference_time: where the reference lies beside the target: `negative` before zero, as published; `adjacent`,
            `shared` and `far` are what that is compared with.
        mask_reference_to_video: no video token sees the reference, so that it can only speak.
        reference_text: what reference tokens get from the text: `block` nothing; `average` what the official mask comes
            to, the mean over all text tokens; `open` as published inference has it. The adapter's file names this mask
            and the one above, and inference applies them.
        reference_attention: `alone`: reference tokens hear nothing but one another, whatever the two options above, so
            that inference computes them once a generation; the file says so. `joint` as published.
        equal_lengths: cut an encoded target to as many tokens as a generated one of its length has; it has one more.
        first_frame: share of samples whose first latent frame is given.
        first_frame_draw: drawn for each `sample`, or once for a `batch`, where all of it is given or none.
        mask_padding: padding of shorter references and targets is hidden from attention, stands at no position and
            enters no loss; without, it counts as sound.
        reference_dropout: share of samples without reference: the branch that identity guidance subtracts is trained.
        text_dropout: share of samples with an empty prompt: the branch that text guidance subtracts is trained.
        reference_seconds: shortest and longest window of the reference, drawn anew at each visit, so that inference may
            have other lengths; empty = all of it.
        sigma: `logit-normal` as LTX-2.0 is trained, `stretched` as from 2.3 on.
        sigma_by_size: the mean logit is that of the number of video tokens; without, 0.
        sigma_bias: added to the mean logit; above 0 more steps are spent on high noise, where a voice is decided.
        sigma_deviation: of the logit.
        loss: `sample` gives each sample the same weight whatever its length, so that the loss does not depend on the
            batch; `batch` averages over all tokens of a batch.
        draws: by `sample`: noise, sigma and all choices come from the seed, the sample's id and how often it was seen,
            whatever it is batched with; by `batch` from the seed and the step.
        audio_weight: of the audio loss beside the video loss.
    """

    positions: Rounding = "fp32"
    reference_time: ReferenceTime = "negative"
    mask_reference_to_video: bool = True
    reference_text: ReferenceText = "block"
    reference_attention: ReferenceAttention = "joint"
    equal_lengths: bool = True
    first_frame: float = 0.9
    first_frame_draw: Draws = "sample"
    mask_padding: bool = True
    reference_dropout: float = 0.1
    text_dropout: float = 0.1
    reference_seconds: tuple[float, ...] = ()
    sigma: SigmaLaw = "stretched"
    sigma_by_size: bool = True
    sigma_bias: float = 0.0
    sigma_deviation: float = 1.0
    loss: Draws = "sample"
    draws: Draws = "sample"
    audio_weight: float = 1.0


@dataclass(frozen=True)
class Optimization:
    """How the weights move.

    Attributes:
        optimizer: `adamw8bit` keeps its moments in eight bits (bitsandbytes).
        learning_rate: the highest.
        betas, weight_decay: of AdamW.
        warmup: steps of linear growth.
        schedule: from the highest rate to `final` of it at the last step.
        final: see there.
        max_grad_norm: longer gradients are shortened; 0 = never.
        ema: decay of the running average that is saved instead of the weights; 0 = no average.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: RateLaw = "linear"
    final: float = 0.1
    max_grad_norm: float = 1.0
    ema: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0, 1, ...: counted in steps of the optimiser, whatever the number of processes."""
        from math import cos, pi

        share = min(1.0, step / max(1, steps))
        shape = {"linear": 1.0 - share, "cosine": 0.5 * (1.0 + cos(pi * share)), "constant": 1.0}[self.schedule]
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * warm * (self.final + (1.0 - self.final) * shape)


@dataclass(frozen=True)
class Engine:
    """How a step is computed.

    Attributes:
        batch: samples at once on each device.
        accumulate: such batches a step.
        precision: `bf16` keeps the base and multiplies in bfloat16; `mixed` keeps it in float32; `fp32` multiplies in
            float32 too. The adapter is always kept in float32.
        storage: of the base's linear layers, as of `idlora generate`: full, fp8, fp8-scaled, int8 or nf4.
        checkpointing: what of the blocks' inner results is computed again in the backward pass, where it is needed:
            `all`; `attention` is all but what attention to the video's tokens gave, which takes the longest; `none` is
            the fastest and takes far more memory.
        kept_blocks: the last so many blocks are not computed again. The last block's results are needed at once; each
            other one takes memory for time.
        compile: compile the blocks; all shapes are then the longest ones.
        device: `auto`, or as PyTorch calls it.
    """

    batch: int = 1
    accumulate: int = 1
    precision: Precision = "bf16"
    storage: Storage = "full"
    checkpointing: Checkpointing = "all"
    kept_blocks: int = 1
    compile: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Saving:
    """What is kept.

    Attributes:
        every: steps between checkpoints.
        keep_last: so many of them stay.
        keep_best: measure whose best adapter is kept as `best.safetensors`: `validation_loss`, `speaker_similarity` or
            `word_error`; empty = none.
    """

    every: int = 200
    keep_last: int = 3
    keep_best: str = ""


@dataclass(frozen=True)
class Watching:
    """What is looked at while it trains.

    Attributes:
        log_every: steps between lines of the log.
        validate_every: steps between validation losses; 0 = never.
        sample_every: steps between clips of held-out speakers, made as inference makes them; 0 = never.
        manifest: of the pairs that these clips are made after: caption, first frame and reference of split
            `validation`, one of each speaker.
        samples: how many.
        judges: of the clips: `speaker_similarity`, `word_error`; both work offline.
    """

    log_every: int = 10
    validate_every: int = 200
    sample_every: int = 0
    manifest: str = ""
    samples: int = 4
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """One run.

    Attributes:
        out: folder of checkpoints, logs and the finished adapter.
        steps: of the optimiser.
        seed: of every draw.

    Raises:
        SettingsError: a value is out of its range or contradicts another.
    """

    model: Model = Model()
    data: Data = Data()
    out: str = "runs/adapter"
    steps: int = 3000
    seed: int = 42
    adapter: AdapterShape = AdapterShape()
    objective: ObjectiveOptions = ObjectiveOptions()
    optimization: Optimization = Optimization()
    engine: Engine = Engine()
    saving: Saving = Saving()
    watching: Watching = Watching()

    def __post_init__(self) -> None:
        for problem in problems(self):
            raise SettingsError(problem)


def config_to_json(config: TrainingConfig) -> dict[str, Any]:
    """All of it as JSON's own types."""
    return to_json(config)


def read_config(path: Path, preset: str | None = None) -> TrainingConfig:
    """A configuration from YAML over a preset, which the key `preset` names, else over that of an argument.

    Raises:
        SettingsError: the file cannot be read, names something unknown, or a value cannot be used.
    """
    return configured(read_yaml(path), preset, path.name)


def configured(data: Mapping[str, Any], preset: str | None, where: str) -> TrainingConfig:
    """A configuration from named values over a preset; `where` is what messages call them.

    Raises:
        SettingsError: something is unknown, or a value cannot be used.
    """
    from idlora.training.identity.presets import KEEP_BEST, preset_config

    values = {name: value for name, value in data.items() if name != "preset"}
    name = str(data["preset"]) if "preset" in data else preset
    chosen = from_json(TrainingConfig() if name is None else preset_config(name), values, where)
    validated = chosen.data.validation and chosen.watching.validate_every
    best = KEEP_BEST.get(name or "", "")
    if best and validated and "keep_best" not in values.get("saving", {}):
        return replace(chosen, saving=replace(chosen.saving, keep_best=best))
    return chosen


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Named values, over them others, record by record.

    Raises:
        SettingsError: what is a value in the old is a record in the new.
    """
    found = dict(old)
    for name, value in new.items():
        inner = name in found and isinstance(value, Mapping)
        if inner and not isinstance(found[name], Mapping):
            raise SettingsError(f"{name} is {found[name]!r}, and values inside {name} are named too; leave one out")
        found[name] = merged(found[name], value) if inner else value
    return found


def parse_yaml(text: str, where: str = "the value") -> object:
    """YAML as `yaml.safe_load` reads it, but 2e-4 is a number, which YAML 1.1 takes for text, and no name comes twice.

    Args:
        text: of a file, or a value.
        where: what messages call it.

    Raises:
        SettingsError: it is no YAML, or a name comes twice in a record.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Its own, so that the library's stays as it is."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if doubles := [name for name in names if names.count(name) > 1]:
                raise SettingsError(f"{where} has {doubles[0]!r} twice in one place; keep one of them")
            return node

    number = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a safe loader
    except SettingsError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:  # 2024-13-45 is no date
        reason = " ".join(str(error).split())
        raise SettingsError(f"{where} is not YAML ({reason}); correct it") from error


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A mapping from a YAML file (SettingsError if it is none)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not YAML ({error}); correct it") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, Mapping):
        raise SettingsError(f"{path} holds no named values; say `model: {{name: miniature}}` and so on")
    return data
