# SPDX-License-Identifier: Apache-2.0
"""Plans of passes as CUDA graphs: thousands of kernels launched at once instead of one by one from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idlora.core.guidance import Pass
from idlora.core.state import AVState, LatentState
from idlora.errors import SettingsError, first_line
from idlora.networks.executor import Executor
from idlora.networks.joint import Prediction


class _Recording(NamedTuple):
    """A graph, and the tensors that it reads and writes."""

    graph: Any
    state: AVState
    sigma: Tensor
    predictions: dict[str, Prediction]


class Recorder:
    """Computes what an executor computes.

    The first step of a plan runs as it is, the second is recorded, and that one and all later ones are replayed: the
    same kernels on the same numbers. A recording holds while the tokens stay where they are; their values and the noise
    level may change. The kernels' working memory stays reserved, once for all recordings.

    Args:
        run: its model must have all blocks on the GPU and keep adapters' strengths.

    Raises:
        ValueError: the executor caches by what it sees, so that steps differ.
        SettingsError: when called, if an operation cannot be recorded.
    """

    def __init__(self, run: Executor) -> None:
        if run.caches:
            raise ValueError("a recording goes through the same blocks every time; this executor leaves some out")
        self._run = run
        self._seen: set[tuple[Pass, ...]] = set()
        self._recordings: dict[tuple[Pass, ...], _Recording] = {}
        self._places: tuple[Tensor | None, ...] = ()
        self._pool: Any = None

    def __call__(self, state: AVState, sigma: Tensor | float, plan: Sequence[Pass]) -> dict[str, Prediction]:
        """Predictions of every pass of the plan by its name, as of `Executor`.

        The state must be on the GPU and say what its masks hold (`LatentState.masking`): a recording cannot look.
        """
        self._settle(state)
        key = tuple(plan)
        if key not in self._seen:
            self._seen.add(key)
            return self._run(state, sigma, plan)
        if key not in self._recordings:
            self._recordings[key] = self._record(state, sigma, plan)
        return _replayed(self._recordings[key], state, sigma)

    def _settle(self, state: AVState) -> None:
        """Forget recordings of tokens that were elsewhere."""
        places = tuple(each for stream in (state.video, state.audio) for each in _fixed(stream))
        if len(places) != len(self._places) or any(a is not b for a, b in zip(places, self._places, strict=True)):
            self._recordings.clear()
            self._seen.clear()
            self._pool = None
            self._places = places

    def _record(self, state: AVState, sigma: Tensor | float, plan: Sequence[Pass]) -> _Recording:
        tokens = state.video.tokens.clone(), state.audio.tokens.clone()
        own, device = state.with_tokens(*tokens), tokens[0].device
        level = torch.as_tensor(sigma, dtype=torch.float32).to(device, copy=True)
        graph: Any = torch.cuda.CUDAGraph()
        # The device and a stream of it are named: the current one may be another, whose empty graph would be recorded.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.Stream(device))
        try:
            with torch.cuda.device(device), recording:
                predictions = self._run(own, level, plan)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SettingsError(f"a step cannot be recorded here ({first_line(error)}); leave --graphs out") from error
        self._pool = self._pool or graph.pool()
        return _Recording(graph, own, level, predictions)


def _fixed(stream: LatentState) -> tuple[Tensor | None, ...]:
    return stream.positions, stream.valid, stream.denoise_mask


def _replayed(recording: _Recording, state: AVState, sigma: Tensor | float) -> dict[str, Prediction]:
    """The predictions for other tokens; copies, because the next replay writes over them."""
    recording.state.video.tokens.copy_(state.video.tokens)
    recording.state.audio.tokens.copy_(state.audio.tokens)
    if isinstance(sigma, Tensor):
        recording.sigma.copy_(sigma)
    else:
        recording.sigma.fill_(sigma)
    recording.graph.replay()
    return {name: Prediction(each.video.clone(), each.audio.clone()) for name, each in recording.predictions.items()}
