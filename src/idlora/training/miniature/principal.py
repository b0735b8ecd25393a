# SPDX-License-Identifier: Apache-2.0
"""The video autoencoder as a linear codec: principal components of pictures, level by level, in closed form.

The encoder stays so; gradient descent teaches the decoder what is not linear. From random weights it needs thousands of
steps to get as far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CONSTANT = 5.0  # the RMS that a channel of constant value gives the others, of deviation 1: it keeps SiLU near linear
ENCODER_CONSTANT = 30.0  # the same in the encoder, which no gradient reaches: as linear as float32 allows
SLOPE = 0.5  # of SiLU at zero
MOUTH = 8.0  # weight of its tokens
PURPLE = 2.5  # weight of the colour that the inside of mouths alone has
MAX_ROWS = 60_000  # of an eigenvalue problem


@dataclass(frozen=True)
class Components:
    """Principal components of rows: codes are (row - mean) @ basis, features are codes / scale."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, K) orthonormal
    scale: Tensor  # (K,) deviations of the codes

    @classmethod
    def of(cls, rows: Tensor, count: int, weights: Tensor | None = None) -> Components:
        """The `count` greatest components of rows (N, D), weighted by (N,)."""
        weights = torch.ones(len(rows)) if weights is None else weights
        share = weights / weights.sum()
        mean = share @ rows
        centred = (rows - mean) * share.sqrt()[:, None]
        values, vectors = torch.linalg.eigh((centred.T @ centred).double())
        greatest = slice(-count, None)
        basis, variances = vectors[:, greatest].flip(1).float(), values[greatest].flip(0).float()
        return cls(mean, basis, variances.clamp(min=1e-6 * float(variances[0])).sqrt())

    def to_features(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (K, D) and bias (K,) from features of deviations `before` (D,) of their codes to these features."""
        weight = self.basis.T * before / self.scale[:, None]
        return weight, -(self.mean @ self.basis) / self.scale

    def from_features(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (D, K) and bias (D,) of the way back."""
        return self.basis * self.scale / before[:, None], self.mean / before


@torch.no_grad()
def start_linear(vae: Any, frames: Tensor, weight: Tensor) -> None:
    """Set the weights of a fresh `components.video_vae()` so that it codes by principal components.

    Patches of pixels (first convolution), then three times cells of 2 x 2 x 2 of the level before (strided
    convolutions); the last convolution of the encoder only scales, and the decoder goes the same way back. Residual
    blocks start as the identity. One channel of every level holds a constant, which makes the RMS norms harmless and,
    by the padding, tells where one is.

    Args:
        vae: the autoencoder.
        frames: pictures to fit on (N, 3, F, H, W) in -1..1.
        weight: how much each token's place counts in the last components (H / ratio, W / ratio).
    """
    for block in _residual_blocks(vae):
        torch.nn.init.zeros_(block.conv2.conv.weight)
        torch.nn.init.zeros_(block.conv2.conv.bias)
    encoder = vae.encoder
    width = encoder.conv_in.conv.out_channels
    constant = ENCODER_CONSTANT * width**0.5

    patches, metric = _patches(frames, encoder.patch_size), _colour_metric(encoder.patch_size)
    pixels = Components.of(_rows(patches) @ metric, min(width - 1, patches.shape[1]))
    to_features, bias = pixels.to_features(torch.ones_like(pixels.mean))
    _set_tap(encoder.conv_in.conv, to_features @ metric, bias, constant=constant)
    level, parts = encoder.conv_in(patches), [pixels]
    for index, block in enumerate(encoder.down_blocks):
        deviations = parts[-1].scale
        cells = _cells(level[:, : len(deviations)], deviations)
        last = index == len(encoder.down_blocks) - 1
        counts = weight.expand(cells.shape[0], cells.shape[2], -1, -1).flatten() if last else None
        rows = cells.movedim(1, -1).flatten(0, -2) if last else _rows(cells)
        parts.append(Components.of(rows, width - 1, counts))
        (strided,) = block.downsamplers
        _set_strided(strided.conv, *parts[-1].to_features(_of_cells(deviations)), constant=constant)
        level = strided(level)

    tokens, parts[-1] = parts[-1], _half_whitened(parts[-1])
    scale = torch.diag(tokens.scale / parts[-1].scale)
    _clear(encoder.conv_out.conv, vae.config.latent_channels, None)
    _set_tap(encoder.conv_out.conv, *_after_silu(scale, torch.zeros(len(scale)), ENCODER_CONSTANT))
    _start_decoder(vae.decoder, parts[::-1], torch.linalg.inv(metric))


def rest_constants(decoder: Any) -> None:
    """Keep gradients from the weights that read the constant channels.

    Their inputs are many times those of all others, and so would be what one step of Adam does to the pictures.
    """
    for module in [*decoder.mid_block.modules(), *decoder.up_blocks.modules()]:
        if isinstance(module, torch.nn.Conv3d):
            _rest(module)
    _rest(decoder.conv_out.conv)


def _rest(convolution: torch.nn.Conv3d) -> None:
    def without_last(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, -1:] = 0.0
        return gradient

    convolution.weight.register_hook(without_last)


def token_weights(size: int, ratio: int) -> Tensor:
    """Weights (size / ratio, size / ratio) for `start_linear`: the mouth's tokens count more."""
    from idlora.data.world.reader import mouth_box

    rows, columns = mouth_box(size)
    weights = torch.ones(size // ratio, size // ratio)
    weights[rows.start // ratio : -(-rows.stop // ratio), columns.start // ratio : -(-columns.stop // ratio)] = MOUTH
    return weights


def _start_decoder(decoder: Any, parts: list[Components], metric: Tensor) -> None:
    """Undo the levels `parts`, tokens first and pixels last; where the decoder is narrower the least go without."""
    count, first = parts[0].basis.shape[1], decoder.conv_in.conv
    _set_tap(first, torch.eye(count), torch.zeros(count), CONSTANT * first.out_channels**0.5)
    for block, above, below in zip(decoder.up_blocks, parts, parts[1:], strict=False):
        (upsampler,) = block.upsamplers
        convolution = upsampler.conv.conv
        weight, bias = above.from_features(_of_cells(below.scale))
        size = min(len(below.scale), convolution.out_channels // 8 - 1) * 8
        _set_cells(convolution, weight[:size, :count], bias[:size])
        count = size // 8
    weight, bias = parts[-1].from_features(torch.ones_like(parts[-1].mean))
    _set_tap(decoder.conv_out.conv, *_after_silu(metric @ weight[:, :count], metric @ bias))


def _colour_metric(patch_size: int) -> Tensor:
    """Map (D, D) of a patch's values (colour, column, row) under which purple against green counts `PURPLE` times.

    It is what sets the inside of mouths apart (`reader.py`), and little of a picture's variance.
    """
    axis = torch.tensor([0.5, -1.0, 0.5])
    axis = axis / axis.norm()
    colours = torch.eye(3) + (PURPLE - 1.0) * torch.outer(axis, axis)
    return torch.kron(colours, torch.eye(patch_size**2))


def _half_whitened(parts: Components) -> Components:
    """The same components with features of deviation ~ sqrt(that of their code) and mean square 1.

    Full deviations would give the diffusion model nothing but brightness to learn, equal ones mostly grain.
    """
    return Components(parts.mean, parts.basis, parts.scale.sqrt() * parts.scale.mean().sqrt())


def _residual_blocks(vae: Any) -> list[Any]:
    return [module for module in vae.modules() if hasattr(module, "conv2")]


def _patches(frames: Tensor, size: int) -> Tensor:
    """Frames (N, 3, F, H, W) as the autoencoder's patches (N, 3 * size^2, F, H / size, W / size)."""
    split = frames.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # (N, 3, F, H, size, W, size)
    patches: Tensor = split.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
    return patches


def _cells(features: Tensor, deviations: Tensor) -> Tensor:
    """Codes of cells of 2 frames, 2 rows, 2 columns (N, 8 C, F', H / 2, W / 2); the first frame stands alone, twice."""
    codes = features * deviations[:, None, None, None]
    codes = torch.cat([codes[:, :, :1], codes], dim=2)
    split = codes.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    cells: Tensor = split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return cells


def _of_cells(deviations: Tensor) -> Tensor:
    return deviations.repeat_interleave(8)


def _rows(features: Tensor) -> Tensor:
    """At most `MAX_ROWS` of the vectors of (N, C, F, H, W)."""
    rows = features.movedim(1, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // MAX_ROWS)]


def _after_silu(weight: Tensor, bias: Tensor, constant: float = CONSTANT) -> tuple[Tensor, Tensor]:
    """The same map behind an RMS norm, which the constant determines, and SiLU."""
    return weight * (constant / SLOPE), bias


def _set_tap(convolution: Any, weight: Tensor, bias: Tensor, constant: float | None = None) -> None:
    """Make a 3 x 3 x 3 causal convolution the map (K, D) at its own place; `constant` fills the last channel."""
    _clear(convolution, len(bias), constant)
    convolution.weight[: len(weight), :, 2, 1, 1] = 0.0
    convolution.weight[: len(weight), : weight.shape[1], 2, 1, 1] = weight
    convolution.bias[: len(bias)] = bias


def _set_strided(convolution: Any, weight: Tensor, bias: Tensor, constant: float) -> None:
    """Make a strided convolution the map (K, 8 C) of its cells."""
    _clear(convolution, len(bias), constant)
    taps = weight.unflatten(1, (-1, 2, 2, 2))  # (K, C, 2, 2, 2)
    convolution.weight[: len(weight), : taps.shape[1], 1:, 1:, 1:] = taps
    convolution.bias[: len(bias)] = bias


def _set_cells(convolution: Any, weight: Tensor, bias: Tensor) -> None:
    """Make the convolution before a rearrangement the map (8 C, K) to cells; the last channel's cells are constant."""
    channels = convolution.out_channels // 8
    _clear(convolution, len(bias), None)
    convolution.weight[: len(weight), : weight.shape[1], 2, 1, 1] = weight
    convolution.bias[: len(bias)] = bias
    convolution.weight[-8:] = 0.0
    convolution.bias[-8:] = CONSTANT * channels**0.5


def _clear(convolution: Any, count: int, constant: float | None) -> None:
    """Zero the outputs that will be set; the others keep their random weights, or hold `constant` if they are last."""
    convolution.weight[:count] = 0.0
    convolution.bias[:count] = 0.0
    if constant is not None:
        convolution.weight[-1:] = 0.0
        convolution.bias[-1:] = constant
