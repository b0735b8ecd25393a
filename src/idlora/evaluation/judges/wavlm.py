# SPDX-License-Identifier: Apache-2.0
"""Speaker encoders on WavLM (Chen et al. 2022): WavLM-SV of transformers, and the paper's WavLM-Large with ECAPA."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idlora.errors import WeightsError
from idlora.evaluation.judges.base import JudgeRecord
from idlora.evaluation.judges.ecapa import WavLMEcapa
from idlora.evaluation.judges.sounds import Sound, at_16_khz, refuse_silence
from idlora.evaluation.judges.voices import Embedding
from idlora.evaluation.judges.weights import Lazy, best_device, digest_of, file_of, fill, folder_of, tensors_of

FILE = "wavlm_large_finetune.pth"
_BACKBONE = "feature_extract.model."
_UNUSED = ("loss_calculator.", f"{_BACKBONE}final_proj.", f"{_BACKBONE}label_embs_concat")
# WavLM-Large, whose sizes the checkpoint of UniSpeech does not state.
LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
# Names of the authors' WavLM, and of transformers'.
_NAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def _heard(waveform: Sound, rate: int) -> Tensor:
    """A sound (1, N) at 16 kHz (InputError if it is silent)."""
    sound = at_16_khz(waveform, rate)
    refuse_silence(sound)
    return torch.from_numpy(np.ascontiguousarray(sound))[None]


def _standard(sound: Tensor) -> Tensor:
    """Mean 0 and variance 1 over time, (1, N)."""
    return torch.nn.functional.layer_norm(sound, sound.shape[1:])


def _unit(vector: Tensor) -> Embedding:
    return np.asarray(torch.nn.functional.normalize(vector.float(), dim=-1)[0].cpu().numpy(), np.float32)


class WavLMSpeaker(Lazy):
    """WavLM with x-vectors (`microsoft/wavlm-base-plus-sv` and its kin), by a folder of transformers or a hub name.

    Limits: trained on VoxCeleb, mostly interviews; same speakers lie above about 0.86.
    """

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the weights."""
        limits = "trained on interviews; above about 0.86 it is one speaker"
        return JudgeRecord("WavLM-SV", self.source.rsplit("/", 1)[-1], limits, digest_of(self._folder))

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.source, "WavLM-SV")

    @cached_property
    def network(self) -> Any:
        """The network (WeightsError if a tensor of it is not in the folder)."""
        from transformers import WavLMForXVector

        try:
            found, told = WavLMForXVector.from_pretrained(self._folder, output_loading_info=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{self.source} is no WavLM-SV ({' '.join(str(error).split())[:200]})") from error
        # The loss of its training has weights too, which judges do not need.
        missing = sorted(name for name in told["missing_keys"] if not name.startswith("objective."))
        if missing:
            raise WeightsError(f"{self.source} lacks {len(missing)} tensors of WavLM-SV, {missing[0]} among them")
        return found.eval().requires_grad_(requires_grad=False).to(best_device())

    @cached_property
    def _normalised(self) -> bool:
        """Whether the network wants standardised sounds: some WavLM do, others do not, and their folder says it."""
        try:
            text = (self._folder / "preprocessor_config.json").read_text(encoding="utf-8")
            return bool(json.loads(text)["do_normalize"])
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{self.source} lacks preprocessor_config.json with do_normalize; copy it too"
            ) from error

    @torch.no_grad()
    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """See `SpeakerEncoder.embed`."""
        sound = _heard(waveform, rate)
        given = _standard(sound) if self._normalised else sound
        return _unit(self.network(given.to(self.network.device)).embeddings)


class WavLMEcapaSpeaker(Lazy):
    """The paper's judge: WavLM-Large fine-tuned with its ECAPA head, `wavlm_large_finetune.pth` of UniSpeech.

    By that file, its folder, or the name of a repository on the hub that holds it (owner/name, or owner/name/file).
    The file holds backbone and head, and both are kept: the official metric replaced the fine-tuned backbone by the
    pretrained one, and fell back to a random head where the file was missing, so that its figures are not comparable
    with others that are called SIM. Sounds are normalised as the backbone was trained; the official metric does not.
    Limits: not yet run on the published file; names, shapes and arithmetic are tested on random weights.
    """

    config: Mapping[str, Any] = LARGE

    def __init__(self, source: str) -> None:
        super().__init__(source)
        _ = self._file

    @cached_property
    def _file(self) -> Path:
        return file_of(self.source, FILE, "WavLM-Large with ECAPA")

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the file."""
        limits = "trained on interviews; hears the room a little"
        return JudgeRecord("WavLM-Large and ECAPA", "UniSpeech", limits, digest_of(self._file))

    @cached_property
    def network(self) -> WavLMEcapa:
        """Backbone and head."""
        from transformers import WavLMConfig, WavLMModel

        network = WavLMEcapa(WavLMModel(WavLMConfig(**self.config)))
        fill(network, renamed(tensors_of(self._file)), "WavLM-Large with ECAPA")
        return network.to(best_device())

    @torch.no_grad()
    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """See `SpeakerEncoder.embed`."""
        device = self.network.linear.weight.device
        return _unit(self.network(_standard(_heard(waveform, rate)).to(device)))


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of UniSpeech's checkpoint by the names of `WavLMEcapa`; those of its training alone are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_UNUSED):
            continue
        if not name.startswith(_BACKBONE):
            found[name] = tensor
            continue
        inner = name.removeprefix(_BACKBONE)
        for pattern, replacement in _NAMES:
            inner = re.sub(pattern, replacement, inner)
        found[f"wavlm.{inner}"] = tensor
    return found
