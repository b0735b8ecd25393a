# SPDX-License-Identifier: Apache-2.0
"""The model card of an adapter: what its file says, how it is used, and what is not known of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from idlora.networks.adapter_info import MEASURES
from idlora.training.identity.engine import FINAL_NAME

Measures = Mapping[str, tuple[float, int]]  # value and step by name

# Where Lightricks publish the generations.
HOMES: Mapping[str, str] = MappingProxyType(
    {"2.0": "Lightricks/LTX-2", "2.3": "Lightricks/LTX-2.3", "2.5": "Lightricks/LTX-2.5"}
)
_LICENSE = {
    "license_name": "ltx-2-community-license-agreement",
    "license_link": "https://github.com/Lightricks/LTX-2/blob/main/LICENSE",
}
_TAGS = ("idlora", "ltx-2", "lora", "text-to-video", "audio")
_PROMPT = "[VISUAL] a person at a desk [SPEECH] Good morning. [SOUNDS] a calm voice, a quiet room"
_MINIATURE_PROMPT = "[VISUAL] a person in a quiet room [SPEECH] river garden coffee [SOUNDS] a calm voice"
_APPLIED = ("rounding", "mask_reference_to_video", "reference_text", "reference_attention")


def model_card(told: Mapping[str, Any], repo: str, measures: Measures, *, logged: bool) -> str:
    """README.md of the repository, with its front matter.

    Args:
        told: by `describe_adapter`.
        repo: `owner/name`.
        measures: of the run.
        logged: whether there is a log of it.
    """
    sections = (
        _what(told, repo),
        _use(told, repo),
        _training(told),
        _measured(measures, logged=logged),
        _limits(told),
    )
    body = "\n\n".join("\n".join(lines) for lines in sections)
    return f"{_front_matter(told)}\n{body}\n"


def _base(told: Mapping[str, Any]) -> str:
    """The repository of the model that it changes; empty if that is the miniature, or not known."""
    return "" if _is_miniature(told) else HOMES.get(told["generation"] or "", "")


def _is_miniature(told: Mapping[str, Any]) -> bool:
    return told["metadata"].get("base") in ("miniature", "idlora miniature")


def _front_matter(told: Mapping[str, Any]) -> str:
    import yaml

    data: dict[str, Any] = {"license": "other"}
    if base := _base(told):
        data |= {**_LICENSE, "base_model": base, "base_model_relation": "adapter"}
    data["tags"] = list(_TAGS)
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def _model_name(told: Mapping[str, Any]) -> str:
    if _is_miniature(told):
        return "the miniature of idlora"
    generation = told["generation"]
    return f"LTX-{generation}" if generation else "LTX-2, of a generation that its file does not name"


def _what(told: Mapping[str, Any], repo: str) -> Iterator[str]:
    ranks = " and ".join(map(str, told["ranks"]))
    yield f"# {repo.rpartition('/')[2]}"
    yield ""
    yield f"A low-rank adapter (LoRA) of rank {ranks} beside {told['layers']} layers of {_model_name(told)}."
    if told["kind"] == "identity":
        yield (
            "It changes the layers that make sound and tie it to the picture: a few seconds of somebody's voice, put "
            "before the sound as clean tokens, are what the voice of the clip is taken from "
            "([ID-LoRA](https://arxiv.org/abs/2603.10256))."
        )
    else:
        yield "Its layers are not those of an identity adapter; what it is for, its file does not say."
    if _is_miniature(told):
        yield (
            "The miniature is a small model that ships with idlora, of drawn heads that know 24 words; nothing of it "
            "works on the large models, or for real people."
        )


def _use(told: Mapping[str, Any], repo: str) -> Iterator[str]:
    small = _is_miniature(told)
    model, more = ("miniature", "") if small else ("MODEL", " --device cuda --dtype bfloat16")
    yield from ("## How to use it", "", "### idlora", "", "```")
    yield f"hf download {repo} {FINAL_NAME} --local-dir ."
    yield f"idlora generate --model {model}{more} --adapter {FINAL_NAME} \\"
    yield "    --image face.jpg --voice voice.wav --out clip.mp4 \\"
    yield f"    --prompt '{_MINIATURE_PROMPT if small else _PROMPT}'"
    yield from ("```", "")
    if not small:
        yield f"`MODEL` is {_model_name(told)}: a folder or repository in diffusers' layout, or an official file."
    if all(name in told["metadata"] for name in _APPLIED):
        yield "The file names the masks and positions of its training, and idlora applies them by itself."
    else:
        yield (
            "The file does not name all masks and positions of its training; `--reference-mask`, `--reference-text` "
            "and `--positions` choose them."
        )
    yield from () if small else _elsewhere(told, repo)


def _elsewhere(told: Mapping[str, Any], repo: str) -> Iterator[str]:
    """Other programs; none of them is claimed to do what was not seen."""
    name = _model_name(told)
    yield from ("", "### diffusers", "", "```python")
    yield "from diffusers import LTX2Pipeline"
    yield ""
    yield f'pipe = LTX2Pipeline.from_pretrained("MODEL")  # {name} in diffusers\' layout'
    yield f'pipe.load_lora_weights("{repo}", weight_name="{FINAL_NAME}")'
    yield "```"
    yield ""
    yield (
        "The weights load as they are. The pipelines of diffusers 0.42 take no reference voice, and without one an "
        "identity adapter does not do what it was trained for."
    )
    yield from ("", "### ComfyUI", "")
    yield (
        f"Put `{FINAL_NAME}` into `models/loras` and load it with `LoraLoaderModelOnly` at strength 1; the node "
        "`LTXVReferenceAudio` takes the voice. Its keys are Lightricks' names of the layers behind `diffusion_model.`, "
        "which is what ComfyUI looks up. It was not run there, and whether that node masks as the training below did "
        "is not known."
    )


def _training(told: Mapping[str, Any]) -> Iterator[str]:
    rows = {"generation": told["generation"] or "unknown", "rank": ", ".join(map(str, told["ranks"]))}
    rows |= {"layers": f"{told['layers']}, {told['parameters']:,} parameters"}
    rows |= {name: words for name, words in told["training"].items() if name not in MEASURES.values()}
    rows |= {"changed layers of a block": ", ".join(f"`{target}`" for target in told["targets"])}
    yield from ("## How it was trained", "", "| | |", "|---|---|")
    yield from (f"| {name} | {_cell(without_paths(words))} |" for name, words in rows.items())
    if told["unknown"]:
        yield ""
        yield f"Unknown, because the file does not say it: {'; '.join(told['unknown'])}."


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "\\|").split())


def _measured(measures: Measures, *, logged: bool) -> Iterator[str]:
    yield from ("## What was measured", "")
    if measures:
        yield from ("| measure | value | at step |", "|---|---|---|")
        yield from (f"| {MEASURES[name]} | {value:.4g} | {step:,} |" for name, (value, step) in measures.items())
        yield ""
        yield "While it was trained, on held-out samples of its own data; the published file was not measured anew."
    elif logged:
        yield "Nothing: the training's log has no measure up to the step of this file."
    else:
        yield "Unknown: there is no log of the training here."


def _limits(told: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Limits and consent", "")
    yield "- Use the voice and the face of a real person only with that person's consent."
    yield (
        "- What is made with it must be labelled as AI-generated wherever it is shown. Files that idlora writes say "
        "so; those of other programs may not."
    )
    yield (
        "- Unknown: who speaks in the training data, in which languages, and under which terms they were given; how "
        "well it does for voices unlike them."
    )
    if _base(told):
        yield (
            f"- The model that it changes is published under the LTX-2 Community License ({_LICENSE['license_link']}), "
            "which restricts some uses and some users."
        )
    else:
        yield "- Its licence is not stated here; whoever publishes it should state it above."


def without_paths(value: Any) -> Any:
    """The same with every path in it cut to its last name; the official repositories keep their owner."""
    if isinstance(value, Mapping):
        return {name: without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    if not isinstance(value, str) or value in HOMES.values():
        return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
