# SPDX-License-Identifier: Apache-2.0
"""The commands by name. Each lives in a module of its own, which loads what it needs when it runs."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from idlora.cli import (
    adapter,
    demo,
    evaluate,
    generate,
    miniature,
    pairs,
    plan,
    precompute,
    push,
    reproduce,
    train,
    world,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A picture, a few seconds of a voice and a prompt become a clip of that person speaking (ID-LoRA on LTX-2).",
)
app.command("generate")(generate.generate)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("pairs")(pairs.pairs)
app.command("withdraw")(pairs.withdraw)
app.command("precompute")(precompute.precompute)
app.command("train")(train.train)
app.command("push")(push.push)
app.command("evaluate")(evaluate.evaluate)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(adapter.app, name="adapter")
app.add_typer(world.app, name="world")
app.add_typer(miniature.app, name="miniature")


def _version(wanted: bool) -> None:
    if wanted:
        from idlora import __version__

        print(f"idlora {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001 - acts by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens inside.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
