# SPDX-License-Identifier: Apache-2.0
"""The options of `idlora generate` as one table: name, meaning, and the setting that each one stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

INPUTS, CLIP, GUIDANCE, SWITCHES, MODEL = "Inputs", "Clip", "Guidance", "Switches", "Model"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One option.

    Attributes:
        flag: as typed; with `/--other` a switch.
        kind: type of its value.
        help: one sentence.
        panel: heading in the help.
        setting: dotted path in the JSON of `Settings`; empty if the command itself uses it.
        default: what the command gets if it is not given.
    """

    flag: str
    kind: Any
    help: str
    panel: str
    setting: str = ""
    default: Any = None

    @property
    def name(self) -> str:
        """Name of the keyword: the first flag, its dashes as underscores."""
        return self.flag.split("/")[0].removeprefix("--").replace("-", "_")


PLACEMENT = (
    Row("--placement", str, "auto, or where networks are: whole, offload, stream.", MODEL, default="auto"),
    Row(
        "--storage",
        str,
        "Of the transformer: full; fp8, int8: eight bits; fp8-scaled: products too; nf4: four; auto: as fits.",
        MODEL,
        default="full",
    ),
    Row("--tiled/--not-tiled", bool, "Decode the picture in tiles.", MODEL),
    Row("--max-branches", int, "So many guidance passes as one batch: faster on a GPU, more memory.", MODEL, default=1),
)
TABLE = (
    Row("--prompt", str, "What is seen, said (in quotes or after [SPEECH]) and heard.", INPUTS),
    Row("--jobs", Path, "File of jobs, one JSON object a line, instead; --out is their folder.", INPUTS),
    Row("--ray/--no-ray", bool, "Do the jobs on the Ray cluster that is there, or on this machine's.", SWITCHES),
    Row("--workers", int, "With --ray: so many at once, each with a model of its own.", INPUTS, default=2),
    Row("--image", Path, "First frame: any common picture.", INPUTS),
    Row("--keyframe", list[str], "FILE@FRAME or FILE@FRAME:STRENGTH, -1 is the last; may be repeated.", INPUTS),
    Row("--voice", Path, "Whose voice: any sound or video file, 0.5 s or longer.", INPUTS),
    Row("--negative-prompt", str, "What text guidance leads away from.", INPUTS, "negative_prompt"),
    Row("--preset", str, "one-stage, fast, two-stage, hq, distilled or official; other options win.", INPUTS),
    Row("--settings", Path, "JSON file of settings, or a result's sidecar; options given here win.", INPUTS),
    Row("--out", Path, "MP4 file to write; a sidecar JSON comes beside it.", INPUTS, default=Path("out.mp4")),
    Row("--preview", int, "Every so many steps the sound so far and a small picture, beside --out.", INPUTS),
    Row("--frames", int, "Number of frames, 8k + 1.", CLIP, "num_frames"),
    Row("--height", int, "Pixels, a multiple of 32 (miniature: 24).", CLIP, "height"),
    Row("--width", int, "Pixels, a multiple of 32 (miniature: 24).", CLIP, "width"),
    Row("--aspect", str, "size, or picture: the first picture's shape, height x width its area.", CLIP, "aspect"),
    Row("--fps", float, "Frames a second.", CLIP, "frame_rate"),
    Row("--steps", int, "Denoising steps.", CLIP, "num_inference_steps"),
    Row("--sigmas", str, "Noise levels down to 0, such as 1,0.7,0.4,0, instead of steps.", CLIP, "sigmas"),
    Row("--refine-sigmas", str, "Levels of a second stage at twice the size; empty is none.", CLIP, "refine.sigmas"),
    Row("--seed", int, "The same seed gives the same clip.", CLIP, "seed"),
    Row("--sampler", str, "euler, or res2s: two calls a step and fresh noise.", CLIP, "sampler"),
    Row("--shift", str, "Schedule: fixed (4,096 tokens) or by-size.", CLIP, "shift"),
    Row("--text-video-scale", float, "Text guidance of the picture; 1 is off.", GUIDANCE, "guidance.text.video"),
    Row("--text-audio-scale", float, "Text guidance of the sound; 1 is off.", GUIDANCE, "guidance.text.audio"),
    Row("--text-star/--no-text-star", bool, "CFG-Zero*: project the negative first.", SWITCHES, "guidance.text.star"),
    Row("--text-interval", Interval, "Sigmas, low and high, between which it acts.", GUIDANCE, "guidance.text"),
    Row("--text-every", int, "Computed in one of so many steps, and reused.", GUIDANCE, "guidance.text.every"),
    Row("--identity-scale", float, "Pull towards the voice; 0 is off.", GUIDANCE, "guidance.identity.scale"),
    Row("--identity-video-scale", float, "The same for the picture; 0 is off.", GUIDANCE, "guidance.identity.video"),
    Row(
        "--identity-base/--no-identity-base",
        bool,
        "The pass without the reference is by the base alone, its adapter off.",
        SWITCHES,
        "guidance.identity.adapter_off",
    ),
    Row(
        "--identity-audio-only/--identity-both",
        bool,
        "The pass without the reference is on the audio alone: faster, an approximation.",
        SWITCHES,
        "guidance.identity.audio_only",
    ),
    Row("--identity-interval", Interval, "Sigmas between which it acts.", GUIDANCE, "guidance.identity"),
    Row("--identity-every", int, "Computed in one of so many steps, and reused.", GUIDANCE, "guidance.identity.every"),
    Row("--stg-video-scale", float, "Spatio-temporal guidance; 0 is off.", GUIDANCE, "guidance.stg.video"),
    Row("--stg-audio-scale", float, "Spatio-temporal guidance; 0 is off.", GUIDANCE, "guidance.stg.audio"),
    Row("--stg-blocks", str, "Blocks that it perturbs, such as 28,29.", GUIDANCE, "guidance.stg.blocks"),
    Row("--stg-interval", Interval, "Sigmas between which it acts.", GUIDANCE, "guidance.stg"),
    Row("--stg-every", int, "Computed in one of so many steps, and reused.", GUIDANCE, "guidance.stg.every"),
    Row("--modality-video-scale", float, "Modality guidance; 1 is off.", GUIDANCE, "guidance.modality.video"),
    Row("--modality-audio-scale", float, "Modality guidance; 1 is off.", GUIDANCE, "guidance.modality.audio"),
    Row("--modality-interval", Interval, "Sigmas between which it acts.", GUIDANCE, "guidance.modality"),
    Row("--modality-every", int, "Computed in one of so many steps, and reused.", GUIDANCE, "guidance.modality.every"),
    Row(
        "--first-block-cache",
        float,
        "Skip steps whose first block changed less than this; 0 is off.",
        GUIDANCE,
        "first_block_cache",
    ),
    Row("--rescale-video", float, "Pull the spread back to the unguided one.", GUIDANCE, "guidance.rescale.video"),
    Row("--rescale-audio", float, "Pull the spread back to the unguided one.", GUIDANCE, "guidance.rescale.audio"),
    Row(
        "--reference-mask/--no-reference-mask",
        bool,
        "Hide the reference from the picture.",
        SWITCHES,
        "mask_reference_to_video",
    ),
    Row("--reference-text", str, "What the reference gets of the text: open, average, block.", CLIP, "reference_text"),
    Row(
        "--reference-attention",
        str,
        "What the reference hears: joint, or alone for adapters trained so.",
        CLIP,
        "reference_attention",
    ),
    Row("--positions", str, "fp32, or as the official code: bf16-inference, bf16-training.", CLIP, "positions"),
    Row(
        "--reference-time",
        str,
        "Where the reference lies: negative; for adapters trained so, adjacent, shared, far.",
        CLIP,
        "reference_time",
    ),
    Row(
        "--official-noise/--own-noise",
        bool,
        "Draw the noise of reference and target in one go, as the official code does.",
        SWITCHES,
        "official_noise",
    ),
    Row("--voice-seconds", float, "Longer voices are cut to their best part.", CLIP, "max_voice_seconds"),
    Row("--clean-voice/--raw-voice", bool, "Take noise out of the voice first.", SWITCHES, "clean_voice"),
    Row(
        "--model",
        str,
        "miniature, a folder, a hub id or an official single file.",
        MODEL,
        default="miniature",
    ),
    Row("--text-encoder", Path, "Folder of Gemma; an official single file needs one.", MODEL),
    Row("--upsampler", Path, "File or folder of the spatial upscaler.", MODEL),
    Row("--transformer", str, "Its subfolder; LTX-2.5: transformer_full.", MODEL, default="transformer"),
    Row("--adapter", Path, "Identity adapter, instead of the model's own.", MODEL),
    Row("--adapter-strength", float, "1 = as trained.", MODEL),
    Row("--distilled", Path, "The distilled adapter.", MODEL),
    Row("--distilled-strength", float, "Of it in the first stage.", MODEL, "distilled"),
    Row("--refine-strength", float, "Of it in the second stage.", MODEL, "refine.distilled"),
    Row("--style", list[str], "One more adapter, FILE or FILE:STRENGTH; may be repeated.", MODEL),
    Row("--fuse/--keep-apart", bool, "Add adapters (not the distilled one) to the weights: faster steps.", MODEL),
    Row("--compile/--eager", bool, "Compile the blocks: a minute or more at first, then faster steps.", MODEL),
    Row("--graphs/--no-graphs", bool, "Record steps as CUDA graphs: no time to launch kernels.", MODEL),
    Row("--attention", str, "One of diffusers' attention backends: flash, sage, ...; PyTorch's own by default.", MODEL),
    Row("--threads", int, "Of the CPU; as many as PyTorch takes by default.", MODEL),
    Row("--device", str, "cpu, cuda, mps, or auto: the best that is there.", MODEL, default="cpu"),
    Row("--dtype", str, "Of the weights: float32, bfloat16 or float16.", MODEL, default="float32"),
    Row("--text-cache", str, "Folder that keeps encoded prompts, auto or off.", MODEL, default="auto"),
    *PLACEMENT,
)
# What decides how much memory a clip takes.
PLAN_TABLE = (
    Row("--generation", str, "2.0, 2.3 or 2.5 at its published size.", MODEL, default="2.3"),
    Row("--model", str, "miniature, a folder or an official single file, instead of a generation.", MODEL),
    Row("--text-encoder", Path, "Folder of Gemma; an official single file needs one.", MODEL),
    Row("--upsampler", Path, "File or folder of the spatial upscaler.", MODEL),
    Row("--transformer", str, "Its subfolder; LTX-2.5: transformer_full.", MODEL, default="transformer"),
    Row("--dtype", str, "Of the weights: float32, bfloat16 or float16.", MODEL, default="bfloat16"),
    Row("--device-memory", str, "Bytes of the device, such as 24GB (10^9) or 24GiB (2^30).", MODEL),
    *PLACEMENT,
    *(row for row in TABLE if row.setting or row.flag in ("--preset", "--settings")),
    Row("--json", bool, "Print it as JSON.", MODEL, default=False),
)


def with_options(table: Sequence[Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command of `**values` one keyword for every row of a table."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        command.__signature__ = inspect.Signature([_parameter(row) for row in table])  # type: ignore[attr-defined]
        command.__annotations__ = {}
        return command

    return give


def _parameter(row: Row) -> inspect.Parameter:
    option = typer.Option(row.flag, help=row.help, rich_help_panel=row.panel, show_default=row.default is not None)
    kind = row.kind | None if row.default is None else row.kind
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=annotation)


def settings_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the given options say, in the shape of the JSON of `Settings`."""
    tree: dict[str, Any] = {}
    for row in TABLE:
        value = values.get(row.name)
        if row.setting and value is not None:
            for path, part in _leaves(row, value).items():
                _plant(tree, path.split("."), part)
    return tree


def _leaves(row: Row, value: Any) -> dict[str, Any]:
    if row.kind is Interval:
        return {f"{row.setting}.lo": value[0], f"{row.setting}.hi": value[1]}
    if row.setting in _LISTS:
        return {row.setting: [_number(part, _LISTS[row.setting]) for part in value.split(",") if part.strip()]}
    return {row.setting: value}


# Settings that are lists of numbers, written with commas.
_LISTS: Mapping[str, type[int] | type[float]] = {"guidance.stg.blocks": int, "sigmas": float, "refine.sigmas": float}


def _number(text: str, kind: type[int] | type[float]) -> float | str:
    """A number; anything else is left for the settings to refuse."""
    try:
        return kind(text)
    except ValueError:
        return text.strip()


def _plant(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
