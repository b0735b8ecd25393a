# SPDX-License-Identifier: Apache-2.0
"""The loop: accelerate's one process, DDP or FSDP2, accumulation, checkpoints, and what watches it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from idlora.errors import SettingsError, TrainingError
from idlora.training.identity.ahead import Ahead
from idlora.training.identity.batches import Batcher
from idlora.training.identity.checkpoints import Checkpoints, State, whole
from idlora.training.identity.checks import MEASURES
from idlora.training.identity.config import TrainingConfig
from idlora.training.identity.journal import Journal, Tally, by_sigma
from idlora.training.identity.module import StepLosses, TrainingModule
from idlora.training.identity.optimizer import Average, make_optimizer
from idlora.training.identity.sampling import Sampler, Visit, keyed_seed
from idlora.training.objective import TrainingBatch

Progress = Callable[[int, Mapping[str, float]], None]
BEST_NAME, FINAL_NAME = "best.safetensors", "adapter.safetensors"


class Watcher(Protocol):
    """Looks at a run at some of its steps."""

    def due(self, step: int) -> bool:
        """Whether it looks after this step."""

    def look(self, step: int, journal: Journal) -> Mapping[str, float]:
        """Measures by name; the parameters are those that would be saved."""


class Save(Protocol):
    """Writes an adapter file."""

    def __call__(self, path: Path, weights: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
        """Weights by the names of the trained parameters; `told` belongs into the metadata."""


@dataclass(frozen=True, eq=False)
class Job:
    """What the loop works on.

    Attributes:
        module: transformer with adapter, and the objective.
        batcher: makes batches of samples.
        sampler: chooses them.
        save: writes the adapter.
        watchers: in the order in which they look.
    """

    module: TrainingModule
    batcher: Batcher
    sampler: Sampler
    save: Save
    watchers: tuple[Watcher, ...] = ()


def silent(_step: int, _values: Mapping[str, float]) -> None:
    """A progress that says nothing."""


class Trainer:
    """Trains the parameters of a module that require gradients.

    Args:
        config: of the run.
        job: what is trained with what.
        accelerator: accelerate's; it knows of processes, devices and accumulation.
        progress: told after each step.
    """

    def __init__(self, config: TrainingConfig, job: Job, accelerator: Any, progress: Progress = silent) -> None:
        self.config, self.job, self.accelerator, self.progress = config, job, accelerator, progress
        sharded = accelerator.distributed_type == "FSDP"
        optimizer = make_optimizer(trained(job.module), config.optimization, sharded=sharded)
        if sharded:
            job.module.model.call_blocks()
        self.module, self.optimizer = accelerator.prepare(job.module, optimizer)
        self.parameters = trained(accelerator.unwrap_model(self.module))
        self.average = Average(self.parameters, config.optimization.ema)
        self.folder = Path(config.out)
        self.checkpoints = Checkpoints(self.folder, config.saving.keep_last, write=accelerator.is_main_process)
        self.step, self.best = 0, dict[str, float]()
        if (found := self.checkpoints.load(self._state())) is not None:
            self._check_size(found.size)
            self._check_data(found.data)
            self.step, self.best = found.step, dict(found.best)

    def _state(self) -> State:
        sampler = self.job.sampler
        told = self.step, self.best, sampler.size, tuple(sampler.data.values())
        return State(self.parameters, self.average.values, self.optimizer, *told)

    def _check_size(self, before: int) -> None:
        """Refuse another number of samples a step: samples would be left out or seen twice."""
        if before and before != self.job.sampler.size:
            raise SettingsError(
                f"{self.folder} was begun with {before} samples a step, now there are {self.job.sampler.size}: set "
                f"engine.batch and engine.accumulate so that with {self.accelerator.num_processes} processes they come "
                f"to {before}, or choose another folder (out)"
            )

    def _check_data(self, before: Sequence[tuple[int, str]]) -> None:
        """Refuse other samples: what a step sees, and in which order, follows from all of them."""
        if changed := self.job.sampler.changed(before):
            raise SettingsError(
                f"{self.folder} was begun with other samples in {', '.join(changed)}; put those back, or choose "
                "another folder (out)"
            )

    def run(self) -> None:
        """Train to the last step, then write the adapter; Ctrl-C ends the step, saves and raises KeyboardInterrupt.

        Raises:
            TrainingError: a loss is not finite, or a sample is damaged. The weights are those before that step.
            OutputError: something cannot be written; what was written before is intact.
        """
        self.module.train()
        main = self.accelerator.is_main_process
        ahead = Ahead(self._batch, self.config.steps * self.config.engine.accumulate)
        with interruption() as stop, ahead, Journal(self.folder, self.step, write=main) as journal:
            tally, started = Tally(), time.monotonic()
            while self.step < self.config.steps:
                norm = self._advance(tally, ahead)
                last = self.step == self.config.steps
                if last or self.step % self.config.watching.log_every == 0:
                    self._log(journal, tally, norm, time.monotonic() - started)
                    tally, started = Tally(), time.monotonic()
                try:
                    self._watch(journal, ahead)
                except Exception:
                    self._rescue()
                    raise
                asked = self._asked(stop)
                if last or asked or self.step % self.config.saving.every == 0:
                    self.checkpoints.save(self._state())
                if asked:
                    raise KeyboardInterrupt
        self._save(self.folder / FINAL_NAME, {})

    def _rescue(self) -> None:
        """Save the step after which a fault happened to what only looks on: going on begins behind it.

        Not before looking: a run that is killed meanwhile would go on without that look, and with other bits. Sharded
        weights stay where they are, since all processes would have to gather them and only one may be at fault.
        """
        if self.accelerator.distributed_type != "FSDP":
            self.checkpoints.save(self._state())

    def _asked(self, stop: Event) -> bool:
        """Whether a process was asked to stop: all must leave after the same step, or the rest would wait for ever."""
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        flag = torch.tensor(float(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _batch(self, number: int) -> TrainingBatch:
        """This process's batch of a number, counted over all steps."""
        step, part = divmod(number, self.config.engine.accumulate)
        mine = self._shares(self.job.sampler.visits(step))[part]
        place = part * self.accelerator.num_processes + self.accelerator.process_index
        return self.job.batcher.batch(mine, step, place)

    def _advance(self, tally: Tally, ahead: Ahead[TrainingBatch]) -> float:
        """One step of the optimiser; returns the gradient's length."""
        accelerator, options = self.accelerator, self.config.optimization
        torch.manual_seed(keyed_seed(self.config.seed, self.step, accelerator.process_index))  # dropout's
        visits = self.job.sampler.visits(self.step)
        finite, by_sample = torch.ones((), device=accelerator.device), []
        with self.job.module.attention():
            for part in range(self.config.engine.accumulate):
                with accelerator.accumulate(self.module):
                    batch = ahead.take(self.step * self.config.engine.accumulate + part)
                    losses: StepLosses = self.module(batch)
                    accelerator.backward(losses.total)
                finite = finite * torch.isfinite(losses.total.detach())
                by_sample.append(losses.video_by_sample + losses.audio_by_sample)
                tally.add(losses, batch.sigmas, _num_tokens(batch))
            # The choice of kernels is the process's: a batch made partly outside would not have the same bits.
            ahead.settle()
        if accelerator.reduce(finite, "sum").item() < accelerator.num_processes:
            raise TrainingError(self._not_finite(visits, torch.cat(by_sample)))
        norm = accelerator.clip_grad_norm_(list(self.parameters.values()), options.max_grad_norm or float("inf"))
        if not torch.isfinite(whole(norm)):
            raise TrainingError(self._not_finite(visits, torch.cat(by_sample)))
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(self.step, self.config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.step)
        return float(whole(norm))

    def _shares(self, visits: Sequence[Visit]) -> list[Sequence[Visit]]:
        """The samples of each batch of a step that are this process's."""
        size, world = self.config.engine.batch, self.accelerator.num_processes
        firsts = range(self.accelerator.process_index * size, len(visits), size * world)
        return [visits[first : first + size] for first in firsts]

    def _not_finite(self, visits: Sequence[Visit], losses: Tensor) -> str:
        """What to say of a step; `losses` are those of this process's samples. If none is to blame, all are named."""
        from accelerate.utils import gather_object

        mine = [visit.row.id for share in self._shares(visits) for visit in share]
        bad = gather_object([name for name, loss in zip(mine, losses.tolist(), strict=True) if not isfinite(loss)])
        bad = bad or [visit.row.id for visit in visits]
        names = ", ".join(bad[:8]) + (" and more" if len(bad) > 8 else "")
        return (
            f"the loss or its gradient is not finite at step {self.step + 1}, samples {names}; the last checkpoint is "
            "as it was: begin in another folder (out) with a lower learning rate, or without these samples"
        )

    def _log(self, journal: Journal, tally: Tally, norm: float, seconds: float) -> None:
        totals, samples = tally.values()
        totals = self.accelerator.reduce(totals, "mean").cpu()
        samples = self.accelerator.gather(samples).cpu()
        values = {
            **dict(zip(("loss", "loss_video", "loss_audio"), totals.tolist(), strict=True)),
            **by_sigma(samples),
            "gradient_norm": norm,
            "learning_rate": self.config.optimization.rate(self.step - 1, self.config.steps),
            "tokens_per_second": tally.tokens * self.accelerator.num_processes / max(seconds, 1e-9),
            "peak_memory_gb": _peak_bytes(self.accelerator.device) / 1e9,
        }
        journal.line(self.step, values)
        self.progress(self.step, values)

    def _watch(self, journal: Journal, ahead: Ahead[TrainingBatch]) -> None:
        due = [watcher for watcher in self.job.watchers if watcher.due(self.step)]
        if not due:
            return
        ahead.settle()  # the networks that make batches make clips too
        measures: dict[str, float] = {}
        self.module.eval()
        with self.average.applied():
            for watcher in due:
                measures |= watcher.look(self.step, journal)
        self.module.train()
        if measures:
            journal.line(self.step, measures)
        self._keep_best(measures)

    def _keep_best(self, measures: Mapping[str, float]) -> None:
        name = self.config.saving.keep_best
        if name not in measures:
            return
        better = measures[name] * MEASURES[name]
        if name not in self.best or better > self.best[name] * MEASURES[name]:
            self.best[name] = measures[name]
            self._save(self.folder / BEST_NAME, {name: f"{measures[name]:.6g}"})

    def _save(self, path: Path, told: Mapping[str, str]) -> None:
        weights = {name: whole(value).cpu() for name, value in self.average.best().items()}
        if self.accelerator.is_main_process:
            self.job.save(path, weights, {"steps": str(self.step), **told})


@contextmanager
def interruption() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that a step is never left half done; a second Ctrl-C stops at once."""
    stop = Event()
    if current_thread() is not main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def asked(number: int, frame: Any) -> None:
        if stop.is_set() and callable(before):
            before(number, frame)
        stop.set()

    signal.signal(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def _num_tokens(batch: TrainingBatch) -> int:
    reference = 0 if batch.reference is None else batch.reference.shape[1]
    return batch.video.shape[0] * (batch.video.shape[1] + batch.audio.shape[1] + reference)


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: on a GPU what PyTorch has handed out, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
