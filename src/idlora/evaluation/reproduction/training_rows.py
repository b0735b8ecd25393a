# SPDX-License-Identifier: Apache-2.0
"""The claims on training: adapters of one small recipe against each other (`ablations`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from idlora.evaluation.reproduction.ablations import (
    ADJACENT,
    ALONE,
    BLOCKED,
    FAR,
    FEW_PAIRS,
    FEW_STEPS,
    LONG,
    NEGATIVE,
    NO_DROPOUT,
    PAIRS,
    RANKS,
    RECIPE,
    ROUNDED,
    SHARED,
    UNMASKED,
    Ablation,
)
from idlora.evaluation.reproduction.arms import HARD, Arm, Extent
from idlora.evaluation.reproduction.claims import LEAKED, VOICE, WORDS, Row
from idlora.evaluation.reproduction.findings import Claim, Measured, difference_of, mean_of
from idlora.evaluation.reproduction.scores import Number, Scores, score, scores_of
from idlora.evaluation.reproduction.trials import Trials
from idlora.evaluation.store import Values

Group = Sequence[Ablation]
_NO_NUMBER = "ablation, no number at hand"
_TO_TRUTH = "similarity (Resemblyzer) to the true clip of the speaker in the place asked for"
_WER = "WER (pocketsphinx), quiet room and hall"
_LIPS = score("lips-world", "correlation")
_SMALL = (
    f"but for what is compared, adapters of rank {RECIPE.adapter.rank} after {RECIPE.steps} steps of "
    f"{RECIPE.engine.batch} from {PAIRS:,} pairs, far from done: what they say of a whole training is little"
)
_LEARNT = "held-out loss of the sound with another speaker's reference, less that with the right one"
_MANY = 1000  # above any number of prompts


def arm_of(ablation: Ablation, scale: float = 1.0, *, whole: bool = False) -> Arm:
    """Its clips from another place's reference; the sound alone, or as a `whole` with pictures and onset."""
    named = ablation.key + (f", scale {scale:g}" if scale != 1 else "") + (", whole" if whole else "")
    return replace(HARD, name=named, adapter=ablation.key, scale=scale, pictures=whole, onset=whole)


def training_rows(extent: Extent) -> Iterator[Row]:
    """All rows, in the order of their worth; the quick form decodes no pictures for those on positions."""
    yield _learnt(NEGATIVE, Claim("The small recipe learns the voice (above 0)", _NO_NUMBER))
    yield from _positions(whole=extent.trains)
    yield from _amounts()
    yield from _options()


def _positions(*, whole: bool) -> Iterator[Row]:
    wrong = Claim("{}: fewer wrong words (below 0)", _NO_NUMBER, "below")
    leaked = Claim("{}: fewer words of the reference (below 0)", _NO_NUMBER, "below")
    claims: list[tuple[Claim, Number, str]] = [
        (Claim("{}: nearer to the voice (above 0)", _NO_NUMBER), VOICE, _TO_TRUTH),
        (leaked, LEAKED, "words of the reference heard, a word asked for"),
        (wrong, WORDS, _WER),
    ]
    if whole:
        claims.append((Claim("{}: better lips (above 0)", _NO_NUMBER), _LIPS, "correlation of lips and speech"))
    for words, other in (("shared", SHARED), ("a large positive offset", FAR), ("no gap", ADJACENT)):
        told = f"Negative positions against {words}"
        fitted = Claim(f"{told}: a lower held-out loss (below 0)", _NO_NUMBER, "below")
        yield _fitted(NEGATIVE, other, fitted)
        for claim, number, measure in claims:
            named = replace(claim, text=claim.text.format(told))
            yield _compared(NEGATIVE, other, number, named, measure, whole=whole)


def _options() -> Iterator[Row]:
    usual = NEGATIVE[:1]
    rounded = Claim("Rounded positions in training cost similarity (above 0)", "trained with positions in bf16")
    yield _compared(usual, [ROUNDED], VOICE, rounded, _TO_TRUTH, whole=True)
    for scale in (1.0, 3.0):
        kept = Claim(
            f"Reference dropout in training saves words at identity guidance {scale:g} (below 0)",
            "trained without",
            "below",
        )
        yield _compared(usual, [NO_DROPOUT], WORDS, kept, _WER, scale=scale, whole=True)
    voiced = Claim("Reference dropout in training brings the voice nearer (above 0)", "trained without")
    yield _compared(usual, [NO_DROPOUT], VOICE, voiced, _TO_TRUTH, whole=True)
    onset = Claim("Reference dropout in training mends the first half second (above 0)", "users, not the paper")
    yield _compared(usual, [NO_DROPOUT], score("onset", "gap"), onset, "onset gap", whole=True)
    masked = "The mask between reference and picture in training"
    heard = Claim(f"{masked}: nearer to the voice (above 0)", _NO_NUMBER)
    yield _compared(usual, [UNMASKED], VOICE, heard, _TO_TRUTH, whole=True)
    lips = Claim(f"{masked}: better lips (above 0)", _NO_NUMBER)
    yield _compared(usual, [UNMASKED], _LIPS, lips, "correlation of lips and speech", whole=True)
    blocked = Claim(
        "The reference cut off from the text in training: nearer to the voice (above 0)", "trained with that mask"
    )
    yield _compared([BLOCKED], usual, VOICE, blocked, _TO_TRUTH, whole=True)
    cut = Claim("The reference cut off from the text in training: fewer wrong words (below 0)", "likewise", "below")
    yield _compared([BLOCKED], usual, WORDS, cut, _WER, whole=True)
    alone = "A reference that hears itself alone"
    fitted = Claim(f"{alone}: held-out loss up by at most 0.005 (below 0.005)", "not in the paper", "below", 0.005)
    yield _fitted([ALONE], usual, fitted)
    near = Claim(f"{alone}: the voice, lost at most 0.02 (above -0.02)", "not in the paper", bound=-0.02)
    yield _compared([ALONE], usual, VOICE, near, _TO_TRUTH, whole=True)


def _amounts() -> Iterator[Row]:
    usual = NEGATIVE[:1]
    pairs, few = f"{PAIRS:,} pairs against {FEW_PAIRS.config.data.limit}", [FEW_PAIRS]
    yield _compared(usual, few, VOICE, Claim(f"{pairs}: nearer to the voice (above 0)", "2,963 pairs"), _TO_TRUTH)
    yield _fitted(usual, few, Claim(f"{pairs}: a lower held-out loss (below 0)", "2,963 pairs", "below"))
    *less, most = LONG
    for each in less:
        told = f"{most.config.data.limit:,} pairs against {each.config.data.limit:,}, {most.config.steps} steps"
        yield _compared(
            [most], [each], VOICE, Claim(f"{told}: nearer to the voice (above 0)", "2,963 pairs"), _TO_TRUTH
        )
        yield _fitted([most], [each], Claim(f"{told}: a lower held-out loss (below 0)", "2,963 pairs", "below"))
    usual_pairs = next(each for each in LONG if each.config.data.limit == PAIRS)
    steps = f"{usual_pairs.config.steps} steps against {RECIPE.steps}"
    paper = "6,000 and 3,000 steps"
    yield _compared([usual_pairs], usual, VOICE, Claim(f"{steps}: nearer to the voice (above 0)", paper), _TO_TRUTH)
    yield _fitted([usual_pairs], usual, Claim(f"{steps}: a lower held-out loss (below 0)", paper, "below"))
    steps, early = f"{RECIPE.steps} steps against {FEW_STEPS.config.steps}", [FEW_STEPS]
    yield _compared(usual, early, VOICE, Claim(f"{steps}: nearer to the voice (above 0)", paper), _TO_TRUTH)
    yield _fitted(usual, early, Claim(f"{steps}: a lower held-out loss (below 0)", paper, "below"))
    *lower, highest = RANKS
    for each in lower:
        told = f"Rank {highest.config.adapter.rank} against {each.config.adapter.rank}"
        yield _fitted([highest], [each], Claim(f"{told}: a lower held-out loss (below 0)", "rank 128", "below"))
        yield _compared(
            [highest], [each], VOICE, Claim(f"{told}: nearer to the voice (above 0)", "rank 128"), _TO_TRUTH
        )


def _compared(
    first: Group, second: Group, number: Number, claim: Claim, measure: str, *, scale: float = 1.0, whole: bool = False
) -> Row:
    """The clips of some adapters less those of others, seed by seed and clip by clip, drawn again by speaker."""
    ours, theirs = ([arm_of(each, scale, whole=whole) for each in group] for group in (first, second))

    def measured(trials: Trials) -> Measured | None:
        return difference_of(_merged(trials, ours, number), _merged(trials, theirs, number))

    return Row(claim, f"{_named(first)} - {_named(second)}: {measure}", (*ours, *theirs), measured, _SMALL)


def _fitted(first: Group, second: Group, claim: Claim) -> Row:
    """Held-out losses with the right reference, likewise."""

    def measured(trials: Trials) -> Measured | None:
        return difference_of(*(_losses(trials, group, lambda values: values["right"]) for group in (first, second)))

    measure = f"{_named(first)} - {_named(second)}: held-out loss of the sound with the right reference"
    return Row(claim, measure, (), measured, _SMALL, held_out=_keys([*first, *second]))


def _learnt(group: Group, claim: Claim) -> Row:
    def measured(trials: Trials) -> Measured | None:
        return mean_of(list(_losses(trials, group, lambda values: values["wrong"] - values["right"]).values()))

    return Row(claim, f"{_named(group)}: {_LEARNT}", (), measured, _SMALL, held_out=_keys(group))


def _merged(trials: Trials, arms: Sequence[Arm], number: Number) -> Scores:
    """The scores of arms that are alike but for their seeds, each clip of each seed by itself."""
    return {
        (who, prompt + _MANY * seed): each
        for seed, arm in enumerate(arms)
        for (who, prompt), each in scores_of(trials, arm, number).items()
    }


def _losses(trials: Trials, group: Group, number: Callable[[Values], float]) -> Scores:
    return {
        (who, _MANY * seed): (f"{who:04d}", number(values), 1.0)
        for seed, ablation in enumerate(group)
        for who, values in trials.losses(ablation.key).items()
    }


def _named(group: Group) -> str:
    return group[0].name


def _keys(group: Group) -> tuple[str, ...]:
    return tuple(ablation.key for ablation in group)
