# SPDX-License-Identifier: Apache-2.0
"""Writes a miniature as it ships: bfloat16, in diffusers' layout, with the card that says how it wants to be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from idlora.core.guidance import Guidance, IdentityGuidance, ModalityGuidance, STGuidance, TextGuidance
from idlora.data.world.clip import NUM_FRAMES, SIZE
from idlora.data.world.voice import VOCABULARY
from idlora.networks.adapter import read_adapter, write_adapter
from idlora.networks.codecs import GriffinLimVocoder
from idlora.pipeline.card import ModelCard, write_card
from idlora.pipeline.components import Components, replacing_folder, save_components
from idlora.pipeline.settings import Settings
from idlora.training.miniature import components as fresh
from idlora.training.miniature.workshop import ADAPTER_FILE, Workshop, network_kinds


def card() -> ModelCard:
    """How the miniature wants to be used: the sizes of the world's clips, and guidance chosen by measure."""
    return ModelCard(
        name="miniature",
        max_text_tokens=fresh.TEXT_LENGTH,
        vocabulary=VOCABULARY,
        defaults=Settings(
            num_frames=NUM_FRAMES,
            height=SIZE,
            width=SIZE,
            num_inference_steps=20,
            shift="by-size",
            guidance=Guidance(
                text=TextGuidance(video=1.0, audio=2.0),
                identity=IdentityGuidance(scale=1.0),
                stg=STGuidance(0.0, 0.0, blocks=(4,)),
                modality=ModalityGuidance(video=3.0, audio=1.0),
            ),
            mask_reference_to_video=True,
        ),
    )


def export(shop: Workshop, folder: Path, adapter: Path | None = None, *, learned_vocoder: bool = False) -> None:
    """Write the work folder's model as one that ships: bfloat16, with card and adapter; the start completes it.

    Args:
        shop: the work folder, and the weights that complete it.
        folder: of the finished model.
        adapter: file that `idlora train` wrote; None = the one that the starting weights have.
        learned_vocoder: with the trained vocoder, not Griffin-Lim.
    """
    video, audio = shop.video_codec(), shop.audio_codec()
    parts = {name: shop.load(name, kind) for name, kind in network_kinds().items()}
    vocoder = _vocoder(shop) if learned_vocoder else GriffinLimVocoder()
    complete = Components(vae=video.vae, audio_vae=audio.vae, vocoder=vocoder, tokenizer=shop.tokenizer(), **parts)
    adapter = adapter or shop.adapter_file()
    with replacing_folder(folder) as fresh_folder:
        save_components(fresh_folder, complete, torch.bfloat16)
        if adapter is not None:
            write_adapter(fresh_folder / ADAPTER_FILE, read_adapter(adapter))
        write_card(fresh_folder, replace(card(), adapter="" if adapter is None else ADAPTER_FILE))


def _vocoder(shop: Workshop) -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return shop.load("vocoder", LTX2Vocoder)
