# SPDX-License-Identifier: Apache-2.0
"""`idlora generate`: one clip."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlora.cli.options import TABLE, settings_json, with_options
from idlora.errors import InputError, OutputError, SettingsError

if TYPE_CHECKING:
    from idlora.core.samplers import Callback, Step
    from idlora.networks.generations import Generation
    from idlora.pipeline import IDLoraPipeline, Keyframe, Parts, Placement, Settings, TextCache
    from idlora.pipeline.plan import Demand

_DTYPES = ("float32", "bfloat16", "float16")


@with_options(TABLE)
def generate(**values: Any) -> None:
    """Make a clip: --image's face says --prompt's words in --voice's voice; with --jobs, many."""
    if values["jobs"] is not None:
        _all(values)
    elif values["prompt"] is not None:
        _one(values)
    else:
        raise InputError("there is nothing to make; give --prompt TEXT, or --jobs FILE")


def _one(values: dict[str, Any]) -> None:
    from idlora.pipeline import Request, progress_bar

    if values["ray"]:
        raise InputError("--ray is for many clips; give --jobs FILE, or leave it out")
    out: Path = values["out"]
    check_target(out)
    pipe = load(values)
    settings = chosen_settings(pipe, values)
    keyframes = tuple(keyframe_of(text) for text in values["keyframe"] or ())
    request = Request(values["prompt"], settings, values["image"], values["voice"], keyframes)
    if pipe.ranks is not None and pipe.ranks.rank > 0:  # helps with the passes; the first process writes
        pipe.generate_batch([request])
        return
    with progress_bar() as moved:
        callback = moved if values["preview"] is None else with_previews(moved, pipe, settings, values["preview"], out)
        result = pipe.generate_batch([request], callback)[0]
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    sidecar = result.save(out)
    print(f"{out} ({settings.seconds:.2f} s of video, made in {sum(result.timings.values()):.1f} s), {sidecar.name}")


def _all(values: dict[str, Any]) -> None:
    """Do the jobs of a file."""
    from idlora.pipeline.jobs import Outcome, read_jobs, run_jobs, run_jobs_on_cluster

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("several processes make one clip together; for --jobs take --ray, one process")
    for name in ("prompt", "image", "voice", "keyframe", "preview"):
        if values[name]:
            raise InputError(f"--{name} and --jobs exclude each other; write it into the jobs")
    # On a cluster the workers load the model; here its configuration is enough.
    pipe = load({**values, "placement": "offload", "fuse": False} if values["ray"] else values)
    jobs = read_jobs(values["jobs"], chosen_settings(pipe, values), pipe.generation)

    def told(outcome: Outcome) -> None:
        print(f"{outcome.name}: {outcome.state}" + (f", {outcome.reason}" if outcome.reason else ""), flush=True)

    if values["ray"]:
        gpus = 1 if pipe.device.type == "cuda" else 0
        outcomes = run_jobs_on_cluster(partial(load, values), jobs, values["out"], values["workers"], told, gpus=gpus)
    else:
        outcomes = run_jobs(pipe, jobs, values["out"], told)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    if failed:
        raise InputError(f"{failed} of {len(outcomes)} jobs failed; {values['out'] / 'report.json'} says why")


def with_previews(moved: Callback, pipe: IDLoraPipeline, settings: Settings, every: int, out: Path) -> Callback:
    """The callback and, every so many steps, `x.preview.wav` and `x.preview.mp4` beside x.mp4, each over the last."""
    from idlora.data.media import write_mp4, write_wav
    from idlora.pipeline import Preview, Previews

    def show(preview: Preview) -> None:
        write_wav(out.with_suffix(".preview.wav"), preview.audio[0], preview.sample_rate)
        write_mp4(
            out.with_suffix(".preview.mp4"), preview.video[0], preview.frame_rate, preview.audio[0], preview.sample_rate
        )

    previews = Previews(pipe, settings, every, show)

    def both(step: Step) -> bool | None:
        previews(step)
        return moved(step)

    return both


def check_target(out: Path) -> None:
    """Refuse a target that could not be written before any work is done."""
    from idlora.pipeline.output import check_name

    check_name(out)
    if not out.parent.is_dir():
        raise OutputError(f"there is no folder {out.parent}; make it, or choose another --out")


def load(values: dict[str, Any]) -> IDLoraPipeline:
    """The pipeline that the options of the panel Model name."""
    import torch

    from idlora.networks.kernels import check_attention
    from idlora.networks.ranks import joined_ranks
    from idlora.pipeline import IDLoraPipeline, Parts

    quieten()
    use_threads(values["threads"])
    parts = Parts(values["text_encoder"], values["upsampler"], values["transformer"])
    device, dtype = checked_device(own_device(values["device"])), checked_dtype(values["dtype"])
    check_attention(values["attention"] or "", torch.device(device), dtype)
    pipe = IDLoraPipeline.from_pretrained(
        values["model"],
        adapter=values["adapter"],
        adapter_strength=values["adapter_strength"],
        device=device,
        dtype=dtype,
        parts=parts,
        placement=fitted_placement(values, parts, device),
    )
    pipe.text_cache = text_cache_of(values["text_cache"])
    pipe.compiled, pipe.graphs = bool(values["compile"]), bool(values["graphs"])
    pipe.attention = values["attention"] or ""
    pipe.ranks = joined_ranks(os.environ, pipe.device)
    if values["distilled"] is not None:
        pipe.add_adapter("distilled", values["distilled"])
    for number, style in enumerate(values["style"] or (), 1):
        pipe.add_adapter(f"style {number}", *style_of(style))
    if values["fuse"]:
        pipe.fuse_adapters()
    return pipe


def use_threads(count: int | None) -> None:
    """Compute with so many threads of the CPU (SettingsError for none at all)."""
    import torch

    if count is None:
        return
    if count < 1:
        raise SettingsError(f"--threads {count}: give at least 1, or leave it out")
    torch.set_num_threads(count)


def own_device(name: str) -> str:
    """The device of this process, if a launcher such as torchrun started several."""
    local = os.environ.get("LOCAL_RANK")
    return name if local is None or name not in ("cuda", "auto") else f"cuda:{local}"


def text_cache_of(name: str) -> TextCache | None:
    """The cache that --text-cache names: the user's own (`auto`), none (`off`), or a folder."""
    from idlora.pipeline import TextCache
    from idlora.pipeline.texts import default_cache_folder

    if name == "off":
        return None
    return TextCache(default_cache_folder() if name == "auto" else Path(name))


def fitted_placement(values: Mapping[str, Any], parts: Parts, device: str) -> Placement:
    """The placement that the options name; `auto` on CUDA is the fastest that fits the memory of the device."""
    import torch

    from idlora.networks.generations import generation_of
    from idlora.pipeline.plan import demand_of
    from idlora.pipeline.sources import read_model

    if values["placement"] != "auto" or not device.startswith("cuda"):
        return wanted_placement(values, None, None)
    outline = read_model(values["model"], parts)
    card, generation = outline.card, generation_of(outline.blueprints["transformer"].full_config())
    settings, dtype = override(card.defaults, generation, values), checked_dtype(values["dtype"])
    most = values["max_branches"]
    demand = demand_of(outline.blueprints, settings, dtype, card.max_text_tokens, outline.adapter_rank, most)
    return wanted_placement(values, demand, torch.cuda.get_device_properties(device).total_memory)


def wanted_placement(values: Mapping[str, Any], demand: Demand | None, memory: int | None) -> Placement:
    """The placement that the options name; of `auto` the fastest that fits, whole where nothing is to be fitted.

    A storage of `auto` is chosen with the place; without a choice of place it is `full`.
    """
    from idlora.pipeline import Placement
    from idlora.pipeline.plan import choose

    where, storage, tiled = values["placement"], values["storage"], values["tiled"]
    if where != "auto" or demand is None or memory is None:
        unfitted: dict[str, Any] = {
            "where": "whole" if where == "auto" else where,
            "storage": "full" if storage == "auto" else storage,
        }
        return Placement(**unfitted, tiled=bool(tiled), max_branches=values["max_branches"])
    chosen = choose(demand, memory, storage if storage == "auto" else Placement(storage=storage).storage)
    chosen = replace(chosen, max_branches=values["max_branches"])
    return chosen if tiled is None else replace(chosen, tiled=tiled)


def checked_dtype(name: str) -> Any:
    """The dtype of that name (SettingsError if weights cannot have it)."""
    import torch

    if name not in _DTYPES:
        raise SettingsError(f"dtype {name!r}; choose one of {', '.join(_DTYPES)}")
    return getattr(torch, name)


def keyframe_of(text: str) -> Keyframe:
    """FILE@FRAME or FILE@FRAME:STRENGTH (InputError if it is neither)."""
    from idlora.pipeline import Keyframe

    file, _, rest = text.rpartition("@")
    frame, _, strength = rest.partition(":")
    try:
        number, share = int(frame), float(strength or 1)
    except ValueError as error:
        raise InputError(f"--keyframe {text!r} is not FILE@FRAME or FILE@FRAME:STRENGTH; say end.png@-1:0.8") from error
    return Keyframe(file, number, share)


def style_of(text: str) -> tuple[str, float]:
    """File and strength of FILE or FILE:STRENGTH; a colon in front of what is no number belongs to the file."""
    file, _, strength = text.rpartition(":")
    try:
        return (file, float(strength)) if file else (text, 1.0)
    except ValueError:
        return text, 1.0


def checked_device(name: str) -> str:
    """The name of a device that is there; `auto` is the first of cuda, mps and cpu (SettingsError if it is not)."""
    import torch

    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return next(kind for kind, found in there.items() if found)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used here; choose auto, cpu, or cuda with a GPU") from error
    return name


def quieten() -> None:
    """Keep the libraries' own notices and progress bars from the terminal."""
    import logging
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def chosen_settings(pipe: IDLoraPipeline, values: dict[str, Any]) -> Settings:
    """The model's defaults, over them --preset, --settings and the options given, each over the ones before."""
    return override(pipe.card.defaults, pipe.generation, values)


def override(base: Settings, generation: Generation, values: Mapping[str, Any]) -> Settings:
    """Settings, over them --preset, --settings and the options given."""
    from idlora.pipeline import preset_settings, read_settings, settings_from_json

    if values["preset"] is not None:
        base = preset_settings(values["preset"], base, generation)
    if values["settings"] is not None:
        base = read_settings(values["settings"], base)
    return settings_from_json(settings_json(values), base)
