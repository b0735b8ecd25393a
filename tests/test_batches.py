# SPDX-License-Identifier: Apache-2.0
"""Laws of batches: draws depend on the sample alone, padding changes nothing, the official way is kept."""

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_pipeline
import tiny_training
from idlora.core.positions import ReferenceTime, reference_positions
from idlora.networks.blocks import ReferenceText
from idlora.networks.codecs import AudioCodec
from idlora.networks.text import PromptEncoder
from idlora.training.identity.batches import Batcher, Longest
from idlora.training.identity.config import ObjectiveOptions
from idlora.training.identity.module import StepLosses, TrainingModule
from idlora.training.identity.presets import OFFICIAL
from idlora.training.identity.sampling import Sampler, Visit
from idlora.training.latents.store import LatentStore
from idlora.training.objective import training_state

OURS = ObjectiveOptions()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return LatentStore(tiny_training.store(tmp_path_factory.mktemp("data")))


def batcher(options: ObjectiveOptions, **changes: Any) -> Batcher:
    parts = tiny_pipeline.pipeline("2.3", adapted=False).components
    encoder = PromptEncoder(parts.tokenizer, None, parts.connectors, tiny_pipeline.MAX_TOKENS)
    return replace(Batcher(options, encoder.attended, tiny_pipeline.MAX_TOKENS, seed=3), **changes)


def visits(store: LatentStore, count: int = 4, number: int = 0) -> list[Visit]:
    return [Visit(store, row, number) for row in store.of_split("train")[:count]]


@torch.no_grad()
def losses(options: ObjectiveOptions, seen: list[Visit], **changes: Any) -> StepLosses:
    pipe = tiny_pipeline.pipeline("2.3", adapted=False)
    module = TrainingModule(pipe.components.transformer, options, bf16=False)
    found: StepLosses = module(batcher(options, **changes).batch(seen, 0))
    return found


def test_a_sample_loses_the_same_whatever_it_is_batched_with(store: LatentStore) -> None:
    seen = visits(store)
    together = losses(OURS, seen)
    alone = [losses(OURS, [visit]) for visit in reversed(seen)][::-1]
    for name in ("video_by_sample", "audio_by_sample"):
        single = torch.cat([getattr(each, name) for each in alone])
        assert torch.allclose(getattr(together, name), single, rtol=1e-5)
    assert together.total.item() == pytest.approx(sum(each.total.item() for each in alone) / len(alone), rel=1e-5)


def test_padding_does_not_change_the_loss(store: LatentStore) -> None:
    plain, padded = losses(OURS, visits(store)), losses(OURS, visits(store), longest=Longest(audio=17, reference=40))
    assert padded.total.item() == pytest.approx(plain.total.item(), rel=1e-5)


def test_the_official_way_counts_padding_as_sound(store: LatentStore) -> None:
    """Its shorter references stand further away, padded behind; the longest is where it should be."""
    made = batcher(OFFICIAL).batch(visits(store), 0)
    assert made.reference is not None
    assert made.reference_valid is None
    shortest = store.of_split("train")[0].num_reference
    assert not made.reference[0, shortest:].any()
    wanted = reference_positions(made.reference.shape[1], "bf16-training")
    assert torch.equal(made.reference_positions if made.reference_positions is not None else wanted[:0], wanted)


@pytest.mark.parametrize("time", get_args(ReferenceTime))
def test_a_batch_has_its_references_where_the_option_says(time: ReferenceTime, store: LatentStore) -> None:
    made = batcher(replace(OURS, reference_time=time, reference_dropout=0.0)).batch(visits(store), 0)
    assert made.reference_positions is not None
    longest = made.reference_positions.shape[2]
    for positions, row in zip(made.reference_positions, store.of_split("train"), strict=False):
        real = positions[:, longest - row.num_reference :]
        assert torch.equal(real, reference_positions(row.num_reference, time=time)[0])


def test_draws_by_sample_change_with_each_visit_and_with_the_seed_alone(store: LatentStore) -> None:
    first, again = (batcher(OURS).batch(visits(store), step) for step in (0, 9))
    assert torch.equal(first.video_noise, again.video_noise)
    assert torch.equal(first.sigmas, again.sigmas)
    for other in (batcher(OURS).batch(visits(store, number=1), 0), batcher(OURS, seed=4).batch(visits(store), 0)):
        assert not torch.equal(first.video_noise, other.video_noise)
        assert not (first.sigmas == other.sigmas).any()


def test_draws_by_batch_change_with_the_step(store: LatentStore) -> None:
    first, again, other = (batcher(OFFICIAL).batch(visits(store), step) for step in (0, 0, 1))
    assert torch.equal(first.audio_noise, again.audio_noise)
    assert not torch.equal(first.audio_noise, other.audio_noise)


def test_first_frames_are_drawn_for_each_sample_or_once(store: LatentStore) -> None:
    def kinds(options: ObjectiveOptions) -> set[int]:
        made = [batcher(options).batch(visits(store, 6, number), number) for number in range(12)]
        firsts = [each.conditioned[:, 0].sum().item() for each in made if each.conditioned is not None]
        return set(map(int, firsts))

    assert kinds(replace(OFFICIAL, first_frame=0.5)) == {0, 6}
    assert len(kinds(replace(OURS, first_frame=0.5))) > 2
    assert kinds(replace(OURS, first_frame=1.0)) == {6}


def test_targets_have_as_many_tokens_as_generated_ones(store: LatentStore) -> None:
    seconds = tiny_training.FRAMES / tiny_training.RATE
    assert batcher(OURS).batch(visits(store), 0).audio.shape[1] == AudioCodec.num_tokens(seconds)
    assert batcher(OFFICIAL).batch(visits(store), 0).audio.shape[1] == AudioCodec.num_tokens(seconds) + 1


def test_dropped_references_and_texts(store: LatentStore) -> None:
    none = replace(OURS, reference_dropout=1.0, text_dropout=1.0)
    made = batcher(none).batch(visits(store), 0)
    assert made.reference is not None
    assert made.reference.shape[1] == 0
    assert torch.equal(made.context.video[0], made.context.video[1])
    kept = batcher(replace(OURS, reference_dropout=0.0, text_dropout=0.0)).batch(visits(store), 0)
    assert kept.reference_valid is not None
    lengths = [row.num_reference for row in store.of_split("train")[:4]]
    assert kept.reference_valid.sum(1).tolist() == lengths
    assert not torch.equal(kept.context.video[0], kept.context.video[1])


def test_a_dropped_reference_is_as_none_at_all(store: LatentStore) -> None:
    dropped = replace(OURS, reference_dropout=1.0, text_dropout=0.0)
    plain, padded = losses(dropped, visits(store)), losses(dropped, visits(store), longest=Longest(reference=20))
    assert padded.total.item() == pytest.approx(plain.total.item(), rel=1e-5)


def test_windows_of_a_reference_are_its_own_tokens_at_its_end(store: LatentStore) -> None:
    options = replace(OURS, reference_seconds=(0.1, 0.3), reference_dropout=0.0)
    seen = visits(store, 1)
    whole = store.read(seen[0].row).reference
    for number in range(20):
        made = batcher(options).batch([seen[0]._replace(number=number)], 0)
        assert made.reference is not None
        window = made.reference[0]
        assert 2 <= len(window) <= 8
        assert any(torch.equal(whole[start : start + len(window)], window) for start in range(len(whole)))
        assert made.reference_positions is not None
        assert made.reference_positions[0, 0, -1, 1].item() == pytest.approx(-0.04)


def test_reference_tokens_bear_no_loss_and_given_frames_none(store: LatentStore) -> None:
    options = replace(OURS, first_frame=1.0)
    made = batcher(options).batch(visits(store), 0)
    state = training_state(made)
    assert state.audio.denoise_mask[:, : state.audio.num_reference].sum() == 0
    module = TrainingModule(tiny_pipeline.pipeline("2.3", adapted=False).components.transformer, options, bf16=False)
    first = tiny_training.GRID[1] * tiny_training.GRID[2]
    noise = made.video_noise.clone()
    noise[:, :first] = 50.0
    with torch.no_grad():
        assert torch.equal(module(replace(made, video_noise=noise)).total, module(made).total)


@torch.no_grad()
def test_blocked_references_do_not_hear_the_text(store: LatentStore) -> None:
    """In `ours` nothing of the text reaches a reference token in its first block; in `open` it does."""
    made = batcher(replace(OURS, reference_dropout=0.0)).batch(visits(store), 0)
    other = replace(made, context=replace(made.context, audio=made.context.audio + 1.0))
    net = tiny_pipeline.components("2.3").transformer
    net.transformer_blocks = net.transformer_blocks[:1]
    kinds: tuple[tuple[ReferenceText, bool], ...] = (("block", True), ("open", False))
    for kind, alike in kinds:
        module = TrainingModule(net, replace(OURS, reference_text=kind), bf16=False)
        state = training_state(made)
        both = [module.model.velocity(state, made.sigmas, each.context).audio for each in (made, other)]
        reference = [each[:, : state.audio.num_reference] for each in both]
        assert torch.equal(*reference) == alike
        assert not torch.equal(*(each[:, state.audio.num_reference :] for each in both))


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_sample_is_seen_before_any_is_seen_again(size: int, steps: int, seed: int) -> None:
    store = LatentStore.__new__(LatentStore)
    rows = [tiny_training.row(index, tiny_training.latents(index, "2.3")) for index in range(7)]
    sampler = Sampler(tuple((store, row) for row in rows), size, seed)
    seen = [visit for step in range(steps) for visit in sampler.visits(step)]
    assert [visit.number for visit in seen] == [place // len(rows) for place in range(len(seen))]
    for start in range(0, len(seen) - len(rows) + 1, len(rows)):
        assert {visit.row.id for visit in seen[start : start + len(rows)]} == {row.id for row in rows}


def test_steps_see_one_size_of_video_and_all_sizes_in_proportion() -> None:
    store = LatentStore.__new__(LatentStore)
    made = [tiny_training.row(index, tiny_training.latents(index, "2.3")) for index in range(8)]
    rows = [replace(row, grid=(1, 2, 2)) if index < 2 else row for index, row in enumerate(made)]
    sampler = Sampler(tuple((store, row) for row in rows), 3, 1)
    grids = [{visit.row.grid for visit in sampler.visits(step)} for step in range(200)]
    assert all(len(each) == 1 for each in grids)
    assert sum((1, 2, 2) in each for each in grids) == pytest.approx(50, abs=20)
    longer = partial(Sampler, tuple((store, row) for row in rows), 3, 1)
    assert longer().visits(150) == sampler.visits(150)
