# SPDX-License-Identifier: Apache-2.0
"""Whole pipelines of random weights, so small that a clip takes a second: every class is the real one."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from idlora.core.guidance import Guidance, IdentityGuidance, ModalityGuidance, STGuidance, TextGuidance
from idlora.data.media import Voice
from idlora.networks.adapter import AdapterWeights, LowRank, new_adapter
from idlora.networks.generations import GENERATIONS
from idlora.pipeline import Components, IDLoraPipeline, ModelCard, Result, Settings
from signals import RATE, gradient_frames, tone

PROMPT = 'a man says "river garden"'
PICTURE = gradient_frames(1, 80, 120)[0]
WORDS = "zero one two river garden coffee a man says in quiet room visual speech sounds calm".split()
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
TEXT_DIM, TEXT_LAYERS, MAX_TOKENS, REGISTERS = 16, 2, 24, 8
VIDEO_CHANNELS, VIDEO_DIM, AUDIO_DIM, HEADS = 16, 32, 16, 2

# The passes that the miniature's defaults need: positive, negative text, no reference.
GUIDANCE = Guidance(
    TextGuidance(3.0, 3.0), IdentityGuidance(1.0), STGuidance(0.0, 0.0, blocks=(1,)), ModalityGuidance(1.0, 1.0)
)
SETTINGS = Settings(num_frames=9, height=64, width=96, num_inference_steps=2, guidance=GUIDANCE)
CARD = ModelCard(name="tiny", max_text_tokens=MAX_TOKENS, vocabulary=("river", "garden", "coffee"), defaults=SETTINGS)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = [*SPECIAL.values(), *WORDS]
    words = models.WordLevel({word: index for index, word in enumerate(known)}, unk_token=SPECIAL["unk_token"])
    inner = Tokenizer(words)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **SPECIAL)


GEMMA = {
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": TEXT_DIM,
    "intermediate_size": 32,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def text_encoder() -> Any:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    return Gemma3TextModel(Gemma3TextConfig(**GEMMA))


def real_text_encoder(generation: str) -> Any:
    """Of the class that the generation is published with, which sees pictures as well."""
    import transformers

    if generation == "2.5":
        text = transformers.Gemma4UnifiedTextConfig(**GEMMA)
        config = transformers.Gemma4UnifiedConfig(text_config=text.to_dict())
        return transformers.Gemma4UnifiedForConditionalGeneration(config).eval()
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.Gemma3TextConfig(**GEMMA)
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config={**eyes, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def connectors(generation: str) -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    old = generation == "2.0"
    video, audio = (TEXT_DIM, TEXT_DIM) if old else (VIDEO_DIM, AUDIO_DIM)
    return LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=TEXT_LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=video // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=REGISTERS,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=audio // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=REGISTERS,
        rope_type="split",
        video_gated_attn=not old,
        audio_gated_attn=not old,
        per_modality_projections=not old,
        video_hidden_dim=video,
        audio_hidden_dim=audio,
        proj_bias=not old,
    )


def transformer(generation: str, num_layers: int = 2) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=VIDEO_CHANNELS,
        out_channels=VIDEO_CHANNELS,
        num_layers=num_layers,
        num_attention_heads=HEADS,
        attention_head_dim=VIDEO_DIM // HEADS,
        cross_attention_dim=VIDEO_DIM,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_DIM // HEADS,
        audio_cross_attention_dim=AUDIO_DIM,
        caption_channels=TEXT_DIM,
        rope_type="split",
        **GENERATIONS[generation].config,
    )


def video_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video(
        latent_channels=VIDEO_CHANNELS,
        block_out_channels=(8, 16, 16, 32),
        layers_per_block=(0, 1, 1, 0, 1),
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def audio_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Audio

    return AutoencoderKLLTX2Audio(base_channels=16, num_res_blocks=1)


def vocoder() -> Any:
    from idlora.networks.codecs import GriffinLimVocoder

    return GriffinLimVocoder(iterations=2)


def components(generation: str = "2.3", seed: int = 0) -> Components:
    """Fresh random components; what the transformer initialises to zero is drawn as well, so that all has effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Components(
            transformer=transformer(generation),
            vae=video_vae(),
            audio_vae=audio_vae(),
            vocoder=vocoder(),
            connectors=connectors(generation),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
        )
        for parameter in made.transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def real_vocoder(generation: str) -> Any:
    """Of the class that the generation is published with."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    if generation == "2.0":
        small = {"hidden_channels": 32, "upsample_kernel_sizes": [16, 15, 8], "upsample_factors": [6, 5, 8]}
        return LTX2Vocoder(**small)
    small = {"hidden_channels": 32, "upsample_kernel_sizes": [11, 8, 4], "upsample_factors": [5, 8, 4]}
    wider = {"bwe_hidden_channels": 32, "bwe_upsample_kernel_sizes": [12, 11, 8], "bwe_upsample_factors": [6, 5, 8]}
    return LTX2VocoderWithBWE(**small, **wider)


def upsampler(*, rational: bool = False) -> Any:
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    sizes = {"in_channels": VIDEO_CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}
    return LTX2LatentUpsamplerModel(**sizes, use_rational_resampler=rational).eval()


def real_components(generation: str) -> Components:
    """Components of the classes that the generation is published with, and an upscaler."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return components(generation).replaced(
            vocoder=real_vocoder(generation),
            text_encoder=real_text_encoder(generation),
            latent_upsampler=upsampler(),
        )


def saved_model(folder: Path, generation: str = "2.3") -> Path:
    """A model folder of the real classes, with an identity adapter."""
    made = real_components(generation)
    IDLoraPipeline(made, CARD, adapter_for(made.transformer)).save_pretrained(folder)
    return folder


def adapter_for(network: Any, seed: int = 1) -> AdapterWeights:
    """Random weights of an identity adapter that fits; the network is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        injected = new_adapter(network, rank=4)
        layers = {name: LowRank(_drawn(each.a), _drawn(each.b)) for name, each in injected.weights().layers.items()}
        injected.remove()
    return AdapterWeights(layers)


def _drawn(weight: torch.Tensor) -> torch.Tensor:
    return 0.2 * torch.randn(weight.shape)


@cache
def pipeline(generation: str = "2.3", *, adapted: bool = True) -> IDLoraPipeline:
    """A pipeline that tests share; they must leave it as it is."""
    made = components(generation)
    weights = adapter_for(made.transformer) if adapted else None
    return IDLoraPipeline(made, CARD, weights)


def settings(**options: Any) -> Settings:
    """The tiny defaults with some settings replaced."""
    return replace(SETTINGS, **options)


def voice(seconds: float = 1.0, frequency: float = 300.0, channels: int = 1) -> Voice:
    return Voice(tone(seconds, frequency, channels=channels), RATE)


def digest(result: Result) -> str:
    return hashlib.sha256(result.video.tobytes() + result.audio.tobytes()).hexdigest()
