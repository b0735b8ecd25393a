# SPDX-License-Identifier: Apache-2.0
"""Laws of the pipeline, on random networks so small that a clip takes a second; every class is the real one."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from idlora.core.guidance import IdentityGuidance, STGuidance
from idlora.core.noise import generators_for
from idlora.core.reference import attach_reference
from idlora.core.samplers import Step
from idlora.core.state import AVState
from idlora.data.media import Voice, read_video, write_png, write_wav
from idlora.errors import Cancelled, InputError, MediaError, OutputError, SettingsError, WeightsError
from idlora.networks.adapter import AdapterWeights, write_adapter
from idlora.pipeline import IDLoraPipeline, Request, Result
from idlora.pipeline.generation import Sampling, denoise, noise, prepare, schedule, with_references
from idlora.pipeline.inputs import read_inputs
from signals import RATE, gradient_frames, tone
from tiny_pipeline import CARD, GUIDANCE, SETTINGS, adapter_for, components, pipeline, settings

PROMPT = 'a man says "river garden"'
PICTURE = gradient_frames(1, 80, 120)[0]
CPU = torch.device("cpu")


def voice(seconds: float = 1.0, frequency: float = 300.0, channels: int = 1) -> Voice:
    return Voice(tone(seconds, frequency, channels=channels), RATE)


def digest(result: Result) -> str:
    return hashlib.sha256(result.video.tobytes() + result.audio.tobytes()).hexdigest()


def prepared(*requests: Request) -> AVState:
    return prepare([read_inputs(request) for request in requests], pipeline().codecs, CPU)


def sampled(pipe: IDLoraPipeline, *requests: Request) -> AVState:
    """The clean tokens of a batch, before the decoders."""
    inputs = [read_inputs(request) for request in requests]
    common = requests[0].settings
    generators = generators_for([request.settings.seed for request in requests])
    state = noise(prepare(inputs, pipe.codecs, CPU), generators)
    sampling = Sampling(schedule(common, pipe.codecs.grid(common)), generators)
    with torch.no_grad():
        return denoise(pipe._model(common), state, pipe._encode(inputs, common), common, sampling)


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
    texts = pipeline()._encode([read_inputs(Request(PROMPT, SETTINGS))], SETTINGS)
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
    fitted = read_inputs(Request(PROMPT, SETTINGS, PICTURE)).picture
    assert fitted is not None
    assert fitted.shape == (64, 96, 3)
    codec = pipeline().codecs.video
    assert torch.equal(state.video.clean[:, :6], codec.encode(torch.from_numpy(fitted.copy())[None, None]))


@pytest.mark.parametrize("official", [False, True])
def test_the_length_of_the_reference_changes_the_noise_of_the_target_only_where_asked(official: bool) -> None:
    states = [prepared(Request(PROMPT, SETTINGS, voice=voice(seconds))) for seconds in (0.5, 1.0)]
    noisy = [noise(state, generators_for([0]), official=official).audio for state in states]
    targets = [stream.tokens[:, stream.num_reference :] for stream in noisy]
    assert noisy[0].num_reference != noisy[1].num_reference
    assert torch.equal(*targets) is not official


def test_a_batch_equals_its_members() -> None:
    requests = [
        Request(PROMPT, settings(seed=1), PICTURE, voice(0.6)),
        Request('a man says "coffee"', settings(seed=2, negative_prompt="calm"), voice=voice(1.0, 200.0)),
        Request(PROMPT, settings(seed=3)),
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


def test_a_callback_sees_every_step_and_can_cancel() -> None:
    steps: list[Step] = []
    pipeline()(PROMPT, callback=steps.append)
    assert [(step.number, step.num_steps) for step in steps] == [(0, 2), (1, 2)]
    with pytest.raises(Cancelled, match="step 2 of 2"):
        pipeline()(PROMPT, callback=lambda step: step.number < 1)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"prompt": "  "}, InputError, "prompt is empty"),
        ({"voice": voice(0.3)}, MediaError, "0.30 s long; at least 0.5"),
        ({"voice": Voice(np.zeros((1, RATE), np.float32), RATE)}, MediaError, "silent"),
        ({"image": "absent.png"}, MediaError, "check the path"),
        ({"voice": Path("absent.wav")}, MediaError, "check the path"),
        ({"image": np.zeros((4, 4), np.uint8)}, InputError, "uint8 .4, 4."),
        ({"height": 70}, InputError, "use 64"),
        ({"num_frames": 8}, InputError, "use 9"),
        ({"num_inference_steps": 0}, SettingsError, "at least 1"),
        ({"guidance": replace(GUIDANCE, stg=STGuidance(1.0, blocks=(7,)))}, SettingsError, "7"),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pipeline()(**{"prompt": PROMPT, **given})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline().save_pretrained(folder)
    return folder


def test_a_saved_pipeline_comes_back_the_same(saved: Path) -> None:
    loaded = IDLoraPipeline.from_pretrained(saved)
    assert loaded.card == replace(CARD, adapter="adapter.safetensors")
    before, after = (pipe(PROMPT, image=PICTURE, voice=voice()) for pipe in (pipeline(), loaded))
    assert digest(before) == digest(after)


def test_a_saved_pipeline_is_in_the_layout_of_diffusers(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text(encoding="utf-8"))
    assert index["transformer"] == ["diffusers", "LTX2VideoTransformer3DModel"]
    assert index["connectors"] == ["ltx2", "LTX2TextConnectors"]
    assert index["vocoder"] == ["idlora.networks.codecs", "GriffinLimVocoder"]
    binaries = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert binaries <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]


def test_saving_leaves_the_pipeline_and_its_adapter_as_they_were(tmp_path: Path) -> None:
    made = components()
    pipe = IDLoraPipeline(made, replace(CARD, adapter_strength=0.5), adapter_for(made.transformer))
    before = digest(pipe(PROMPT, voice=voice()))
    pipe.save_pretrained(tmp_path / "model")
    assert digest(pipe(PROMPT, voice=voice())) == before
    loaded = IDLoraPipeline.from_pretrained(tmp_path / "model")
    assert digest(loaded(PROMPT, voice=voice())) == before
    other = IDLoraPipeline.from_pretrained(tmp_path / "model", adapter_strength=1.0)
    assert digest(other(PROMPT, voice=voice())) != before


def test_weights_can_be_stored_smaller(saved: Path, tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [
        sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for folder in (saved, tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = IDLoraPipeline.from_pretrained(tmp_path / "half")
    assert loaded.components.transformer.dtype == torch.float32
    weight = pipeline(adapted=False).components.transformer.proj_in.weight
    assert torch.equal(loaded.components.transformer.proj_in.weight, weight.half().float())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match="something else than a model"):
        pipeline().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_saving_replaces_an_older_model_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipeline().save_pretrained(folder)
    (folder / "old.txt").touch()
    pipeline(adapted=False).save_pretrained(folder)
    assert not (folder / "old.txt").exists()
    assert not (folder / "adapter.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def copied(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model_index.json").unlink(),
        lambda folder: (folder / "model_index.json").write_text("{}", encoding="utf-8"),
        lambda folder: next((folder / "transformer").glob("*.safetensors")).write_bytes(b"junk"),
        lambda folder: next((folder / "vae").glob("*.safetensors")).unlink(),
        lambda folder: (folder / "adapter.safetensors").unlink(),
        lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()],
        lambda folder: swap_class(folder / "model_index.json", "transformer", "UNet2DModel"),
    ],
    ids=["no index", "empty index", "junk", "no weights", "no adapter", "no tokenizer", "other class"],
)
def test_a_damaged_model_is_refused(saved: Path, tmp_path: Path, damage: Any) -> None:
    folder = copied(saved, tmp_path / "model")
    damage(folder)
    with pytest.raises(WeightsError):
        IDLoraPipeline.from_pretrained(folder)


def swap_class(path: Path, component: str, name: str) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    index[component][1] = name
    path.write_text(json.dumps(index), encoding="utf-8")


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(WeightsError, match="there is no model folder"):
        IDLoraPipeline.from_pretrained("./absent")
    with pytest.raises(WeightsError, match="cannot be fetched"):
        IDLoraPipeline.from_pretrained("nobody/nothing")


def test_an_adapter_of_another_network_is_refused(saved: Path, tmp_path: Path) -> None:
    fitting = adapter_for(components().transformer)
    elsewhere = {name.replace("blocks.0", "blocks.9"): layer for name, layer in fitting.layers.items()}
    write_adapter(tmp_path / "other.safetensors", AdapterWeights(elsewhere))
    with pytest.raises(WeightsError, match="does not fit"):
        IDLoraPipeline.from_pretrained(saved, adapter=tmp_path / "other.safetensors")


def from_files(folder: Path, saved: Path) -> Result:
    write_png(folder / "face.png", Image.fromarray(PICTURE))
    write_wav(folder / "voice.wav", voice().samples, RATE)
    pipe = IDLoraPipeline.from_pretrained(saved)
    return pipe(PROMPT, image=folder / "face.png", voice=folder / "voice.wav")


def test_a_result_is_saved_with_a_sidecar_that_says_how_it_was_made(saved: Path, tmp_path: Path) -> None:
    result = from_files(tmp_path, saved)
    sidecar = result.save(tmp_path / "clip.mp4")
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.frames.shape == result.video.shape
    assert clip.audio is not None
    assert sidecar.name == "clip.mp4.json"
    text = sidecar.read_text(encoding="utf-8")
    said = json.loads(text)
    assert said["ai_generated"] is True
    assert said["settings"]["seed"] == 0
    for kind, name in (("image", "face.png"), ("voice", "voice.wav")):
        expected = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert said["inputs"][kind] == {"name": name, "sha256": expected}
    weights = hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest()
    assert said["model"]["weights"]["adapter.safetensors"] == weights
    assert set(said["timings"]) == {"prepare", "denoise", "decode"}
    assert {"idlora", "torch", "diffusers"} <= said["versions"].keys()
    assert str(tmp_path) not in text


@pytest.fixture
def result() -> Result:
    frames: NDArray[np.uint8] = gradient_frames(9, 64, 64)
    return Result(frames, tone(0.36, channels=2), RATE, SETTINGS, (), {}, {})


@pytest.mark.parametrize("full", ["replace", "write_text"])
def test_a_full_disk_leaves_nothing_behind(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if full == "replace" else Path, full, refuse)
    with pytest.raises(OutputError, match="No space left"):
        result.save(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_is_an_mp4(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.mp4"):
        result.save(tmp_path / "clip.avi")
