"""Picture files as a person sees them."""

from __future__ import annotations

from PIL import Image, ImageOps


def upright_on_white(picture: Image.Image) -> Image.Image:
    """Turned as the camera was held, in RGB, with white where it is transparent. Raises as Pillow does for a
    file that cannot be decoded."""
    upright = ImageOps.exif_transpose(picture).convert("RGBA")
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")
