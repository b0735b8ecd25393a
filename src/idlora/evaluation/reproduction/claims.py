# SPDX-License-Identifier: Apache-2.0
"""The claims that the weights that ship can test, each with its measure, its arms and its bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from idlora.evaluation.reproduction.arms import (
    BARE_PASS,
    BASE,
    CASCADE,
    CASCADE_EASY,
    CROSSED,
    EASY,
    HARD,
    ROUNDED,
    THREE,
    UNMASKED,
    Arm,
    Extent,
    of_scale,
    of_seconds,
)
from idlora.evaluation.reproduction.findings import Claim, Measured, difference_of, mean_of
from idlora.evaluation.reproduction.scores import (
    Number,
    Scores,
    clear,
    score,
    scores_of,
    slope_of,
)
from idlora.evaluation.reproduction.trials import Trials

VOICE = score("speaker", "truth")
WORDS = clear(HARD, score("words", "errors", "words"))
STYLE = score("sounds-world", "style_right")
LEAKED = clear(HARD, score("words", "leaked", "words"))
_TO_TRUTH = "similarity (Resemblyzer) to the true clip of the speaker in the place asked for"
_CASCADE = (
    "the cascade is of the same weights: adapter, reference and prompt make the sound, without the first frame and its "
    "own picture thrown away; then the base makes the picture from the first frame beside that sound"
)
_ASIDE = "users, not the paper"


@dataclass(frozen=True)
class Row:
    """A claim that is measured.

    Attributes:
        claim: with its bound.
        measure: in words.
        arms: what must have been made.
        measured: from the trials.
        remark: what a reader must know.
        held_out: adapters whose held-out losses it needs instead of clips, by key; '' is the model's own.
        control: a row that must hold before this one counts as reproduced.
    """

    claim: Claim
    measure: str
    arms: tuple[Arm, ...]
    measured: Callable[[Trials], Measured | None]
    remark: str = ""
    held_out: tuple[str, ...] = ()
    control: Row | None = None

    @property
    def adapters(self) -> list[str]:
        """Keys of the ablations that it needs."""
        return sorted({*(arm.adapter for arm in self.arms), *self.held_out} - {""})


def against(first: Arm, second: Arm, number: Number, claim: Claim, measure: str, remark: str = "") -> Row:
    """The first arm less the second, clip by clip."""

    def measured(trials: Trials) -> Measured | None:
        return difference_of(scores_of(trials, first, number), scores_of(trials, second, number))

    return Row(claim, f"{first.name} - {second.name}: {measure}", (first, second), measured, remark)


def alone(arm: Arm, number: Number, claim: Claim, measure: str, remark: str = "") -> Row:
    """One arm by itself."""
    return Row(
        claim,
        f"{arm.name}: {measure}",
        (arm,),
        lambda trials: mean_of(list(scores_of(trials, arm, number).values())),
        remark,
    )


def widening(baseline: Arm, claim: Claim) -> Row:
    """How the gap to a baseline grows with the acoustic distance of the reference to the true clip."""

    def measured(trials: Trials) -> Measured | None:
        ours, theirs = (scores_of(trials, arm, VOICE) for arm in (HARD, baseline))
        gap = {place: ours[place][1] - theirs[place][1] for place in ours if place in theirs}
        far = {
            place: value for place, (_, value, _) in scores_of(trials, HARD, score("conditions", "distance")).items()
        }
        return slope_of(gap, far)

    measure = f"slope of (hard - {baseline.name}) in {_TO_TRUTH}, a unit of acoustic distance"
    return Row(claim, measure, (HARD, baseline), measured)


def usual_rows(extent: Extent) -> Iterator[Row]:
    """On identity guidance, on how the shipped adapter is used, and on the voice."""
    yield from _guidance(extent)
    yield from _settings(extent)
    yield from _voices()
    yield held_out_row()


def cascade_control() -> Row:
    """Whether the cascade's own speech is sound; where it is not, being better than it proves nothing."""
    return against(
        CASCADE,
        HARD,
        WORDS,
        Claim(
            "Control: the cascade speaks as clearly, WER up by at most 0.1 (below 0.1)", "0.362, 0.154", "below", 0.1
        ),
        "WER (pocketsphinx), quiet room and hall",
        "where this fails, no row beside the cascade counts as reproduced",
    )


def identity_rows() -> Iterator[Row]:
    """The paper's first claims: the voice is carried over, beside the base and a cascade."""
    control = cascade_control()
    hard = "speaker similarity 0.477, CelebV-HQ, cross-video (hard)"
    yield against(
        HARD, BASE, VOICE, Claim("The adapter carries the voice over from another place (above 0)", hard), _TO_TRUTH
    )
    yield against(
        EASY,
        BASE,
        VOICE,
        Claim(
            "The adapter carries the voice over from the same place (above 0)", "no number at hand for the easy split"
        ),
        _TO_TRUTH,
    )
    beside = against(
        HARD,
        CASCADE,
        VOICE,
        Claim(
            "Joint generation is nearer to the speaker than a cascade (above 0)",
            "0.477 against 0.391 (CosyVoice + WAN2.2) and 0.357 (ElevenLabs + WAN2.2), CelebV-HQ, hard",
        ),
        _TO_TRUTH,
        _CASCADE,
    )
    yield replace(beside, control=control)
    beside = against(
        HARD,
        CASCADE,
        score("lips-world", "correlation"),
        Claim(
            "Joint generation has better lips than a cascade (above 0)",
            "LSE-C 3.90 against 1.50 and 1.72, LSE-D 8.49 against 11.40 and 11.86",
        ),
        "correlation of mouth opening and speech energy",
        _CASCADE,
    )
    yield replace(beside, control=control)
    beside = against(
        EASY,
        CASCADE_EASY,
        VOICE,
        Claim(
            "Joint generation is nearer to the speaker than a cascade, reference from the same place (above 0)",
            "no number at hand for the easy split",
        ),
        _TO_TRUTH,
        _CASCADE,
    )
    yield replace(beside, control=control)
    yield control
    yield widening(BASE, Claim("The gap to the base widens with acoustic distance (above 0)", "not in the paper"))
    beside = widening(
        CASCADE, Claim("The gap to a cascade widens with acoustic distance (above 0)", "'the gap widening', no slope")
    )
    yield replace(beside, control=control)
    yield against(
        HARD,
        EASY,
        VOICE,
        Claim(
            "A reference from another place serves as well: lost at most 0.05 (above -0.05)", "hard split", bound=-0.05
        ),
        _TO_TRUTH,
    )


def _guidance(extent: Extent) -> Iterator[Row]:
    none = of_scale(0.0)
    for scale in (each for each in extent.scales if each):
        arm = of_scale(scale)
        yield against(
            arm,
            none,
            VOICE,
            Claim(f"Identity guidance {scale:g} brings the voice nearer (above 0)", "ablation, no number at hand"),
            _TO_TRUTH,
        )
        yield against(
            arm,
            none,
            WORDS,
            Claim(
                f"Identity guidance {scale:g} keeps the words: WER up by at most 0.1 (below 0.1)",
                "WER 0.113",
                "below",
                0.1,
            ),
            "WER (pocketsphinx), quiet room and hall",
        )
    yield against(
        BARE_PASS,
        THREE,
        WORDS,
        Claim(
            "At scale 3 a pass without reference by the base alone gives words back (below 0)",
            "not in the paper",
            "below",
        ),
        "WER (pocketsphinx), quiet room and hall",
    )
    yield against(
        BARE_PASS,
        THREE,
        VOICE,
        Claim("It keeps the voice: lost at most 0.05 (above -0.05)", "not in the paper", bound=-0.05),
        _TO_TRUTH,
    )
    yield against(
        BARE_PASS,
        THREE,
        score("onset", "gap"),
        Claim("It mends the first half second (above 0)", _ASIDE),
        "onset gap",
    )
    yield against(
        THREE,
        none,
        score("levels", "clipped"),
        Claim(
            "Identity guidance 3 does not clip: up by at most 0.001 (below 0.001)", "not in the paper", "below", 0.001
        ),
        "share of clipped samples",
    )


def _settings(extent: Extent) -> Iterator[Row]:
    yield against(
        HARD,
        UNMASKED,
        VOICE,
        Claim("The training mask at inference brings the voice nearer (above 0)", "trained with, inferred without"),
        _TO_TRUTH,
        "the mask between reference and picture; the one on text the shipped adapter was trained without",
    )
    yield against(
        HARD,
        UNMASKED,
        WORDS,
        Claim("The training mask at inference saves words (below 0)", "trained with, inferred without", "below"),
        "WER (pocketsphinx), quiet room and hall",
    )
    yield against(
        HARD,
        UNMASKED,
        score("onset", "gap"),
        Claim("The training mask at inference mends the first half second (above 0)", _ASIDE),
        "onset gap",
    )
    yield against(
        HARD,
        ROUNDED,
        VOICE,
        Claim("fp32 positions are better than rounded ones at inference (above 0)", "rounded in the official code"),
        _TO_TRUTH,
        "the adapter was trained with fp32 positions",
    )
    least, most = of_seconds(min(extent.seconds)), of_seconds(max(extent.seconds))
    lengths = against(
        most,
        least,
        VOICE,
        Claim(
            f"A reference of {most.seconds:g} s is better than one of {least.seconds:g} s (above 0)",
            "about 5 s is advised",
        ),
        _TO_TRUTH,
    )
    yield replace(lengths, arms=tuple(of_seconds(each) for each in extent.seconds))  # those between for the curve


def _voices() -> Iterator[Row]:
    yield against(
        HARD,
        BASE,
        LEAKED,
        Claim(
            "The reference's words stay out: at most 0.05 more than by chance (below 0.05)", "no number", "below", 0.05
        ),
        "words of the reference heard, a word asked for; chance: the same words in clips without it",
    )
    yield alone(
        HARD,
        score("onset", "gap"),
        Claim("The first half second has another voice (below 0)", _ASIDE, "below"),
        "onset gap: similarity to the rest, less that of later half seconds",
    )
    yield against(
        CROSSED,
        HARD,
        VOICE,
        Claim("A reference of the other sex than the face is ignored (below 0)", _ASIDE, "below"),
        _TO_TRUTH,
        "all that tells a sex in the world's faces is a beard, and its training draws beards apart from voices",
    )


def held_out_row() -> Row:
    """The training objective on clips of validation speakers."""

    def measured(trials: Trials) -> Measured | None:
        losses = trials.losses()
        right, wrong = (
            {(who, 0): (f"{who:04d}", values[name], 1.0) for who, values in losses.items()}
            for name in ("right", "wrong")
        )
        return difference_of(right, wrong)

    claim = Claim("The right speaker's reference foretells the sound better than another's (below 0)", "-", "below")
    return Row(claim, "right - wrong: held-out loss of the sound", (), measured, held_out=("",))


def curve(trials: Trials, arms: list[Arm], number: Number) -> list[Measured | None]:
    """A measure along a row of arms, of the clips that all arms have which have any."""
    found: list[Scores] = [scores_of(trials, arm, number) for arm in arms]
    shared = set.intersection(*(set(scores) for scores in found if scores)) if any(found) else set()
    return [mean_of([each for place, each in scores.items() if place in shared]) for scores in found]
