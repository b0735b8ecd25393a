# SPDX-License-Identifier: Apache-2.0
"""What cannot be tested with what ships: other weights, and people."""

from __future__ import annotations

from idlora.evaluation.reproduction.findings import Claim, Finding, untestable

_FOLDER = "idlora evaluate CLIPS --out evaluation"


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
    return [untestable(*each) for each in OTHERS]
