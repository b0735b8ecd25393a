# SPDX-License-Identifier: Apache-2.0
"""What attention's kernels make of rows whose keys are all masked, as the official training masks the reference's text.

    python benchmarks/blocked_rows.py --device cuda

A row whose scores are all lowered by the lowest finite number is a plain mean of the values, and nothing of queries or
keys. Relative errors against that, computed in float64: of the output, and of the gradients of queries, keys, values.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, QUERIES, BLOCKED, WIDTH = 2, 16, 4, 64
KERNELS = (
    SDPBackend.MATH,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)


def meant(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose first rows are the mean of the values."""
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    mean = torch.full_like(weights[:, :, :BLOCKED], 1 / k.shape[2])
    return torch.cat([mean, weights[:, :, BLOCKED:]], dim=2) @ v


def apart(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def compared(kernel: SDPBackend, dtype: torch.dtype, device: str, keys: int) -> dict[str, Any]:
    """One kernel in one dtype against float64."""
    generator = torch.Generator().manual_seed(0)
    sizes = (QUERIES, keys, keys, QUERIES)
    drawn = [torch.randn(1, HEADS, size, WIDTH, generator=generator).to(device, dtype) for size in sizes]
    *inputs, out_grad = drawn
    exact = [each.double().requires_grad_() for each in inputs]
    wanted = meant(*exact)
    wanted.backward(out_grad.double())
    low = [each.clone().requires_grad_() for each in inputs]
    bias = torch.zeros(1, 1, QUERIES, keys, dtype=dtype, device=device)
    bias[:, :, :BLOCKED] = torch.finfo(dtype).min
    row: dict[str, Any] = {"kernel": kernel.name.lower(), "dtype": str(dtype).removeprefix("torch."), "keys": keys}
    try:
        with sdpa_kernel(kernel):
            found = scaled_dot_product_attention(*low, attn_mask=bias)
            found.backward(out_grad)
    except RuntimeError:
        return {**row, "runs": False}
    row |= {"runs": True, "output": apart(found.detach(), wanted.detach())}
    for name, mine, theirs in zip("qkv", low, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        row[f"gradient_{name}"] = apart(mine.grad, theirs.grad)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    rows = [
        compared(kernel, dtype, given.device, keys)
        for dtype in (torch.float32, torch.bfloat16)
        for kernel in KERNELS
        for keys in (64, 1024)
    ]
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu"
    told = {"device": device, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "rows": rows}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
