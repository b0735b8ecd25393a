# SPDX-License-Identifier: Apache-2.0
"""Held-out losses: what they are of, and that only the reference differs between right and wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from idlora.data.media import Voice
from idlora.evaluation.reproduction import heldout
from idlora.evaluation.reproduction.heldout import heldout_losses
from idlora.pipeline import IDLoraPipeline

WHO = 3


@pytest.fixture(scope="module")
def pipe() -> IDLoraPipeline:
    return IDLoraPipeline.from_pretrained("miniature")


def test_the_right_reference_foretells_the_sound_better_and_only_the_reference_differs(
    pipe: IDLoraPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipe.card.defaults
    found = heldout_losses(pipe, WHO, settings)
    assert found == heldout_losses(pipe, WHO, settings)
    assert 0.0 < found["right"] < found["wrong"]
    drawn = heldout._voice

    def of_the_asked(_: int, asked: int) -> Voice:
        return drawn(asked, asked)

    monkeypatch.setattr(heldout, "_voice", of_the_asked)
    same = heldout_losses(pipe, WHO, settings)
    assert same["wrong"] == pytest.approx(same["right"], rel=1e-5)
    assert same["right"] == pytest.approx(found["right"], rel=1e-5)


def test_guidance_and_steps_are_no_part_of_the_objective_but_the_adapter_is(pipe: IDLoraPipeline) -> None:
    settings = pipe.card.defaults
    found = heldout_losses(pipe, WHO, settings)
    assert heldout_losses(pipe, WHO, replace(settings, num_inference_steps=3, seed=9)) == found
    with pipe.adapters.without_identity():
        bare = heldout_losses(pipe, WHO, settings)
    assert bare["right"] > found["right"]
    assert abs(bare["wrong"] - bare["right"]) < (found["wrong"] - found["right"]) / 2
