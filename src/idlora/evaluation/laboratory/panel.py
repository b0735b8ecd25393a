# SPDX-License-Identifier: Apache-2.0
"""All judges by name: which can work here, which lack weights or a package, and how to get them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from idlora.errors import SettingsError, nearest
from idlora.evaluation.judges.arcface import ArcFaceJudge
from idlora.evaluation.judges.base import Absent, Judge
from idlora.evaluation.judges.clap import ClapJudge
from idlora.evaluation.judges.conditions import ConditionsJudge
from idlora.evaluation.judges.levels import LevelsJudge
from idlora.evaluation.judges.lips import LipJudge
from idlora.evaluation.judges.onset import OnsetJudge
from idlora.evaluation.judges.syncnet import SyncNetJudge
from idlora.evaluation.judges.voices import DriftJudge, SpeakerJudge, SpeakerSimilarity
from idlora.evaluation.judges.voxceleb import VoxCelebSpeaker
from idlora.evaluation.judges.wavlm import WavLMEcapaSpeaker, WavLMSpeaker
from idlora.evaluation.judges.whisper import WhisperListener
from idlora.evaluation.judges.words import WordJudge, WordsJudge
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.judges.world_sounds import WorldSoundsJudge

_EVAL = "pip install 'idlora[eval]', and `pip install --no-deps Resemblyzer`"


@dataclass(frozen=True)
class Offer:
    """How one judge is made.

    Attributes:
        make: the judge, of the path or hub name of its weights ("" where it needs none).
        weights: what to give as its weights; empty where it needs none.
        packages: that it needs.
        install: how to get them.
    """

    make: Callable[[str], Judge]
    weights: str = ""
    packages: tuple[str, ...] = ()
    install: str = _EVAL


def _words() -> WordsJudge:
    return WordsJudge(closed=WordJudge())


OFFERS: Mapping[str, Offer] = {
    "speaker": Offer(lambda _: SpeakerSimilarity(SpeakerJudge()), packages=("resemblyzer",)),
    "face-world": Offer(lambda _: WorldFacesJudge()),
    "lips-world": Offer(lambda _: LipJudge()),
    "sounds-world": Offer(lambda _: WorldSoundsJudge()),
    "words": Offer(lambda _: _words(), packages=("resemblyzer", "pocketsphinx", "jiwer")),
    "levels": Offer(lambda _: LevelsJudge()),
    "onset": Offer(lambda _: OnsetJudge(SpeakerJudge(), _words()), packages=("resemblyzer", "pocketsphinx", "jiwer")),
    "drift": Offer(lambda _: DriftJudge(SpeakerJudge()), packages=("resemblyzer",)),
    "speaker-wavlm-sv": Offer(
        lambda source: SpeakerSimilarity(WavLMSpeaker(source)),
        "FOLDER of microsoft/wavlm-base-plus-sv, or that name where the hub can be reached",
        ("resemblyzer",),
    ),
    "speaker-wavlm-ecapa": Offer(
        lambda source: SpeakerSimilarity(WavLMEcapaSpeaker(source)),
        "FILE, wavlm_large_finetune.pth of UniSpeech's speaker verification, or OWNER/NAME/FILE on the hub",
        ("resemblyzer",),
    ),
    "speaker-ecapa": Offer(
        lambda source: SpeakerSimilarity(VoxCelebSpeaker(source)),
        "FILE, embedding_model.ckpt of speechbrain/spkrec-ecapa-voxceleb, or that name where the hub can be reached",
        ("resemblyzer",),
    ),
    "face-arcface": Offer(
        ArcFaceJudge,
        "FOLDER with det_10g.onnx and w600k_r50.onnx, insightface's buffalo_l",
        ("onnxruntime",),
        "pip install 'idlora[faces]'",
    ),
    "lips-syncnet": Offer(SyncNetJudge, "FILE, syncnet_v2.model of joonson/syncnet_python"),
    "sounds-clap": Offer(ClapJudge, "FOLDER of laion/clap-htsat-unfused, or that name where the hub can be reached"),
    "words-whisper": Offer(
        lambda source: WordsJudge(WhisperListener(source)),
        "FOLDER of openai/whisper-large-v3, or that name where the hub can be reached",
        ("resemblyzer", "jiwer"),
    ),
    "conditions": Offer(lambda _: ConditionsJudge()),
}


@dataclass(frozen=True)
class Panel:
    """Judges that work here, by name, and those that do not."""

    judges: Mapping[str, Judge]
    absent: tuple[Absent, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str] | None = None, weights: Mapping[str, str] | None = None) -> Panel:
        """The judges of some names, all by default.

        Args:
            names: keys of `OFFERS`.
            weights: file, folder or hub name by judge.

        Raises:
            SettingsError: a name is unknown, weights are given to a judge that needs none, or a judge that was named
                cannot work.
            WeightsError: weights that were given cannot be read.
        """
        given = dict(weights or {})
        for name in (*(names or ()), *given):
            if name not in OFFERS:
                raise SettingsError(f"there is no judge {name!r}{nearest(name, OFFERS)}")
        for name in given:
            if not OFFERS[name].weights:
                raise SettingsError(f"the judge {name!r} needs no weights; leave --weights {name}=... out")
        judges: dict[str, Judge] = {}
        absent: list[Absent] = []
        for name in names or OFFERS:
            lack = _lack(name, given)
            if lack is None:
                judges[name] = OFFERS[name].make(given.get(name, ""))
            elif names:
                raise SettingsError(f"the judge {name!r} cannot work: {lack.reason}; {lack.remedy}")
            else:
                absent.append(lack)
        return cls(judges, tuple(absent))


def _lack(name: str, weights: Mapping[str, str]) -> Absent | None:
    offer = OFFERS[name]
    missing = [package for package in offer.packages if importlib.util.find_spec(package) is None]
    if missing:
        return Absent(name, f"{', '.join(missing)} is not installed", offer.install)
    if offer.weights and name not in weights:
        return Absent(name, "its weights are not given", f"--weights {name}={offer.weights}")
    return None
