# SPDX-License-Identifier: Apache-2.0
"""Makes clips and judges them; remembers nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from idlora.data.world.captions import prompt_of
from idlora.errors import IDLoraError, OutputError, SettingsError
from idlora.evaluation.judges import Footage, Judge
from idlora.evaluation.judges.conditions import Acoustics
from idlora.evaluation.laboratory.bench import Outcome, outcome_of, verdict_of
from idlora.evaluation.reproduction.ablations import Trained
from idlora.evaluation.reproduction.arms import Arm, Extent, asked, measured_by, misplaced, request_of
from idlora.evaluation.reproduction.makers import Maker
from idlora.evaluation.reproduction.strikes import struck_by_picture, struck_by_sound
from idlora.evaluation.store import Values
from idlora.pipeline import Settings

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # speaker, prompt


@dataclass(frozen=True)
class Fault:
    """A clip that could not be made, and why; the next call tries it again."""

    arm: str
    speaker: int
    prompt: int
    reason: str


class Task(NamedTuple):
    """Some clips of an arm, or the held-out losses of some speakers with an adapter."""

    what: Arm | str
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"held-out losses {self.what}".strip() if isinstance(self.what, str) else self.what.name


class Work(NamedTuple):
    """What came of a task: scores by key, and what could not be made."""

    scores: list[tuple[str, Values]]
    faults: list[Fault]


@dataclass(frozen=True)
class Studio:
    """Makes and judges.

    Attributes:
        maker: of the clips.
        shipped: the model's own settings.
        extent: how much.
        panel: who judges.
        adapters: ablations that are there, by key.
    """

    maker: Maker
    shipped: Settings
    extent: Extent
    panel: Mapping[str, Judge]
    adapters: dict[str, Trained] = field(default_factory=dict)

    def has(self, adapter: str) -> bool:
        """Whether an adapter is there; '' is the model's own."""
        return not adapter or adapter in self.adapters

    def settings(self, arm: Arm) -> Settings:
        """Those of an arm's clips (SettingsError if its adapter is not there)."""
        trained = self._trained(arm.adapter)
        return arm.settings(trained.settings if trained else self.shipped, self.extent)

    def done(self, task: Task) -> Work:
        """Do a task; what fails is told and stops nothing else.

        Raises:
            SettingsError: an arm cannot be made at all.
        """
        if isinstance(task.what, str):
            return self._losses(task.what, [who for who, _ in task.places])
        return self._clips(task.what, task.places)

    def _clips(self, arm: Arm, places: Sequence[Place]) -> Work:
        settings, began, faults = self.settings(arm), time.process_time(), list[Fault]()
        clips = self._made(arm, settings, places, faults)
        judged: list[tuple[Place, Values]] = []
        for place, clip in clips:
            outcome = self._outcome(arm, clip, place)
            if passing := [told["unjudged"] for told in outcome.values() if told.get("again")]:
                faults.append(_fault(arm.name, place, RuntimeError(passing[0])))
            else:
                judged.append((place, self._judged(arm, clip, place, outcome)))
        share = round((time.process_time() - began) / max(1, len(judged)), 3)
        named = [(self.key(arm, settings, place), {**values, "seconds": share}) for place, values in judged]
        return Work(named, faults)

    def _losses(self, adapter: str, speakers: Sequence[int]) -> Work:
        settings, file = (
            (trained.settings, trained.file) if (trained := self._trained(adapter)) else (self.shipped, None)
        )
        work = Work([], [])
        for who in speakers:
            try:
                work.scores.append((self.held_out_key(adapter, who), self.maker.losses(who, settings, file)))
            except (OutputError, SettingsError):
                raise
            except Exception as error:  # noqa: BLE001 - one bad clip must not end a night's work
                work.faults.append(_fault(f"held-out losses {adapter}".strip(), (who, 0), error))
        return work

    def key(self, arm: Arm, settings: Settings, place: Place) -> str:
        """Of a clip's scores: what made it."""
        trained = self._trained(arm.adapter)
        return f"{arm.key(settings, trained.digest if trained else '')}/{place[0]}/{place[1]}"

    def held_out_key(self, adapter: str, who: int) -> str:
        """Of a speaker's held-out losses with an adapter."""
        trained = self._trained(adapter)
        return f"held-out/{adapter}/{trained.digest[:16]}/{who}" if trained else f"held-out/{who}"

    def _trained(self, adapter: str) -> Trained | None:
        if not self.has(adapter):
            raise SettingsError(f"the adapter {adapter!r} is not there; `idlora reproduce` without --quick trains it")
        return self.adapters.get(adapter)

    def _made(
        self, arm: Arm, settings: Settings, batch: Sequence[Place], faults: list[Fault]
    ) -> list[tuple[Place, Footage]]:
        """The clips of a batch; if it fails, one by one, so that a bad one takes no other with it."""
        try:
            requests = [request_of(arm, settings, *place) for place in batch]
            trained = self._trained(arm.adapter)
            return list(zip(batch, self.maker.make(arm, requests, trained.file if trained else None), strict=True))
        except SettingsError:
            raise  # of the arm, not of the clip: every other clip would meet it too
        except Exception as error:  # noqa: BLE001 - likewise
            if len(batch) > 1:
                return [made for place in batch for made in self._made(arm, settings, [place], faults)]
            faults.append(_fault(arm.name, batch[0], error))
            return []

    def _outcome(self, arm: Arm, clip: Footage, place: Place) -> Outcome:
        wanted = dict(self.panel)
        if not arm.pictures:
            wanted.pop("lips-world", None)
        if not arm.onset:
            wanted.pop("onset", None)
        return outcome_of(clip, measured_by(arm, *place), prompt_of(asked(arm, *place)), wanted)

    def _judged(self, arm: Arm, clip: Footage, place: Place, outcome: Outcome) -> Values:
        spec, verdict = asked(arm, *place), verdict_of(outcome)
        found: Values = {"scores": verdict.scores, "unjudged": {each.judge: each.reason for each in verdict.unjudged}}
        if arm.reference == "hard" and not arm.struck:
            found["place"] = _distances(clip, measured_by(arm, *place).truth, misplaced(arm, *place))
        if arm.struck:
            found["struck"] = _struck(clip, spec.object)
        return found


def _fault(name: str, place: Place, error: Exception) -> Fault:
    logger.warning("%s, speaker %d, prompt %d", name, *place, exc_info=error)
    return Fault(name, *place, " ".join(f"{type(error).__name__}: {error}".split())[:300])


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
