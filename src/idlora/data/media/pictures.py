# SPDX-License-Identifier: Apache-2.0
"""Pictures: any common file becomes 8-bit RGB, upright and on white."""

from __future__ import annotations

import os
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from idlora.errors import InputError, MediaError
from idlora.files import replacing

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded; 100 megapixels take 300 MB as RGB."""

_DRAFT_SIDE = 2048
_WHITE = (255, 255, 255, 255)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture as RGB.

    The EXIF orientation is applied, transparency is laid over white, grey, palette, CMYK and 16-bit pictures are
    converted; of an animation the first frame is taken. Large JPEG files are decoded at a fraction of their size, no
    smaller than 2,048 pixels a side where they have that many.

    Raises:
        MediaError: the file is missing, no picture, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings(), open(path, "rb") as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as image:
                return _decode(image, path)
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(f"{path} is not a picture that can be read; use PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        raise MediaError(_too_large(path)) from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"cannot read picture {path}: {reason}; check the path or export the picture anew") from error


def fit_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale a picture to cover `height` x `width` pixels, keeping its aspect, and crop the centre.

    Raises:
        InputError: a side is not positive.
    """
    if height < 1 or width < 1:
        raise InputError(f"size {height} x {width} is not positive; ask for at least 1 x 1 pixels")
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def write_png(path: str | os.PathLike[str], image: Image.Image | NDArray[np.uint8]) -> None:
    """Write a picture, or an array (H, W, 3) uint8, as PNG in one step.

    Raises:
        OutputError: the file cannot be written.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _decode(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    image.draft(None, (_DRAFT_SIDE, _DRAFT_SIDE))
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(_too_large(path))
    image.load()
    return to_rgb(image)


def _too_large(path: str | os.PathLike[str]) -> str:
    return f"picture {path} has more than {MAX_PIXELS:,} pixels; scale it down first"


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture upright by its EXIF orientation, on white, as 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale 16-bit integers, or floats in [0, 1], to 0..255; the full ranges map onto each other."""
    scale = 255.0 if grey.dtype.kind == "f" else 255.0 / 65535.0
    return np.rint(np.clip(np.nan_to_num(grey.astype(np.float64)) * scale, 0.0, 255.0)).astype(np.uint8)
