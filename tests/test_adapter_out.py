# SPDX-License-Identifier: Apache-2.0
"""A trained adapter leaves the trainer: the same network here and elsewhere, published, and applied as trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

import tiny_pipeline
import tiny_training
from idlora.cli import main
from idlora.errors import WeightsError
from idlora.files import sha256_of
from idlora.networks.adapter import IDENTITY_TARGETS, AdapterWeights, inject_adapter, read_adapter, write_adapter
from idlora.networks.adapter_info import describe_adapter
from idlora.networks.checkpoints import to_official_key
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel, JointOptions
from idlora.pipeline import IDLoraPipeline, preset_settings, settings_to_json
from idlora.pipeline.card import ModelCard, defaults_for
from idlora.training.identity.config import AdapterShape, Model, Saving, config_to_json
from idlora.training.identity.engine import Trainer
from idlora.training.objective import TrainingBatch, training_step
from stored_keys import stored
from tiny_pipeline import PICTURE, PROMPT, digest, voice

ALPHAS = {"2.0": 0.0, "2.3": 3.0, "2.5": 1.0}  # of rank 2: scales 1, 1.5 and 0.5
PRIVATE = "private-folder"


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its folder, what was trained, and a batch to ask it for velocities of."""

    generation: str
    folder: Path
    trainer: Trainer
    batch: TrainingBatch

    @property
    def file(self) -> Path:
        return self.folder / "adapter.safetensors"

    @torch.no_grad()
    def velocity(self, transformer: Any) -> Tensor:
        """Of a network, under the masks of the training."""
        module = self.trainer.job.module.eval()
        model = JointModel(transformer, JointOptions.of(self.trainer.config.objective))
        found = training_step(model, self.batch, module.objective).prediction
        return torch.cat([found.video.flatten(), found.audio.flatten()])


def fresh(generation: str) -> Any:
    """The network that was trained, as it was before."""
    return tiny_pipeline.components(generation).transformer


@pytest.fixture(scope="module", params=GENERATIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    generation: str = request.param
    folder = tmp_path_factory.mktemp("runs") / PRIVATE
    folder.mkdir()
    config = tiny_training.config(
        folder / "run",
        tiny_training.store(folder / "data", generation),
        model=Model(str(folder / f"LTX-{generation}")),
        adapter=AdapterShape(rank=2, alpha=ALPHAS[generation]),
        saving=Saving(every=2, keep_best="validation_loss"),
    )
    made = tiny_training.trainer(config, generation)
    made.run()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config_to_json(config)), encoding="utf-8")
    visits = made.job.sampler.visits(0)
    return Run(generation, folder / "run", made, made.job.batcher.batch(visits, 0))


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def test_the_file_makes_the_network_that_was_trained(run: Run) -> None:
    base, network = fresh(run.generation), fresh(run.generation)
    inject_adapter(network, read_adapter(run.file))
    with run.trainer.average.applied():
        trained = run.velocity(run.trainer.job.module.transformer)
    effect = apart(trained, run.velocity(base))
    assert effect > 1e-2
    # The file's numbers have eight bits; a scale that was lost would move the output by a third of the effect or more.
    assert apart(run.velocity(network), trained) < 0.03 * effect


def test_diffusers_loads_it_as_the_same_network(run: Run) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    ours, theirs = fresh(run.generation), fresh(run.generation)
    inject_adapter(ours, read_adapter(run.file))
    absent = dict.fromkeys(("vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder"))
    pipe = LTX2Pipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=theirs, **absent)
    base = run.velocity(theirs)
    pipe.load_lora_weights(str(run.folder), weight_name=run.file.name)
    branches = {name for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    assert branches == set(read_adapter(run.file).layers)
    assert apart(run.velocity(theirs), base) > 1e-2
    assert apart(run.velocity(theirs), run.velocity(ours)) < 1e-5


def official_shapes(transformer: Any) -> dict[str, tuple[int, ...]]:
    return {to_official_key(name): tuple(value.shape) for name, value in transformer.state_dict().items()}


def test_comfyui_finds_every_key_in_the_official_model(run: Run) -> None:
    """It takes `diffusion_model.<module>.weight` of the model for `diffusion_model.<module>.lora_A.weight`."""
    shapes = official_shapes(fresh(run.generation))
    listed = stored(f"keys_transformer_{run.generation}") if run.generation != "2.5" else None
    with safe_open(run.file, framework="pt") as file:
        keys = list(file.keys())
        tensors = {key: file.get_tensor(key) for key in keys}
    stems = {key.rpartition(".lora_")[0] for key in keys}
    assert len(keys) == 2 * len(stems) == 2 * 2 * len(IDENTITY_TARGETS)
    for stem in stems:
        weight = f"{stem.removeprefix('diffusion_model.')}.weight"
        a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        assert shapes[weight] == (b.shape[0], a.shape[1])
        assert listed is None or f"model.diffusion_model.{weight}" in listed
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_the_metadata_says_all_of_the_training(run: Run) -> None:
    alpha = ALPHAS[run.generation] or 2.0
    expected = {
        "format": "pt",
        "generation": run.generation,
        "base": f"LTX-{run.generation}",
        "rank": "2",
        "alpha": f"{alpha:g}",
        "targets": json.dumps(sorted(IDENTITY_TARGETS)),
        "positions": "negative",
        "rounding": "fp32",
        "mask_reference_to_video": "true",
        "reference_text": "block",
        "reference_attention": "joint",
        "steps": "4",
        "seed": "7",
    }
    metadata = read_adapter(run.file).metadata
    assert {name: metadata[name] for name in expected} == expected
    assert set(metadata) - set(expected) == {"data", "trained_by"}
    assert len(metadata["data"]) == 64
    best = read_adapter(run.folder / "best.safetensors").metadata
    assert set(best) - set(metadata) == {"validation_loss"}


def test_info_tells_the_training_in_words(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    best = run.folder / "best.safetensors"
    told, metadata = describe_adapter(best), read_adapter(best).metadata
    assert told["unknown"] == []
    assert told["others"] == {}
    assert main(["adapter", "info", str(best)]) == 0
    text = capsys.readouterr().out
    for words in (
        "no video token sees the reference",
        "the reference gets nothing of the text",
        "positions in training: float32",
        f"trained on: LTX-{run.generation}",
        f"steps: {metadata['steps']}",
        "seed: 7",
        metadata["data"],
        metadata["validation_loss"],
    ):
        assert words in text
    assert ("their quotient" in text) == (ALPHAS[run.generation] > 0)


@pytest.fixture
def parcel(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a dry run, made by the command without any network."""
    folder = tmp_path / "hub"
    assert main(["push", str(run.file), "me/my-voice", "--dry-run", "--folder", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "nothing was uploaded" in text
    assert "https://huggingface.co/me/my-voice" in text
    return folder


def test_a_dry_run_writes_file_card_and_configuration(run: Run, parcel: Path) -> None:
    assert {path.name for path in parcel.iterdir()} == {"adapter.safetensors", "README.md", "config.yaml"}
    assert sha256_of(parcel / "adapter.safetensors") == sha256_of(run.file)
    texts = {name: (parcel / name).read_text(encoding="utf-8") for name in ("README.md", "config.yaml")}
    for text in texts.values():
        assert PRIVATE not in text
        assert str(run.folder.parent) not in text
    config = yaml.safe_load(texts["config.yaml"])
    assert config["model"]["name"] == f"LTX-{run.generation}"
    assert (config["data"]["train"], config["out"], config["adapter"]["rank"]) == (["data"], "run", 2)


def test_the_card_says_what_is_known_and_what_is_not(run: Run, parcel: Path) -> None:
    from huggingface_hub import ModelCard as HubCard

    card = HubCard((parcel / "README.md").read_text(encoding="utf-8"))
    data = card.data.to_dict()
    assert data["license"] == "other"
    assert data["base_model"] == {"2.0": "Lightricks/LTX-2"}.get(run.generation, f"Lightricks/LTX-{run.generation}")
    assert {"idlora", "ltx-2", "lora", "text-to-video", "audio"} == set(data["tags"])
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = [line["validation_loss"] for line in lines if "validation_loss" in line][-1]
    for words in (
        "## How to use it",
        "--adapter adapter.safetensors",
        'load_lora_weights("me/my-voice", weight_name="adapter.safetensors")',
        "ComfyUI",
        "no video token sees the reference |",
        f"| {loss:.4g} | 4 |",
        "only with that person's consent",
        "labelled as AI-generated",
        "Unknown: who speaks in the training data",
    ):
        assert words in card.text


def written(tmp_path: Path, metadata: Mapping[str, str]) -> Path:
    """An adapter of 2.3 with such metadata."""
    layers = tiny_pipeline.adapter_for(fresh("2.3")).layers
    write_adapter(tmp_path / "other.safetensors", AdapterWeights(layers, metadata))
    return tmp_path / "other.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline.pipeline("2.3", adapted=False).save_pretrained(folder)
    return folder


TRAINED = {
    "mask_reference_to_video": "true",
    "reference_text": "block",
    "reference_attention": "alone",
    "rounding": "bf16-training",
    "positions": "shared",
}
TAKEN = {
    "mask_reference_to_video": True,
    "reference_text": "block",
    "reference_attention": "alone",
    "positions": "bf16-training",
    "reference_time": "shared",
}


def test_inference_takes_masks_and_positions_from_the_adapter(model: Path, tmp_path: Path) -> None:
    silent = IDLoraPipeline.from_pretrained(model, adapter=written(tmp_path, {}))
    assert silent.card.defaults == tiny_pipeline.CARD.defaults
    told = IDLoraPipeline.from_pretrained(model, adapter=written(tmp_path, TRAINED))
    expected: Any = {**TAKEN}
    assert told.card.defaults == replace(silent.card.defaults, **expected)
    clips = [pipe(PROMPT, image=PICTURE, voice=voice()) for pipe in (silent, told)]
    assert digest(clips[0]) != digest(clips[1])
    assert digest(silent(PROMPT, image=PICTURE, voice=voice(), **expected)) == digest(clips[1])
    assert settings_to_json(clips[1].settings)["reference_text"] == "block"
    told.save_pretrained(tmp_path / "saved")
    assert IDLoraPipeline.from_pretrained(tmp_path / "saved").card.defaults == told.card.defaults


def test_each_of_them_counts_by_itself_and_a_trained_file_names_them_all(run: Run, tmp_path: Path) -> None:
    card, file = ModelCard(), tmp_path / "x.safetensors"
    for (name, value), (field, meant) in zip(TRAINED.items(), TAKEN.items(), strict=True):
        changed: Any = {field: meant}
        assert defaults_for(card, {name: value}, file) == replace(card, defaults=replace(card.defaults, **changed))
    assert defaults_for(card, {"rank": "2"}, file) == card
    found = defaults_for(card, read_adapter(run.file).metadata, file).defaults
    masks = JointOptions.of(run.trainer.config.objective)
    assert (found.mask_reference_to_video, found.reference_text) == (masks.mask_reference_to_video, "block")


def test_all_three_ways_of_the_text_make_different_clips() -> None:
    pipe, modes = tiny_pipeline.pipeline("2.3"), ("open", "average", "block")
    clips = {mode: digest(pipe(PROMPT, voice=voice(), reference_text=mode)) for mode in modes}  # type: ignore[arg-type]
    assert len(set(clips.values())) == 3
    assert clips["open"] == digest(pipe(PROMPT, voice=voice()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_reference_to_video", "yes"),
        ("reference_text", "true"),
        ("reference_attention", "none"),
        ("rounding", "fp8"),
        ("positions", "behind"),
    ],
)
def test_what_no_training_can_have_been_is_refused_by_file(name: str, value: str, model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, {name: value})
    with pytest.raises(WeightsError, match=f"{file.name} says of its training what cannot be"):
        IDLoraPipeline.from_pretrained(model, adapter=file)


def test_the_official_preset_leaves_the_reference_open(tmp_path: Path) -> None:
    card = defaults_for(ModelCard(), TRAINED, tmp_path)
    found = preset_settings("official", card.defaults, GENERATIONS["2.3"])
    assert (found.mask_reference_to_video, found.reference_text, found.positions) == (False, "open", "bf16-inference")
    assert (found.reference_time, found.reference_attention) == ("negative", "joint")
    kept = preset_settings("two-stage", card.defaults, GENERATIONS["2.3"])
    assert (kept.mask_reference_to_video, kept.reference_text) == (True, "block")
