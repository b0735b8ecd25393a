# SPDX-License-Identifier: Apache-2.0
"""Laws of the pipeline, on random networks so small that a clip takes a second; every class is the real one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from PIL import Image

from idlora.core.guidance import Guidance, IdentityGuidance, Rescale, STGuidance
from idlora.core.noise import generators_for
from idlora.core.reference import attach_reference, detach_reference
from idlora.core.samplers import Step
from idlora.core.state import AVState
from idlora.data.media import Voice
from idlora.errors import Cancelled, InputError, MediaError, SettingsError
from idlora.pipeline import IDLoraPipeline, Keyframe, Preview, Previews, Request, progress_bar
from idlora.pipeline.generation import Sampling, denoise, noise, prepare, schedule, with_references
from idlora.pipeline.inputs import read_inputs
from idlora.pipeline.meter import Meter
from idlora.pipeline.preview import _small
from signals import RATE, tone
from tiny_pipeline import GUIDANCE, PICTURE, PROMPT, SETTINGS, digest, pipeline, settings, voice

CPU = torch.device("cpu")


def prepared(*requests: Request) -> AVState:
    return prepare([read_inputs(request) for request in requests], requests[0].settings, pipeline().codecs, CPU)


def sampled(pipe: IDLoraPipeline, *requests: Request) -> AVState:
    """The clean tokens of a batch, before the decoders."""
    inputs = [read_inputs(request) for request in requests]
    common = requests[0].settings
    generators = generators_for([request.settings.seed for request in requests])
    state = noise(prepare(inputs, common, pipe.codecs, CPU), generators)
    sampling = Sampling(schedule(common, pipe.codecs.grid(common)), generators)
    with torch.no_grad():
        return denoise(pipe._model(common), state, pipe.texts(inputs, Meter(CPU)), common, sampling)


@pytest.mark.parametrize("strength", [None, 1.0, 0.5])
@pytest.mark.parametrize("heard", [True, False])
def test_what_the_streams_say_of_their_masks_is_true(strength: float | None, heard: bool) -> None:
    keyframes = () if strength is None else (Keyframe(PICTURE, 0, strength),)
    request = Request(PROMPT, SETTINGS, voice=voice() if heard else None, keyframes=keyframes)
    state = prepared(request, Request(PROMPT, SETTINGS))
    for stream in (state.video, state.audio, detach_reference(state.audio), state.video.freeze(state.video.tokens)):
        assert stream.masking is not None
        assert stream.mask_kind() == replace(stream, masking=None).mask_kind()


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
@pytest.mark.parametrize(
    "given",
    [{}, {"image": PICTURE}, {"voice": voice()}, {"image": PICTURE, "voice": voice()}],
    ids=["neither", "image", "voice", "both"],
)
def test_picture_and_voice_are_both_optional(generation: str, given: dict[str, Any]) -> None:
    result = pipeline(generation)(PROMPT, **given)
    assert result.video.shape == (9, 64, 96, 3)
    assert result.video.dtype == np.uint8
    assert result.audio.shape == (2, round(9 / 25 * result.sample_rate))
    assert result.audio.dtype == np.float32
    assert np.isfinite(result.audio).all()
    assert result.settings == SETTINGS


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = (pipeline()(PROMPT, image=PICTURE, voice=voice(), seed=seed) for seed in (3, 3, 4))
    assert digest(first) == digest(again)
    assert not np.array_equal(first.video, other.video)
    assert not np.array_equal(first.audio, other.audio)


def test_the_same_seed_gives_the_same_bytes_with_fresh_noise_too() -> None:
    results = [pipeline()(PROMPT, sampler="res2s", num_inference_steps=1, seed=seed) for seed in (3, 3, 4)]
    assert digest(results[0]) == digest(results[1]) != digest(results[2])


def test_prompt_picture_and_voice_have_an_effect() -> None:
    plain = pipeline()(PROMPT)
    assert digest(pipeline()('a man says "coffee"')) != digest(plain)
    assert not np.array_equal(pipeline()(PROMPT, image=PICTURE).video, plain.video)
    assert not np.array_equal(pipeline()(PROMPT, voice=voice()).audio, plain.audio)


def test_no_reference_and_an_empty_reference_agree() -> None:
    state = noise(prepared(Request(PROMPT, SETTINGS)), generators_for([0]))
    empty = torch.zeros(1, 0, state.audio.tokens.shape[-1]), torch.zeros(1, 1, 0, 2)
    emptied = AVState(state.video, attach_reference(state.audio, *empty))
    assert with_references(state.audio, [empty[0][0]]) is state.audio
    texts = pipeline().texts([read_inputs(Request(PROMPT, SETTINGS))], Meter(CPU))
    sampling = Sampling(schedule(SETTINGS, pipeline().codecs.grid(SETTINGS)), generators_for([0]))
    with torch.no_grad():
        ends = [denoise(pipeline()._model(SETTINGS), each, texts, SETTINGS, sampling) for each in (state, emptied)]
    assert torch.equal(ends[0].audio.tokens, ends[1].audio.tokens)
    assert torch.equal(ends[0].video.tokens, ends[1].video.tokens)


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_what_is_given_never_changes_by_sampling(sampler: Any) -> None:
    request = Request(PROMPT, settings(sampler=sampler), PICTURE, voice())
    before, after = prepared(request), sampled(pipeline(), request)
    given_audio, given_video = (stream.denoise_mask[..., 0] == 0 for stream in (before.audio, before.video))
    assert int(given_audio.sum()) == before.audio.num_reference == 26  # ceil((16000 // 160 + 1) / 4)
    assert int(given_video.sum()) == 2 * 3  # one latent frame of 64 x 96 pixels
    assert torch.equal(after.audio.tokens[given_audio], before.audio.clean[given_audio])
    assert torch.equal(after.video.tokens[given_video], before.video.clean[given_video])


def test_the_given_first_frame_is_the_fitted_picture() -> None:
    state = prepared(Request(PROMPT, SETTINGS, PICTURE))
    fitted, strength = read_inputs(Request(PROMPT, SETTINGS, PICTURE)).pixels(64, 96)[0]
    assert strength == 1
    assert fitted.shape == (64, 96, 3)
    codec = pipeline().codecs.video
    assert torch.equal(state.video.clean[:, :6], codec.encode(torch.from_numpy(fitted.copy())[None, None]))


def test_a_picture_in_memory_is_read_like_its_file(tmp_path: Path) -> None:
    picture = Image.fromarray(np.dstack([PICTURE, np.full(PICTURE.shape[:2], 100, np.uint8)]), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "face.png", exif=exif)
    with Image.open(tmp_path / "face.png") as opened:
        given = [
            read_inputs(Request(PROMPT, SETTINGS, image)).pixels(64, 96) for image in (tmp_path / "face.png", opened)
        ]
    assert np.array_equal(given[0][0][0], given[1][0][0])


def test_keyframes_stand_in_their_latent_frames_with_their_strengths() -> None:
    keyframes = (Keyframe(PICTURE, -1), Keyframe(PICTURE[:, ::-1], 3, strength=0.75))
    request = Request(PROMPT, settings(num_frames=25), keyframes=keyframes)
    state = prepared(request)
    mask = state.video.denoise_mask.unflatten(1, (4, 6))[0, :, :, 0]
    assert mask.tolist() == [[1.0] * 6, [0.25] * 6, [1.0] * 6, [0.0] * 6]
    fitted = read_inputs(request).pixels(64, 96)
    codec = pipeline().codecs.video
    for latent in (1, 3):
        tokens = codec.encode(torch.from_numpy(fitted[latent][0].copy())[None, None])
        assert torch.equal(state.video.clean[:, 6 * latent : 6 * latent + 6], tokens)
    after = sampled(pipeline(), request)
    assert torch.equal(after.video.tokens[:, 18:], state.video.clean[:, 18:])
    assert not torch.equal(after.video.tokens[:, 6:12], state.video.clean[:, 6:12])


@drawn(frame=st.integers(-200, 200), latents=st.integers(1, 20))
def test_a_keyframe_lies_in_the_latent_frame_that_shows_it(frame: int, latents: int) -> None:
    num_frames = 8 * (latents - 1) + 1
    if not -num_frames <= frame < num_frames:
        with pytest.raises(InputError, match="there is no frame"):
            Keyframe(PICTURE, frame).latent_frame(num_frames)
        return
    number = frame % num_frames
    latent = Keyframe(PICTURE, frame).latent_frame(num_frames)
    assert (latent == 0) == (number == 0)
    assert number == 0 or 8 * latent - 7 <= number <= 8 * latent


def test_keyframes_that_cannot_be_are_refused() -> None:
    for strength in (0.0, 1.5, float("nan")):
        with pytest.raises(SettingsError, match="above 0 and at most 1"):
            Keyframe(PICTURE, 1, strength)
    clash = Request(PROMPT, SETTINGS, PICTURE, keyframes=(Keyframe(PICTURE),))
    with pytest.raises(InputError, match="share one"):
        read_inputs(clash)


@pytest.mark.parametrize("official", [False, True])
def test_the_length_of_the_reference_changes_the_noise_of_the_target_only_where_asked(official: bool) -> None:
    states = [prepared(Request(PROMPT, SETTINGS, voice=voice(seconds))) for seconds in (0.5, 1.0)]
    noisy = [noise(state, generators_for([0]), official=official).audio for state in states]
    targets = [stream.tokens[:, stream.num_reference :] for stream in noisy]
    assert noisy[0].num_reference != noisy[1].num_reference
    assert torch.equal(*targets) is not official


@pytest.mark.parametrize("guidance", [GUIDANCE, replace(GUIDANCE, rescale=Rescale(0.7, 0.7))])
def test_a_batch_equals_its_members(guidance: Guidance) -> None:
    requests = [
        Request(PROMPT, settings(seed=1, guidance=guidance), PICTURE, voice(0.6)),
        Request(
            'a man says "coffee"',
            settings(seed=2, negative_prompt="calm", guidance=guidance),
            voice=voice(1.0, 200.0),
        ),
        Request(PROMPT, settings(seed=3, guidance=guidance)),
    ]
    batch = sampled(pipeline(), *requests)
    for index, request in enumerate(requests):
        alone = sampled(pipeline(), request)
        length = SETTINGS.num_frames
        assert_close(batch.video.tokens[index], alone.video.tokens[0])
        assert_close(batch.audio.tokens[index, -length:], alone.audio.tokens[0, -length:])


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the expected values' scale."""
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_batch_of_results_belongs_to_its_requests() -> None:
    requests = [Request(PROMPT, settings(seed=seed), voice=given) for seed, given in ((1, None), (2, voice()))]
    results = pipeline().generate_batch(requests)
    assert [result.settings.seed for result in results] == [1, 2]
    assert ["voice" in result.provenance["inputs"] for result in results] == [False, True]
    alone = pipeline()(PROMPT, seed=2, voice=voice())
    assert np.abs(results[1].video.astype(int) - alone.video).max() <= 1


def test_a_batch_of_different_clips_is_refused() -> None:
    with pytest.raises(SettingsError, match="seed and negative prompt alone"):
        pipeline().generate_batch([Request(PROMPT, SETTINGS), Request(PROMPT, settings(num_frames=17))])
    with pytest.raises(SettingsError, match="empty batch"):
        pipeline().generate_batch([])
    base_alone = settings(guidance=replace(GUIDANCE, identity=IdentityGuidance(1.0, adapter_off=True)))
    with pytest.raises(SettingsError, match="a voice, or none"):
        pipeline().generate_batch([Request(PROMPT, base_alone), Request(PROMPT, base_alone, voice=voice())])


def test_identity_guidance_acts_only_where_there_is_a_voice() -> None:
    strong = replace(GUIDANCE, identity=IdentityGuidance(5.0))
    assert digest(pipeline()(PROMPT)) == digest(pipeline()(PROMPT, guidance=strong))
    assert digest(pipeline()(PROMPT, voice=voice())) != digest(pipeline()(PROMPT, voice=voice(), guidance=strong))


def test_the_adapter_can_be_left_out_of_the_pass_without_reference() -> None:
    base_alone = replace(GUIDANCE, identity=IdentityGuidance(1.0, adapter_off=True))
    with_it, without_it = (pipeline()(PROMPT, voice=voice(), guidance=each) for each in (GUIDANCE, base_alone))
    assert not np.array_equal(with_it.audio, without_it.audio)
    assert digest(pipeline()(PROMPT, voice=voice())) == digest(with_it)  # the adapter is on again


def test_a_single_channel_is_doubled() -> None:
    mono = voice()
    stereo = Voice(np.repeat(mono.samples, 2, axis=0), RATE)
    assert digest(pipeline()(PROMPT, voice=mono)) == digest(pipeline()(PROMPT, voice=stereo))


def test_a_long_voice_is_cut_to_its_best_part_with_a_notice() -> None:
    long = Voice(np.concatenate([tone(1.0, gain=1e-4), tone(1.0), tone(1.0, gain=1e-4)], axis=1), RATE)
    result = pipeline()(PROMPT, voice=long, max_voice_seconds=1.0)
    assert result.notes == ("the voice is 3.0 s long: its best part, 1.0 to 2.0 s, is used",)
    assert digest(result) == digest(pipeline()(PROMPT, voice=voice(1.0, 440.0)))


def test_unknown_spoken_words_give_a_notice_and_generation_goes_on() -> None:
    result = pipeline()("[SPEECH] River, zero? coffee zero")
    assert len(result.notes) == 1
    assert "say zero," in result.notes[0]
    assert result.notes[0].endswith("it knows: river, garden, coffee")
    assert pipeline()(PROMPT).notes == ()


def test_a_prompt_too_long_for_the_model_gives_a_notice() -> None:
    result = pipeline()("a man " * 20)
    assert result.notes == ("the prompt is 44 tokens long: this model reads the first 24",)
    result = pipeline()(PROMPT, settings=settings(negative_prompt="a man " * 20))
    assert result.notes == ("the negative prompt is 41 tokens long: this model reads the first 24",)


def test_a_callback_sees_every_step_and_can_cancel() -> None:
    steps: list[Step] = []
    pipeline()(PROMPT, callback=steps.append)
    assert [(step.number, step.num_steps) for step in steps] == [(0, 2), (1, 2)]
    with pytest.raises(Cancelled, match="step 2 of 2"):
        pipeline()(PROMPT, callback=lambda step: step.number < 1)


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_a_preview_is_the_clip_that_a_step_believes_in_and_changes_nothing(sampler: Any) -> None:
    shown: list[Preview] = []
    pipe, chosen = pipeline(), settings(sigmas=(1.0, 0.6, 0.3, 0.0), sampler=sampler)
    result = pipe(PROMPT, settings=chosen, callback=Previews(pipe, chosen, 1, shown.append))
    assert [(each.number, each.num_steps) for each in shown] == [(1, 3), (2, 3)]
    assert np.array_equal(pipe(PROMPT, settings=chosen).video, result.video)
    if sampler == "euler":  # one step down to 0 ends where the first of several believed the end to be
        first = pipe(PROMPT, settings=replace(chosen, sigmas=(1.0, 0.0)))
        assert np.abs(shown[0].video[0].astype(int) - first.video).max() <= 1
        assert np.allclose(shown[0].audio[0], first.audio, atol=1e-4)
    seldom: list[Preview] = []
    pipe(PROMPT, settings=chosen, callback=Previews(pipe, chosen, 2, seldom.append))
    assert [each.number for each in seldom] == [2]
    with pytest.raises(SettingsError, match="every 0 steps"):
        Previews(pipe, chosen, 0, seldom.append)


def test_large_previews_are_made_small() -> None:
    frames = (
        torch.arange(8, dtype=torch.uint8).repeat_interleave(128)[None, None, None, :, None].expand(1, 2, 514, -1, 3)
    )
    small = _small(frames)
    assert small.shape == (1, 2, 128, 256, 3)
    assert torch.equal(small[0, 0, 0, :, 0], torch.arange(8, dtype=torch.uint8).repeat_interleave(32))


def test_a_voice_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = pipeline(), list[torch.Tensor]()
    pipe.codecs.known_voices.clear()
    encode = pipe.codecs.audio.encode

    def watched(waveform: torch.Tensor) -> torch.Tensor:
        seen.append(waveform)
        return encode(waveform)

    monkeypatch.setattr(pipe.codecs.audio, "encode", watched)
    first, again = (pipe(PROMPT, voice=voice()) for _ in range(2))
    assert len(seen) == 1
    assert np.array_equal(first.audio, again.audio)
    pipe(PROMPT, voice=voice(1.5))
    assert len(seen) == 2
    monkeypatch.setattr("idlora.pipeline.generation.KNOWN_VOICES", 1)
    pipe(PROMPT, voice=voice(2.5))
    assert len(pipe.codecs.known_voices) == 1


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"prompt": "  "}, InputError, "prompt is empty"),
        ({"voice": voice(0.3)}, MediaError, "0.30 s long; at least 0.5"),
        ({"voice": Voice(np.zeros((1, RATE), np.float32), RATE)}, MediaError, "silent"),
        ({"image": "absent.png"}, MediaError, "check the path"),
        ({"voice": Path("absent.wav")}, MediaError, "check the path"),
        ({"image": np.zeros((4, 4), np.uint8)}, InputError, "uint8 .4, 4."),
        ({"voice": voice(channels=3)}, InputError, "1 or 2, N"),
        ({"voice": Voice(tone(1.0)[0], RATE)}, InputError, "1 or 2, N"),
        ({"voice": Voice(tone(1.0) * np.float32(np.nan), RATE)}, InputError, "finite"),
        ({"height": 70}, InputError, "use 64"),
        ({"num_frames": 8}, InputError, "use 1 or 9"),
        ({"num_inference_steps": 0}, SettingsError, "at least 1"),
        ({"guidance": replace(GUIDANCE, stg=STGuidance(blocks=(7,)))}, SettingsError, "7"),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pipeline()(**{"prompt": PROMPT, **given})


def test_a_bar_moves_with_the_steps_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float | None]] = []

    class Bar(rich.progress.Progress):
        def update(self, task_id: Any, **changes: Any) -> None:
            shown.append((changes["completed"], changes.get("total")))
            super().update(task_id, **changes)

    monkeypatch.setattr(rich.progress, "Progress", Bar)
    with progress_bar("testing") as callback:
        pipeline()(PROMPT, settings=SETTINGS, callback=callback)
    assert shown == [(0, 2), (1, 2), (2, None)]
