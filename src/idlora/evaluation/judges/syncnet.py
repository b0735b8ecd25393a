# SPDX-License-Identifier: Apache-2.0
"""Lip sync by SyncNet (Chung and Zisserman 2016): LSE-D, LSE-C and offset as Wav2Lip and the paper report them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, Frames, JudgeRecord, Reference
from idlora.evaluation.judges.mfcc import mfcc
from idlora.evaluation.judges.sounds import Sound
from idlora.evaluation.judges.weights import Lazy, best_device, digest_of, existing, fill, tensors_of
from idlora.evaluation.store import Values

RATE = 25  # frames a second
SIDE = 224  # pixels
WINDOW = 5  # frames
MAX_SHIFT = 15  # frames either way
_CEPSTRA_A_FRAME = 4
_BATCH = 16
_MARGIN = 0.4  # of half the face box, around it
_GREY = 110
_LEAST_CONTRAST = 8.0  # levels of 255 between the brightest and the darkest pixel, and by which a pixel moves
_LEAST_MOVING = 1e-3  # of the pixels: a square of 7 of the crop's 224, far less than lips; more than a codec's noise


def _layer(convolution: nn.Module, channels: int, pool: nn.Module | None = None) -> list[nn.Module]:
    norm = nn.BatchNorm3d(channels) if isinstance(convolution, nn.Conv3d) else nn.BatchNorm2d(channels)
    return [convolution, norm, nn.ReLU()] + ([pool] if pool is not None else [])


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNet(nn.Module):
    """Two towers into one space of 1024 numbers; names and shapes of the tensors are those of `syncnet_v2.model`."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1), 64, nn.MaxPool2d(1, 1)),
            *_layer(nn.Conv2d(64, 192, 3, padding=1), 192, nn.MaxPool2d(3, (1, 2))),
            *_layer(nn.Conv2d(192, 384, 3, padding=1), 384),
            *_layer(nn.Conv2d(384, 256, 3, padding=1), 256),
            *_layer(nn.Conv2d(256, 256, 3, padding=1), 256, nn.MaxPool2d(3, 2)),
            *_layer(nn.Conv2d(256, 512, (5, 4)), 512),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        flat, halved = (1, 3, 3), (1, 2, 2)
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (5, 7, 7), halved), 96, nn.MaxPool3d(flat, halved)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), halved, (0, 1, 1)), 256, nn.MaxPool3d(flat, halved, (0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, flat, padding=(0, 1, 1)), 256),
            *_layer(nn.Conv3d(256, 256, flat, padding=(0, 1, 1)), 256),
            *_layer(nn.Conv3d(256, 256, flat, padding=(0, 1, 1)), 256, nn.MaxPool3d(flat, halved)),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6)), 512),
        )

    def hear(self, cepstra: Tensor) -> Tensor:
        """Vectors (B, 1024) of cepstra (B, 1, 13, 20): 0.2 s."""
        found: Tensor = self.netfcaud(self.netcnnaud(cepstra).flatten(1))
        return found

    def see(self, frames: Tensor) -> Tensor:
        """Vectors (B, 1024) of faces (B, 3, 5, 224, 224): blue, green, red in 0 to 255."""
        found: Tensor = self.netfclip(self.netcnnlip(frames).flatten(1))
        return found


def distances(seen: Tensor, heard: Tensor, max_shift: int = MAX_SHIFT) -> Tensor:
    """Mean Euclidean distance (2 * max_shift + 1,) of pictures (N, D) to sounds (N, D), moved from earlier to later.

    Where no sound is left, it is compared with zeros, as the authors' program does.
    """
    padded = F.pad(heard, (0, 0, max_shift, max_shift))
    shifted = [padded[shift : shift + len(seen)] for shift in range(2 * max_shift + 1)]
    return torch.stack([F.pairwise_distance(seen, other).mean() for other in shifted])


def lse(by_shift: Tensor) -> tuple[float, float, int]:
    """LSE-D (least distance), LSE-C (median less least), and by how many frames the sound is late.

    The distances (2M + 1,) are those of `distances`: entry m compares a picture with the sound m - M frames later.
    """
    least = int(by_shift.argmin())
    distance = float(by_shift[least])
    return distance, float(by_shift.median()) - distance, least - len(by_shift) // 2


class SyncNetJudge(Lazy):
    """LSE-D and LSE-C with the published weights.

    Limits: the network wants a tracked face. Pictures without contrast or movement are refused, others are not looked
    at further. Without `face_box` the middle square of the picture is taken for the face, which suits clips that are
    faces; published figures rest on the tracker of its authors, and compare only with boxes made by that. Clips that
    do not have 25 frames a second are brought to it by the nearest frame. Not yet run on the published weights: tensor
    shapes, cepstra and distances are tested, real figures are not.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        existing(source, "SyncNet")

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the file."""
        limits = "compares with published figures only where face_box is that of SyncNet's own tracker"
        return JudgeRecord("SyncNet", "v2", limits, digest_of(existing(self.source, "SyncNet")))

    @cached_property
    def network(self) -> SyncNet:
        """The towers."""
        network = SyncNet()
        fill(network, tensors_of(existing(self.source, "SyncNet")), "SyncNet (syncnet_v2.model)")
        return network.to(best_device())

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - lips are judged by the clip's own sound
    ) -> Values:
        """`distance` (LSE-D), `confidence` (LSE-C), `offset` in seconds (positive: the sound is late)."""
        faces = face_crops(at_rate(clip.pictures, clip.frame_rate), reference.face_box)
        distance, confidence, late = lse(distances(*embedded(self.network, faces, clip.audible)))
        return {"distance": distance, "confidence": confidence, "offset": late / RATE}


def at_rate(frames: Frames, frame_rate: float) -> Frames:
    """The frames (F, H, W, 3) at 25 a second, each the nearest in time."""
    count = round(len(frames) / frame_rate * RATE)
    places = np.round(np.arange(count) * frame_rate / RATE).astype(int)
    return np.asarray(frames[np.minimum(places, len(frames) - 1)])


def face_crops(frames: Frames, box: Sequence[int] | None) -> Tensor:
    """Faces (F, 3, 224, 224), blue, green, red in 0 to 255, of frames (F, H, W, 3).

    With a box (left, top, width, height) the crop is that of the authors' tracker: from half its greater side above the
    middle to 1.8 halves below, 1.4 halves to each side. Without one it is the middle square.

    Raises:
        InputError: the box is empty or outside the picture.
    """
    height, width = frames.shape[1:3]
    if box is None:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        crops = frames[:, top : top + side, left : left + side]
    else:
        left, top, wide, high = box
        if wide < 2 or high < 2 or left + wide > width or top + high > height:
            raise InputError(f"face_box {list(box)} does not lie in pictures of {width} x {height}")
        half = max(wide, high) / 2
        margin = int(half * (1 + 2 * _MARGIN))
        padded = np.pad(frames, ((0, 0), (margin, margin), (margin, margin), (0, 0)), constant_values=_GREY)
        x, y = left + wide / 2 + margin, top + high / 2 + margin
        reach = half * (1 + _MARGIN)
        crops = padded[:, int(y - half) : int(y + half * (1 + 2 * _MARGIN)), int(x - reach) : int(x + reach)]
    pixels = torch.from_numpy(np.ascontiguousarray(crops[..., ::-1])).permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)


def refuse_still(faces: Tensor) -> None:
    """Raise InputError if crops (F, 3, H, W) in 0 to 255 show nothing, or nothing that moves: no mouth to judge."""
    contrast = float((faces.amax(dim=(2, 3)) - faces.amin(dim=(2, 3))).max())
    if contrast < _LEAST_CONTRAST:
        raise InputError(
            f"the face's crop is of one colour: its pixels lie within {contrast:.0f} of 255 levels, "
            f"{_LEAST_CONTRAST:.0f} are the least; no moving mouth is there: give a face_box that holds it"
        )
    moved = (faces.amax(dim=0) - faces.amin(dim=0)).amax(dim=0)  # (H, W)
    moving = float((moved >= _LEAST_CONTRAST).float().mean())
    if moving < _LEAST_MOVING:
        raise InputError(
            f"the face's crop stands still: {moving:.2%} of its pixels move by {_LEAST_CONTRAST:.0f} levels of 255, "
            f"{_LEAST_MOVING:.1%} are the least; no moving mouth is there: give a face_box that holds it"
        )


@torch.no_grad()
def embedded(network: SyncNet, faces: Tensor, sound: Sound) -> tuple[Tensor, Tensor]:
    """Vectors (N, 1024) of the pictures and of the sound (samples,) at 16 kHz, a pair each 40 ms.

    Raises:
        InputError: fewer than 6 frames have sound, or nothing is seen or moves in these.
    """
    count = min(len(faces), len(sound) * RATE // SAMPLE_RATE) - WINDOW
    if count < 1:
        raise InputError(f"{len(faces)} frames with sound are too few; lip sync wants more than {WINDOW}")
    refuse_still(faces[: count + WINDOW])
    values = np.round(np.clip(sound.astype(np.float64), -1, 1) * 32767)
    cepstra = torch.from_numpy(mfcc(values).T.astype(np.float32).copy())  # (13, T)
    device = next(network.parameters()).device
    seen, heard = [], []
    for start in range(0, count, _BATCH):
        places = range(start, min(count, start + _BATCH))
        pictures = torch.stack([faces[place : place + WINDOW].transpose(0, 1) for place in places])
        length = WINDOW * _CEPSTRA_A_FRAME
        sounds = [cepstra[None, :, place * _CEPSTRA_A_FRAME : place * _CEPSTRA_A_FRAME + length] for place in places]
        seen.append(network.see(pictures.to(device)).cpu())
        heard.append(network.hear(torch.stack(sounds).to(device)).cpu())
    return torch.cat(seen), torch.cat(heard)
