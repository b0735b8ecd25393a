# SPDX-License-Identifier: Apache-2.0
"""The speaker head of UniSpeech: ECAPA-TDNN (Desplanques et al. 2020) on a mixture of WavLM's hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS, POOLED, EMBEDDING = 512, 1536, 256
_SCALE, _BOTTLENECK = 8, 128


class ConvReluNorm(nn.Module):
    """Convolution in time, ReLU, batch norm: (B, C, T) to (B, C', T)."""

    def __init__(self, before: int, after: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(after)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.bn(F.relu(self.conv(x)))
        return found


class Res2(nn.Module):
    """Eight groups of channels: each but the last is convolved after the one before it was added."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // _SCALE
        layers = [nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(_SCALE - 1)]
        self.convs = nn.ModuleList(layers)
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(_SCALE - 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        *groups, last = x.chunk(_SCALE, dim=1)
        out: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            out.append(norm(F.relu(conv(group + out[-1] if out else group))))
        return torch.cat([*out, last], dim=1)


class Squeeze(nn.Module):
    """Each channel weighed by what all of them do on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, _BOTTLENECK), nn.Linear(_BOTTLENECK, channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(dim=2))))).unsqueeze(2)


class Block(nn.Module):
    """A residual block; the names are the checkpoint's."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1 = ConvReluNorm(channels, channels)
        self.Res2Conv1dReluBn = Res2(channels, dilation)
        self.Conv1dReluBn2 = ConvReluNorm(channels, channels)
        self.SE_Connect = Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        change: Tensor = self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))
        return x + change


class AttentivePool(nn.Module):
    """Weighted mean and deviation over time, (B, C, T) to (B, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(channels, _BOTTLENECK, 1), nn.Conv1d(_BOTTLENECK, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weights = torch.softmax(self.linear2(torch.tanh(self.linear1(x))), dim=2)
        mean = (weights * x).sum(dim=2)
        variance = (weights * x**2).sum(dim=2) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)


class WavLMEcapa(nn.Module):
    """WavLM's hidden states, weighted by a softmax and normalised, through ECAPA-TDNN.

    Args:
        wavlm: a `WavLMModel` of transformers.
    """

    def __init__(self, wavlm: Any) -> None:
        super().__init__()
        self.wavlm = wavlm
        self.feature_weight = nn.Parameter(torch.zeros(wavlm.config.num_hidden_layers + 1))
        self.instance_norm = nn.InstanceNorm1d(wavlm.config.hidden_size)
        self.layer1 = ConvReluNorm(wavlm.config.hidden_size, CHANNELS, 5)
        self.layer2, self.layer3, self.layer4 = (Block(CHANNELS, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(3 * CHANNELS, POOLED, 1)
        self.pooling = AttentivePool(POOLED)
        self.bn = nn.BatchNorm1d(2 * POOLED)
        self.linear = nn.Linear(2 * POOLED, EMBEDDING)

    def forward(self, waveform: Tensor) -> Tensor:
        """Vectors (B, 256) of sounds (B, N) at 16 kHz."""
        states = torch.stack(self.wavlm(waveform, output_hidden_states=True).hidden_states)  # (layers, B, T, C)
        mixed = torch.einsum("l,lbtc->bct", torch.softmax(self.feature_weight, dim=0), states)
        first = self.layer1(self.instance_norm(mixed + 1e-6))
        second = self.layer2(first)
        third = self.layer3(second)
        fourth = self.layer4(third)
        found: Tensor = F.relu(self.conv(torch.cat([second, third, fourth], dim=1)))
        embedding: Tensor = self.linear(self.bn(self.pooling(found)))
        return embedding
