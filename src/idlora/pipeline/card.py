# SPDX-License-Identifier: Apache-2.0
"""`idlora.json` in a model's folder: what diffusers' own files do not say about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from idlora.errors import SettingsError, WeightsError
from idlora.files import write_text
from idlora.networks.generations import Generation
from idlora.pipeline.presets import preset_settings
from idlora.pipeline.records import from_json, read_json, to_json
from idlora.pipeline.settings import Settings

CARD_NAME = "idlora.json"


@dataclass(frozen=True)
class ModelCard:
    """How a model wants to be used.

    Attributes:
        name: what sidecars call it.
        max_text_tokens: prompts are padded and cut to this length.
        adapter: file of the identity adapter in the folder; empty = none.
        adapter_strength: 1 = as trained.
        vocabulary: the words that the model can speak; empty = any.
        defaults: settings of a generation that says nothing else.
        distilled: the weights themselves are distilled, so few steps need no adapter.
    """

    name: str = ""
    max_text_tokens: int = 1024
    adapter: str = ""
    adapter_strength: float = 1.0
    vocabulary: tuple[str, ...] = ()
    defaults: Settings = Settings()
    distilled: bool = False

    def __post_init__(self) -> None:
        if self.max_text_tokens < 1:
            raise SettingsError(f"max_text_tokens {self.max_text_tokens} must be at least 1; 1024 is usual")
        if Path(self.adapter).name != self.adapter:
            raise SettingsError(f"adapter {self.adapter!r} must be the name of a file in the model's folder")


def published_card(generation: Generation, name: str = "", *, distilled: bool = False) -> ModelCard:
    """The card of a published model, whose folder has none: the preset for its weights, Lightricks' negative prompt."""
    from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

    base = Settings(negative_prompt=DEFAULT_NEGATIVE_PROMPT)
    defaults = preset_settings("distilled" if distilled else "one-stage", base, generation)
    return ModelCard(name=name, distilled=distilled, defaults=defaults)


def read_card(folder: Path, generation: Generation, *, distilled: bool = False) -> ModelCard:
    """The card in a model's folder over the published one of its generation; without a file, that one.

    Raises:
        WeightsError: the file is damaged or says something that cannot be.
    """
    base, path = published_card(generation, folder.name, distilled=distilled), folder / CARD_NAME
    if not path.is_file():
        return base
    try:
        return from_json(base, read_json(path), CARD_NAME)
    except (SettingsError, ValueError) as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error


# What an adapter's metadata says of its training, as the setting that does the same when a clip is made.
_TRAINED: Mapping[str, str] = {
    "mask_reference_to_video": "mask_reference_to_video",
    "reference_text": "reference_text",
    "reference_attention": "reference_attention",
    "rounding": "positions",
    "positions": "reference_time",
}


def defaults_for(card: ModelCard, metadata: Mapping[str, str], file: Path) -> ModelCard:
    """The card whose default masks and positions are those that an adapter was trained with.

    Args:
        card: of the model.
        metadata: of the adapter; what it does not say stays as the card has it.
        file: the adapter's, for messages.

    Raises:
        WeightsError: the metadata says something that no setting can be.
    """
    switches: Mapping[str, object] = {"true": True, "false": False}
    said = {setting: metadata[name] for name, setting in _TRAINED.items() if name in metadata}
    data = {setting: switches.get(value, value) for setting, value in said.items()}
    try:
        return replace(card, defaults=from_json(card.defaults, data, "metadata"))
    except SettingsError as error:
        raise WeightsError(f"{file} says of its training what cannot be: {error}, or train it again") from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card into a model's folder."""
    write_text(folder / CARD_NAME, json.dumps(to_json(card), indent=1) + "\n")
