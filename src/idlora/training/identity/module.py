# SPDX-License-Identifier: Apache-2.0
"""The training step as a module: what accelerate wraps, so that gradients meet and weights are sharded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from idlora.networks.joint import JointModel, JointOptions
from idlora.networks.kernels import proven_kernels
from idlora.training.identity.config import ObjectiveOptions
from idlora.training.objective import Objective, TrainingBatch, training_step


class StepLosses(NamedTuple):
    """Losses of a batch: 0-d, but for those of each sample (B,), which are detached."""

    total: Tensor
    video: Tensor
    audio: Tensor
    video_by_sample: Tensor
    audio_by_sample: Tensor


class TrainingModule(nn.Module):
    """A transformer with a trainable adapter; called with a batch it returns the losses.

    Args:
        transformer: frozen but for the adapter's branches.
        options: of the objective.
        bf16: multiply in bfloat16; losses and the adapter's weights are float32 either way.
    """

    _no_split_modules: ClassVar[list[str]] = ["LTX2VideoTransformerBlock"]  # what FSDP shards one by one

    def __init__(self, transformer: Any, options: ObjectiveOptions, *, bf16: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.bf16 = bf16
        self.objective = Objective(
            rounding=options.positions, audio_weight=options.audio_weight, per_sample=options.loss == "sample"
        )
        self.model = JointModel(transformer, JointOptions.of(options))

    def forward(self, batch: TrainingBatch) -> StepLosses:
        """Losses of a batch."""
        with self.arithmetic():
            step = training_step(self.model, batch, self.objective)
        return StepLosses(*step.losses, *step.by_sample)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context in which this network computes while its adapter is trained."""
        return torch.autocast(self._device, torch.bfloat16) if self.bf16 else nullcontext()

    def attention(self) -> AbstractContextManager[Any]:
        """The context of forward and backward pass, in which blocks are computed again.

        A CPU's fused attention takes a third of a step of a small model for its backward pass; plain products do not.
        """
        if not self.attention_is_fused:
            return sdpa_kernel(SDPBackend.MATH)
        # As if all were masked: what one thread chose for its masks, another's attention would meet by chance.
        return proven_kernels(self.transformer.proj_in.weight.device)

    @property
    def attention_is_fused(self) -> bool:
        """Whether one kernel makes it, so that scores are never there as a whole."""
        return not (self.bf16 and self._device == "cpu")

    @property
    def _device(self) -> str:
        kind: str = self.transformer.proj_in.weight.device.type
        return kind
