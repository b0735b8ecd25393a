# SPDX-License-Identifier: Apache-2.0
"""`idlora plan`: what a clip will take in memory, before any weights are fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from idlora.cli.generate import checked_dtype, override, quieten, wanted_placement
from idlora.cli.options import PLAN_TABLE, with_options
from idlora.errors import SettingsError

if TYPE_CHECKING:
    from idlora.pipeline import Placement
    from idlora.pipeline.plan import Demand
    from idlora.pipeline.sources import Outline

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@with_options(PLAN_TABLE)
def plan(**values: Any) -> None:
    """Tell parameters and peak memory of every stage, and the placement that fits, from configurations alone."""
    from idlora.networks.generations import generation_of
    from idlora.pipeline.plan import demand_of

    quieten()
    memory = None if values["device_memory"] is None else parse_bytes(values["device_memory"])
    outline, assumed = _model(values)
    card, generation = outline.card, generation_of(outline.blueprints["transformer"].full_config())
    settings, dtype = override(card.defaults, generation, values), checked_dtype(values["dtype"])
    most = values["max_branches"]
    demand = demand_of(outline.blueprints, settings, dtype, card.max_text_tokens, outline.adapter_rank, most)
    told = {
        "generation": generation.name,
        "size": {"frames": settings.num_frames, "height": settings.height, "width": settings.width},
        "dtype": values["dtype"],
        **describe(demand, wanted_placement(values, demand, memory), memory),
        "assumed": list(assumed),
    }
    print(json.dumps(told, indent=1) if values["json"] else "\n".join(_lines(told)))


def _model(values: Mapping[str, Any]) -> tuple[Outline, tuple[str, ...]]:
    """The model, and what of it is not known."""
    from idlora.networks.generations import GENERATIONS
    from idlora.networks.published import ASSUMED, all_sizes
    from idlora.pipeline import Parts
    from idlora.pipeline.card import published_card
    from idlora.pipeline.sources import Outline, read_model

    if values["model"] is not None:
        parts = Parts(values["text_encoder"], values["upsampler"], values["transformer"])
        return read_model(values["model"], parts), ()
    name = values["generation"]
    if name not in GENERATIONS:
        raise SettingsError(f"there is no generation {name!r}; choose one of {', '.join(GENERATIONS)}")
    return Outline(all_sizes(name), published_card(GENERATIONS[name]), None), ASSUMED[name]


def parse_bytes(text: str) -> int:
    """A number of bytes such as 24GB (10^9) or 24GiB (2^30) (SettingsError if it is none)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if not found or not float(found[1]):
        raise SettingsError(f"{text!r} is no amount of memory; say 24GB or 24GiB")
    return round(float(found[1]) * _UNITS[found[2] or ""])


def describe(demand: Demand, placement: Placement, memory: int | None) -> dict[str, Any]:
    """A demand and a placement as JSON's own types."""
    from idlora.networks.packing import STORAGES
    from idlora.pipeline.plan import fits, placements

    def row(each: Placement) -> dict[str, Any]:
        peak = {"placement": str(each), "peak_bytes": demand.peak_bytes(each)}
        return peak if memory is None else {**peak, "fits": fits(demand, each, memory)}

    return {
        "placement": str(placement),
        "peak_bytes": demand.peak_bytes(placement),
        "device_bytes": memory,
        "host_bytes": demand.host_bytes(placement),
        "components": {
            name: {"parameters": each.parameters, "bytes": each.resident()} for name, each in demand.weights.items()
        },
        "stages": [
            {"name": name, "peak_bytes": demand.peak(name, placement), "components": demand.components(name, placement)}
            for name in demand.working
        ],
        "alternatives": [row(each) for storage in STORAGES for each in placements(storage)],
    }


def _lines(told: Mapping[str, Any]) -> list[str]:
    size = told["size"]
    head = f"LTX-{told['generation']}, {size['frames']} frames of {size['width']} x {size['height']}, {told['dtype']}"
    lines = [head, "", f"{'network':<18}{'parameters':>12}{'weights':>12}"]
    for name, each in told["components"].items():
        lines.append(f"{name:<18}{each['parameters'] / 1e9:>10.2f} G{each['bytes'] / 1e9:>9.2f} GB")
    lines += ["", f"placement {told['placement']}: peak {told['peak_bytes'] / 1e9:.2f} GB on the device"]
    for stage in told["stages"]:
        there = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in stage["components"].items())
        lines.append(f"  {stage['name']:<10}{stage['peak_bytes'] / 1e9:>8.2f} GB  (weights: {there})")
    lines.append(f"main memory for weights: {told['host_bytes'] / 1e9:.2f} GB")
    lines += ["", "all placements"]
    for each in told["alternatives"]:
        verdict = {True: "  fits", False: "  too large", None: ""}[each.get("fits")]
        lines.append(f"  {each['placement']:<20}{each['peak_bytes'] / 1e9:>8.2f} GB{verdict}")
    if told["assumed"]:
        lines += ["", f"taken to be as in 2.3: {', '.join(told['assumed'])}"]
    return lines
