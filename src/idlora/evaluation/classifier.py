# SPDX-License-Identifier: Apache-2.0
"""A small classifier of sounds: ridge regression on statistics of the log-mel. It shows what can be told by ear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MAX_LAG = 100  # mel frames of 10 ms: covers the beat of words


def sound_features(samples: NDArray[np.float32]) -> Floats:
    """What a sound (N,) at 16 kHz is like over its whole length, (F,): levels and movement by band, and its rhythm."""
    import torch

    from idlora.networks.mel import LogMel

    mel = LogMel()(torch.from_numpy(samples)[None, None])[0, 0].double().numpy()  # (T, bins)
    change = np.diff(mel, axis=0)
    levels = np.quantile(mel, _QUANTILES, axis=0).ravel()
    return np.concatenate([levels, mel.std(0), np.abs(change).mean(0), change.max(0), change.min(0), _rhythm(mel)])


def _rhythm(mel: Floats) -> Floats:
    """Autocorrelation (lags,) of the loudness in time."""
    loudness = mel.mean(axis=1) - mel.mean()
    padded = np.pad(loudness, (0, len(loudness)))
    power = np.abs(np.fft.rfft(padded)) ** 2
    correlation = np.fft.irfft(power)[: min(_MAX_LAG, len(loudness))]
    return np.asarray(np.pad(correlation / (correlation[0] + 1e-9), (0, _MAX_LAG - len(correlation))))


@dataclass(frozen=True, eq=False)
class Linear:
    """Least squares with a penalty: features (F,) are standardised, then mapped to numbers (K,)."""

    mean: Floats  # (F,)
    scale: Floats  # (F,)
    weights: Floats  # (F + 1, K)

    @classmethod
    def fit(cls, features: Floats, wanted: Floats, penalty: float = 0.1) -> Linear:
        """Learn features (N, F) to numbers (N, K); `penalty` is relative to N."""
        mean, scale = features.mean(0), np.asarray(features.std(0) + 1e-6, np.float64)
        design = _with_bias((features - mean) / scale)
        gram = design.T @ design + penalty * len(design) * np.eye(design.shape[1])
        return cls(mean, scale, np.asarray(np.linalg.solve(gram, design.T @ wanted), np.float64))

    def __call__(self, features: Floats) -> Floats:
        """The numbers (N, K) of features (N, F)."""
        return np.asarray(_with_bias((features - self.mean) / self.scale) @ self.weights)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear classifier: one score for each label."""

    labels: tuple[str, ...]
    linear: Linear

    @classmethod
    def fit(cls, features: Floats, labels: Sequence[str], penalty: float = 0.1) -> Ridge:
        """Least squares on one-hot labels; `penalty` is relative to the number of rows of `features` (N, F)."""
        names = tuple(sorted(set(labels)))
        wanted = np.array([[label == name for name in names] for label in labels], np.float64)
        return cls(names, Linear.fit(features, wanted, penalty))

    def predict(self, features: Floats) -> list[str]:
        """The likeliest label of each row (N, F)."""
        return [self.labels[best] for best in self.linear(features).argmax(axis=1)]


def _with_bias(features: Floats) -> Floats:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
