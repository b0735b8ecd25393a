# SPDX-License-Identifier: Apache-2.0
"""What approximations of guidance save and how far they lead from the exact step, on the miniature's trained weights.

`python benchmarks/approximations.py` prints a table, `--json` the same as JSON.

A clip of a speaker who steers choices (split `validation`) is denoised exactly. At each of its steps every setting
makes its guided prediction from the same state; what it reuses is what it computed at earlier states of that path. The
error is the length of the difference as a share of the exact prediction's length, over the tokens that are denoised.
`end` is the same of the clean tokens when the setting goes its own way from the first step on. Scales of text and
identity guidance are the miniature's own; perturbation (1, block 4) and modality guidance (3), which it does not use,
are switched on.

`products` is the share of the operations of five separate passes at the published size of LTX-2.3, 512 x 512 x 121,
over 30 steps. `time` is measured on the miniature: the processor time of the setting's own steps as a share of that of
exact steps from the same states, the two in turn, one thread. The miniature has few blocks and narrow ones, so that
caching and shared prefixes save another share there than at the published size.

`--judged N --out DIR` makes clips of each of N unseen speakers in every way as well, two or `--prompts`, and judges
them (`judged.py`): the change of similarity, word errors, lips, place and style against the exact way. `--only`
takes some of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from judged import EXACT, MEASURES, Change, judged
from torch import Tensor

from idlora.core.guidance import X0, Guidance, ModalityGuidance, Pass, STGuidance
from idlora.core.noise import generators_for
from idlora.core.reference import target_part
from idlora.core.samplers import Step, sample_euler
from idlora.core.schedules import ltx2_sigmas
from idlora.core.state import AVState, LatentState
from idlora.data.media import Voice
from idlora.data.world.captions import caption
from idlora.data.world.speakers import Split
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.clips import first_frame, reference_sound, target
from idlora.evaluation.statistics import Floats, mean_over
from idlora.networks.denoiser import GuidedDenoiser
from idlora.networks.published import all_sizes
from idlora.networks.work import Tokens, step_work
from idlora.pipeline import IDLoraPipeline, Request, Settings
from idlora.pipeline.generation import noise, prepare, schedule
from idlora.pipeline.inputs import Inputs, read_inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.output import versions

SPLIT: Split = "validation"
SECONDS, BLOCK, PUBLISHED_BLOCK, PUBLISHED_BLOCKS = 3.0, 4, 28, 48
PUBLISHED, STEPS = Tokens(video=4096, audio=121, reference=126, text=1024), 30


def changed(**terms: Mapping[str, Any]) -> Change:
    """Some fields of some terms of guidance replaced."""

    def change(base: Settings) -> Settings:
        new = {name: replace(getattr(base.guidance, name), **fields) for name, fields in terms.items()}
        return replace(base, guidance=replace(base.guidance, **new))

    return change


REUSED = {"stg": {"every": 2}, "modality": {"every": 2}}
SETTINGS: Mapping[str, Change] = {
    "identity on the audio alone": changed(identity={"audio_only": True}),
    "identity every 2": changed(identity={"every": 2}),
    "perturbation every 2": changed(stg={"every": 2}),
    "perturbation every 3": changed(stg={"every": 3}),
    "modality every 2": changed(modality={"every": 2}),
    "modality every 3": changed(modality={"every": 3}),
    "text every 2": changed(text={"every": 2}),
    "perturbation above sigma 0.5": changed(stg={"lo": 0.5}),
    "modality above sigma 0.5": changed(modality={"lo": 0.5}),
    "identity above sigma 0.5": changed(identity={"lo": 0.5}),
    "text above sigma 0.5": changed(text={"lo": 0.5}),
    "perturbation below sigma 0.9": changed(stg={"hi": 0.9}),
    "modality below sigma 0.9": changed(modality={"hi": 0.9}),
    "text below sigma 0.9": changed(text={"hi": 0.9}),
    "preset fast: audio alone, perturbation and modality every 2": changed(identity={"audio_only": True}, **REUSED),
}
# These depend on the path that the clip takes, so that nothing is told of single steps.
CACHES: Mapping[str, Change] = {
    f"first-block cache {share:g}": partial(replace, first_block_cache=share) for share in (0.03, 0.06, 0.12, 0.2)
}


@dataclass(frozen=True)
class Told(GuidedDenoiser):
    """A denoiser that is told the predictions of passes."""

    table: dict[Pass, X0] = field(default_factory=dict)

    def predict(self, _state: AVState, _sigma: float, plan: list[Pass]) -> dict[str, X0]:
        """Look them up."""
        return {run.name: self.table[run] for run in plan}


@dataclass(frozen=True)
class Planned(GuidedDenoiser):
    """A denoiser that writes down its plans."""

    plans: list[list[Pass]] = field(default_factory=list)

    def predict(self, state: AVState, _sigma: float, plan: list[Pass]) -> dict[str, X0]:
        """Zeros for every pass."""
        self.plans.append(plan)
        rows = state.audio.num_reference
        audio = {run.name: state.audio.tokens[:, 0 if run.reference else rows :] for run in plan}
        return {run.name: X0(state.video.tokens, audio[run.name], rows * run.reference) for run in plan}


def products(guidance: Guidance) -> float:
    """The share of the operations of five passes over a clip at the published size."""
    config = all_sizes("2.3")["transformer"].full_config()
    guidance = replace(guidance, stg=replace(guidance.stg, blocks=(PUBLISHED_BLOCK,)))
    empty = torch.zeros(1, 2, 1)
    video = LatentState(empty, empty, empty, empty)
    planned = Planned(None, None, None, guidance)  # type: ignore[arg-type]
    for sigma in ltx2_sigmas(STEPS).tolist()[:-1]:
        planned(AVState(video, replace(video, num_reference=1)), sigma)
    whole = [replace(run, perturbed_blocks=()) for run in replace(guidance, stg=STGuidance()).plan(0.7, 1)]
    plain = sum(step_work(config, PUBLISHED, [replace(run, audio_only=False)]).flops for run in whole)
    return sum(step_work(config, PUBLISHED, plan).flops for plan in planned.plans) / STEPS / plain


@dataclass(frozen=True)
class Errors:
    """Of one setting, each (clips, 2), video and audio: at every step, and at the end."""

    steps: list[Floats] = field(default_factory=list)
    end: list[Floats] = field(default_factory=list)
    time: list[float] = field(default_factory=list)  # share of the exact steps' processor time
    skipped: list[float] = field(default_factory=list)  # shares of steps that ended behind the first block


def distance(found: AVState, exact: AVState) -> Floats:
    """Of the tokens that are denoised, as shares of the exact ones' length, (clips, 2)."""
    parts = []
    for a, b in ((found.video, exact.video), (found.audio, exact.audio)):
        mask, rows = target_part(b.denoise_mask, b.num_reference), b.num_reference
        one, other = (target_part(each.tokens, rows) * mask for each in (a, b))
        parts.append((_length(one - other) / _length(other)).numpy())
    return np.stack(parts, axis=1)


def _length(x: Tensor) -> Tensor:
    return x.double().square().sum((1, 2)).sqrt()


def asked_of(speaker: int, pipe: IDLoraPipeline, settings: Settings) -> Inputs:
    """The clip of one speaker, with another clip's voice of the same."""
    asked = target(SPLIT, speaker, 0)
    voice = Voice(reference_sound(SPLIT, speaker, asked, SECONDS)[None], SAMPLE_RATE)
    request = Request(caption(asked), replace(settings, seed=speaker), first_frame(asked), voice)
    return read_inputs(request, pipe.card.vocabulary)


def compared(pipe: IDLoraPipeline, settings: Settings, num_clips: int, names: Sequence[str]) -> dict[str, Errors]:
    """Some approximations on clips of so many speakers."""
    base = settings.guidance
    batch = [asked_of(speaker, pipe, settings) for speaker in range(num_clips)]
    texts = pipe.texts(batch, Meter(pipe.device))
    state = noise(prepare(batch, settings, pipe.codecs, pipe.device), generators_for(range(num_clips)))
    model, sigmas = pipe._model(settings), schedule(settings, pipe.codecs.grid(settings))
    make = partial(GuidedDenoiser, model, texts.positive, texts.negative)
    tell = partial(Told, model, texts.positive, texts.negative)
    exact, table = make(base), dict[Pass, X0]()
    changes = {name: change for name, change in SETTINGS.items() if name in names}
    told = {name: tell(change(settings).guidance, table=table) for name, change in changes.items()}
    errors = {name: Errors() for name in names}
    alone = replace(base.identity, audio_only=True).other_pass()

    def look(step: Step) -> None:
        plan = base.plan(step.sigma, step.state.audio.num_reference)
        found = exact.predict(step.state, step.sigma, [*plan, replace(alone, name="alone")])
        table.clear()
        table.update({run: found[run.name] for run in plan} | {alone: found["alone"]})
        guided = tell(base, table=table)(step.state, step.sigma)
        for name, denoiser in told.items():
            errors[name].steps.append(distance(denoiser(step.state, step.sigma), guided))

    end = sample_euler(exact, state, sigmas, callback=look)
    for name, change in changes.items():
        own, share = walked(make(change(settings).guidance), exact, state, sigmas)
        errors[name].end.append(distance(own, end))
        errors[name].time.append(share)
    for name in (name for name in names if name in CACHES):
        cached = make(base, first_block=CACHES[name](settings).first_block_cache)
        own, share = walked(cached, exact, state, sigmas)
        errors[name].end.append(distance(own, end))
        errors[name].time.append(share)
        errors[name].skipped.extend(
            cache.taken / cache.steps for cache in cached.executor.caches.values() if cache.steps
        )
    return errors


def walked(denoiser: GuidedDenoiser, exact: GuidedDenoiser, state: AVState, sigmas: Tensor) -> tuple[AVState, float]:
    """Where a setting's own way ends, and its processor time as a share of the exact steps' from the same states."""
    spent = 0.0

    def beside(step: Step) -> None:
        nonlocal spent
        before = process_time()
        exact(step.state, step.sigma)
        spent += process_time() - before

    before = process_time()
    end = sample_euler(denoiser, state, sigmas, callback=beside)
    return end, (process_time() - before - spent) / spent


def summary(errors: Errors) -> dict[str, Any]:
    """Means over clips with 95 % intervals; the step that is worst on average, by its number."""
    told: dict[str, Any] = {"time": errors.time[0]}
    for i, stream in enumerate(("video", "audio")):
        end = mean_over(errors.end[0][:, i : i + 1])
        told[stream] = {"end": [end.value, end.low, end.high]}
        if errors.steps:
            steps = np.stack(errors.steps, axis=1)[:, :, i]  # (clips, steps)
            mean, by_step = mean_over(steps), steps.mean(0)
            told[stream] |= {
                "mean": [mean.value, mean.low, mean.high],
                "worst_step": [float(by_step.max()), int(by_step.argmax()) + 1],
            }
    return told


def settings_of(pipe: IDLoraPipeline, num_steps: int | None) -> Settings:
    """The model's own with all terms of guidance."""
    own = pipe.card.defaults
    base = replace(own.guidance, stg=STGuidance(blocks=(BLOCK,)), modality=ModalityGuidance())
    return replace(own, guidance=base, num_inference_steps=num_steps or own.num_inference_steps)


def measured(num_clips: int, num_steps: int | None, names: Sequence[str]) -> dict[str, Any]:
    """Some settings on so many clips, one a speaker."""
    pipe = IDLoraPipeline.from_pretrained("miniature")
    settings = settings_of(pipe, num_steps)
    base, found = settings.guidance, compared(pipe, settings, num_clips, names)
    told: dict[str, Any] = {"exact": {"products": products(base), "time": 1.0}}
    for name, change in ((name, SETTINGS[name]) for name in names if name in SETTINGS):
        told[name] = {"products": products(change(settings).guidance), **summary(found[name])}
    for name in (name for name in names if name in CACHES):
        through = 1 - float(np.mean(found[name].skipped))  # the share of steps that go through more than one block
        told[name] = {"products": products(base) * (through + (1 - through) / PUBLISHED_BLOCKS), **summary(found[name])}
    size = {"clips": num_clips, "split": SPLIT, "steps": settings.num_inference_steps}
    return {"settings": told, **size, "model": pipe.digests, "versions": versions()}


def row(name: str, each: Mapping[str, Any]) -> str:
    """A line of the table."""
    cells = [name, f"{each['products']:.3f}", f"{each['time']:.3f}"]
    for stream in ("video", "audio"):
        if stream not in each:
            cells += ["0", "0", "0"]
            continue
        end, end_low, end_high = each[stream]["end"]
        if "mean" in each[stream]:
            (mean, low, high), (worst, number) = each[stream]["mean"], each[stream]["worst_step"]
            cells += [f"{mean:.2%} ({low:.2%} to {high:.2%})", f"{worst:.2%} (step {number})"]
        else:
            cells += ["-", "-"]
        cells.append(f"{end:.2%} ({end_low:.2%} to {end_high:.2%})")
    return "| " + " | ".join(cells) + " |"


def judged_lines(told: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """The table of judgements."""
    lines = ["| setting | " + " | ".join(MEASURES) + " | clips |", "|---" * (len(MEASURES) + 2) + "|"]
    for name, row in told.items():
        sign = "" if name == EXACT else "+"
        cells = [
            f"{row[m][0]:{sign}.3f} ({row[m][1]:{sign}.3f} to {row[m][2]:{sign}.3f})" for m in MEASURES if m in row
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {max(int(each[3]) for each in row.values())} |")
    return lines


STREAM = "a step | worst step | at the end"
HEAD = f"| setting | products | time | video: {STREAM} | audio: {STREAM} |"


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--steps", type=int, default=None, help="the miniature's own number by default")
    parser.add_argument("--judged", type=int, default=0, metavar="N", help="speakers whose clips are judged, to 40")
    parser.add_argument("--prompts", type=int, default=2, help="clips of each of them")
    parser.add_argument("--out", type=Path, default=Path("approximations"), help="folder of the scores of clips")
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS, *CACHES], help="these settings alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = given.only or [*SETTINGS, *CACHES]
    if given.judged:
        pipe = IDLoraPipeline.from_pretrained("miniature")
        changes = {name: {**SETTINGS, **CACHES}[name] for name in names}
        rows = judged(pipe, settings_of(pipe, given.steps), changes, (given.judged, given.prompts), given.out)
        print(json.dumps(rows, indent=1) if given.json else "\n".join(judged_lines(rows)))
        return
    told = measured(given.clips, given.steps, names)
    if given.json:
        print(json.dumps(told, indent=1))
        return
    lines = [row(name, each) for name, each in told["settings"].items()]
    print("\n".join([HEAD, "|---" * 9 + "|", *lines]))


if __name__ == "__main__":
    main()
