# SPDX-License-Identifier: Apache-2.0
"""Voices of the miniature's world: a small network that tells its speakers apart in all of its places and styles.

It is for the procedural world what networks trained on VoxCeleb are for people, made by `tools/train_world_voices.py`
of speakers that belong to no split of the world and to no recording of `idlora world recordings`.
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
from idlora.networks.mel import LogMel

NUM_BINS, WIDTH, SIZE = 64, 128, 64
_STEADY = 1e-5


class VoiceNet(nn.Module):
    """Log-mel (B, T, 64) to vectors (B, 64): convolutions over time, then mean and spread weighted by attention.

    X-vectors (Snyder et al. 2018) with attentive statistics (Okabe et al. 2018), small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(NUM_BINS, WIDTH, 5, stride=2, padding=2), nn.ReLU(), nn.BatchNorm1d(WIDTH),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.BatchNorm1d(WIDTH),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=2, dilation=2), nn.ReLU(), nn.BatchNorm1d(WIDTH),
            nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.ReLU(), nn.BatchNorm1d(2 * WIDTH),
        )  # fmt: skip
        self.attention = nn.Sequential(nn.Conv1d(2 * WIDTH, 32, 1), nn.Tanh(), nn.Conv1d(32, 2 * WIDTH, 1))
        self.head = nn.Linear(4 * WIDTH, SIZE)

    def forward(self, mel: Tensor) -> Tensor:
        """Unit vectors (B, 64) of log-mel spectra (B, T, 64)."""
        mel = mel - mel.mean(dim=(1, 2), keepdim=True)  # loudness is no part of a voice
        hidden = self.layers(mel.transpose(1, 2) / 4)  # (B, C, T)
        weights = torch.softmax(self.attention(hidden), dim=-1)
        mean = (weights * hidden).sum(-1)
        spread = ((weights * hidden**2).sum(-1) - mean**2).clamp(min=_STEADY).sqrt()
        return functional.normalize(self.head(torch.cat([mean, spread], dim=1)), dim=1)


class WorldVoices:
    """The network with the weights that ship.

    Limits: for voices of the procedural world alone; whispers are not told.
    """

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        with as_file(_asset()) as path:
            return JudgeRecord("voices of the world", "1", "voices of the procedural world alone", sha256_of(path))

    @cached_property
    def _parts(self) -> tuple[VoiceNet, LogMel]:
        from safetensors.torch import load_file

        net = VoiceNet()
        with as_file(_asset()) as path:
            net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
        return net.eval().requires_grad_(requires_grad=False), LogMel()

    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """Unit vector (64,) of a voice (N,).

        Raises:
            InputError: the sound is silent or not mono.
        """
        sound = at_16_khz(waveform, rate)
        refuse_silence(sound)
        net, mel = self._parts
        heard = torch.from_numpy(np.ascontiguousarray(sound, np.float32))
        with torch.no_grad():
            return np.asarray(net(mel(heard[None, None])[0])[0].numpy(), np.float32)


def _asset() -> Path:
    return Path(str(files("idlora.evaluation.judges").joinpath("assets/voices.safetensors")))
