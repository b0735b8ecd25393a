# SPDX-License-Identifier: Apache-2.0
"""Generation: the pipeline, its settings and what it returns."""

from idlora.pipeline.card import ModelCard
from idlora.pipeline.components import Components
from idlora.pipeline.inputs import Keyframe, Request
from idlora.pipeline.output import Result
from idlora.pipeline.pipeline import IDLoraPipeline
from idlora.pipeline.placement import Placement
from idlora.pipeline.presets import PRESETS, preset_settings
from idlora.pipeline.preview import Preview, Previews
from idlora.pipeline.progress import progress_bar
from idlora.pipeline.settings import Refinement, Settings, read_settings, settings_from_json, settings_to_json
from idlora.pipeline.sources import Parts
from idlora.pipeline.texts import TextCache

__all__ = [
    "PRESETS",
    "Components",
    "IDLoraPipeline",
    "Keyframe",
    "ModelCard",
    "Parts",
    "Placement",
    "Preview",
    "Previews",
    "Refinement",
    "Request",
    "Result",
    "Settings",
    "TextCache",
    "preset_settings",
    "progress_bar",
    "read_settings",
    "settings_from_json",
    "settings_to_json",
]
