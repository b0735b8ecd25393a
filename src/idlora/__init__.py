# SPDX-License-Identifier: Apache-2.0
"""ID-LoRA on LTX-2: a picture, a few seconds of a voice and a prompt become a clip in which that face speaks so.

Importing the package is cheap: torch and the networks are loaded when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from idlora.errors import (
    Cancelled,
    DeviceMemoryError,
    IDLoraError,
    InputError,
    MediaError,
    OutputError,
    SettingsError,
    TrainingError,
    WeightsError,
)

if TYPE_CHECKING:
    from idlora.data.prompt import Prompt
    from idlora.pipeline import IDLoraPipeline

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "DeviceMemoryError",
    "IDLoraError",
    "IDLoraPipeline",
    "InputError",
    "MediaError",
    "OutputError",
    "Prompt",
    "SettingsError",
    "TrainingError",
    "WeightsError",
    "__version__",
]

_HOMES = {
    "IDLoraPipeline": "idlora.pipeline",
    "Prompt": "idlora.data.prompt",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'idlora' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
