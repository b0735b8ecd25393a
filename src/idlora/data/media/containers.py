# SPDX-License-Identifier: Apache-2.0
"""How sound and video files are opened: by contents, without network, with faults told as `MediaError`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer

from idlora.errors import MediaError

# Playlists (HLS, concat) name other files and addresses; a file from a stranger must not make us open them.
_OPTIONS = {"protocol_whitelist": "none"}


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    """Open a sound or video file for reading; damage found while decoding in the block is told the same way.

    Raises:
        MediaError: the file is missing, is no sound or video, or is damaged.
    """
    try:
        with open(path, "rb") as stream, av.open(stream, mode="r", options=_OPTIONS) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(
            f"{path} cannot be decoded: {error.strerror}; use a common sound or video file, such as WAV or MP4"
        ) from error
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}; check the path") from error
