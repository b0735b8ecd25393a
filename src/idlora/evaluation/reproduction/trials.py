# SPDX-License-Identifier: Apache-2.0
"""Clips made and judged, each once: scores are kept by what made the clip, so that a second call goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from idlora.evaluation.judges import Judge
from idlora.evaluation.laboratory.bench import judge_key
from idlora.evaluation.laboratory.panel import Panel
from idlora.evaluation.reproduction.arms import Arm, Extent
from idlora.evaluation.reproduction.makers import Maker
from idlora.evaluation.reproduction.studio import Fault, Place, Studio, Task, Work
from idlora.evaluation.store import Store, Values, fingerprint
from idlora.pipeline import Settings

_JUDGES = ("speaker", "words", "sounds-world", "levels", "conditions", "lips-world", "onset")


@dataclass(frozen=True)
class Owner:
    """What scores belong to: the digests of the model's weights, and the judges by name."""

    weights: Mapping[str, str]
    judges: Mapping[str, Judge]

    @property
    def name(self) -> str:
        """The same for equal weights and judges."""
        judges = [judge_key(name, judge) for name, judge in self.judges.items()]
        return fingerprint({"model": dict(self.weights), "judges": judges})


def offline_judges() -> Mapping[str, Judge]:
    """All that need no weights (SettingsError if a package is missing)."""
    return Panel.of(_JUDGES).judges


@dataclass(frozen=True)
class Trials(Studio):
    """Makes, judges and remembers.

    Attributes:
        store: scores so far.
        faults: what could not be made in this call.
        moved: told of every task.
    """

    store: Store = field(kw_only=True)
    faults: list[Fault] = field(default_factory=list)
    moved: Callable[[str], None] = lambda _: None

    @classmethod
    def of(cls, maker: Maker, shipped: Settings, extent: Extent, out: Path, owner: Owner) -> Self:
        """With a store in a folder.

        Raises:
            SettingsError: the folder holds scores of another model or other judges.
            OutputError: the folder cannot be written.
        """
        return cls(maker, shipped, extent, owner.judges, store=Store(out / "scores.jsonl", owner.name))

    def run(self, tasks: Iterable[Task]) -> None:
        """Do tasks, one after the other; what fails is told and stops no other."""
        tasks = list(tasks)
        for number, task in enumerate(tasks, 1):
            self.keep(self.done(task))
            self.moved(f"{number} of {len(tasks)} batches ({task.name})")

    def missing(self, arm: Arm) -> list[Task]:
        """The clips of an arm that are not known yet and have not failed in this call, in batches."""
        settings = self.settings(arm)
        return self._missing(arm, {place: self.key(arm, settings, place) for place in self.extent.places(arm)})

    def missing_losses(self, adapter: str = "") -> list[Task]:
        """Likewise the held-out losses with an adapter."""
        speakers = self.extent.losses_of(adapter)
        return self._missing(adapter, {(who, 0): self.held_out_key(adapter, who) for who in speakers})

    def _missing(self, what: Arm | str, keys: Mapping[Place, str]) -> list[Task]:
        name, size = Task(what, ()).name, self.extent.batch
        failed = {(fault.speaker, fault.prompt) for fault in self.faults if fault.arm == name}
        wanted = [place for place, key in keys.items() if key not in self.store and place not in failed]
        return [Task(what, tuple(wanted[start : start + size])) for start in range(0, len(wanted), size)]

    def keep(self, work: Work) -> None:
        """Remember what came of a task."""
        for key, values in work.scores:
            self.store.put(key, values)
        self.faults.extend(work.faults)

    def verdicts(self, arm: Arm) -> dict[Place, Values]:
        """The scores of an arm's clips that are known; none without its adapter."""
        if not self.has(arm.adapter):
            return {}
        settings = self.settings(arm)
        keys = {place: self.key(arm, settings, place) for place in self.extent.places(arm)}
        return {place: self.store[key] for place, key in keys.items() if key in self.store}

    def losses(self, adapter: str = "") -> dict[int, Values]:
        """The held-out losses with an adapter that are known, by speaker; none without it."""
        if not self.has(adapter):
            return {}
        keys = {who: self.held_out_key(adapter, who) for who in self.extent.losses_of(adapter)}
        return {who: self.store[key] for who, key in keys.items() if key in self.store}

    def seconds(self, arms: Iterable[Arm]) -> float:
        """Processor time that the known clips of some arms took, in whatever call."""
        return float(sum(values["seconds"] for arm in arms for values in self.verdicts(arm).values()))
