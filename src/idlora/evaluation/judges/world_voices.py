# SPDX-License-Identifier: Apache-2.0
"""Voices of the miniature's world: a small network that tells its speakers apart in all of its places and styles.

It is for the procedural world what networks trained on VoxCeleb are for people, made by `tools/train_world_voices.py`
of speakers that belong to no split of the world and to no recording of `idlora world recordings`. A voice of the world
is seven numbers, and the network estimates them: that tells more speakers apart than being asked for names does.
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from idlora.evaluation.judges.base import JudgeRecord
from idlora.evaluation.judges.sounds import Sound, at_16_khz, refuse_silence
from idlora.evaluation.judges.voices import Embedding
from idlora.files import sha256_of
from idlora.networks.mel import LogMel, MelConfig

NUM_BINS, WIDTH, HIDDEN, TRAITS = 96, 128, 64, 9
DILATIONS = (1, 1, 2, 3, 1)
CENTRE = 10.0  # length that a mean voice has before vectors are brought to one length: steps near it stay as they are
_STEADY = 1e-5


class _Separable(nn.Module):
    """A residual step over time: each channel by itself, then all with all."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.own = nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * dilation, dilation=dilation, groups=WIDTH)
        self.all = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.all(functional.relu(self.own(self.norm(x))))
        return out


class VoiceNet(nn.Module):
    """Log-mel (B, T, 96) to what makes a voice (B, 9), in just noticeable steps.

    Separable convolutions over time, then mean and spread weighted by attention (Okabe et al. 2018). Loudness stays in:
    in the world it tells the style, and the style moves pitch and tilt.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv1d(NUM_BINS, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2, groups=WIDTH)
        )
        self.steps = nn.Sequential(*(_Separable(dilation) for dilation in DILATIONS))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.attention = nn.Sequential(nn.Conv1d(WIDTH, 16, 1), nn.Tanh(), nn.Conv1d(16, WIDTH, 1))
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, TRAITS))
        self.register_buffer("mean", torch.zeros(TRAITS))  # of the world's voices
        self.register_buffer("spread", torch.ones(TRAITS))

    def forward(self, mel: Tensor) -> Tensor:
        """What is heard of the voice."""
        hidden = functional.relu(self.norm(self.steps(self.enter((mel.transpose(1, 2) + 5) / 3))))  # (B, C, T)
        weights = torch.softmax(self.attention(hidden), dim=-1)
        mean = (weights * hidden).sum(-1)
        spread = ((weights * hidden**2).sum(-1) - mean**2).clamp(min=_STEADY).sqrt()
        told: Tensor = self.head(torch.cat([mean, spread], dim=1))
        return told * self.spread + self.mean

    def vectors(self, mel: Tensor) -> Tensor:
        """Unit vectors (B, 10): what makes the voice, less the mean, beside a constant."""
        traits = self(mel) - self.mean
        return functional.normalize(functional.pad(traits, (0, 1), value=CENTRE), dim=1)


class WorldVoices:
    """The network with the weights that ship.

    Limits: for voices of the procedural world alone; whispers are not told.
    """

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        with as_file(_asset()) as path:
            return JudgeRecord("voices of the world", "2", "voices of the procedural world alone", sha256_of(path))

    @cached_property
    def _parts(self) -> tuple[VoiceNet, LogMel]:
        from safetensors.torch import load_file

        net = VoiceNet()
        with as_file(_asset()) as path:
            net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
        return net.eval().requires_grad_(requires_grad=False), LogMel(MelConfig(num_bins=NUM_BINS))

    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """Unit vector (10,) of a voice (N,).

        Raises:
            InputError: the sound is silent or not mono.
        """
        sound = at_16_khz(waveform, rate)
        refuse_silence(sound)
        net, mel = self._parts
        heard = torch.from_numpy(np.ascontiguousarray(sound, np.float32))
        with torch.no_grad():
            return np.asarray(net.vectors(mel(heard[None, None])[0])[0].numpy(), np.float32)


def _asset() -> Path:
    return Path(str(files("idlora.evaluation.judges").joinpath("assets/voices.safetensors")))
