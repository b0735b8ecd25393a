# SPDX-License-Identifier: Apache-2.0
"""The lean steps of a block give the gradients of the plain formulas, and keep what they say and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import tiny
from idlora.networks import attention, blocks, lean
from idlora.networks.adapter import new_adapter
from idlora.networks.blocks import ReferenceText
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel, JointOptions
from idlora.networks.kernels import proven_kernels

DENOISE = (torch.arange(6) > 1)[None, :, None].expand(2, -1, -1)
# Modulation rows: two and a choice by token, one for all, one for every token.
ROWS = {"two": (2, DENOISE), "one": (1, None), "each": (6, None)}


def double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, blocks, lean):
        monkeypatch.setattr(module, "is_lean", lambda *_: False)


def kept_bytes(step: Callable[[], Tensor]) -> int:
    """Of the storages that autograd keeps for the backward pass, each once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _alive = step()
    return sum(found.values())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("affine", [False, True])
def test_a_modulated_norm_has_the_gradient_of_its_formula(affine: bool, rows: str) -> None:
    count, denoise = ROWS[rows]
    norm = nn.RMSNorm(8, 1e-6, affine).double().requires_grad_(requires_grad=False)
    if affine:
        norm.weight.copy_(double(8, seed=3))
    shift, scale = double(2, count, 8, seed=1), double(2, count, 8, seed=2)
    x = double(2, 6, 8, seed=0).requires_grad_()

    def step(x: Tensor) -> Tensor:
        return blocks._modulated(blocks._normed(norm, x), blocks.Rows([shift, scale], denoise), 0, 1)

    assert torch.autograd.gradcheck(step, x)
    small = 2 * shift.nbytes + norm.weight.nbytes if affine else 2 * shift.nbytes
    assert kept_bytes(lambda: step(x)) <= x.nbytes + small


@pytest.mark.parametrize("rows", ROWS)
def test_a_gated_sum_has_the_gradient_of_its_formula(rows: str) -> None:
    count, denoise = ROWS[rows]
    gate = double(2, count, 8, seed=1)
    x, added = (double(2, 6, 8, seed=seed).requires_grad_() for seed in (2, 3))

    def step(x: Tensor, added: Tensor) -> Tensor:
        return blocks._gated(x, added, blocks.Rows([gate], denoise), 0)

    assert torch.autograd.gradcheck(step, (x, added))
    assert kept_bytes(lambda: step(x, added)) == gate.nbytes


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tokens", [6, 3])
def test_a_feed_forward_network_in_portions_has_the_gradient_of_its_formula(tokens: int, rows: str) -> None:
    """With fewer tokens than portions too."""
    from diffusers.models.attention import FeedForward

    torch.manual_seed(0)
    half: Any = nn.Module()
    half.norm3 = nn.RMSNorm(8, 1e-6, elementwise_affine=False)
    half.ff = FeedForward(8, activation_fn="gelu-approximate").double().requires_grad_(requires_grad=False)
    count, denoise = ROWS[rows]
    count, denoise = min(count, tokens), None if denoise is None else denoise[:, :tokens]
    params = [double(2, count, 8, seed=seed) for seed in (1, 2, 3)]
    x = double(2, tokens, 8, seed=0).requires_grad_()

    def step(x: Tensor) -> Tensor:
        return blocks._feed_forward(half, x, blocks.Rows([*params, *params], denoise))

    assert torch.autograd.gradcheck(step, x)
    mask = 0 if denoise is None else DENOISE[:1].nbytes
    assert kept_bytes(lambda: step(x)) <= x.nbytes + 3 * params[0].nbytes + mask
    with torch.no_grad():
        expected = step(x)
    assert torch.allclose(step(x), expected, rtol=1e-12, atol=1e-12)


MASKS: tuple[ReferenceText, ...] = ("block", "average")
OPTIONS = [JointOptions(), *(JointOptions(mask_reference_to_video=True, reference_text=each) for each in MASKS)]
OPTIONS.append(JointOptions(reference_attention="alone"))


def gradients(generation: str, options: JointOptions, recomputed: int, *, keeps_attention: bool = False) -> Tensor:
    net = tiny.fresh_transformer(generation)
    adapter = new_adapter(net, 2)
    adapter.make_trainable()
    for index, parameter in enumerate(adapter.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index), std=0.1)
    model = JointModel(net, options)
    model.recomputed, model.keeps_attention = recomputed, keeps_attention
    made = model.velocity(tiny.state(), torch.tensor([0.7, 0.4]), tiny.context(generation))
    torch.autograd.backward(made.video.square().mean() + made.audio.square().mean())
    return torch.cat([each.grad.flatten() for each in adapter.parameters() if each.grad is not None])


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: f"{options.reference_text} {options.reference_attention}"
)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_adapter_has_the_gradients_of_the_plain_network(
    generation: str, options: JointOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gradients(generation, options, recomputed=0)
    with monkeypatch.context() as patched:
        plainly(patched)
        expected = gradients(generation, options, recomputed=0)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(gradients(generation, options, recomputed=2), found)
    assert torch.equal(gradients(generation, options, recomputed=2, keeps_attention=True), found)


class Kernels(TorchDispatchMode):
    """Counts runs of the attention kernel with so many keys."""

    def __init__(self, keys: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.runs = keys, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs += func in attention._KERNELS and args[1].shape[2] == self.keys
        return func(*args, **(kwargs or {}))


def test_gradients_in_bfloat16_are_those_of_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """By autocast; the last bits differ."""
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients("2.3", JointOptions(), recomputed=0)
        again = gradients("2.3", JointOptions(), recomputed=2, keeps_attention=True)
        plainly(monkeypatch)
        expected = gradients("2.3", JointOptions(), recomputed=0)
    exact = gradients("2.3", JointOptions(), recomputed=0)
    assert torch.equal(again, found)
    assert (found - exact).norm() < 1.2 * (expected - exact).norm()


def test_long_attention_is_computed_once_if_it_is_kept() -> None:
    counts = {}
    for keeps in (False, True):
        with Kernels(tiny.state().video.tokens.shape[1]) as kernels:
            gradients("2.3", JointOptions(), recomputed=2, keeps_attention=keeps)
        counts[keeps] = kernels.runs
    # Two long ones in each of two blocks; the first block's own attention of the video has no gradient.
    assert counts[False] - counts[True] == 3


def test_what_is_last_in_a_checkpoint_is_not_computed_again() -> None:
    calls: list[None] = []

    class Last(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(None)
            return super().forward(x)

    last = Last(4, 4).requires_grad_(requires_grad=False)
    step = lean.Residual(torch.tanh, last, lambda: torch.ones(()), (), parts=2)
    x = double(1, 6, 4, seed=0).float().requires_grad_()
    out = checkpoint(lambda x: step.lean(x * 2), x, use_reentrant=False)
    calls.clear()
    out.sum().backward()
    assert len(calls) == 2  # in the backward pass itself, since this layer is none of PyTorch's own
    assert x.grad is not None


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_one_kernel_is_left_out_and_all_other_choices_stay(device: str, kernel: SDPBackend) -> None:
    with sdpa_kernel(kernel):
        for _ in range(2):
            assert torch.backends.cuda.cudnn_sdp_enabled() == (kernel == SDPBackend.CUDNN_ATTENTION)
            with proven_kernels(torch.device(device)):
                assert torch.backends.cuda.math_sdp_enabled() == (kernel == SDPBackend.MATH)
                assert not torch.backends.cuda.mem_efficient_sdp_enabled()
                left = kernel == SDPBackend.CUDNN_ATTENTION and device == "cpu"
                assert torch.backends.cuda.cudnn_sdp_enabled() == left


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_plain_gradients_with_the_kernels_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2Attention

    torch.manual_seed(0)
    layer = LTX2Attention(query_dim=128, heads=2, kv_heads=2, dim_head=64, rope_type="split").to("cuda", torch.bfloat16)
    layer.requires_grad_(requires_grad=False)
    given, weights = (torch.randn(1, 256, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bias = torch.zeros(1, 1, 256, device="cuda", dtype=torch.bfloat16)
    bias[..., 200:] = -torch.inf

    def gradient() -> Tensor:
        x = given.clone().requires_grad_()
        memory = attention.keys_values(layer, x)
        out = attention.attend(layer, x, memory, bias if masked else None, long=True)
        (found,) = torch.autograd.grad((out * weights).sum(), x)
        return found.float()

    found = gradient()
    plainly(monkeypatch)
    expected = gradient()
    assert (found - expected).norm() < 0.02 * expected.norm()
