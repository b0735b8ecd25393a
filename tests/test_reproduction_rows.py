# SPDX-License-Identifier: Apache-2.0
"""What rows of `idlora reproduce` make of scores: chance, curves, controls, and judges that could not judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fake_lab import TINY, FakeMaker, LevelJudge
from idlora.data.prompt import Prompt
from idlora.evaluation.judges import Footage, JudgeRecord, Reference
from idlora.evaluation.reproduction import arms
from idlora.evaluation.reproduction.arms import FULL, HARD
from idlora.evaluation.reproduction.claims import VOICE, curve
from idlora.evaluation.reproduction.control_rows import control_rows
from idlora.evaluation.reproduction.findings import NOT_REPRODUCED, Claim, Measured, judged, uncontrolled
from idlora.evaluation.reproduction.studio import Work
from idlora.evaluation.reproduction.trials import Owner, Trials
from idlora.evaluation.statistics import Estimate
from idlora.evaluation.store import Values
from idlora.pipeline import Settings


def test_a_classifier_that_always_hears_the_same_proves_nothing_whatever_is_asked_for(tmp_path: Path) -> None:
    wanted = {(who, 0): arms.asked(HARD, who, 0).place for who in range(40)}

    def led(heard: dict[tuple[int, int], str]) -> Measured | None:
        trials = Trials.of(FakeMaker(), Settings(), replace(TINY, speakers=40), tmp_path, Owner({}, {}))
        key = trials.key(HARD, trials.settings(HARD), (0, 0)).removesuffix("/0/0")
        for (who, prompt), place in heard.items():
            trials.keep(Work([(f"{key}/{who}/{prompt}", {"scores": {"sounds-world": {"place_heard": place}}})], []))
        claim = "The place is heard as asked, not as in the reference, identity guidance 1 (above 0)"
        return next(row for row in control_rows(FULL) if row.claim.text == claim).measured(trials)

    deaf, hearing = led(dict.fromkeys(wanted, "quiet room")), led(wanted)
    assert deaf is not None
    assert hearing is not None
    assert deaf.estimate.value == pytest.approx(0.0)
    assert not Claim("", "").holds(deaf.estimate)
    assert hearing.estimate.value > 0.5
    assert Claim("", "").holds(hearing.estimate)


def test_a_curve_compares_the_same_clips_at_all_points(tmp_path: Path) -> None:
    trials = Trials.of(FakeMaker(), Settings(), replace(TINY, main_prompts=3), tmp_path, Owner({}, {}))
    steep = {(who, prompt): 0.1 * prompt for who in range(5) for prompt in range(3)}
    both = (arms.of_scale(0.0), arms.of_scale(2.0))
    for arm in both:
        for place in trials.extent.places(arm):
            key = trials.key(arm, trials.settings(arm), place)
            trials.keep(Work([(key, {"scores": {"speaker": {"truth": steep[place]}}})], []))
    found = curve(trials, list(both), VOICE)
    assert [each and (each.n, each.estimate.value) for each in found] == [(5, 0.0), (5, 0.0)]


def test_a_row_beside_a_baseline_that_is_not_sound_is_not_reproduced_and_says_what_of_its_control_is_known() -> None:
    found = judged(Claim("a", "b"), Measured(Estimate(1.0, 0.5, 1.5), 8, 8), "m", "c", "remark")
    for failed, begins in ((True, "CONTROL FAILED"), (False, "UNDECIDED")):
        row = uncontrolled(found, failed=failed)
        assert row.verdict == NOT_REPRODUCED
        assert row.remark.startswith(begins)
        assert row.remark.endswith("remark")


@dataclass
class WornJudge(LevelJudge):
    """Cannot judge at first."""

    worn: bool = True
    record = JudgeRecord("worn", "1", "sounds of these tests alone")

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        if self.worn:
            raise MemoryError
        return super().score(clip, reference, prompt)


def test_what_a_judge_could_not_score_for_want_of_memory_is_made_again_by_the_next_call(
    tmp_path: Path,
) -> None:
    judge = WornJudge()
    trials = Trials.of(FakeMaker(), Settings(), TINY, tmp_path, Owner({}, {"speaker": judge}))
    trials.run(trials.missing(HARD))
    assert not trials.verdicts(HARD)
    assert {fault.reason for fault in trials.faults} == {"RuntimeError: the judge failed: MemoryError:"}
    assert not trials.missing(HARD)  # not twice in one call
    judge.worn = False
    trials = Trials.of(FakeMaker(), Settings(), TINY, tmp_path, Owner({}, {"speaker": judge}))
    trials.run(trials.missing(HARD))
    assert len(trials.verdicts(HARD)) == TINY.speakers
