# SPDX-License-Identifier: Apache-2.0
"""The command `idlora`: the only place that talks to the terminal; commands load the networks that they need."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USER_FAULT = 2  # Ctrl-C too: whoever calls the command need tell only done, not done, and a defect of ours apart
_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, or 2 with one line on stderr for a fault of the user's and for Ctrl-C."""
    import typer

    from idlora.cli.app import app
    from idlora.errors import IDLoraError

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given or ["--help"], prog_name="idlora", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except IDLoraError as error:
        return _fault(str(error))
    except Exception as error:
        if not isinstance(error, typer.BadParameter.__mro__[1]):  # UsageError, which typer does not export by name
            raise
        message = error.format_message()  # type: ignore[attr-defined]
        return _fault(message) if message else 0  # without one, help has been shown
    if code == _INTERRUPTED:
        return _fault("stopped; files that were not finished are gone, finished ones stay")
    return code if isinstance(code, int) else 0


def _fault(message: str) -> int:
    print(f"idlora: {' '.join(message.split())}", file=sys.stderr)
    return USER_FAULT
