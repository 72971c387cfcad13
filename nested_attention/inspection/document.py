"""Maps as one JSON document, which the editor's widget and the page of `nested-attention inspect` show.

    pictures[n]   image, width, height, and for each subject of the picture:
      title, word_text, colour
      word, change, place   maps {grid, max, data}: bytes, max · byte / 255, averaged over layers and steps
      layers[i]             the same three for one layer, and its site
      steps[i]              the same three for a span of steps, and its first and last
      values                {grid, data}: red, green and blue of the value's place among the tokens
      tokens                {grid, count, indices, shares}: of each cell, the strongest first; 16 bits,
                            little-endian, shares in 1/65535
      drawn                 {grid, images, data}: each reference's share of a cell, in 1/255
      references[i]         {image, queries, grid, maps}: maps {token: {max, data}} of the tokens that
                            occur; image null where the picture is not known
      points                [x, y] in [0, 1]: the places to begin with

Arrays are base64. Rows come before columns, and what a cell holds comes last.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .draw import PALETTE, Point
from .maps import CHANGE, PLACE, WORD, Observation, Selection, SubjectMaps

FORMAT, VERSION = "nested_attention.maps", 1
LARGEST = 768
"""Pixels of the longer side of a picture in a document."""

STARTING_POINTS = 3


def document(
    seen: Observation, pictures: Sequence[np.ndarray], points: Sequence[Point] = ()
) -> dict[str, Any]:
    """pictures: of the sampling, (H, W, 3) uint8, in order. points: empty takes the strongest of each
    subject."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "steps": seen.steps,
        "pictures": [
            {
                "image": data_url(picture),
                "width": picture.shape[1],
                "height": picture.shape[0],
                "subjects": [
                    _subject(seen, one, PALETTE[i % len(PALETTE)], points)
                    for i, one in enumerate(seen.of(number))
                ],
            }
            for number, picture in enumerate(pictures)
        ],
    }


def _subject(
    seen: Observation, one: SubjectMaps, colour: tuple[int, int, int], points: Sequence[Point]
) -> dict[str, Any]:
    def means(selection: Selection) -> dict[str, Any]:
        channels = {"word": WORD, "change": CHANGE, "place": PLACE}
        return {name: map_of(one.mean(ch, selection, seen.spans)[0]) for name, ch in channels.items()}

    values = one.coloured(Selection(), seen.spans).permute(1, 2, 0)
    shares = one.weights.permute(1, 2, 0).mul(65535).round().clamp(0, 65535).numpy().astype("<u2")
    indices = one.indices.permute(1, 2, 0).numpy().astype("<u2")
    grid = list(one.weights.shape[1:])
    drawn = one.drawn.permute(1, 2, 0).mul(255).round().clamp(0, 255).byte().numpy()
    return {
        "title": one.title,
        "word_text": one.word,
        "colour": "#{:02x}{:02x}{:02x}".format(*colour),
        **means(Selection()),
        "layers": [{"site": site, **means(Selection(layers=site))} for site in one.maps],
        "steps": [
            {"first": first, "last": last, **means(Selection(steps=(first, last)))} for first, last in
            seen.spans
        ],
        "values": {
            "grid": list(values.shape[:2]), "data": text_of(values.mul(255).round().byte().numpy()),
        },
        "tokens": {
            "grid": grid, "count": one.weights.shape[0], "indices": text_of(indices), "shares":
            text_of(shares),
        },
        "drawn": {"grid": grid, "images": len(one.drawn), "data": text_of(drawn)},
        "references": _references(one),
        "points": [list(point) for point in (points or one.strongest(STARTING_POINTS, seen.spans))],
    }  # fmt: skip


def _references(one: SubjectMaps) -> list[dict[str, Any]]:
    occurring = sorted(set(one.indices.flatten().tolist()))
    found: list[dict[str, Any]] = []
    for image, reference in enumerate(one.references):
        own = [token for token in occurring if token // one.queries == image]
        if reference is None:
            found.append({"image": None, "queries": one.queries, "grid": [1, 1], "maps": {}})
            continue
        maps = None if reference.looks is None else reference.looks()
        found.append(
            {
                "image": data_url(reference.picture.numpy()),
                "queries": one.queries,
                "grid": [1, 1] if maps is None else list(maps.shape[1:]),
                "maps": {} if maps is None else {str(n): _bytes(maps[n % one.queries]) for n in own},
            }
        )
    return found


def map_of(values: Tensor) -> dict[str, Any]:
    """(h, w) ≥ 0 → grid, max, data"""
    return {"grid": list(values.shape), **_bytes(values)}


def _bytes(values: Tensor) -> dict[str, Any]:
    most = float(values.max())
    scaled = values.div(most or 1).mul(255).round().clamp(0, 255).byte().cpu().numpy()
    return {"max": most, "data": text_of(scaled)}


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def data_url(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 → a picture in the document: small ones as they are, large ones smaller and as JPEG."""
    image, file = Image.fromarray(picture), io.BytesIO()
    if max(image.size) <= LARGEST // 2:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((LARGEST, LARGEST))
        image.save(file, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
