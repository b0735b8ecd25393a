# SPDX-License-Identifier: Apache-2.0
"""Clips made and judged, each once: scores are kept by what made the clip, so that a second call goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from idlora.data.world.captions import prompt_of
from idlora.errors import IDLoraError, OutputError, SettingsError
from idlora.evaluation.judges import Footage, Judge
from idlora.evaluation.judges.conditions import Acoustics
from idlora.evaluation.laboratory.bench import judge_footage, judge_key
from idlora.evaluation.laboratory.panel import Panel
from idlora.evaluation.reproduction.ablations import Trained
from idlora.evaluation.reproduction.arms import Arm, Extent, asked, measured_by, misplaced, request_of
from idlora.evaluation.reproduction.makers import Maker
from idlora.evaluation.reproduction.strikes import struck_by_picture, struck_by_sound
from idlora.evaluation.store import Store, Values, fingerprint
from idlora.pipeline import Settings

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # speaker, prompt
_JUDGES = ("speaker", "words", "sounds-world", "levels", "conditions", "lips-world", "onset")


@dataclass(frozen=True)
class Fault:
    """A clip that could not be made, and why; the next call tries it again."""

    arm: str
    speaker: int
    prompt: int
    reason: str


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
class Trials:
    """Makes, judges and remembers.

    Attributes:
        maker: of the clips.
        shipped: the model's own settings.
        extent: how much.
        store: scores so far.
        panel: who judges.
        adapters: ablations that are there, by key.
        faults: what could not be made in this call.
        moved: told of every batch.
    """

    maker: Maker
    shipped: Settings
    extent: Extent
    store: Store
    panel: Mapping[str, Judge]
    adapters: dict[str, Trained] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    moved: Callable[[str], None] = lambda _: None

    @classmethod
    def of(cls, maker: Maker, shipped: Settings, extent: Extent, out: Path, owner: Owner) -> Self:
        """With a store in a folder.

        Raises:
            SettingsError: the folder holds scores of another model or other judges.
            OutputError: the folder cannot be written.
        """
        return cls(maker, shipped, extent, Store(out / "scores.jsonl", owner.name), owner.judges)

    def has(self, adapter: str) -> bool:
        """Whether an adapter is there; '' is the model's own."""
        return not adapter or adapter in self.adapters

    def settings(self, arm: Arm) -> Settings:
        """Those of an arm's clips (SettingsError if its adapter is not there)."""
        trained = self._trained(arm.adapter)
        return arm.settings(trained.settings if trained else self.shipped, self.extent)

    def run(self, arm: Arm) -> None:
        """Make and judge the clips of an arm that are not known yet; one that fails is told and stops no other."""
        settings = self.settings(arm)
        wanted = [place for place in self.extent.places(arm) if self._key(arm, settings, place) not in self.store]
        for start in range(0, len(wanted), self.extent.batch):
            batch, began = wanted[start : start + self.extent.batch], time.process_time()
            clips = self._made(arm, settings, batch)
            judged = [(place, self._judged(arm, clip, place)) for place, clip in clips]
            share = round((time.process_time() - began) / max(1, len(judged)), 3)
            for place, values in judged:
                self.store.put(self._key(arm, settings, place), {**values, "seconds": share})
            self.moved(f"{arm.name}: {start + len(batch)} of {len(wanted)}")

    def verdicts(self, arm: Arm) -> dict[Place, Values]:
        """The scores of an arm's clips that are known; none without its adapter."""
        if not self.has(arm.adapter):
            return {}
        settings = self.settings(arm)
        keys = {place: self._key(arm, settings, place) for place in self.extent.places(arm)}
        return {place: self.store[key] for place, key in keys.items() if key in self.store}

    def run_held_out(self, adapter: str = "") -> None:
        """The held-out losses with an adapter that are not known yet."""
        settings, file = (
            (trained.settings, trained.file) if (trained := self._trained(adapter)) else (self.shipped, None)
        )
        for who in self.extent.losses_of(adapter):
            if (key := self._held_out_key(adapter, who)) in self.store:
                continue
            try:
                self.store.put(key, self.maker.losses(who, settings, file))
            except (OutputError, SettingsError):
                raise
            except Exception as error:  # noqa: BLE001 - one bad clip must not end a night's work
                self._fault("held-out", (who, 0), error)
        self.moved(f"held-out losses {adapter}".strip())

    def losses(self, adapter: str = "") -> dict[int, Values]:
        """The held-out losses with an adapter that are known, by speaker; none without it."""
        if not self.has(adapter):
            return {}
        keys = {who: self._held_out_key(adapter, who) for who in self.extent.losses_of(adapter)}
        return {who: self.store[key] for who, key in keys.items() if key in self.store}

    def seconds(self, arms: Iterable[Arm]) -> float:
        """Processor time that the known clips of some arms took, in whatever call."""
        return float(sum(values["seconds"] for arm in arms for values in self.verdicts(arm).values()))

    def _key(self, arm: Arm, settings: Settings, place: Place) -> str:
        trained = self._trained(arm.adapter)
        return f"{arm.key(settings, trained.digest if trained else '')}/{place[0]}/{place[1]}"

    def _held_out_key(self, adapter: str, who: int) -> str:
        trained = self._trained(adapter)
        return f"held-out/{adapter}/{trained.digest[:16]}/{who}" if trained else f"held-out/{who}"

    def _trained(self, adapter: str) -> Trained | None:
        if not self.has(adapter):
            raise SettingsError(f"the adapter {adapter!r} is not there; `idlora reproduce` without --quick trains it")
        return self.adapters.get(adapter)

    def _made(self, arm: Arm, settings: Settings, batch: Sequence[Place]) -> list[tuple[Place, Footage]]:
        """The clips of a batch; if it fails, one by one, so that a bad one takes no other with it."""
        try:
            requests = [request_of(arm, settings, *place) for place in batch]
            trained = self._trained(arm.adapter)
            return list(zip(batch, self.maker.make(arm, requests, trained.file if trained else None), strict=True))
        except SettingsError:
            raise  # of the arm, not of the clip: every other clip would meet it too
        except Exception as error:  # noqa: BLE001 - likewise
            if len(batch) > 1:
                return [made for place in batch for made in self._made(arm, settings, [place])]
            self._fault(arm.name, batch[0], error)
            return []

    def _fault(self, name: str, place: Place, error: Exception) -> None:
        logger.warning("%s, speaker %d, prompt %d", name, *place, exc_info=error)
        self.faults.append(Fault(name, *place, " ".join(f"{type(error).__name__}: {error}".split())[:300]))

    def _judged(self, arm: Arm, clip: Footage, place: Place) -> Values:
        spec, wanted = asked(arm, *place), dict(self.panel)
        if not arm.pictures:
            wanted.pop("lips-world", None)
        if not arm.onset:
            wanted.pop("onset", None)
        prompt = prompt_of(spec)
        verdict = judge_footage(clip, measured_by(arm, *place), prompt, wanted)
        found: Values = {"scores": verdict.scores, "unjudged": {each.judge: each.reason for each in verdict.unjudged}}
        if arm.reference == "hard" and not arm.struck:
            found["place"] = _distances(clip, measured_by(arm, *place).truth, misplaced(arm, *place))
        if arm.struck:
            found["struck"] = _struck(clip, spec.object)
        return found


def _distances(clip: Footage, true: Footage | None, copied: Footage) -> Values:
    """Acoustic distance to the true clip where it was asked for, and where the reference is; of a silent one none."""
    try:
        heard = Acoustics.of(clip.audible)
        return (
            {}
            if true is None
            else {
                "asked": heard.distance(Acoustics.of(true.audible)),
                "copied": heard.distance(Acoustics.of(copied.audible)),
            }
        )
    except IDLoraError:
        return {}


def _struck(clip: Footage, kind: str) -> Values:
    """Seconds of the strike by sound and, where there are pictures, by picture; nothing of a silent clip."""
    try:
        found: Values = {"sound": struck_by_sound(clip.audible, kind)}
    except IDLoraError:
        return {}
    if clip.frames is not None:
        found["picture"] = struck_by_picture(clip.pictures, clip.frame_rate)
    return found
