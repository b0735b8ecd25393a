# SPDX-License-Identifier: Apache-2.0
"""How each golden case is run through the package and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idlora.core.flow import velocity_target, x0_from_velocity
from idlora.core.guidance import (
    X0,
    Guidance,
    IdentityGuidance,
    ModalityGuidance,
    Pass,
    STGuidance,
    TextGuidance,
)
from idlora.core.positions import Rounding, audio_positions, reference_positions
from idlora.core.reference import detach_reference, target_part
from idlora.core.samplers import Step, sample_euler
from idlora.core.schedules import logit_normal_sigmas, ltx2_sigmas, shift_mu, stretched_logit_normal_sigmas
from idlora.core.state import AVState
from idlora.core.tokens import tokens_to_audio
from idlora.networks.adapter import check_adapter, fuse_adapter, inject_adapter
from idlora.networks.checkpoints import to_official_key, transformer_keys
from idlora.networks.denoiser import GuidedDenoiser
from idlora.networks.executor import Executor
from idlora.networks.joint import JointModel, JointOptions, Prediction, TextContext
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.presets import OFFICIAL
from idlora.training.objective import Objective, TrainingBatch, TrainingStep, training_step
from parity_inputs import (
    Generation,
    Shape,
    Stored,
    context_of,
    forward_state,
    positions_for,
    stg_blocks,
    training_batch,
    trajectory_state,
)


def check_inputs(stored: Stored, state: AVState) -> None:
    """The positions, masks and timesteps that the package made are those of the official code."""
    sigma = stored["in.sigma"]
    for name, stream in (("video", state.video), ("audio", state.audio)):
        stored.compare("inputs", f"in.{name}_positions", stream.positions)
        stored.compare("inputs", f"in.{name}_timesteps", stream.timesteps(sigma))
        if f"in.{name}_denoise_mask" in stored:
            stored.compare("inputs", f"in.{name}_denoise_mask", stream.denoise_mask)


def compare_velocity(stored: Stored, case: str, key: str, prediction: Prediction, kind: str = "fp32") -> None:
    """Both streams of a prediction with `key.video_velocity` and `key.audio_velocity`."""
    stored.compare(case, f"{key}.video_velocity", prediction.video, kind)
    stored.compare(case, f"{key}.audio_velocity", prediction.audio, kind)


@torch.no_grad()
def run_plain(generation: Generation, stored: Stored) -> None:
    """Case a: velocity and x0 without a reference."""
    state, sigma = forward_state(stored), stored["in.sigma"]
    check_inputs(stored, state)
    prediction = generation.model().velocity(state, sigma, context_of(stored))
    compare_velocity(stored, "forward", "out", prediction)
    for name, stream, velocity in (
        ("video", state.video, prediction.video),
        ("audio", state.audio, prediction.audio),
    ):
        x0 = x0_from_velocity(stream.tokens, velocity, stream.timesteps(sigma))
        stored.compare("forward", f"out.{name}_x0", x0)


@torch.no_grad()
def run_reference(generation: Generation, stored: Stored) -> None:
    """Cases b, c and d: the passes of the guidance, in one plan."""
    state = forward_state(stored)
    check_inputs(stored, state)
    blocks = stg_blocks(stored.meta)
    plan = [
        Pass("b_ref"),
        Pass("b_noref", reference=False),
        Pass("c_stg_av", perturbed_blocks=blocks),
        Pass("c_stg_v", perturbed_blocks=blocks, perturbed_streams=("video",)),
        Pass("d_iso", isolated=True),
    ]
    wanted = [run for run in plan if f"out.{run.name}.video_velocity" in stored]
    predictions = Executor(generation.model(), context_of(stored))(state, stored["in.sigma"], wanted)
    for name, prediction in predictions.items():
        compare_velocity(stored, name, f"out.{name}", prediction)


@torch.no_grad()
def run_adapter(generation: Generation, stored: Stored) -> None:
    """Case e: the adapter fused both ways, and as branches; the base comes back afterwards."""
    inputs = generation.inputs_of(stored)
    state, sigma, context = forward_state(inputs), inputs["in.sigma"], context_of(inputs)
    adapter = generation.adapter(str(stored.meta.get("lora", "lora.safetensors")))
    strength, model = adapter_strength(stored.meta), generation.model()
    fused = fuse_adapter(model.transformer, adapter, strength)
    compare_velocity(stored, "fused_fp32", "out.fused_fp32", model.velocity(state, sigma, context))
    without = AVState(state.video, detach_reference(state.audio))
    compare_velocity(stored, "fused_fp32_noref", "out.fused_fp32_noref", model.velocity(without, sigma, context))
    fused.undo()
    branches = inject_adapter(model.transformer, adapter, strength)
    compare_velocity(stored, "branches", "out.fused_fp32", model.velocity(state, sigma, context))
    with branches.disabled():
        compare_velocity_to(stored, "switched off", model.velocity(state, sigma, context), inputs, "out.b_ref")
    branches.remove()
    fuse_adapter(model.transformer, adapter, strength, "official-bf16")
    name = "fused_bf16_official"
    compare_velocity(stored, name, f"out.{name}", model.velocity(state, sigma, context))


def adapter_strength(meta: Mapping[str, Any]) -> float:
    """The strength of the fusion: a number if the metadata state one, else 1, as the official files mean it."""
    for key in ("strength", "scale"):
        if re.fullmatch(r"[-+.0-9e]+", str(meta.get(key, ""))):
            return float(meta[key])
    return 1.0


def compare_velocity_to(stored: Stored, case: str, prediction: Prediction, other: Stored, key: str) -> None:
    """Compare with a prediction that another file stores."""
    stored.against(case, key, prediction.video, other[f"{key}.video_velocity"], "fp32")
    stored.against(case, key, prediction.audio, other[f"{key}.audio_velocity"], "fp32")


MODES = {
    "masked": JointOptions(mask_reference_to_video=True, reference_text="average"),
    "a2v_only": JointOptions(mask_reference_to_video=True),
    "text_only": JointOptions(reference_text="average"),
    "unmasked": JointOptions(),
}


def run_training(generation: Generation, stored: Stored) -> None:
    """Case f: inputs, predictions and losses in every mode of the masks, gradients of the adapter."""
    batch = training_batch(stored)
    model = generation.model()
    modes = {name: options for name, options in MODES.items() if f"out.{name}.loss_total" in stored}
    for name, options in modes.items():
        with torch.no_grad():
            step = training_step(model.with_options(options), batch, Objective())
        _compare_step(stored, name, step)
        _compare_training_inputs(stored, batch, step, options)
    if "out.lora_masked.loss_total" in stored:
        _run_adapter_training(generation, stored, batch)


def _compare_step(stored: Stored, name: str, step: TrainingStep) -> None:
    results = {
        "video_pred": step.prediction.video,
        "audio_pred": step.prediction.audio,
        "loss_total": step.losses.total,
        "loss_video": step.losses.video,
        "loss_audio": step.losses.audio,
    }
    for part, value in results.items():
        if f"out.{name}.{part}" in stored:
            stored.compare(name, f"out.{name}.{part}", value)


def _compare_training_inputs(stored: Stored, batch: TrainingBatch, step: TrainingStep, options: JointOptions) -> None:
    video, audio = step.state.video, step.state.audio
    made = {
        "noisy_video": video.tokens,
        "combined_audio": audio.tokens,
        "video_positions": video.positions,
        "audio_positions": audio.positions,
        "video_timesteps": video.timesteps(batch.sigmas),
        "audio_timesteps": audio.timesteps(batch.sigmas),
        "video_targets": velocity_target(batch.video, batch.video_noise),
        "audio_targets": velocity_target(batch.audio, batch.audio_noise),
        "audio_loss_mask": audio.denoise_mask.squeeze(-1),
    }
    for key, value in made.items():
        stored.compare("inputs", f"mid.{key}", value)
    # The masks as the package means them: which keys a video query misses, which rows are masked everywhere.
    if options.mask_reference_to_video:
        hidden = (audio.denoise_mask[:, None, :, 0] == 0).expand(-1, video.tokens.shape[1], -1)
        stored.against("masks", "mid.a2v_mask", hidden.float(), (stored["mid.a2v_mask"] < -1).float(), "exact")
    if options.reference_text == "average":
        row_masked = (stored["mid.audio_text_mask"] < -1).all(-1)
        stored.against("masks", "mid.audio_text_mask", audio.denoise_mask[..., 0], (~row_masked).float(), "exact")


def _run_adapter_training(generation: Generation, stored: Stored, batch: TrainingBatch) -> None:
    """The trainer's own module with the preset `official`; the vectors were made without rounded positions."""
    transformer = generation.transformer().requires_grad_(requires_grad=False)
    adapter = inject_adapter(transformer, generation.adapter(), trainable=True)
    adapter.make_trainable()
    module = TrainingModule(transformer, replace(OFFICIAL, positions="fp32"), bf16=False)
    losses = module(batch)
    torch.autograd.backward(losses.total)
    with torch.no_grad():
        _compare_step(stored, "lora_masked", training_step(module.model, batch, module.objective))
    stored.compare("trainer", "out.lora_masked.loss_total", losses.total.detach())
    norm = torch.stack([parameter.grad.norm() for parameter in adapter.parameters() if parameter.grad is not None])
    stored.compare("gradient norm", "out.lora_masked.grad_norm_all", norm.norm(), "gradient norm")
    gradients = {
        f"grad.diffusion_model.{to_official_key(name)}.lora_{part}.weight": parameter.grad
        for name, layer in adapter.weights().layers.items()
        for part, parameter in (("A", layer.a), ("B", layer.b))
    }
    _compare_gradients(stored, {key: gradient for key, gradient in gradients.items() if key in stored})


def _compare_gradients(stored: Stored, gradients: Mapping[str, Tensor | None]) -> None:
    """Within the tolerance of the gradient as a whole, but no part worse than ten times its own.

    A part sums many terms that cancel, in an order that the CPU chooses: in float64 as well the smallest parts are
    1.2e-5 of their own size away from the stored ones.
    """
    sizes = {key: stored[key].abs().max().item() for key in gradients}
    for key, gradient in gradients.items():
        assert gradient is not None
        stored.against("gradients", key, gradient, stored[key], "fp32", min(max(sizes.values()), 10 * sizes[key]))


def run_positions(_generation: Generation, stored: Stored) -> None:
    """Case g: tables of positions."""
    for key in stored.tensors:
        table, _, sizes = key.partition(".")
        stored.compare(table, key, _position_table(table, sizes))


def _position_table(table: str, sizes: str) -> Tensor:
    if table.startswith("video_positions"):
        frames, size, rate = sizes.split("_")
        height, width = size.split("x")
        pixels = {"frames": frames[:-1], "height": height, "width": width, "fps": rate.removesuffix("fps")}
        roundings: dict[str, Rounding] = {"fp32": "fp32", "infer": "bf16-inference", "train": "bf16-training"}
        return positions_for(Shape.of(pixels), 1, 0, 1, roundings[table.split("_")[2]]).video.positions
    if table.startswith("target_positions"):
        return audio_positions(int(sizes))
    return reference_positions(int(sizes), "fp32" if table.endswith("fp32") else "bf16-training")


def run_sigmas(_generation: Generation, stored: Stored) -> None:
    """Case g: schedules, and draws for training."""
    newer = str(stored.meta["version"]) != "2.0"
    draw = stretched_logit_normal_sigmas if newer else logit_normal_sigmas
    for key in stored.tensors:
        table, first, second = key.split(".")
        if table == "sigmas":
            tokens = {} if second.startswith("default") else {"num_tokens": int(second.removeprefix("tokens"))}
            stored.compare("schedules", key, ltx2_sigmas(int(first.removeprefix("steps")), **tokens))
        else:
            generator = torch.Generator().manual_seed(int(first.removeprefix("seed")))
            count = stored[key].shape[0]
            stored.compare("training sigmas", key, draw(count, shift_mu(int(second.removeprefix("seqlen"))), generator))


@torch.no_grad()
def run_precision(generation: Generation, stored: Stored) -> None:
    """Case i: rotary tables and forwards under the two roundings, and the network in bf16."""
    inputs = generation.inputs_of(stored)
    sigma, context, model = inputs["in.sigma"], context_of(inputs), generation.model()
    roundings: dict[str, Rounding] = {"fp32": "fp32", "infer_bf16": "bf16-inference", "train_bf16": "bf16-training"}
    for name, rounding in roundings.items():
        state = forward_state(inputs, rounding)
        _compare_rotary(stored, name, model, state)
        if rounding != "fp32":
            stored.compare(f"{name} positions", f"in.{name}.video_positions", state.video.positions)
            stored.compare(f"{name} positions", f"in.{name}.audio_positions", state.audio.positions)
            compare_velocity(stored, name, f"out.{name}", model.velocity(state, sigma, context))
    low = JointModel(generation.transformer(torch.bfloat16))
    for name in ("fp32", "infer_bf16"):
        state = _in_bf16(forward_state(inputs, roundings[name]))
        text = replace(context, video=context.video.bfloat16(), audio=context.audio.bfloat16())
        key = f"bf16model_{name}_pos"
        compare_velocity(stored, key, f"out.{key}", low.velocity(state, sigma, text), "bf16")


def _in_bf16(state: AVState) -> AVState:
    return state.with_tokens(state.video.tokens.bfloat16(), state.audio.tokens.bfloat16())


def _compare_rotary(stored: Stored, name: str, model: JointModel, state: AVState) -> None:
    (video, cross_video), (audio, cross_audio) = model.rotary_tables(state)
    tables = {"video": video, "cross_video": cross_video, "audio": audio, "cross_audio": cross_audio}
    for part, (cosine, sine) in tables.items():
        stored.compare(f"{name} rotary", f"out.{name}.rope_{part}.cos", cosine, "rotary")
        stored.compare(f"{name} rotary", f"out.{name}.rope_{part}.sin", sine, "rotary")


PASS_NAMES = {
    "pos": "positive",
    "neg": "negative",
    "noref": "no_reference",
    "stg": "perturbed",
    "bimodal": "isolated",
}


def trajectory_guidance(meta: Mapping[str, Any]) -> Guidance:
    """All terms with the scales of the metadata."""
    return Guidance(
        TextGuidance(float(meta["video_guidance_scale"]), float(meta["audio_guidance_scale"])),
        IdentityGuidance(float(meta["identity_guidance_scale"])),
        STGuidance(float(meta["stg_scale"]), float(meta["stg_scale"]), stg_blocks(meta)),
        ModalityGuidance(float(meta["bimodal_scale"]), float(meta["bimodal_scale"])),
    )


@torch.no_grad()
def run_trajectory(generation: Generation, stored: Stored) -> None:
    """Case h: the guided Euler sampler from noise to the audio decoder's input."""
    state = trajectory_state(stored)
    for name, stream in (("video", state.video), ("audio", state.audio)):
        stored.compare("start", f"mid.{name}_positions", stream.positions)
        stored.compare("start", f"mid.{name}_denoise_mask", stream.denoise_mask)
        stored.compare("start", f"mid.{name}_clean_latent", stream.clean)
        stored.compare("start", f"mid.{name}_init_latent", stream.tokens)
    sigmas = ltx2_sigmas(int(stored.meta["steps"]))
    stored.compare("start", "mid.sigmas", sigmas)
    positive, negative = (TextContext(stored[f"in.v_context_{t}"], stored[f"in.a_context_{t}"]) for t in "pn")
    denoiser = GuidedDenoiser(generation.model(), positive, negative, trajectory_guidance(stored.meta))
    final = sample_euler(denoiser, state, sigmas, callback=lambda step: _compare_step_of(stored, denoiser, step))
    stored.compare("end", "out.video_final_tokens", final.video.tokens, "trajectory")
    stored.compare("end", "out.audio_final_tokens", final.audio.tokens, "trajectory")
    target = target_part(final.audio.tokens, final.audio.num_reference)
    stored.compare("end", "out.audio_latent_4d", tokens_to_audio(target), "trajectory")


def _compare_step_of(stored: Stored, denoiser: GuidedDenoiser, step: Step) -> None:
    key, state = f"step{step.number}", step.state
    for name, stream in (("video", state.video), ("audio", state.audio)):
        if f"{key}.{name}_latent_before" in stored:
            stored.compare("states", f"{key}.{name}_latent_before", stream.tokens, "trajectory")
    if f"{key}.video_guided_x0" in stored:
        guided = denoiser(state, step.sigma)
        stored.compare("guided x0", f"{key}.video_guided_x0", state.video.keep_clean(guided.video.tokens), "trajectory")
        stored.compare("guided x0", f"{key}.audio_guided_x0", state.audio.keep_clean(guided.audio.tokens), "trajectory")
    predictions = denoiser.predict(state, step.sigma, denoiser.guidance.plan(step.sigma, state.audio.num_reference))
    for short, full in PASS_NAMES.items():
        if f"{key}.pass_{short}.video_x0" in stored:
            _compare_x0(stored, f"pass {short}", f"{key}.pass_{short}", predictions[full])


def _compare_x0(stored: Stored, case: str, key: str, x0: X0) -> None:
    stored.compare(case, f"{key}.video_x0", x0.video, "trajectory")
    stored.compare(case, f"{key}.audio_x0", x0.audio, "trajectory")


def run_weights(generation: Generation, stored: Stored) -> None:
    """The official file loads whole; where diffusers' layout is there too, both are the same network."""
    network = generation.transformer()
    ours = network.state_dict()
    for key, name in transformer_keys(stored.tensors).items():
        stored.compare("weights", key, ours[name], "exact")
    layout = generation.folder / "model_diffusers"
    if layout.is_dir():
        from diffusers import LTX2VideoTransformer3DModel

        other = LTX2VideoTransformer3DModel.from_pretrained(layout, torch_dtype=torch.float32)
        theirs = other.state_dict()
        configs = [json.loads(each.to_json_string()) for each in (network, other)]
        differing = [key for key, value in configs[0].items() if key[0] != "_" and configs[1].get(key) != value]
        if differing:
            raise ValueError(f"model_diffusers is configured otherwise: {', '.join(differing)}")
        if ours.keys() != theirs.keys():
            raise ValueError(f"model_diffusers has other weights: {sorted(ours.keys() ^ theirs.keys())[:3]}")
        for name, weight in ours.items():
            stored.against("equals model_diffusers", name, weight, theirs[name], "exact")


def run_lora(generation: Generation, stored: Stored) -> None:
    """The adapter's keys map onto layers of the network, and its tensors arrive there."""
    adapter = generation.adapter(f"{Path(stored.name).name}.safetensors")
    check_adapter(generation.transformer(), adapter)
    for name, layer in adapter.layers.items():
        stem = f"diffusion_model.{to_official_key(name)}"
        stored.compare("adapter", f"{stem}.lora_A.weight", layer.a, "exact")
        stored.compare("adapter", f"{stem}.lora_B.weight", layer.b, "exact")


CASES: Mapping[str, Callable[[Generation, Any], None]] = {
    "model_official": run_weights,
    "lora": run_lora,
    "a_plain": run_plain,
    "bcd_ref": run_reference,
    "e_lora": run_adapter,
    "f_train": run_training,
    "g_positions": run_positions,
    "g_sigmas": run_sigmas,
    "h_trajectory": run_trajectory,
    "i_precision": run_precision,
}
