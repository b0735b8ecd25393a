# SPDX-License-Identifier: Apache-2.0
"""The guided denoiser: what the samplers call. It runs the passes that the guidance needs and sums them in x0 space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from idlora.core.flow import x0_from_velocity
from idlora.core.guidance import X0, Guidance, Pass, deltas, guide
from idlora.core.reference import without_reference
from idlora.core.state import AVState
from idlora.networks.executor import Executor, Sharing
from idlora.networks.graphs import Recorder
from idlora.networks.joint import JointModel, Prediction, TextContext
from idlora.networks.ranks import Ranks, Run


@dataclass(frozen=True)
class GuidedDenoiser:
    """`model(state, sigma)` for `core.samplers`: one guided x0 of both streams.

    Attributes:
        negative: may be None if the text term is neutral.
        sharing: how far passes go together.
        ranks: processes that they are shared out over; None = all of them run here.
        first_block: threshold of first-block caching, an approximation; 0 = none.
        graphs: replay steps as CUDA graphs (`Recorder`).
    """

    model: JointModel
    positive: TextContext
    negative: TextContext | None
    guidance: Guidance
    sharing: Sharing = Sharing()
    ranks: Ranks | None = None
    first_block: float = 0.0
    graphs: bool = False

    @cached_property
    def executor(self) -> Executor:
        """Runs the passes; it keeps what does not change from step to step."""
        return Executor(self.model, self.positive, self.negative, self.sharing, self.first_block)

    @cached_property
    def _run(self) -> Run:
        return Recorder(self.executor) if self.graphs else self.executor

    @cached_property
    def _reused(self) -> dict[str, tuple[X0, int]]:
        """The velocities that terms not computed in every step added last, and for how many more calls they hold."""
        return {}

    def __call__(self, state: AVState, sigma: float) -> AVState:
        """The same state with its tokens replaced by the guided x0."""
        num_reference, reused = state.audio.num_reference, self._reused
        terms = {term.other_pass().name: term for term in self.guidance.active_terms(sigma, num_reference)}
        held = {name: velocity for name, (velocity, calls) in reused.items() if calls > 0 and name in terms}
        kept = {name: X0(sigma * velocity.video, sigma * velocity.audio) for name, velocity in held.items()}
        predictions = self.predict(state, sigma, self.guidance.plan(sigma, num_reference, kept))
        guided = guide(self.guidance, predictions, sigma, kept)
        lasting = {name: (velocity, reused[name][1] - 1) for name, velocity in held.items()}
        if any(term.every > 1 for term in terms.values()):
            for name, change in deltas(self.guidance, predictions, sigma).items():
                lasting[name] = X0(change.video / sigma, change.audio / sigma), terms[name].every - 1
        reused.clear()  # what an inactive term added once is out of date when it comes back
        reused.update(lasting)
        return state.with_tokens(guided.video, guided.audio)

    def predict(self, state: AVState, sigma: float, plan: list[Pass]) -> dict[str, X0]:
        """x0 of every pass of the plan, unguided."""
        if self.ranks is None:
            velocities = self._run(state, sigma, plan)
        else:
            velocities = self.ranks.predictions(self._run, state, sigma, plan)
        return {run.name: _x0(state, sigma, velocities[run.name], run) for run in plan}


def _x0(state: AVState, sigma: float, velocity: Prediction, run: Pass) -> X0:
    seen = state if run.reference else without_reference(state)
    return X0(
        x0_from_velocity(seen.video.tokens, velocity.video, seen.video.timesteps(sigma)),
        x0_from_velocity(seen.audio.tokens, velocity.audio, seen.audio.timesteps(sigma)),
        seen.audio.num_reference,
    )
