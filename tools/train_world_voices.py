# SPDX-License-Identifier: Apache-2.0
"""Trains the network that tells the speakers of the miniature's world, and writes the small file that ships.

Run from the checkout: `python tools/train_world_voices.py CACHE`, about an hour on one core; the folder CACHE keeps
what was heard, so that another call need not hear it again. Each utterance that it learns from is a speaker of its own,
drawn from a seed that nothing else of the world has; others, of another seed, examine it. `CACHE STEPS` goes on from
the weights that ship: those were trained for 12,000 steps with levels nearly as they are, and then for 4,000 with any.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import idlora
from idlora.data.world.clip import BEAT, FIRST_ONSET
from idlora.data.world.look import PLACES
from idlora.data.world.recordings import in_steps
from idlora.data.world.sound import in_place
from idlora.data.world.voice import BASE_VOICES, STYLES, VOCABULARY, Voice, speak
from idlora.evaluation.judges.world_voices import NUM_BINS, VoiceNet
from idlora.files import write_tensors
from idlora.mining.degrading import degraded
from idlora.networks.mel import LogMel, MelConfig

TARGET = Path(idlora.__file__).parent / "evaluation" / "judges" / "assets" / "voices.safetensors"
UTTERANCES, EXAMINED, CLIPS = 24_000, 100, 4
LEARN_SEED, EXAM_SEED = 7_300_013, 7_400_011
SAMPLES, FRAMES, PORTION = 36_480, 200, 1000
STEPS, BATCH, RATE, RATE_ON = 12_000, 64, 3e-3, 2e-3  # RATE_ON: where it goes on
QUIETER, LOUDER = -1.4, 0.17  # of log amplitude: a recording's loudest moment decides how loud all of it is
RATE_STEP, BASE_STEPS = 0.1, 4.0  # a speaking rate's just noticeable step; how many steps apart base voices are


def heard(voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    """Two sounds (2, N) of one utterance in two places, one of them degraded further half of the time."""
    style = STYLES[str(rng.choice(("calm", "loud", "fast"), p=(0.6, 0.2, 0.2)))]
    words = [str(word) for word in rng.choice(VOCABULARY, 4, replace=False)]
    beat = BEAT / style.tempo
    first = float(rng.uniform(0.0, FIRST_ONSET))
    spoken = speak(voice, words, [first + beat * place for place in range(4)], style, rng).samples[:SAMPLES]
    dry = np.pad(spoken, (0, SAMPLES - len(spoken)))
    places = rng.choice(PLACES, 2, replace=False)
    sounds = [in_place(dry, str(place), (), "none", rng).astype(np.float32) for place in places]
    return np.stack([sounds[0], degraded(sounds[1], rng) if rng.random() < 0.5 else sounds[1]])


def traits_of(voice: Voice) -> list[float]:
    """What makes a voice (9,), in just noticeable steps."""
    return [*in_steps(voice), voice.rate / RATE_STEP, *(BASE_STEPS * (voice.base == base) for base in BASE_VOICES)]


def learnt_from(cache: Path) -> tuple[NDArray[np.float16], Tensor]:
    """Log-mels (2 U, T, 96) and traits (2 U, 9); portions that are in the folder are not made again."""
    mel, began = LogMel(MelConfig(num_bins=NUM_BINS)), time.time()
    cache.mkdir(parents=True, exist_ok=True)
    for start in range(0, UTTERANCES, PORTION):
        if (path := cache / f"{start}.npz").exists():
            continue
        mels, traits = [], []
        for number in range(start, start + PORTION):
            rng = np.random.default_rng([LEARN_SEED, number])
            voice = Voice.draw(rng)
            mels.append(mel(torch.from_numpy(heard(voice, rng))[:, None])[:, 0].half().numpy())
            traits.append(traits_of(voice))
        np.savez(path.with_suffix(".new.npz"), mels=np.stack(mels), traits=np.array(traits, np.float32))
        path.with_suffix(".new.npz").rename(path)
        told(utterances=start + PORTION, seconds=round(time.time() - began))
    parts = [np.load(cache / f"{start}.npz") for start in range(0, UTTERANCES, PORTION)]
    mels = np.concatenate([part["mels"].reshape(-1, *part["mels"].shape[2:]) for part in parts])
    return mels, torch.from_numpy(np.concatenate([part["traits"] for part in parts]).repeat(2, axis=0))


def exam() -> NDArray[np.float16]:
    """Log-mels (S, 2 CLIPS, T, 96) of unseen speakers."""
    mel, rows = LogMel(MelConfig(num_bins=NUM_BINS)), []
    for speaker in range(EXAMINED):
        voice = Voice.draw(np.random.default_rng([EXAM_SEED, speaker]))
        sounds = [heard(voice, np.random.default_rng([EXAM_SEED, speaker, clip])) for clip in range(CLIPS)]
        rows.append(mel(torch.from_numpy(np.concatenate(sounds))[:, None])[:, 0].half().numpy())
    return np.stack(rows)


@torch.no_grad()
def examined(net: VoiceNet, mels: NDArray[np.float16]) -> float:
    """Equal error rate of single clips of unseen speakers against one another."""
    net.eval()
    vectors = net.vectors(torch.from_numpy(mels.reshape(-1, *mels.shape[2:])).float()).numpy()
    who = np.repeat(np.arange(len(mels)), mels.shape[1])
    scores, pairs = vectors @ vectors.T, np.triu_indices(len(who), 2)
    same = who[pairs[0]] == who[pairs[1]]
    low, high = np.sort(scores[pairs][same]), np.sort(scores[pairs][~same])
    missed = np.arange(len(low)) / len(low)
    passed = 1 - np.searchsorted(high, low) / len(high)
    place = int(np.argmin(np.abs(missed - passed)))
    return float((missed[place] + passed[place]) / 2)


def save(net: VoiceNet, facts: Mapping[str, object]) -> None:
    tensors = {name: tensor.half() if tensor.dim() else tensor for name, tensor in net.state_dict().items()}
    write_tensors(TARGET, tensors, {name: str(value) for name, value in facts.items()})


def told(**facts: object) -> None:
    print(*(f"{name} {value}" for name, value in facts.items()), file=sys.stderr, flush=True)


def main() -> None:
    torch.manual_seed(1)
    mels, traits = learnt_from(Path(sys.argv[1]))
    unseen, rng, net = exam(), np.random.default_rng(1), VoiceNet()
    net.mean, net.spread = traits.mean(dim=0), traits.std(dim=0)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    if len(sys.argv) > 2:
        net.load_state_dict({name: tensor.to(net.state_dict()[name]) for name, tensor in load_file(TARGET).items()})
    rate = RATE_ON if len(sys.argv) > 2 else RATE
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    began, order, mean = time.time(), np.array([], int), 0.0
    for step in range(1, steps + 1):
        order = order if len(order) >= BATCH else rng.permutation(len(mels))
        chosen, order = np.sort(order[:BATCH]), order[BATCH:]
        start = int(rng.integers(mels.shape[1] - FRAMES))
        batch = torch.from_numpy(mels[chosen, start : start + FRAMES].astype(np.float32))
        louder = torch.from_numpy(rng.uniform(QUIETER, LOUDER, (BATCH, 1, 1)).astype(np.float32))
        net.train()
        loss = (net(batch + louder) - traits[chosen]).square().mean()  # in square steps
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step, 100)
        if step % 500 == 0:
            facts = {"step": step, "square_steps": round(mean, 4), "equal_error_rate": round(examined(net, unseen), 4)}
            told(**facts, seconds=round(time.time() - began))
            save(net, facts)


if __name__ == "__main__":
    main()
