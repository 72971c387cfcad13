#!/usr/bin/env python3
"""Makes the saved subject that comes with the pack, which the workflow avatar_load_subject loads.

It is a drawn person whom no training has seen. Run it from the repository's root when the person encoder or
the vision model changes: .venv/bin/python scripts/saved_subject.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.avatars.drawing.references import held_out, reference_crop, reference_picture  # noqa: E402
from nested_attention.avatars.models.world import load_world  # noqa: E402
from nested_attention.checkpoint import load_subject_encoder  # noqa: E402
from nested_attention.paths import SMALL_WORLD  # noqa: E402
from nested_attention.storage.thumbnail import make_thumbnail  # noqa: E402
from nested_attention.subject import Subject  # noqa: E402

SOMEBODY = 12
"""The held-out person that the file holds."""

SAVED = ROOT / "weights" / "subjects" / "somebody.safetensors"


def main() -> None:
    identity = held_out("person", SOMEBODY)
    features = load_world().features(reference_crop(identity)[None])
    subject = Subject.from_images(load_subject_encoder(SMALL_WORLD / "person_encoder.safetensors"), features)
    SAVED.parent.mkdir(exist_ok=True)
    picture = torch.from_numpy(reference_picture(identity)).float() / 255  # (112, 112, 3)
    subject.save(SAVED, thumbnail=make_thumbnail(picture))
    print(f"{SAVED.relative_to(ROOT)}: {SAVED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
