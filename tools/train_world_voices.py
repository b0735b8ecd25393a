# SPDX-License-Identifier: Apache-2.0
"""Trains the network that tells the speakers of the miniature's world, and writes the small file that ships.

Run from the checkout: `python tools/train_world_voices.py CACHE.npy` (about 25 minutes on one core; the cache keeps
what is heard). Its speakers are drawn from a seed of their own; others, of another seed, examine it.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import idlora
from idlora.data.world.clip import BEAT, FIRST_ONSET
from idlora.data.world.look import PLACES
from idlora.data.world.sound import in_place
from idlora.data.world.voice import BASE_VOICES, STYLES, VOCABULARY, Voice, speak
from idlora.evaluation.judges.world_voices import SIZE, VoiceNet
from idlora.files import write_tensors
from idlora.mining.degrading import degraded
from idlora.networks.mel import LogMel

TARGET = Path(idlora.__file__).parent / "evaluation" / "judges" / "assets" / "voices.safetensors"
SPEAKERS, CLIPS, EXAMINED = 2400, 4, 100
LEARN_SEED, EXAM_SEED = 7_300_013, 7_400_011
SAMPLES, FRAMES = 36_480, 160
STEPS, BATCH, MARGIN, SCALE, TOLD = 2000, 64, 0.1, 24.0, 4.0


def heard(seed: int, speaker: int, clip: int) -> np.ndarray:
    """Two sounds (2, N) of one utterance in two places, one of them degraded further half of the time."""
    voice = Voice.draw(np.random.default_rng([seed, speaker]))
    rng = np.random.default_rng([seed, speaker, clip])
    style = STYLES[str(rng.choice(("calm", "loud", "fast"), p=(0.6, 0.2, 0.2)))]
    words = [str(word) for word in rng.choice(VOCABULARY, 4, replace=False)]
    beat = BEAT / style.tempo
    first = float(rng.uniform(0.0, FIRST_ONSET))
    spoken = speak(voice, words, [first + beat * place for place in range(4)], style, rng).samples[:SAMPLES]
    dry = np.pad(spoken, (0, SAMPLES - len(spoken)))
    places = rng.choice(PLACES, 2, replace=False)
    sounds = [in_place(dry, str(place), (), "none", rng).astype(np.float32) for place in places]
    return np.stack([sounds[0], degraded(sounds[1], rng) if rng.random() < 0.5 else sounds[1]])


def mels_of(seed: int, speakers: int) -> np.ndarray:
    """(speakers, 2 CLIPS, T, 64) half precision."""
    mel, rows, began = LogMel(), [], time.time()
    for speaker in range(speakers):
        sounds = np.concatenate([heard(seed, speaker, clip) for clip in range(CLIPS)])
        rows.append(mel(torch.from_numpy(sounds)[:, None])[:, 0].half().numpy())
        if speaker % 100 == 99:
            print(speaker + 1, round(time.time() - began), file=sys.stderr, flush=True)
    return np.stack(rows)


def loss_of(vectors: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Softmax over cosines, the right one lessened by a margin (Wang et al. 2018)."""
    cosines = vectors @ functional.normalize(centres, dim=1).T
    return functional.cross_entropy(SCALE * (cosines - MARGIN * functional.one_hot(labels, len(centres))), labels)


def traits_of(seed: int, speakers: int) -> Tensor:
    """What makes each speaker (S, 9), in standard deviations: it is learnt beside the names, and faster."""
    voices = [Voice.draw(np.random.default_rng([seed, speaker])) for speaker in range(speakers)]
    numbers = [(np.log(v.f0), v.formant, v.intonation, v.tilt, v.rate, v.breathiness) for v in voices]
    bases = [[float(v.base == base) for base in BASE_VOICES] for v in voices]
    traits = np.concatenate([np.array(numbers), np.array(bases)], axis=1)
    return torch.from_numpy((traits - traits.mean(axis=0)) / traits.std(axis=0)).float()


def examined(net: VoiceNet, mels: np.ndarray) -> float:
    """Equal error rate of single clips of unseen speakers against one another."""
    net.eval()
    with torch.no_grad():
        vectors = net(torch.from_numpy(mels.reshape(-1, *mels.shape[2:])).float()).numpy()
    who = np.repeat(np.arange(len(mels)), mels.shape[1])
    scores, pairs = vectors @ vectors.T, np.triu_indices(len(who), 2)
    same = who[pairs[0]] == who[pairs[1]]
    low, high = np.sort(scores[pairs][same]), np.sort(scores[pairs][~same])
    missed = np.arange(len(low)) / len(low)
    passed = 1 - np.searchsorted(high, low) / len(high)
    place = int(np.argmin(np.abs(missed - passed)))
    return float((missed[place] + passed[place]) / 2)


def main() -> None:
    cache = Path(sys.argv[1])
    if not cache.exists():
        np.save(cache, mels_of(LEARN_SEED, SPEAKERS))
    mels, exam = np.load(cache, mmap_mode="r"), mels_of(EXAM_SEED, EXAMINED)
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    net, centres = VoiceNet(), nn.Parameter(torch.randn(SPEAKERS, SIZE))
    facts_of, traits = nn.Linear(SIZE, 9), traits_of(LEARN_SEED, SPEAKERS)
    flat, labels = mels.reshape(-1, *mels.shape[2:]), np.repeat(np.arange(SPEAKERS), mels.shape[1])
    optimizer = torch.optim.AdamW([*net.parameters(), *facts_of.parameters(), centres], lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS + 1, pct_start=0.15)
    began, order = time.time(), np.array([], int)
    for step in range(STEPS):
        order = order if len(order) >= BATCH else rng.permutation(len(flat))
        chosen, order = np.sort(order[:BATCH]), order[BATCH:]
        start = int(rng.integers(flat.shape[1] - FRAMES))
        batch = torch.from_numpy(flat[chosen, start : start + FRAMES].astype(np.float32))
        net.train()
        vectors, who = net(batch), torch.from_numpy(labels[chosen])
        wrong = functional.mse_loss(facts_of(SCALE / 3 * vectors), traits[who])
        loss = loss_of(vectors, centres, who) + TOLD * wrong
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 249 or step == STEPS - 1:
            told = (
                step + 1,
                round(float(loss), 3),
                round(float(wrong), 3),
                round(examined(net, exam), 4),
                round(time.time() - began),
            )
            print(*told, file=sys.stderr, flush=True)
            facts = {"equal_error_rate": str(told[3]), "speakers": str(SPEAKERS), "step": str(step + 1)}
            write_tensors(TARGET, {name: tensor.half() for name, tensor in net.state_dict().items()}, facts)


if __name__ == "__main__":
    main()
