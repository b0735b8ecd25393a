# SPDX-License-Identifier: Apache-2.0
"""What cannot be tested with the weights that ship: other adapters, other weights, and people."""

from __future__ import annotations

from idlora.evaluation.reproduction.findings import Claim, Finding, untestable

_ADAPTER = "it needs an adapter trained so; none ships"
_NO_OPTION = f"{_ADAPTER}, and no option of `idlora train` places the reference otherwise"
_FOLDER = "idlora evaluate CLIPS --out evaluation"


def trained(*over: str) -> str:
    """The command that would train an adapter which differs in some options."""
    return " ".join(["idlora train recipes/miniature.yaml", *(f"--set {each}" for each in over)])


TRAINING: tuple[tuple[Claim, str, str], ...] = (
    (
        Claim("Negative positions are better than shared ones, three seeds", "ablation, no number at hand"),
        _NO_OPTION,
        "idlora train recipes/miniature.yaml",
    ),
    (
        Claim("Negative positions are better than a large positive offset, three seeds", "ablation, no number at hand"),
        _NO_OPTION,
        "idlora train recipes/miniature.yaml",
    ),
    (
        Claim("A gap between reference and target is better than none, three seeds", "ablation, no number at hand"),
        _NO_OPTION,
        "idlora train recipes/miniature.yaml",
    ),
    (
        Claim("Rounded positions in training cost accuracy", "trained with positions in bf16"),
        _ADAPTER,
        trained("objective.positions=bf16-training", "out=runs/rounded"),
    ),
    (
        Claim("Reference dropout in training makes identity guidance better", "trained without"),
        f"{_ADAPTER}; the one that ships has dropout 0.1",
        trained("objective.reference_dropout=0", "out=runs/no-dropout"),
    ),
    (
        Claim("Masks in training matter", "trained with both masks"),
        _ADAPTER,
        trained("objective.mask_reference_to_video=false", "out=runs/no-mask"),
    ),
    (
        Claim("The reference cut off from the text in training is better", "trained with that mask"),
        f"{_ADAPTER}; the one that ships attends to the text",
        trained("objective.reference_text=block", "out=runs/blocked"),
    ),
    (
        Claim("Rank 128 is enough; ranks 4 to 128", "rank 128"),
        f"{_ADAPTER}; the one that ships has rank 32",
        trained("adapter.rank=128", "out=runs/rank-128"),
    ),
    (
        Claim("About 3,000 pairs suffice; 100 to 3,000 pairs", "2,963 pairs"),
        f"{_ADAPTER}; the one that ships saw 3,000 pairs",
        "idlora world pairs runs/pairs/train-300 --count 300 && "
        "idlora precompute runs/pairs/train-300/manifest.jsonl runs/latents/train-300 && "
        + trained("data.train=[runs/latents/train-300]", "out=runs/pairs-300"),
    ),
    (
        Claim("6,000 steps (LTX-2.0) and 3,000 (2.3) suffice", "6,000 and 3,000 steps"),
        f"{_ADAPTER}; the one that ships had 3,750",
        trained("steps=1000", "out=runs/steps-1000"),
    ),
    (
        Claim("Identity guidance on the audio alone is better than on both streams", "audio alone"),
        "no option guides the video by the reference, so that there is no such arm",
        "idlora generate --identity-scale 3",
    ),
)
OTHERS: tuple[tuple[Claim, str, str], ...] = (
    (
        Claim("Voices are preferred over Kling 2.6 Pro", "73 % against 20 % of annotators"),
        "a study with people; and Kling's clips are not at hand",
        _FOLDER,
    ),
    (
        Claim("Voices are preferred over ElevenLabs v3 + WAN2.2", "81 % against 18 % of annotators"),
        "a study with people; and their clips are not at hand",
        _FOLDER,
    ),
    (
        Claim("Sounds of interaction have a higher mean opinion score than Kling's", "3.05 against 2.90"),
        "a study with people; the row on the struck object is what a judge can tell",
        _FOLDER,
    ),
    (
        Claim("Speaker similarity across places is 24 % above Kling 2.6 Pro", "0.477 against 0.385"),
        "Kling's clips are not at hand; `idlora evaluate` judges them in a folder of their own",
        _FOLDER,
    ),
    (
        Claim("CelebV-HQ, hard: similarity by WavLM-Large and ECAPA", "0.477"),
        "neither the clips, the released adapter nor the judge's weights are at hand",
        f"{_FOLDER} --weights speaker-wavlm-ecapa=wavlm_large_finetune.pth",
    ),
    (
        Claim("CelebV-HQ, hard: face similarity by ArcFace", "0.874"),
        "likewise; and the miniature's faces are drawn",
        f"{_FOLDER} --weights face-arcface=buffalo_l",
    ),
    (
        Claim("CelebV-HQ, hard: LSE-D and LSE-C", "8.49 and 3.90"),
        "likewise",
        f"{_FOLDER} --weights lips-syncnet=syncnet_v2.model",
    ),
    (
        Claim("CelebV-HQ, hard: CLAP", "0.363"),
        "likewise",
        f"{_FOLDER} --weights sounds-clap=laion/clap-htsat-unfused",
    ),
    (
        Claim("TalkVid: similarity, LSE-D, LSE-C, CLAP and WER", "0.599, 10.62, 3.09, 0.385 and 0.054"),
        "likewise",
        _FOLDER,
    ),
)


def out_of_reach() -> list[Finding]:
    """A row for each, n = 0."""
    return [untestable(*each) for each in (*TRAINING, *OTHERS)]
