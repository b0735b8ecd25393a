# SPDX-License-Identifier: Apache-2.0
"""The stages that make the miniature, in order; each reads what the earlier ones left in the work folder.

audio-vae, audio-decoder, vocoder, video-vae, video-decoder, text -> base (text encoder, connectors, transformer). The
identity adapter comes after them, by `idlora train` as of any model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idlora.data.world.clip import NUM_FRAMES, SIZE
from idlora.errors import TrainingError
from idlora.networks.codecs import VideoGrid
from idlora.networks.joint import JointModel, JointOptions
from idlora.networks.text import PromptEncoder
from idlora.training.miniature import components as fresh
from idlora.training.miniature.codecs import AudioDecoderLoss, AudioLoss, VideoDecoderLoss, to_model
from idlora.training.miniature.dataset import frame_pool, mel_pool, wave_pool
from idlora.training.miniature.diffusion import DiffusionLoss, Recipe
from idlora.training.miniature.guide import AttentionGuide
from idlora.training.miniature.latents import Encoder, caption_pool, coded_mel_pool
from idlora.training.miniature.loop import Losses, Report, Schedule, Trainer, silent
from idlora.training.miniature.principal import rest_constants, start_linear, token_weights
from idlora.training.miniature.text import TextLoss, WordCounter
from idlora.training.miniature.vocoder import VocoderLoss, VocoderPair
from idlora.training.miniature.workshop import Workshop, network_kinds

logger = logging.getLogger(__name__)

CODEC_CLIPS = {"mel": 2000, "frames": 2000, "waves": 1000}
LINEAR_CLIPS = 160  # from which the video autoencoder's principal components are computed

SCHEDULES = {
    "audio-vae": Schedule(steps=800, learning_rate=1.5e-3),
    "audio-decoder": Schedule(steps=500, learning_rate=1e-3),
    "vocoder": Schedule(steps=2000, learning_rate=1e-3),
    "video-vae": Schedule(steps=0),
    "video-decoder": Schedule(steps=4000, learning_rate=5e-4),
    "text": Schedule(steps=400, learning_rate=1e-3),
    "base": Schedule(steps=8000, learning_rate=1.5e-3, warmup=200),
}


@dataclass(frozen=True)
class Run:
    """One run of a stage."""

    stage: str
    schedule: Schedule
    report: Report


def schedule_of(stage: str) -> Schedule:
    """The recipe's schedule of a stage.

    Raises:
        TrainingError: there is no such stage.
    """
    if stage not in SCHEDULES:
        raise TrainingError(f"there is no stage {stage!r}; the stages are {', '.join(SCHEDULES)}")
    return SCHEDULES[stage]


def train(stage: str, shop: Workshop, schedule: Schedule | None = None, report: Report = silent) -> None:
    """Run one stage to the end of its schedule, resuming if it was interrupted.

    Raises:
        TrainingError: the stage is unknown, an earlier one is missing, or the loss is not finite.
    """
    stages = {
        "audio-vae": _audio_vae,
        "audio-decoder": _audio_decoder,
        "vocoder": _vocoder,
        "video-vae": _video_vae,
        "video-decoder": _video_decoder,
        "text": _text,
        "base": _base,
    }
    stages[stage](shop, Run(stage, schedule or schedule_of(stage), report))


def _audio_vae(shop: Workshop, run: Run) -> None:
    from diffusers import AutoencoderKLLTX2Audio

    vae = shop.begin("audio_vae", AutoencoderKLLTX2Audio, fresh.audio_vae)
    pool = mel_pool(shop.work / "data", "train", CODEC_CLIPS["mel"], shop.workers)
    loss = AudioLoss(vae.to(shop.device), pool, run.schedule.seed)
    _fit(vae, loss, shop, run)
    _normalise_audio(vae, loss.pool.batch(np.arange(0, len(loss.pool), 10)))
    vae.save_pretrained(shop.model / "audio_vae")


def _audio_decoder(shop: Workshop, run: Run) -> None:
    vae = shop.audio_codec().vae
    vae.decoder.requires_grad_(requires_grad=True)
    pool = mel_pool(shop.work / "data", "train", CODEC_CLIPS["mel"], shop.workers)
    _fit(vae, AudioDecoderLoss(vae, pool, run.schedule.seed + 4), shop, run)
    vae.save_pretrained(shop.model / "audio_vae")


def _vocoder(shop: Workshop, run: Run) -> None:
    vocoder = _begin_vocoder(shop)
    torch.manual_seed(1)  # the judges are fresh, whatever the vocoder began as
    pair = VocoderPair(vocoder).to(shop.device)
    waves = wave_pool(shop.work / "data", "train", CODEC_CLIPS["waves"], shop.workers)
    mels = coded_mel_pool(shop.work / "data", "train", waves, shop.audio_codec())
    _fit(pair, VocoderLoss(pair, waves, mels, run.schedule.seed), shop, run)
    pair.vocoder.save_pretrained(shop.model / "vocoder")


def _begin_vocoder(shop: Workshop) -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    folder = None if shop.start is None else shop.start / "vocoder"
    if folder and folder.exists() and LTX2Vocoder.load_config(folder)["_class_name"] != LTX2Vocoder.__name__:
        shop = replace(shop, start=None)  # Griffin-Lim ships there, which has nothing to begin from
    return shop.begin("vocoder", LTX2Vocoder, fresh.vocoder)


def _video_vae(shop: Workshop, _run: Run) -> None:
    """No step: the encoder is computed, and with it the decoder's start."""
    pool = frame_pool(shop.work / "data", "train", CODEC_CLIPS["frames"], shop.workers)
    torch.manual_seed(0)
    vae = fresh.video_vae()
    clips = to_model(pool.batch(np.arange(0, len(pool), max(1, len(pool) // LINEAR_CLIPS))))
    start_linear(vae, clips, token_weights(clips.shape[-1], vae.config.spatial_compression_ratio))
    _normalise_video(vae.eval(), clips)
    vae.save_pretrained(shop.model / "vae")


def _video_decoder(shop: Workshop, run: Run) -> None:
    vae = shop.video_codec().vae
    vae.decoder.requires_grad_(requires_grad=True)
    rest_constants(vae.decoder)
    pool = frame_pool(shop.work / "data", "train", CODEC_CLIPS["frames"], shop.workers)
    _fit(vae, VideoDecoderLoss(vae, pool, run.schedule.seed), shop, run)
    vae.save_pretrained(shop.model / "vae")


def _fit(module: nn.Module, loss: Callable[[int], Losses], shop: Workshop, run: Run) -> None:
    trainer = Trainer(module, loss, run.schedule, shop.work / run.stage, run.report, shop.bf16)
    trainer.run()
    trainer.use_average()
    module.eval()


@torch.no_grad()
def _normalise_video(vae: Any, clips: Tensor) -> None:
    """Store the mean of each latent channel over clips (N, 3, F, H, W), and one deviation for all.

    The channels are principal components; their relative weights are part of the code.
    """
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode() for part in clips.split(4)])
    channels = latents.transpose(0, 1).flatten(1)  # (C, N * T)
    vae.latents_mean.copy_(channels.mean(1))
    vae.latents_std.fill_(channels.std(1).square().mean().sqrt())


@torch.no_grad()
def _normalise_audio(vae: Any, mels: Tensor) -> None:
    """Bring every latent channel to mean 0 and deviation 1 inside the network, then store statistics for each mel bin.

    diffusers keeps as many statistics as the network has base channels: here 16, one for each of a token's mel bins.
    """
    target = mels[:, None].expand(-1, 2, -1, -1).to(vae.device)
    latents = vae.encode(target).latent_dist.mode()  # (N, channels, T, bins)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = vae.encoder.conv_out.conv, vae.decoder.conv_in.conv
    size = len(mean)
    last.weight[:size] /= std[:, None, None, None]
    last.bias[:size] = (last.bias[:size] - mean) / std
    first.bias += (first.weight * mean[None, :, None, None]).sum((1, 2, 3))
    first.weight *= std[None, :, None, None]
    latents = (latents - mean[:, None, None]) / std[:, None, None]
    vae.latents_mean.copy_(latents.mean((0, 1, 2)))
    vae.latents_std.copy_(latents.std((0, 1, 2)))


def _text(shop: Workshop, run: Run) -> None:
    from transformers import Gemma3ForCausalLM

    tokenizer = shop.tokenizer()
    encoder = shop.begin("text_encoder", Gemma3ForCausalLM, lambda: fresh.text_encoder(len(tokenizer)))
    counter = WordCounter(encoder).train().to(shop.device)
    prompts = PromptEncoder(tokenizer, encoder, None, fresh.TEXT_LENGTH)
    pool = caption_pool(shop.work / "data", "train", prompts, shop.clips)
    _fit(counter, TextLoss(counter, tokenizer, pool, run.schedule.seed), shop, run)
    encoder.save_pretrained(shop.model / "text_encoder")


def _networks(shop: Workshop) -> nn.ModuleDict:
    """The networks that are trained together as the base."""
    build = {
        "transformer": fresh.transformer,
        "connectors": fresh.connectors,
        "text_encoder": lambda: fresh.text_encoder(len(shop.tokenizer())),
    }
    return nn.ModuleDict({name: shop.begin(name, kind, build[name]) for name, kind in network_kinds().items()})


def _diffusion_loss(shop: Workshop, networks: nn.ModuleDict, recipe: Recipe) -> DiffusionLoss:
    prompts = PromptEncoder(shop.tokenizer(), networks["text_encoder"], networks["connectors"], fresh.TEXT_LENGTH)
    video = shop.video_codec()
    encoder = Encoder(shop.work / "data", "train", prompts, shop.audio_codec(), video, shop.workers)
    grid = VideoGrid.of(NUM_FRAMES, SIZE, SIZE, video.vae)
    model = JointModel(networks["transformer"], JointOptions(mask_reference_to_video=True))
    if shop.compile:
        model.compile_blocks(dynamic=False)
    with torch.autocast(shop.device, torch.bfloat16, enabled=shop.bf16):
        pools = encoder.pools(shop.clips)
    guide = AttentionGuide(networks["transformer"])
    return DiffusionLoss(model, prompts, pools, (grid.frames, grid.height, grid.width), recipe, guide=guide)


def _base(shop: Workshop, run: Run) -> None:
    networks = _networks(shop).train().to(shop.device)
    loss = _diffusion_loss(shop, networks, Recipe(seed=run.schedule.seed + 2))
    _fit(networks, loss, shop, run)
    for name in network_kinds():
        network: Any = networks[name]
        network.save_pretrained(shop.model / name)
