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
from idlora.networks.joint import JointModel, Prediction, TextContext


@dataclass(frozen=True)
class GuidedDenoiser:
    """`model(state, sigma)` for `core.samplers`: one guided x0 of both streams.

    Attributes:
        negative: may be None if the text term is neutral.
        sharing: how far passes go together.
    """

    model: JointModel
    positive: TextContext
    negative: TextContext | None
    guidance: Guidance
    sharing: Sharing = Sharing()

    @cached_property
    def executor(self) -> Executor:
        """Runs the passes; it keeps what does not change from step to step."""
        return Executor(self.model, self.positive, self.negative, self.sharing)

    @cached_property
    def _reused(self) -> dict[str, tuple[X0, int]]:
        """What terms that are not computed in every step added last, and for how many more calls that holds."""
        return {}

    def __call__(self, state: AVState, sigma: float) -> AVState:
        """The same state with its tokens replaced by the guided x0."""
        num_reference, reused = state.audio.num_reference, self._reused
        terms = {term.other_pass().name: term for term in self.guidance.active_terms(sigma, num_reference)}
        kept = {name: change for name, (change, calls) in reused.items() if calls > 0 and name in terms}
        predictions = self.predict(state, sigma, self.guidance.plan(sigma, num_reference, kept))
        guided = guide(self.guidance, predictions, sigma, kept)
        lasting = {name: (change, reused[name][1] - 1) for name, change in kept.items()}
        if any(term.every > 1 for term in terms.values()):
            made = deltas(self.guidance, predictions, sigma)
            lasting |= {name: (change, terms[name].every - 1) for name, change in made.items() if terms[name].every > 1}
        reused.clear()  # what an inactive term added once is out of date when it comes back
        reused.update(lasting)
        return state.with_tokens(guided.video, guided.audio)

    def predict(self, state: AVState, sigma: float, plan: list[Pass]) -> dict[str, X0]:
        """x0 of every pass of the plan, unguided."""
        velocities = self.executor(state, sigma, plan)
        return {run.name: _x0(state, sigma, velocities[run.name], run) for run in plan}


def _x0(state: AVState, sigma: float, velocity: Prediction, run: Pass) -> X0:
    seen = state if run.reference else without_reference(state)
    return X0(
        x0_from_velocity(seen.video.tokens, velocity.video, seen.video.timesteps(sigma)),
        x0_from_velocity(seen.audio.tokens, velocity.audio, seen.audio.timesteps(sigma)),
        seen.audio.num_reference,
    )
