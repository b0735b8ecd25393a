# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' networks, tiny and random, and two that say the same whatever they are given."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SAID_BY_WHISPER = "a"
SAID_BY_CAPTIONER = "person"


def byte_vocabulary(folder: Path, special: dict[str, int]) -> None:
    """A tokenizer of single bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocabulary = {**special, **{letter: len(special) + index for index, letter in enumerate(letters)}}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_whisper(folder: Path, *, constant: bool = False) -> None:
    """A Whisper of one layer; a `constant` one hears nothing but one letter."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    torch.manual_seed(0)
    byte_vocabulary(folder, {"<|endoftext|>": 0})
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 257}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **tokens, suppress_tokens=None))
    model.generation_config = GenerationConfig(
        **tokens, max_length=12, is_multilingual=False, no_timestamps_token_id=256
    )
    if constant:
        (letter,) = tokenizer.encode(SAID_BY_WHISPER, add_special_tokens=False)
        with torch.no_grad():
            model.model.decoder.layer_norm.weight.zero_()
            model.proj_out.weight[letter] = model.model.decoder.layer_norm.bias.fill_(1.0)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def write_captioner(folder: Path) -> None:
    """A Llava of two layers that answers every question with one word, the first of its vocabulary, again and again."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    words = [SAID_BY_CAPTIONER, "<s>", "</s>", "<pad>", "<unk>", "<image>", "USER:"]
    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, additional_special_tokens=["<image>"], **special)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(**sizes, **numbers, num_key_value_heads=2, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all words are equally likely: the first is said
    model.save_pretrained(folder)
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    sized = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        sized,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
