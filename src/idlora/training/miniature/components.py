# SPDX-License-Identifier: Apache-2.0
"""Sizes of the miniature: diffusers' and transformers' LTX-2 classes with small configurations (2.3 layout)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

VIDEO_LATENT_CHANNELS = 96
AUDIO_TOKEN_CHANNELS = 128
MEAN_LOG_MEL = -6.0  # of the world's sound; the decoder starts there


def video_vae() -> Any:
    """A fresh `AutoencoderKLLTX2Video`: 24 x 24 pixels and 8 frames to 96 channels, 6.3 M parameters.

    The encoder has no residual blocks: it is set in closed form (`principal.start_linear`).
    """
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=VIDEO_LATENT_CHANNELS,
        patch_size=3,
        block_out_channels=(VIDEO_LATENT_CHANNELS,) * 3,
        spatio_temporal_scaling=(True, True, True),
        down_block_types=("LTX2VideoDownBlock3D",) * 3,
        downsample_type=("conv",) * 3,
        layers_per_block=(0, 0, 0, 0),
        decoder_block_out_channels=(64, 64, 128),
        decoder_layers_per_block=(0, 1, 3, 1),
        decoder_spatial_padding_mode="zeros",
        upsample_residual=(False, False, False),
        upsample_factor=(2, 1, 2),
        spatial_compression_ratio=24,
        temporal_compression_ratio=8,
    )
    return _start_certain(vae, VIDEO_LATENT_CHANNELS)


def audio_vae() -> Any:
    """A fresh `AutoencoderKLLTX2Audio`: 4 mel frames x 4 mel bands a latent, 8 channels, 0.65 M parameters."""
    from diffusers import AutoencoderKLLTX2Audio

    vae = AutoencoderKLLTX2Audio(
        base_channels=16,
        output_channels=2,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        latent_channels=8,
        norm_type="pixel",
        causality_axis="height",
        mid_block_add_attention=False,
        mel_bins=64,
    )
    torch.nn.init.constant_(vae.decoder.conv_out.conv.bias, MEAN_LOG_MEL)
    return _start_certain(vae, vae.config.latent_channels)


def vocoder() -> Any:
    """A fresh `LTX2Vocoder`: 64 mel bands a channel to 16 kHz, 160 samples a frame, 1.04 M parameters.

    One kernel size instead of three and wide layers: the most parameters for the least time on a CPU. Both channels
    start as the same sound; spectra do not know the phase, so nothing else would keep them from cancelling in the mean.
    """
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    model = LTX2Vocoder(
        in_channels=128,
        hidden_channels=256,
        upsample_kernel_sizes=[11, 4, 8, 8],
        upsample_factors=[5, 2, 4, 4],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16_000,
    )
    with torch.no_grad():
        for parameter in model.conv_out.parameters():
            parameter[1] = parameter[0]
    return model


@torch.no_grad()
def _start_certain(vae: Any, num_means: int) -> Any:
    """Start the posterior at standard deviation 0.08: at 1 its noise drowns the means, and training idles."""
    convolution = vae.encoder.conv_out.conv
    convolution.weight[num_means:] = 0.0
    convolution.bias[num_means:] = -5.0
    return vae


VIDEO_HEADS, VIDEO_HEAD_DIM = 4, 32
AUDIO_HEADS, AUDIO_HEAD_DIM = 4, 48
TEXT_LAYERS, TEXT_DIM, TEXT_LENGTH = 3, 96, 64


def tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer of at most 768 tokens learned from texts; any English is spelled in pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "[VISUAL]", "[SPEECH]", "[SOUNDS]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=768, special_tokens=special, initial_alphabet=alphabet)
    model.train_from_iterator(texts, trainer)
    model.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )


def text_encoder(vocabulary_size: int) -> Any:
    """A fresh Gemma 3 of 3 layers and width 96."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_DIM,
            intermediate_size=4 * TEXT_DIM,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            max_position_embeddings=TEXT_LENGTH,
            sliding_window=TEXT_LENGTH,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )


def connectors() -> Any:
    """Fresh `LTX2TextConnectors` in the 2.3 layout: one projection and one gated layer for each stream."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=TEXT_LAYERS + 1,
        video_connector_num_attention_heads=VIDEO_HEADS,
        video_connector_attention_head_dim=VIDEO_HEAD_DIM,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=TEXT_LENGTH,
        video_gated_attn=True,
        audio_connector_num_attention_heads=AUDIO_HEADS,
        audio_connector_attention_head_dim=AUDIO_HEAD_DIM,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=TEXT_LENGTH,
        audio_gated_attn=True,
        connector_rope_base_seq_len=TEXT_LENGTH,
        rope_type="split",
        rope_theta=1000.0,
        per_modality_projections=True,
        video_hidden_dim=VIDEO_HEADS * VIDEO_HEAD_DIM,
        audio_hidden_dim=AUDIO_HEADS * AUDIO_HEAD_DIM,
        proj_bias=True,
    )


def transformer() -> Any:
    """A fresh `LTX2VideoTransformer3DModel` in the 2.3 configuration: 6 layers, widths 128 (video) and 192 (audio).

    The rotary base is 1,000 instead of 10,000: with few channels fewer frequencies are wasted on times below a token.
    """
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=VIDEO_LATENT_CHANNELS,
        out_channels=VIDEO_LATENT_CHANNELS,
        num_attention_heads=VIDEO_HEADS,
        attention_head_dim=VIDEO_HEAD_DIM,
        cross_attention_dim=VIDEO_HEADS * VIDEO_HEAD_DIM,
        audio_in_channels=AUDIO_TOKEN_CHANNELS,
        audio_out_channels=AUDIO_TOKEN_CHANNELS,
        audio_num_attention_heads=AUDIO_HEADS,
        audio_attention_head_dim=AUDIO_HEAD_DIM,
        audio_cross_attention_dim=AUDIO_HEADS * AUDIO_HEAD_DIM,
        pos_embed_max_pos=20,
        audio_pos_embed_max_pos=20,
        base_height=2048,
        base_width=2048,
        num_layers=6,
        caption_channels=TEXT_DIM,
        rope_theta=1000.0,
        rope_type="split",
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
        perturbed_attn=True,
    )
    _zero_modulation(model)
    return model


@torch.no_grad()
def _zero_modulation(model: Any) -> None:
    """Start plain: modulation depends on no timestep, scales and shifts are zero, gates 0.3, both outputs zero."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith((".linear", "proj_out")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for name, table in model.named_parameters():
        if name.endswith("scale_shift_table"):
            table.zero_()
            gates = slice(2, None, 3) if len(table) in (6, 9) else slice(4, None)
            table[gates] = 0.3
