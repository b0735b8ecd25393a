# SPDX-License-Identifier: Apache-2.0
"""Import of latents in the layout of the official trainer and its published data sets: a `.pt` file each."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idlora.core.positions import FRAMES_PER_TOKEN
from idlora.core.tokens import audio_to_tokens, video_to_tokens
from idlora.data.manifest import Fault
from idlora.errors import InputError, MediaError
from idlora.files import sha256_of
from idlora.networks.text import TextFeatures
from idlora.training.latents.filling import Filling, Notice, Report, silent
from idlora.training.latents.store import SHARD_BYTES, Header, Latents, LatentWriter, Row

VIDEO, AUDIO, TEXT = "latents", "audio_latents", "conditions"
REFERENCES = ("reference_audio_latents", "audio_latents_clean")  # the trainer's name, and that of the data sets
_TEXTS: Mapping[str, tuple[str, str]] = {
    "2.3": ("video_prompt_embeds", "audio_prompt_embeds"),
    "2.0": ("prompt_embeds", "prompt_embeds"),
}


@dataclass(frozen=True)
class PublishedSample:
    """The four files of a sample, of which some may be missing."""

    id: str
    video: Path
    audio: Path
    reference: Path
    text: Path

    def files(self) -> tuple[Path, ...]:
        """All four."""
        return self.video, self.audio, self.reference, self.text


def is_published(folder: Path) -> bool:
    """Whether a folder has the published layout."""
    return (folder / VIDEO).is_dir() and (folder / TEXT).is_dir()


def find_published(folder: Path) -> list[PublishedSample]:
    """The samples of a folder in the published layout, in the order of their names.

    Raises:
        InputError: the folder has another layout, or no samples.
    """
    reference = next((name for name in REFERENCES if (folder / name).is_dir()), None)
    if reference is None or not is_published(folder) or not (folder / AUDIO).is_dir():
        raise InputError(f"{folder} must have the folders {VIDEO}, {AUDIO}, {REFERENCES[0]} and {TEXT}; check the path")
    names = sorted(file.relative_to(folder / VIDEO) for file in (folder / VIDEO).rglob("*.pt"))
    if not names:
        raise InputError(f"{folder / VIDEO} has no .pt file in it; check the path")
    return [
        PublishedSample(
            id=name.with_suffix("").as_posix(),
            video=folder / VIDEO / name,
            audio=folder / AUDIO / name,
            reference=folder / reference / name,
            text=_condition(folder / TEXT, name),
        )
        for name in names
    ]


def _condition(folder: Path, name: Path) -> Path:
    """Its name, or one of older data sets, where `condition_7.pt` belongs to `7.pt` or `latent_7.pt`."""
    older = f"condition_{name.name.removeprefix('latent_')}"
    known = (folder / name, folder / name.parent / older, folder / older)
    return next((file for file in known if file.is_file()), known[0])


def import_published(
    samples: Sequence[PublishedSample],
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    notice: Notice = silent,
    *,
    keep_others: bool = False,
) -> Report:
    """Write published samples as a folder that `LatentStore` reads; what is there from the same files stays.

    The generation is told by the names in the text files. Files are read as tensors, never as programs: one that is
    more than tensors is refused. Published data say nothing of a prompt without words, so there is no text dropout
    with them, nor who speaks, so all samples are of the training split.

    Args:
        samples: from `find_published`.
        out: folder, made if it is missing.
        dtype: of the stored tensors.
        shard_bytes: size of a file.
        notice: told of every sample.
        keep_others: keep what is there of no sample: of another folder.

    Raises:
        InputError: not one text file can be read.
        TrainingError: the folder was made otherwise.
        OutputError: a file cannot be written.
    """
    generation, num_tokens = _kind(samples)
    header = Header(generation, num_tokens, settings={"dtype": str(dtype).removeprefix("torch.")})
    writer = LatentWriter(out, header, dtype, shard_bytes)
    with Filling(writer, (), len(samples), notice, keep_others=keep_others) as filling:
        for sample in samples:
            try:
                key = hashlib.sha256("".join(map(sha256_of, sample.files())).encode()).hexdigest()
                if not filling.skips(sample.id, key):
                    filling.add(*_read(sample, key, header))
            except InputError as error:
                filling.fail(Fault(sample.id, 0, str(error)))
    return filling.report


def _kind(samples: Sequence[PublishedSample]) -> tuple[str, int]:
    """Generation and padded length of the first text that can be read."""
    reason = "there are none"
    for sample in samples:
        try:
            data = _loaded(sample.text)
            return _generation(data, sample.text), len(_tensor(data, "prompt_attention_mask", 1, sample.text))
        except InputError as error:
            reason = str(error)
    raise InputError(f"none of {len(samples)} text files can be used: {reason}")


def _generation(data: Mapping[str, Any], file: Path) -> str:
    for generation, names in _TEXTS.items():
        if all(name in data for name in names):
            return generation
    raise MediaError(
        f"{file} holds no text features of LTX-2.0 or 2.3; it has {', '.join(map(str, data)) or 'nothing'}"
    )


def _loaded(file: Path) -> Mapping[str, Any]:
    """The named values of a file; MediaError if it is missing, damaged, or more than tensors."""
    try:
        data = torch.load(file, weights_only=True, map_location="cpu")
    except OSError as error:
        raise MediaError(f"cannot read {file}: {error.strerror or error}; copy it again") from error
    except pickle.UnpicklingError as error:
        raise MediaError(
            f"{file} is refused: it holds more than tensors, or is damaged; get it from its source"
        ) from error
    except Exception as error:  # what damage makes of the reader cannot be foreseen
        raise MediaError(f"{file} is damaged ({type(error).__name__}); copy it again") from error
    if not isinstance(data, Mapping):
        raise MediaError(f"{file} holds no named tensors; it is none of this layout")
    return data


def _read(sample: PublishedSample, key: str, header: Header) -> tuple[Row, Latents]:
    video, rate = _video(sample.video)
    text = _text(sample.text, header)
    audio, reference = _audio(sample.audio), _audio(sample.reference)
    frames, height, width = video.shape[1:]
    row = Row(
        id=sample.id,
        key=key,
        grid=(frames, height, width),
        num_audio=len(audio),
        num_reference=len(reference),
        frame_rate=rate,
        num_frames=(frames - 1) * FRAMES_PER_TOKEN + 1,
    )
    return row, Latents(video_to_tokens(video[None])[0], audio, reference, text)


def _video(file: Path) -> tuple[Tensor, float]:
    """Latents (C, F, H, W), and the frame rate."""
    data = _loaded(file)
    latents = _tensor(data, "latents", 4, file)
    try:
        rate = float(data["fps"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MediaError(f"{file} does not tell its frame rate (fps); encode it anew") from error
    if not 0 < rate < math.inf:
        raise MediaError(f"{file} has {rate} frames a second; encode it anew")
    return latents, rate


def _audio(file: Path) -> Tensor:
    """Tokens (T, C * M) of latents (C, T, M)."""
    return audio_to_tokens(_tensor(_loaded(file), "latents", 3, file)[None])[0]


def _text(file: Path, header: Header) -> TextFeatures:
    data = _loaded(file)
    if (found := _generation(data, file)) != header.generation:
        raise MediaError(f"{file} is of LTX-{found}, samples before it of LTX-{header.generation}; keep them apart")
    mask = _tensor(data, "prompt_attention_mask", 1, file).bool()
    video, audio = (_rows(data, name, mask, file, header.max_text_tokens) for name in _TEXTS[found])
    return TextFeatures(video, video if found == "2.0" else audio)


def _rows(data: Mapping[str, Any], name: str, mask: Tensor, file: Path, longest: int) -> Tensor:
    features = _tensor(data, name, 2, file)
    if len(features) != len(mask) or not 0 < int(mask.sum()) <= longest:
        raise MediaError(
            f"{file}: a mask of {len(mask)} with {int(mask.sum())} tokens cannot be of {len(features)} rows"
        )
    return features[mask]


def _tensor(data: Mapping[str, Any], name: str, num_axes: int, file: Path) -> Tensor:
    found = data.get(name)
    if not isinstance(found, Tensor):
        raise MediaError(f"{file} has no tensor {name}; it is none of this layout")
    if found.dim() != num_axes or not found.numel() or found.device.type != "cpu" or found.layout is not torch.strided:
        raise MediaError(f"{name} in {file} has the shape {tuple(found.shape)}; {num_axes} plain axes are needed")
    return found
