# SPDX-License-Identifier: Apache-2.0
"""The miniature's training: a resumed run equals an unbroken one, pools continue, batches follow from seed and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idlora.data.prompt import parse_prompt
from idlora.data.world.captions import caption, prompt_of
from idlora.data.world.clip import draw_reference
from idlora.data.world.reader import mouth_box
from idlora.data.world.speakers import clip
from idlora.errors import TrainingError
from idlora.networks.text import PromptEncoder
from idlora.training.miniature import components, dataset
from idlora.training.miniature.codecs import VideoDecoderLoss, mouth_weight
from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.latents import ids_and_mask
from idlora.training.miniature.loop import Losses, Schedule, Trainer
from idlora.training.miniature.stages import schedule_of, train
from idlora.training.miniature.workshop import Workshop


def line_fit(model: nn.Linear) -> Callable[[int], Losses]:
    """Loss of fitting y = 2 x_0 - x_1 + 1 with noise that depends on the step alone."""

    def loss(step: int) -> Losses:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(16, 2, generator=draw)
        error = model(x).squeeze(1) - (2 * x[:, 0] - x[:, 1] + 1)
        return {"loss": error.square().mean()}

    return loss


def trained(folder: Path, stops: Sequence[int]) -> dict[str, Tensor]:
    """Weights and average after a run that was broken off and taken up at every stop but the last."""
    schedule = Schedule(steps=stops[-1], learning_rate=0.1, warmup=3, save_every=1)
    for stop in stops:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        loss = line_fit(model)

        def broken(step: int, stop: int = stop, loss: Callable[[int], Losses] = loss) -> Losses:
            if step == stop:
                raise KeyboardInterrupt
            return loss(step)

        trainer = Trainer(model, broken, schedule, folder)
        try:
            trainer.run()
        except KeyboardInterrupt:
            continue
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights | {f"average {name}": value.clone() for name, value in trainer.average.items()}


def test_a_run_that_was_interrupted_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path) -> None:
    whole, broken = trained(tmp_path / "a", [150]), trained(tmp_path / "b", [7, 8, 63, 150])
    assert whole.keys() == broken.keys()
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    assert (whole["weight"] - torch.tensor([[2.0, -1.0]])).abs().max() < 0.2


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    trainer = Trainer(model, lambda _: {"loss": model.weight.sum() * torch.nan}, Schedule(steps=3), tmp_path)
    with pytest.raises(TrainingError, match="step 0"):
        trainer.run()
    assert torch.equal(model.weight, before)


def test_an_unknown_or_early_stage_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the stages are audio-vae"):
        schedule_of("adaptor")
    with pytest.raises(TrainingError, match="run the stage that trains it first"):
        train("audio-decoder", Workshop(tmp_path))


def test_what_the_work_folder_lacks_is_read_from_the_starting_weights(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLLTX2Audio

    first, second = components.audio_vae(), components.audio_vae()
    first.save_pretrained(tmp_path / "start" / "audio_vae")
    shop = Workshop(tmp_path / "work", tmp_path / "start")
    assert torch.equal(shop.load("audio_vae", AutoencoderKLLTX2Audio).encoder.conv_in.conv.weight, conv_of(first))
    second.save_pretrained(tmp_path / "work" / "model" / "audio_vae")
    assert torch.equal(shop.load("audio_vae", AutoencoderKLLTX2Audio).encoder.conv_in.conv.weight, conv_of(second))
    assert shop.adapter_file() is None
    (tmp_path / "start" / "adapter.safetensors").touch()
    assert shop.adapter_file() == tmp_path / "start" / "adapter.safetensors"


def conv_of(vae: Any) -> Tensor:
    weight: Tensor = vae.encoder.conv_in.conv.weight
    return weight


def test_a_pool_makes_only_the_chunks_that_are_missing(tmp_path: Path) -> None:
    made: list[int] = []

    def make(indices: Sequence[int]) -> np.ndarray:
        made.extend(indices)
        return np.asarray(indices, np.float16)[:, None]

    first = Pool(tmp_path, "rows", 300, make).render()
    assert made == list(range(300))
    second = Pool(tmp_path, "rows", 500, make)
    second.path(200).unlink()
    second.render()
    assert made[300:] == [*range(200, 500)]
    picked = np.array([0, 199, 200, 299])
    assert first.batch(picked).dtype == torch.float32
    assert torch.equal(first.batch(picked), second.batch(picked))
    assert second.batch(picked)[:, 0].tolist() == [0, 199, 200, 299]


def test_processes_render_what_one_process_renders() -> None:
    make = partial(dataset.waveform, "train")
    alone, together = dataset.rendered(make, range(3)), dataset.rendered(make, range(3), workers=2)
    assert np.array_equal(alone, together)


def test_windows_of_the_video_autoencoder_follow_from_seed_and_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool = Pool(tmp_path, "frames", 6, lambda i: rng.integers(0, 256, (len(i), 20, 96, 96, 3), np.uint8)).render()
    loss, again = VideoDecoderLoss(None, pool, seed=1), VideoDecoderLoss(None, pool, seed=1)
    target = loss.draw(0)
    assert target.shape == (loss.size, 3, loss.frames, 96, 96)
    assert target.min() >= -1
    assert target.max() <= 1
    assert torch.equal(target, again.draw(0))
    assert not torch.equal(target, loss.draw(1))


def test_the_mouth_weighs_more_than_the_rest_of_the_picture() -> None:
    weight, (rows, columns) = mouth_weight(96)[0, 0, 0], mouth_box(96)
    assert weight[rows, columns].min() > 1
    assert weight[0, 0] == 1


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    tokenizer = components.tokenizer([caption(clip("train", index)) for index in range(60)])
    text_encoder = components.text_encoder(len(tokenizer)).eval()
    return PromptEncoder(tokenizer, text_encoder, components.connectors().eval(), components.TEXT_LENGTH)


def test_text_contexts_of_a_batch_equal_those_of_its_members(encoder: PromptEncoder) -> None:
    texts = ["[SPEECH] one two three", "", "a very different text that has more words than the others"]
    with torch.no_grad():
        together, alone = encoder(texts), [encoder([text]) for text in texts]
    for row, single in enumerate(alone):
        torch.testing.assert_close(together.video[row], single.video[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.audio[row], single.audio[0], atol=1e-5, rtol=1e-4)
    assert together.audio.isfinite().all(), "an empty prompt is a prompt too"
    assert (together.audio[0] - together.audio[1]).abs().max() > 0.01


def test_any_text_survives_the_tokenizer(encoder: PromptEncoder) -> None:
    text = "Ein süßer Vogel sings: ¿qué? 7 日"
    assert encoder.tokenizer.decode(encoder.tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    ids, mask = encoder.tokens([text, "one"])
    assert torch.equal(ids_and_mask(ids * mask - (1 - mask))[1], mask)


def test_captions_name_what_a_clip_holds_and_can_be_read_back() -> None:
    for index in range(20):
        spec, rng = clip("train", index), np.random.default_rng(index)
        plain, varied = parse_prompt(caption(spec)), parse_prompt(caption(spec, rng))
        assert plain == prompt_of(spec)
        assert plain.speech == varied.speech == " ".join(spec.words)
        assert spec.face.describe() in plain.visual
        assert (spec.object == "none") == ("struck" not in plain.visual)


def test_a_reference_has_other_words_and_the_same_voice() -> None:
    spec = clip("test", 5)
    reference = draw_reference(np.random.default_rng(3), spec.voice, 5.0, spec.words)
    assert reference.voice == spec.voice
    assert len(reference.words) == 7
    assert not set(reference.words) & set(spec.words)
