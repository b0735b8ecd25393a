# SPDX-License-Identifier: Apache-2.0
"""One process of several that make a clip together; `test_ranks.py` starts it with torch.distributed.run.

ranks_worker.py OUT
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import tiny_pipeline
from idlora.networks.joint import JointModel
from idlora.networks.ranks import joined_ranks


def main(out: Path) -> None:
    """Leaves clip and number of blocks run as `RANK.safetensors`."""
    torch.set_num_threads(1)
    pipe, blocks = tiny_pipeline.pipeline("2.3"), 0
    run_block = JointModel.run_block

    def counted(*inputs: object) -> object:
        nonlocal blocks
        blocks += 1
        return run_block(*inputs)  # type: ignore[arg-type]

    JointModel.run_block = counted  # type: ignore[method-assign, assignment]
    pipe.ranks = joined_ranks(os.environ, pipe.device)
    rank = 0 if pipe.ranks is None else pipe.ranks.rank
    try:
        result = pipe(tiny_pipeline.PROMPT, image=tiny_pipeline.PICTURE, voice=tiny_pipeline.voice())
    finally:
        JointModel.run_block = run_block  # type: ignore[method-assign]
    told = {"video": torch.tensor(result.video).contiguous(), "audio": torch.tensor(result.audio).contiguous()}
    save_file({**told, "blocks": torch.tensor(blocks)}, out / f"{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
