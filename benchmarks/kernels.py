# SPDX-License-Identifier: Apache-2.0
"""Single kernels at the sizes of a full step, as JSON: attention, products in fp8, and the ways from main memory.

    python benchmarks/kernels.py --device cuda

Milliseconds are means of ten calls after three, in bfloat16. On a CPU attention alone is timed, smaller.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTIONS = {"video": (4096, 4096, 128), "text": (4096, 1024, 128), "audio to video": (4096, 252, 64)}
PRODUCTS = ((4096, 4096, 4096), (4096, 4096, 16384), (4096, 16384, 4096))  # tokens, in, out
HEADS, COPIED = 32, 2 * 2**30
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def milliseconds(work: Callable[[], Any]) -> float:
    """A call's mean."""
    for _ in range(3):
        work()
    return seconds(lambda: [work() for _ in range(10)]) * 100


def seconds(work: Callable[[], Any]) -> float:
    """Of one call, and of what it leaves to a GPU."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def attention(device: str, shrink: int) -> dict[str, dict[str, float]]:
    """By name of the attention and of the kernel; tokens before heads in memory, as they come from a product."""
    told: dict[str, dict[str, float]] = {}
    for name, (queries, keys, width) in ATTENTIONS.items():
        sizes = [length // shrink for length in (queries, keys, keys)]
        given = [
            torch.randn(1, size, HEADS, width, device=device, dtype=torch.bfloat16).transpose(1, 2) for size in sizes
        ]
        told[name] = {"default": milliseconds(lambda given=given: F.scaled_dot_product_attention(*given))}
        for kernel, backend in KERNELS.items() if device == "cuda" else ():
            with sdpa_kernel(backend):
                told[name][kernel] = milliseconds(lambda given=given: F.scaled_dot_product_attention(*given))
    return told


def products(device: str) -> dict[str, dict[str, float]]:
    """In bfloat16, and in e4m3 with a scale for each token and row, summed exactly and fast."""
    told: dict[str, dict[str, float]] = {}
    for tokens, inner, outer in PRODUCTS:
        x, weight = (torch.randn(n, inner, device=device, dtype=torch.bfloat16) for n in (tokens, outer))
        small, turned = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn).t()
        scales = torch.rand(tokens, 1, device=device), torch.rand(1, outer, device=device)

        def scaled(small: Any = small, turned: Any = turned, scales: Any = scales, *, fast: bool) -> Any:
            return torch._scaled_mm(small, turned, *scales, out_dtype=torch.bfloat16, use_fast_accum=fast)

        told[f"{tokens} x {inner} x {outer}"] = {
            "bfloat16": milliseconds(lambda x=x, weight=weight: F.linear(x, weight)),
            "fp8": milliseconds(lambda scaled=scaled: scaled(fast=False)),
            "fp8, fast": milliseconds(lambda scaled=scaled: scaled(fast=True)),
        }
    return told


def copies(device: str) -> dict[str, float]:
    """Gigabytes a second: memory locked by PyTorch, touched, locked in place, and copied plain and locked."""
    plain = [torch.ones(COPIED // 64, dtype=torch.uint8) for _ in range(64)]
    pinned: list[torch.Tensor] = []
    took = {"pinned by PyTorch": seconds(lambda: pinned.extend(each.pin_memory() for each in plain))}
    took["copied, pinned"] = seconds(lambda: [each.to(device, non_blocking=True) for each in pinned])
    took["copied, plain"] = seconds(lambda: [each.to(device) for each in plain])
    fresh = torch.empty(COPIED + mmap.PAGESIZE, dtype=torch.uint8)
    pages = fresh[-fresh.data_ptr() % mmap.PAGESIZE :][:COPIED]
    took["touched by all threads"] = seconds(lambda: pages.fill_(1))
    took["locked in place"] = seconds(lambda: torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), COPIED, 0))
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())
    return {name: COPIED / 1e9 / each for name, each in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    told: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "attention": attention(device, 1 if device == "cuda" else 16),
    }
    if device == "cuda":
        told |= {"products": products(device), "gigabytes_per_second": copies(device)}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
