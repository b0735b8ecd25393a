# SPDX-License-Identifier: Apache-2.0
"""The options of the commands beside `generate`: one is added on purpose, and none goes away unseen."""

import pytest
import typer

PROMISED = {
    "pairs": """
    --layout --list --rights --require-consent --frames --frame-rate --finder --speaker-weights --whisper --vocabulary
    --captioner --captioner-model --per-speaker --clean-references --validation --test --settings --workers --ray
    --samples
    """.split(),
    "withdraw": "--speaker --file".split(),
    "evaluate": "--out --judge --weights --baseline --workers --ray --examples --judges".split(),
    "reproduce": "--out --quick --speakers --latents --workers --model".split(),
}


@pytest.mark.parametrize("name", PROMISED)
def test_the_options_of_a_command_are_these(name: str) -> None:
    from idlora.cli.app import app

    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert [option.opts[0] for option in command.params if option.opts[0].startswith("--")] == PROMISED[name]
