# SPDX-License-Identifier: Apache-2.0
"""Which kernels make attention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from idlora.errors import SettingsError, first_line, nearest

log = logging.getLogger(__name__)

_HAS_CUDNN = "cuda"
_OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def proven_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """For attention with masks: inside this context it does without cuDNN, which failed at them on an H200 (docs/gpu).

    Without masks cuDNN's is the fastest there, twice as fast as the others, and PyTorch's own choice. On other devices
    nothing changes. The choice is the whole process's: where threads meet, one context must hold around all of them.
    """
    if device.type != _HAS_CUDNN:
        return nullcontext()
    return sdpa_kernel(_OTHERS) if torch.compiler.is_compiling() else _without_cudnn()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    if not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)


def or_without_cudnn(run: Callable[[], Tensor]) -> Tensor:
    """What some attention gives. If cuDNN fails at it, the process does without from now on, and it is run again."""
    if torch.compiler.is_compiling() or not torch.backends.cuda.cudnn_sdp_enabled():
        return run()
    try:
        return run()
    except RuntimeError as error:
        if not any(name in str(error) for name in ("cuDNN", "mha_graph")):  # of its errors, the graph that it made
            raise
        log.warning("cuDNN's attention failed and is left out from now on: %s", first_line(error))
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
        return run()


@contextmanager
def attention_by(backend: str) -> Iterator[None]:
    """Attention without masks by a backend of diffusers' dispatch inside this context; with masks it stays PyTorch's.

    Args:
        backend: such as `native`, `flash` or `sage`; empty for the one that diffusers takes by itself.

    Raises:
        SettingsError: there is none of that name, or it is not installed.
    """
    if not backend:
        yield
        return
    names = sorted(each.value for each in AttentionBackendName)
    if backend not in names:
        raise SettingsError(f"there is no attention backend {backend!r}{nearest(backend, names)}")
    chosen = attention_backend(backend)
    try:
        chosen.__enter__()
    except Exception as error:
        raise SettingsError(f"the attention backend {backend} does not work here ({error}); leave it out") from error
    try:
        yield
    finally:
        chosen.__exit__(None, None, None)


@torch.no_grad()
def check_attention(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a backend that gives nothing on a device in a dtype (SettingsError), by a few numbers."""
    with attention_by(backend):
        if not backend:
            return
        some = torch.zeros(1, 16, 2, 64, device=device, dtype=dtype)  # (B, T, H, D_head)
        try:
            dispatch_attention_fn(some, some, some)
        except Exception as error:
            short = str(dtype).removeprefix("torch.")
            raise SettingsError(
                f"the attention backend {backend} does not work on {device} in {short} ({first_line(error)}); leave "
                "it out, or choose another --device or --dtype"
            ) from error
