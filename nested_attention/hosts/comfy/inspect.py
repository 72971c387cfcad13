"""What the nodes Observe Subjects and View Subject Maps call."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...errors import NestedAttentionError
from ...inspection.document import document, map_of
from ...inspection.draw import (
    PALETTE,
    Point,
    query_pictures,
    token_pictures,
    value_pictures,
    word_pictures,
)
from ...inspection.maps import Selection
from ...inspection.recording import Recording, Watch
from ...pictures.check import check_pictures
from ...prompt import short
from ...typed import read_numbers
from .identity import node_called, running_identity
from .notices import running_node, send
from .sampling.recorder import Recorder, observe
from .state import told

GLIMPSE = "nested_attention.glimpse"
"""The message that web/nested_attention_maps.js shows on Observe Subjects."""


def observe_subjects(model: Any, watch: Watch, *, on: bool, preview: bool) -> tuple[Any, Recorder]:
    """MODEL → a clone whose samplings are recorded, or the same if it is off, and the recorder."""
    node, identity = running_node(), running_identity()
    if not on:
        return model, Recorder(None)
    show = (lambda recording: _show(node_called(identity, node), recording)) if preview else None
    recorder = Recorder(watch, show)
    return observe(model, recorder), recorder


def view_maps(
    recorder: Recorder, image: Tensor, *, points: str, layers: str, steps: str
) -> tuple[dict[str, Any], Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The document of what was recorded, and the pictures of the word, the change, the values, the tokens and
    the queries, each a batch (n, height, width, 3).

    Raises NestedAttentionError if nothing was observed, for a batch of another length, and for points, layers
    and steps that cannot be read.
    """
    places, selection = read_points(points), Selection(layers, read_steps(steps))
    seen = recorder.observation()
    pictures = [
        picture.mul(255).round().clamp(0, 255).byte().cpu().numpy()[..., :3]
        for picture in check_pictures(image, "View Subject Maps")
    ]
    if len(pictures) != seen.pictures:
        raise NestedAttentionError(
            f"there are {len(pictures)} pictures, and the sampling that was observed drew {seen.pictures}; "
            "connect all pictures of that sampling"
        )
    drawn = (
        word_pictures(seen, pictures, selection),
        word_pictures(seen, pictures, selection, change=True),
        value_pictures(seen, pictures, selection),
        token_pictures(seen, pictures, places),
        [query_pictures(seen)],
    )
    word, change, values, tokens, queries = (_batch(one) for one in drawn)
    return document(seen, pictures, places), word, change, values, tokens, queries


def maps_ui(maps: Mapping[str, Any]) -> dict[str, Any]:
    """What a node tells the editor: a temporary file with the document."""
    text = json.dumps(maps, allow_nan=False)
    name = f"nested_attention_maps_{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return told("nested_attention_maps", {"filename": name, "subfolder": "", "type": "temp"})


def read_points(text: str) -> list[Point]:
    """Places as typed, `0.5, 0.25; 0.7, 0.6`. Raises NestedAttentionError for anything else."""
    points: list[Point] = []
    for part in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        place = read_numbers(part, float)
        if place is None or len(place) != 2 or not all(0 <= value <= 1 for value in place):
            raise NestedAttentionError(
                f"points has {short(part)!r}; expected x, y in parts of the width and height, each from 0 to "
                "1, and ; between places: 0.5, 0.25; 0.7, 0.6"
            )
        points.append((place[0], place[1]))
    return points


def read_steps(text: str) -> tuple[int, int] | None:
    """Steps as typed, counted from 1: `5`, or `1-10`; None for all."""
    if not text.strip():
        return None
    found = re.fullmatch(r"(\d{1,9})(?:\s*[-–]\s*(\d{1,9}))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise NestedAttentionError(
            f"steps is {short(text)!r}; expected a step such as 5, or a range such as 1-10"
        )
    return first - 1, last - 1


def _batch(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _show(node: str, recording: Recording) -> None:
    """Shows on the node where the words land so far."""
    subjects = [
        {
            "title": title,
            "colour": "#{:02x}{:02x}{:02x}".format(*PALETTE[i % len(PALETTE)]),
            **map_of(attention),
        }
        for i, (title, attention) in enumerate(recording.glimpse())
    ]
    send(GLIMPSE, {"node": node, "step": recording.step, "steps": recording.number, "subjects": subjects})
