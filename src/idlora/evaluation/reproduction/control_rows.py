# SPDX-License-Identifier: Apache-2.0
"""The claims on what the prompt still decides beside a reference, and on sounds of things."""

from __future__ import annotations

from collections.abc import Iterator

from idlora.evaluation.reproduction.arms import HARD, STRUCK, STRUCK_ALONE, Arm, Extent, asked, of_scale, recorded
from idlora.evaluation.reproduction.claims import STYLE, Row, against, alone
from idlora.evaluation.reproduction.findings import Claim, Measured, difference_of, mean_of
from idlora.evaluation.reproduction.scores import Scores, beyond_chance, nearer, strike_errors
from idlora.evaluation.reproduction.trials import Trials


def control_rows(extent: Extent) -> Iterator[Row]:
    """What the prompt still decides: the place, the style, and what a struck object sounds like."""
    yield from _text(extent)
    yield from _struck()


def _text(extent: Extent) -> Iterator[Row]:
    top = of_scale(max(extent.scales))
    for arm in (of_scale(0.0), HARD, top):
        told = f"identity guidance {arm.scale:g}"
        yield alone(
            arm,
            nearer,
            Claim(f"The room is the prompt's, not the reference's, {told} (above 0)", "CLAP 0.363 against 0.249"),
            "acoustic distance to the true clip in the reference's place, less that in the place asked for",
        )
        yield _place_led(arm, told)
        yield _style_led(arm, told)
    yield against(
        top,
        of_scale(0.0),
        STYLE,
        Claim(f"Identity guidance {top.scale:g} keeps the style: lost at most 0.1 (above -0.1)", "-", bound=-0.1),
        "style heard as asked",
    )


def _place_led(arm: Arm, told: str) -> Row:
    def measured(trials: Trials) -> Measured | None:
        wanted = beyond_chance(trials, arm, "place", lambda *who: asked(arm, *who).place)
        copied = beyond_chance(trials, arm, "place", lambda *who: recorded(arm, *who).place)
        return difference_of(wanted, copied)

    claim = Claim(f"The place is heard as asked, not as in the reference, {told} (above 0)", "CLAP 0.363 against 0.249")
    measure = "place heard as asked less as in the reference, each less how often that place is heard in all clips"
    remark = "the classifier is right about 1.00 of true coded clips, but generated noise is smoother than true noise"
    return Row(claim, f"{arm.name}: {measure}", (arm,), measured, remark)


def _style_led(arm: Arm, told: str) -> Row:
    claim = Claim(f"The style follows the prompt, not the calm reference, {told} (above 0)", "style preferred by 65 %")
    measure = f"{arm.name}: style heard as asked, less how often that style is heard in all clips"

    def measured(trials: Trials) -> Measured | None:
        return _mean(beyond_chance(trials, arm, "style", lambda *who: asked(arm, *who).style))

    return Row(claim, measure, (arm,), measured, "told rightly for 0.88 of true coded clips")


def _struck() -> Iterator[Row]:
    def measured(trials: Trials) -> Measured | None:
        return difference_of(strike_errors(trials, STRUCK, STRUCK), strike_errors(trials, STRUCK, STRUCK_ALONE))

    claim = Claim(
        "Joint generation puts a struck object's sound at the strike (below 0)", "MOS 3.05 against 2.90", "below"
    )
    remark = "bell and glass; nothing in prompt or picture tells sound made alone when they are struck"
    measure = "seconds from the strike that is seen to the one that is heard: joint sound less sound made alone"
    yield Row(claim, measure, (STRUCK, STRUCK_ALONE), measured, remark)
    yield Row(
        Claim("The struck object is of the right kind (above 0)", "MOS 3.05 against 2.90"),
        f"{STRUCK.name}: object heard as asked, less how often that object is heard in all clips",
        (STRUCK,),
        lambda trials: _mean(_kinds(trials, STRUCK)),
    )
    yield Row(
        Claim(
            "Joint generation gives it the right kind more often than sound alone (above 0)", "MOS 3.05 against 2.90"
        ),
        f"{STRUCK.name} - {STRUCK_ALONE.name}: object heard as asked, less how often it is heard in all clips",
        (STRUCK, STRUCK_ALONE),
        lambda trials: difference_of(*(_kinds(trials, arm) for arm in (STRUCK, STRUCK_ALONE))),
    )


def _kinds(trials: Trials, arm: Arm) -> Scores:
    return beyond_chance(trials, arm, "object", lambda *who: asked(arm, *who).object)


def _mean(scores: Scores) -> Measured | None:
    return mean_of(list(scores.values()))
