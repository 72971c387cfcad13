"""Picture files as a person sees them: upright, and on white where they are transparent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import NestedAttentionError
from .check import check_pictures

_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(picture: Image.Image) -> Image.Image:
    """Turned as the camera was held, in RGBA; as it is stored where its EXIF cannot be read.

    Raises as Pillow does for a file that cannot be decoded, and ValueError for one of floating-point numbers,
    whose range nothing says.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    picture.load()
    # Not by Pillow's exif_transpose, which writes EXIF anew and trips over entries that nobody asked for.
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises what its parser meets
        turn = None
    return _in_bytes(picture if turn is None else picture.transpose(turn)).convert("RGBA")


def _in_bytes(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8, which Pillow would clip."""
    if not picture.mode.startswith("I"):
        return picture
    grey = np.asarray(picture).astype(np.int64)
    deep = picture.mode != "I" or grey.max() > 255  # what older versions of Pillow make of both is I
    return Image.fromarray((grey / 257).round().clip(0, 255).astype(np.uint8)) if deep else picture


def on_white(picture: Image.Image) -> Image.Image:
    """RGBA → RGB"""
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def open_picture(path: Path) -> Image.Image:
    """A picture upright and in RGB, what is transparent in white. Raises NestedAttentionError, naming the
    file."""
    try:
        with Image.open(path) as file:
            return on_white(upright(file))
    except FileNotFoundError as error:
        raise NestedAttentionError(
            f"{path} cannot be read as a picture: there is no picture of that name; check the path"
        ) from error
    except Exception as error:  # Pillow raises what its decoders meet
        raise NestedAttentionError(
            f"{path} cannot be read as a picture ({' '.join(str(error).split())[:200]}); expected a PNG, "
            "JPEG or WebP file that is whole"
        ) from error


@lru_cache(maxsize=2)  # one of 24 megapixels takes 0.28 GB
def read_picture(path: Path) -> Tensor:
    """(height, width, 3) in [0, 1]; not to be written to. Raises NestedAttentionError, naming the file."""
    return check_pictures(pixels(open_picture(path))[None], str(path))[0]


def pixels(picture: Image.Image) -> Tensor:
    """RGB → (height, width, 3) in [0, 1]"""
    return torch.from_numpy(np.array(picture)).float() / 255
