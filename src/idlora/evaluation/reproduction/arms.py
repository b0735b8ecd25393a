# SPDX-License-Identifier: Apache-2.0
"""What is generated: the arms, each a way to make the same clips, and who is asked to say what, where and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from idlora.core.guidance import ModalityGuidance
from idlora.core.positions import Rounding
from idlora.data.media import Voice
from idlora.data.world.captions import caption
from idlora.data.world.clip import FRAME_RATE, NUM_FRAMES, ClipSpec, draw_reference, render_picture, render_sound
from idlora.data.world.look import PLACES
from idlora.data.world.speakers import NUM_SPEAKERS, clip, speaker
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import SettingsError
from idlora.evaluation.judges import Footage, Reference
from idlora.evaluation.store import fingerprint
from idlora.pipeline import Request, Settings
from idlora.pipeline.settings import settings_to_json

SPLIT: Literal["test"] = "test"
# Half of the clips are asked for in the quiet room: words are hard to hear in rain and street.
PLACES_ASKED = ("quiet room", "hall", "quiet room", "rain", "quiet room", "street")
CLEAR = ("quiet room", "hall")  # where words are judged
STYLES_ASKED = ("calm", "loud", "fast")  # whispers are beyond the judges of voices and words
STRUCK_OBJECTS = ("bell", "glass")  # a drum is as low as a voice, and is not found in it
HIGH_PITCH = 165.0  # Hz; a voice above it is taken for a woman's
_CODE = 1  # another number when the same arm makes other clips


@dataclass(frozen=True)
class Extent:
    """How much is made.

    Attributes:
        name: `quick` or `full`.
        speakers: unseen ones, 1 to 40.
        prompts: clips of each in an arm.
        main_prompts: clips of each in the arms that the paper's own claims compare (`MAIN`), if that is more.
        steps: of the sampler.
        scales: of identity guidance.
        seconds: lengths of the reference.
        batch: clips generated at once.
        held_out: validation speakers whose losses are compared, 1 to 40.
        modality: modality guidance of the picture as shipped, a pass more; without it there is none.
        trains: ablations that are missing are trained.
        trained_speakers: of clips and losses with ablations, of which there are many.

    Raises:
        SettingsError: there are no such speakers.
    """

    name: str
    speakers: int
    prompts: int
    steps: int
    scales: tuple[float, ...]
    seconds: tuple[float, ...]
    batch: int = 12
    held_out: int = 24
    modality: bool = True
    trains: bool = False
    trained_speakers: int = 40
    main_prompts: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.speakers <= NUM_SPEAKERS[SPLIT]:
            raise SettingsError(f"{self.speakers} speakers; 1 to {NUM_SPEAKERS[SPLIT]} are unseen")

    def places(self, arm: Arm) -> list[tuple[int, int]]:
        """Every (speaker, prompt) of an arm."""
        speakers = min(self.speakers, self.trained_speakers) if arm.adapter else self.speakers
        prompts = max(self.prompts, self.main_prompts) if arm in MAIN else self.prompts
        return [(who, prompt) for prompt in range(prompts) for who in range(speakers)]

    def losses_of(self, adapter: str) -> range:
        """Validation speakers whose losses with an adapter are compared."""
        return range(min(self.held_out, self.trained_speakers) if adapter else self.held_out)


QUICK = Extent(
    "quick",
    speakers=12,
    prompts=1,
    steps=8,
    scales=(0.0, 1.0, 3.0),
    seconds=(1.0, 4.0),
    modality=False,
    trained_speakers=11,  # of whom eight are asked where words can be heard
)
FULL = Extent(
    "full",
    speakers=40,
    prompts=1,
    steps=20,
    scales=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    seconds=(0.5, 1.5, 5.0, 10.0),
    held_out=40,
    trains=True,
    trained_speakers=16,
    main_prompts=2,
)


@dataclass(frozen=True)
class Arm:
    """One way to make the clips.

    Attributes:
        name: by which rows know it.
        reference: recorded in another place than the clip's (`hard`), in the same (`easy`), or `none`: then the base
            works without the adapter.
        making: `joint`: both streams in one pass; `alone`: the sound with the streams isolated from each other;
            `cascade`: the sound without sight of the face, then the picture driven by the finished sound, the adapter
            off.
        seconds: length of the reference.
        scale: of identity guidance.
        base_pass: the pass without reference is by the base alone.
        video_scale: of identity guidance for the picture.
        between: sigmas between which identity guidance acts.
        masks: the reference is hidden from the picture as in training.
        positions: how they are rounded.
        crossed: low voices get a face without beard, high ones one with; otherwise the other way round.
        struck: an object is struck.
        pictures: decoded as well as the sound.
        onset: the first half second is judged too.
        adapter: key of an ablation (`ablations.ABLATIONS`) instead of the model's own; empty = that.
    """

    name: str
    reference: Literal["hard", "easy", "none"] = "hard"
    making: Literal["joint", "alone", "cascade"] = "joint"
    seconds: float = 3.0
    scale: float = 1.0
    base_pass: bool = False
    video_scale: float = 0.0
    between: tuple[float, float] = (0.0, 1.0)
    masks: bool = True
    positions: Rounding = "fp32"
    crossed: bool = False
    struck: bool = False
    pictures: bool = False
    onset: bool = False
    adapter: str = ""

    def settings(self, shipped: Settings, extent: Extent) -> Settings:
        """The settings of the adapter with what this arm changes."""
        guidance = shipped.guidance
        scale = 0.0 if self.reference == "none" else self.scale
        low, high = self.between
        identity = replace(guidance.identity, scale=scale, adapter_off=self.base_pass, video=self.video_scale)
        identity = replace(identity, lo=low, hi=high)
        modality = guidance.modality if extent.modality else ModalityGuidance(1.0, 1.0)
        return replace(
            shipped,
            guidance=replace(guidance, identity=identity, modality=modality),
            num_inference_steps=extent.steps,
            max_voice_seconds=max(shipped.max_voice_seconds, self.seconds),
            mask_reference_to_video=self.masks and shipped.mask_reference_to_video,
            positions=shipped.positions if self.adapter else self.positions,
        )

    def key(self, settings: Settings, digest: str = "") -> str:
        """Names the clips: by everything but speaker, prompt and seed; `digest` is that of the ablation's numbers.

        What an arm and its settings leave as it is is not told: clips of before keep their names when there is more to
        say.
        """
        told: dict[str, Any] = {
            "arm": _unlike(vars(self), vars(Arm(self.name))),
            "settings": _unlike(settings_to_json(settings), settings_to_json(Settings())),
            "code": _CODE,
        }
        if digest:
            told["adapter"] = digest
        return f"{self.name}/{fingerprint(told)}"


def _unlike(values: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the plain ones."""
    return {name: value for name, value in values.items() if value != plain[name]}


HARD = Arm("hard", pictures=True, onset=True)
BASE = Arm("base", reference="none", pictures=True)
EASY = Arm("easy", reference="easy")
CASCADE = Arm("cascade", making="cascade", pictures=True)
CASCADE_EASY = Arm("cascade, easy", reference="easy", making="cascade")
THREE = Arm("scale 3", scale=3.0, pictures=True, onset=True)
BARE_PASS = Arm("scale 3, pass by the base", scale=3.0, base_pass=True, onset=True)
BOTH_STREAMS = Arm("scale 3 on both streams", scale=3.0, video_scale=3.0, pictures=True)
NOISY_ONLY = Arm("scale 3 above sigma 0.5", scale=3.0, between=(0.5, 1.0))
CLEAN_ONLY = Arm("scale 3 below sigma 0.5", scale=3.0, between=(0.0, 0.5))
UNMASKED = Arm("no masks", masks=False, onset=True)
ROUNDED = Arm("bf16 positions", positions="bf16-inference")
CROSSED = Arm("crossed", crossed=True)
STRUCK = Arm("struck, joint", struck=True, pictures=True)
STRUCK_ALONE = Arm("struck, alone", struck=True, making="alone")


def of_scale(scale: float) -> Arm:
    """Identity guidance at a scale; 1 is the usual arm."""
    usual = {arm.scale: arm for arm in (HARD, THREE)}
    return usual.get(scale) or Arm(f"scale {scale:g}", scale=scale, pictures=True)


MAIN = frozenset({HARD, BASE, EASY, CASCADE, of_scale(0.0), THREE})


def of_seconds(seconds: float) -> Arm:
    """A reference of some length; 3 s is the usual one."""
    return HARD if seconds == HARD.seconds else Arm(f"reference {seconds:g} s", seconds=seconds)


def asked(arm: Arm, who: int, prompt: int) -> ClipSpec:
    """The clip asked for: an unseen order of words in a face and place drawn apart from the voice."""
    spec = clip(SPLIT, who + NUM_SPEAKERS[SPLIT] * prompt)
    high = spec.voice.f0 > HIGH_PITCH
    return replace(
        spec,
        face=replace(spec.face, beard=high if arm.crossed else not high),
        place=PLACES_ASKED[(who + prompt) % len(PLACES_ASKED)] if not arm.struck else "quiet room",
        style=STYLES_ASKED[(who // 2 + prompt) % len(STYLES_ASKED)] if not arm.struck else "calm",
        object=STRUCK_OBJECTS[(who + prompt) % len(STRUCK_OBJECTS)] if arm.struck else "none",
    )


def recorded(arm: Arm, who: int, prompt: int) -> ClipSpec:
    """The reference's recording: other words by the same speaker, in the clip's place or in another."""
    spec = asked(arm, who, prompt)
    drawn = draw_reference(np.random.default_rng([spec.seed, 11]), speaker(SPLIT, who), arm.seconds, spec.words)
    others = [place for place in PLACES if place != spec.place]
    elsewhere = others[(who // 2 + prompt) % len(others)]
    return replace(drawn, place=elsewhere if arm.reference == "hard" else spec.place)


@lru_cache(maxsize=512)
def _heard(spec: ClipSpec, num_samples: int = NUM_FRAMES * SAMPLE_RATE // FRAME_RATE) -> NDArray[np.float32]:
    """The true sound (N,) of a clip, which many arms share."""
    return render_sound(spec, num_samples).samples.astype(np.float32)


@lru_cache(maxsize=128)
def _first_picture(spec: ClipSpec) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = render_picture(spec, render_sound(spec), num_frames=1)[0]
    return picture


def voice_of(arm: Arm, who: int, prompt: int) -> Voice:
    """The reference that is handed in; for an arm without one, what its clips are compared with."""
    return Voice(_heard(recorded(arm, who, prompt), round(arm.seconds * SAMPLE_RATE))[None], SAMPLE_RATE)


def request_of(arm: Arm, settings: Settings, who: int, prompt: int) -> Request:
    """What the pipeline is asked for; the seed is the same in all arms."""
    spec = asked(arm, who, prompt)
    voice = None if arm.reference == "none" else voice_of(arm, who, prompt)
    return Request(caption(spec), replace(settings, seed=who + 1000 * prompt), _first_picture(spec), voice)


def misplaced(arm: Arm, who: int, prompt: int) -> Footage:
    """What is asked for as it would truly sound in the reference's place."""
    spec = replace(asked(arm, who, prompt), place=recorded(arm, who, prompt).place)
    return Footage(samples=_heard(spec))


def measured_by(arm: Arm, who: int, prompt: int) -> Reference:
    """What the clip is compared with: the reference and the true clip of these words by this speaker in this place."""
    spec = asked(arm, who, prompt)
    true = Footage(samples=_heard(spec))
    said = " ".join(recorded(arm, who, prompt).words)
    return Reference(voice=Footage.of_voice(voice_of(arm, who, prompt)), truth=true, said=said)
