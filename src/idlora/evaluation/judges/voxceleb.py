# SPDX-License-Identifier: Apache-2.0
"""ECAPA-TDNN as SpeechBrain trained it on VoxCeleb (`spkrec-ecapa-voxceleb`), by its file, without SpeechBrain.

The names of modules are those of the file, `embedding_model.ckpt`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idlora.evaluation.judges.base import JudgeRecord
from idlora.evaluation.judges.sounds import Sound, at_16_khz, refuse_silence
from idlora.evaluation.judges.voices import Embedding
from idlora.evaluation.judges.weights import Lazy, best_device, digest_of, file_of, fill, tensors_of

FILE = "embedding_model.ckpt"
_MELS, _FFT, _HOP, _RANGE_DB = 80, 400, 160, 80.0
_CHANNELS, _MERGED, _EMBEDDING, _SQUEEZED, _SCALE = 1024, 3072, 192, 128, 8


class Wrapped(nn.Module):
    """A layer under one more name, as the file has it."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's."""
        found: Tensor = getattr(self, self.name)(x)
        return found


def _convolution(before: int, after: int, kernel: int = 1, dilation: int = 1) -> Wrapped:
    padding = dilation * (kernel - 1) // 2
    return Wrapped("conv", nn.Conv1d(before, after, kernel, padding=padding, dilation=dilation, padding_mode="reflect"))


def _norm(channels: int) -> Wrapped:
    return Wrapped("norm", nn.BatchNorm1d(channels))


class Layer(nn.Module):
    """Convolution, ReLU, norm."""

    def __init__(self, before: int, after: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = _convolution(before, after, kernel, dilation), _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C', T)."""
        found: Tensor = self.norm(F.relu(self.conv(x)))
        return found


class Groups(nn.Module):
    """Eight groups: the first passes, the next is convolved, each further one after the one before was added."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // _SCALE
        self.blocks = nn.ModuleList(Layer(width, width, 3, dilation) for _ in range(_SCALE - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        first, *others = x.chunk(_SCALE, dim=1)
        out = [first]
        for index, (group, block) in enumerate(zip(others, self.blocks, strict=True)):
            out.append(block(group + out[-1] if index else group))
        return torch.cat(out, dim=1)


class Squeeze(nn.Module):
    """Each channel weighed by what all of them do on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(channels, _SQUEEZED), _convolution(_SQUEEZED, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(dim=2, keepdim=True)))))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1, self.tdnn2 = Layer(channels, channels), Layer(channels, channels)
        self.res2net_block, self.se_block = Groups(channels, dilation), Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        change: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))
        return x + change


class Pool(nn.Module):
    """Weighted mean and deviation over time; the weights see the plain ones too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tdnn, self.conv = Layer(3 * channels, _SQUEEZED), _convolution(_SQUEEZED, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, 2C, 1)."""
        even = torch.full_like(x[:, :1], 1 / x.shape[2])
        context = _moments(x, even).expand(-1, -1, x.shape[2])
        weights = torch.softmax(self.conv(torch.tanh(self.tdnn(torch.cat([x, context], dim=1)))), dim=2)
        return _moments(x, weights)


def _moments(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean and standard deviation (B, 2C, 1) over time."""
    mean = (weights * x).sum(dim=2, keepdim=True)
    variance = (weights * (x - mean) ** 2).sum(dim=2, keepdim=True)
    return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], dim=1)


class Ecapa(nn.Module):
    """Log-mel energies (B, 80, T) to a voice (B, 192)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(_CHANNELS, dilation) for dilation in (2, 3, 4)]
        self.blocks = nn.ModuleList([Layer(_MELS, _CHANNELS, 5), *blocks])
        self.mfa = Layer(3 * _CHANNELS, _MERGED)
        self.asp, self.asp_bn = Pool(_MERGED), _norm(2 * _MERGED)
        self.fc = _convolution(2 * _MERGED, _EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        merged = self.mfa(torch.cat(states[1:], dim=1))
        found: Tensor = self.fc(self.asp_bn(self.asp(merged)))[:, :, 0]
        return found


def energies(sound: Tensor) -> Tensor:
    """Log-mel energies (B, 80, T) in dB of sounds (B, N) at 16 kHz, at most 80 dB below the loudest, means off."""
    window = torch.hamming_window(_FFT, device=sound.device)
    transform = torch.stft(sound, _FFT, _HOP, _FFT, window, center=True, pad_mode="constant", return_complex=True)
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), _MELS + 2)
    hertz = torch.from_numpy(700 * (10 ** (mel / 2595) - 1)).float().to(sound.device)
    # Triangles are as wide on the right as on the left.
    centre, width = hertz[1:-1, None], (hertz[1:] - hertz[:-1])[:-1, None]
    slope = (torch.linspace(0, 8000, _FFT // 2 + 1, device=sound.device) - centre) / width
    power = (1 - slope.abs()).clamp(min=0) @ transform.abs().square()
    level = 10 * power.clamp(min=1e-10).log10()
    level = torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - _RANGE_DB)
    return level - level.mean(dim=2, keepdim=True)


class VoxCelebSpeaker(Lazy):
    """The speaker encoder of the official repository's first metric, by `embedding_model.ckpt`.

    By that file, its folder, or the name of a repository on the hub that holds it (owner/name, or owner/name/file).
    Limits: trained on interviews; hears the room a little. Not yet run on the published file: names, shapes and
    arithmetic agree with SpeechBrain 1.1's own on random weights.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        _ = self._file

    @cached_property
    def _file(self) -> Path:
        return file_of(self.source, FILE, "SpeechBrain's ECAPA-TDNN")

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the file."""
        return JudgeRecord(
            "ECAPA-TDNN", "VoxCeleb", "trained on interviews; hears the room a little", digest_of(self._file)
        )

    @cached_property
    def network(self) -> Ecapa:
        """The network."""
        network = Ecapa()
        fill(network, tensors_of(self._file), "SpeechBrain's ECAPA-TDNN")
        return network.to(best_device())

    @torch.no_grad()
    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """See `SpeakerEncoder.embed`; 192 numbers."""
        sound = at_16_khz(waveform, rate)
        refuse_silence(sound)
        given = torch.from_numpy(np.ascontiguousarray(sound))[None].to(next(self.network.parameters()).device)
        return np.asarray(F.normalize(self.network(energies(given)), dim=1)[0].cpu().numpy(), np.float32)
