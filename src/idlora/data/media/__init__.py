# SPDX-License-Identifier: Apache-2.0
"""Pictures, voices and clips: read from any common file, written whole or not at all.

The only modules that touch codecs (Pillow, PyAV, soundfile, soxr) and the denoiser (RNNoise). Pictures are RGB, sound
is float32 in [-1, 1] with shape (channels, samples), video is uint8 with shape (frames, height, width, 3).
"""

from idlora.data.media.cleaning import clean_voice
from idlora.data.media.pictures import fit_image, read_image, to_rgb, write_png
from idlora.data.media.sounds import Voice, read_voice, resample, write_wav
from idlora.data.media.videos import Video, read_video, write_mp4
from idlora.data.media.windows import PreparedVoice, prepare_voice

__all__ = [
    "PreparedVoice",
    "Video",
    "Voice",
    "clean_voice",
    "fit_image",
    "prepare_voice",
    "read_image",
    "read_video",
    "read_voice",
    "resample",
    "to_rgb",
    "write_mp4",
    "write_png",
    "write_wav",
]
