# SPDX-License-Identifier: Apache-2.0
"""Rows on the codecs: what is left of true clips that went through both autoencoders and the vocoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from idlora.data.world.clip import NUM_FRAMES, ClipSpec, mouth, render_picture, render_sound
from idlora.data.world.reader import mouth_box, read_mouth_opening
from idlora.data.world.speakers import Split
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.clips import Plan, enrolment, target, true_sound
from idlora.evaluation.judges import Sound, mono, pearson
from idlora.evaluation.report import Row
from idlora.evaluation.scoring import Frames, Judges, Match, Scores
from idlora.evaluation.statistics import Floats, mean_over
from idlora.evaluation.store import Store, Values
from idlora.networks.codecs import VideoGrid, vocoder_rate
from idlora.pipeline.generation import Codecs, fit_length

logger = logging.getLogger(__name__)


class Codec(Protocol):
    """There and back again."""

    def sound(self, samples: Sound) -> tuple[Sound, int]:
        """Samples (N,) at 16 kHz through autoencoder and vocoder: (N',) and its rate."""
        ...

    def picture(self, frames: Frames) -> Frames:
        """Frames (F, size, size, 3) through the video autoencoder."""
        ...


@dataclass(frozen=True)
class ShippedCodec:
    """The codecs of a pipeline."""

    codecs: Codecs

    @torch.no_grad()
    def sound(self, samples: Sound) -> tuple[Sound, int]:
        """See `Codec.sound`."""
        mel = self.codecs.audio.decode(self.codecs.audio.encode(torch.from_numpy(samples)[None, None]))
        vocoder = self.codecs.vocoder
        waveform = vocoder(mel.to(vocoder.dtype)).float()[0]  # (channels, N')
        rate = vocoder_rate(vocoder)
        return mono(fit_length(waveform, round(len(samples) / SAMPLE_RATE * rate)).cpu().numpy()), rate

    def picture(self, frames: Frames) -> Frames:
        """See `Codec.picture`."""
        codec = self.codecs.video
        grid = VideoGrid.of(frames.shape[0], frames.shape[1], frames.shape[2], codec.vae)
        decoded: Frames = codec.decode(codec.encode(torch.from_numpy(frames)[None]), grid)[0].cpu().numpy()
        return decoded


def codec_rows(plan: Plan, store: Store, judges: Judges, codec: Codec, split: Split) -> list[Row]:
    """Voice, words, picture and lips of the clips asked for, the true ones through the codec."""
    scores = ceiling(plan, store, judges, codec, split)
    match = Match.of(scores, enrolled(plan, store, judges, codec, split))
    return [
        Row("codec cos", mean_over(match.cosines), scores.n),
        Row("codec margin", mean_over(match.margins), scores.n),
        Row("codec top-1", mean_over(match.firsts), scores.n),
        Row("codec WER", scores.word_error_rate(), scores.n),
        *picture_rows(plan, store, codec, split),
    ]


def ceiling(plan: Plan, store: Store, judges: Judges, codec: Codec, split: Split) -> Scores:
    """Scores of the sounds asked for, the true ones through the codec."""

    def one(speaker: int, prompt: int) -> Values:
        return coded(store, judges, codec, split, speaker, prompt)

    return Scores.collect(plan.speakers, plan.prompts, one)


def coded(store: Store, judges: Judges, codec: Codec, split: Split, speaker: int, prompt: int) -> Values:
    """Scores of one of them."""
    return _through(store, judges, codec, f"codec/{split}/{speaker}/{prompt}", target(split, speaker, prompt))


def enrolled(plan: Plan, store: Store, judges: Judges, codec: Codec, split: Split) -> Floats:
    """What every speaker is compared with: the unit mean (speakers, 256) of other quiet true clips, coded alike."""

    def one(speaker: int, take: int) -> Values:
        return _through(store, judges, codec, f"enrolment/{split}/{speaker}/{take}", enrolment(split, speaker, take))

    return Scores.collect(plan.speakers, plan.enrolments, one).centroids()


def _through(store: Store, judges: Judges, codec: Codec, key: str, spec: ClipSpec) -> Values:
    def judge() -> Values:
        logger.info("%s", key)
        return judges.hear(*codec.sound(true_sound(spec)), spec.words)

    return store.recall(key, judge)


def picture_rows(plan: Plan, store: Store, codec: Codec, split: Split) -> list[Row]:
    """PSNR of reconstructed pictures in dB, whole and in the mouth box, and the mouth opening read from them."""

    def one(speaker: int, prompt: int) -> Values:
        key = f"picture/{split}/{speaker}/{prompt}"
        return store.recall(key, lambda: _seen(target(split, speaker, prompt), codec))

    values = [[one(s, p) for p in range(plan.prompts)] for s in range(plan.speakers)]

    def row(measure: str, name: str) -> Row:
        column = np.array([[clip[name] for clip in clips] for clips in values])
        return Row(measure, mean_over(column), column.size)

    return [
        row("video PSNR", "psnr"),
        row("video PSNR, mouth box", "psnr_mouth"),
        row("codec mouth opening r", "opening"),
    ]


def _seen(spec: ClipSpec, codec: Codec) -> Values:
    sound = render_sound(spec)
    true = render_picture(spec, sound, NUM_FRAMES)
    coded = codec.picture(true)
    rows, columns = mouth_box(true.shape[1])
    read = read_mouth_opening(coded).astype(np.float64)
    return {
        "psnr": psnr(true, coded),
        "psnr_mouth": psnr(true[:, rows, columns], coded[:, rows, columns]),
        "opening": pearson(read, mouth(sound)[0]),
    }


def psnr(true: Frames, other: Frames) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures; 100 where they are equal."""
    error = float(np.mean((true.astype(np.float64) - other) ** 2))
    return min(100.0, 10 * float(np.log10(255.0**2 / max(error, 1e-9))))
