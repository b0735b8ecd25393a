# SPDX-License-Identifier: Apache-2.0
"""Every error that a user can cause, as one tree.

A message names the value that was refused, the limit it broke and the remedy.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class IDLoraError(Exception):
    """Base of every error that a caller of `idlora` may want to catch."""


class InputError(IDLoraError, ValueError):
    """A value handed in cannot be used: a prompt, a size, a duration, a seed, a picture, a voice."""


class MediaError(InputError):
    """A picture, sound or video file is missing, damaged, empty or of no usable kind."""


class SettingsError(IDLoraError, ValueError):
    """Settings contradict one another or fall outside their range."""


class WeightsError(IDLoraError):
    """A weights file is missing, damaged, of the wrong shape or of another generation."""


class DeviceMemoryError(IDLoraError):
    """The device has too little free memory for what was to be done on it."""


class OutputError(IDLoraError, OSError):
    """A result could not be written: the disk is full, the folder is missing or not writable."""


class Cancelled(IDLoraError):  # noqa: N818 - no error has happened
    """The caller stopped the work before it was done; nothing was written."""


class TrainingError(IDLoraError):
    """Training cannot go on: the loss is not finite, a stage that must come first is missing, data is damaged."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
