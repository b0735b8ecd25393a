# SPDX-License-Identifier: Apache-2.0
"""Prompts to what the transformer attends to, each read alone and once: what a cache knows needs no text encoder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from idlora.errors import OutputError
from idlora.files import write_tensors
from idlora.networks.joint import TextContext
from idlora.networks.text import PromptEncoder, PromptTokens
from idlora.pipeline.components import Components
from idlora.pipeline.inputs import Inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.output import versions
from idlora.pipeline.placement import STAGES, Residence

logger = logging.getLogger(__name__)

READERS = (*STAGES["text"], *STAGES["connect"])
AT_ONCE = 2  # prompts whose features, 0.4 GB each at full size, wait together for the connectors: one clip's
CACHE_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Texts:
    """Encoded prompts of a batch; `negative` may be None if text guidance is neutral."""

    positive: TextContext
    negative: TextContext | None


def joined(contexts: Sequence[TextContext]) -> TextContext:
    """Contexts of single prompts, all of one length, as one batch."""
    if len(contexts) == 1:
        return contexts[0]
    mask = None
    if any(context.mask is not None for context in contexts):
        mask = torch.cat([_mask(context) for context in contexts])
    return TextContext(torch.cat([each.video for each in contexts]), torch.cat([each.audio for each in contexts]), mask)


def _mask(context: TextContext) -> Tensor:
    everything = torch.ones(context.video.shape[:2], dtype=torch.long, device=context.video.device)
    return everything if context.mask is None else context.mask.to(everything.dtype)


def told_cuts(inputs: Inputs, tokens: PromptTokens) -> Iterator[str]:
    """What is said of texts that the model does not read to their end."""
    texts = {"prompt": inputs.prompt.text(), "negative prompt": inputs.settings.negative_prompt}
    for name, text in texts.items():
        length = tokens.num_tokens(text)
        if length > tokens.max_length:
            yield f"the {name} is {length} tokens long: this model reads the first {tokens.max_length}"


def default_cache_folder() -> Path:
    """Where contexts are kept between runs: below IDLORA_CACHE, else below the user's folder of caches."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IDLORA_CACHE") or Path(user, "idlora"), "texts")


@dataclass(frozen=True)
class TextCache:
    """Text contexts in a folder, a file each, named by the SHA-256 of what they were made from.

    A prompt cannot be read from its file. A file that cannot be written or read costs time, never a clip.

    Attributes:
        folder: made when the first context comes.
        limit: bytes; beyond them the files that were not used for longest go.
    """

    folder: Path
    limit: int = CACHE_BYTES

    def get(self, key: str, device: torch.device) -> TextContext | None:
        """The context of a key; None if it is not there or damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors = load_file(path, str(device))
            found = TextContext(tensors["video"], tensors["audio"], tensors.get("mask"))
            os.utime(path)
        except (OSError, SafetensorError, KeyError) as error:
            logger.info("%s cannot be used (%s); its prompt is read again", path, error)
            return None
        return found

    def put(self, key: str, context: TextContext) -> None:
        """Keep the context of a key."""
        tensors = {"video": context.video, "audio": context.audio, "mask": context.mask}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
            write_tensors(self._path(key), kept, {"format": "pt"})
            self._make_room()
        except (OSError, OutputError) as error:
            logger.warning("the text cache %s cannot be written (%s); the clip is made without", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self) -> None:
        files = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(state.st_size for _, state in files)
        for path, state in sorted(files, key=lambda file: file[1].st_mtime):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= state.st_size


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts with the networks of a pipeline.

    Every prompt is read alone, so that its context does not depend on what else is asked for.
    """

    components: Components
    residence: Residence
    tokens: PromptTokens
    device: torch.device
    cache: TextCache | None = None

    def contexts(self, tokens: Sequence[tuple[Tensor, Tensor]], meter: Meter) -> list[TextContext]:
        """Text contexts of pairs of token ids and mask, (1, S) each."""
        keys = [self._key(*pair) for pair in tokens]
        found = {key: context for key in keys if (context := self._known(key)) is not None}
        missing = {key: pair for key, pair in zip(keys, tokens, strict=True) if key not in found}
        found |= self._read(missing, meter)
        return [found[key] for key in keys]

    def learn(self, tokens: Sequence[tuple[Tensor, Tensor]], meter: Meter) -> None:
        """Bring contexts that will be asked for into the cache; without one, do nothing."""
        if self._cache is not None:
            keys = {self._key(*pair): pair for pair in tokens}
            for _ in self._read({key: pair for key, pair in keys.items() if self._known(key) is None}, meter):
                pass

    @property
    def _cache(self) -> TextCache | None:
        """None as well for networks that came from no file: nothing tells them from others."""
        return self.cache if all(self._stamps()) else None

    def _stamps(self) -> list[str]:
        return [self.components.stamp(name) for name in READERS]

    def _known(self, key: str) -> TextContext | None:
        return None if self._cache is None else self._cache.get(key, self.device)

    def _read(self, tokens: Mapping[str, tuple[Tensor, Tensor]], meter: Meter) -> Iterator[tuple[str, TextContext]]:
        """Contexts by key, each part kept in the cache when it is read; the networks are let go afterwards."""
        keys = list(tokens)
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            features = self._features([tokens[key] for key in part], meter)
            if start + AT_ONCE >= len(keys):
                self.residence.release("text_encoder")
            masks = [tokens[key][1] for key in part]
            for key, context in zip(part, self._connected(features, masks, meter), strict=True):
                if self._cache is not None:
                    self._cache.put(key, context)
                yield key, context
        if keys:
            self.residence.release("connectors")

    def _features(self, tokens: Sequence[tuple[Tensor, Tensor]], meter: Meter) -> list[Tensor]:
        with self.residence.stage("text", meter):
            parts = self.tokens.tokenizer, self.components.text_encoder, None
            encoder = PromptEncoder(*parts, self.tokens.max_length, self.device)
            return [encoder.hidden_states(*pair) for pair in tokens]

    def _connected(self, features: Sequence[Tensor], masks: Sequence[Tensor], meter: Meter) -> list[TextContext]:
        with self.residence.stage("connect", meter):
            encoder = PromptEncoder(self.tokens.tokenizer, None, self.components.connectors, self.tokens.max_length)
            return [encoder.connected(each, mask) for each, mask in zip(features, masks, strict=True)]

    def _key(self, ids: Tensor, mask: Tensor) -> str:
        """Tokens, the networks' files and all else that decides a context."""
        made_by = {"readers": self._stamps(), "device": self.device.type, "versions": versions()}
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
        for tensor in (ids, mask):
            digest.update(tensor.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()
