# SPDX-License-Identifier: Apache-2.0
"""`idlora adapter info`: what an adapter's file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Look into adapters.")


@app.callback()
def _commands() -> None:
    """Keep `info` a command of its own while it is the only one."""


@app.command("info")
def info(
    file: Annotated[Path, typer.Argument(help="An adapter in the published layout.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print rank, layers, generation and training settings of an adapter, and what it does not tell."""
    from idlora.networks.adapter_info import describe_adapter

    told = describe_adapter(file)
    print(json.dumps(told, indent=1) if as_json else "\n".join(_lines(told)))


def _lines(told: dict[str, Any]) -> list[str]:
    blocks = told["blocks"]
    where = f"in blocks {blocks[0]} to {blocks[-1]}" if blocks else "outside the blocks"
    return [
        f"{told['file']}: {told['kind']} adapter, rank {', '.join(map(str, told['ranks']))}",
        f"layers: {told['layers']} {where}, {told['parameters'] / 1e6:.1f} M parameters",
        *(f"  {target}" for target in told["targets"]),
        f"generation: {told['generation'] or 'unknown'}",
        *(f"{heading}: {words}" for heading, words in told["training"].items()),
        *(f"{name}: {value}" for name, value in told["others"].items()),
        *(f"not in the file: {words}" for words in told["unknown"]),
    ]
