"""Malformed pictures, transparency, weights and file names at the nodes: our error or a correct result."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from malformed import NASTY, text
from test_nodes import encoder_file, folder, nodes, pack  # noqa: F401  fixtures
from test_subjects import Vision, folders  # noqa: F401

from nested_attention.storage.store import list_subjects

CASES = int(os.environ.get("NESTED_ATTENTION_MALFORMED", "10000")) // 20


def picture(rng: random.Random) -> Any:
    """An IMAGE, mostly with something wrong."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    sides = [16, 17, 20, 24, 31, 32, 33, 40, 15, 1, 0] if rng.random() < 0.3 else [16, 24, 33]
    shape = [rng.choice([1, 1, 1, 2, 3]), *(rng.choice(sides) for _ in "hw")]
    shape.append(rng.choice([1, 3, 3, 3, 3, 3, 4, 4, 4, 2]))
    if rng.random() < 0.05:
        del shape[rng.randrange(4)]
    image = torch.rand(shape, generator=generator)
    if image.numel() and rng.random() < 0.25:
        spot = rng.randrange(image.numel())
        image.view(-1)[spot] = rng.choice(
            [torch.nan, torch.inf, -torch.inf, -1.0, 255.0, 1.005, -0.005, 3e38]
        )
    if rng.random() < 0.2:
        image = image.to(rng.choice([torch.float16, torch.bfloat16, torch.float64]))
    if rng.random() < 0.05:
        return rng.choice(
            [None, "picture", [image], (image * 255).nan_to_num().clamp(0, 255).to(torch.uint8)]
        )
    return image


def test_malformed_pictures_weights_and_prefixes(
    nodes: dict[str, Any],  # noqa: F811
    pack: ModuleType,  # noqa: F811
    folders: dict[str, Path],  # noqa: F811
    encoder_file: Path,  # noqa: F811
) -> None:
    encoder, _ = nodes["NestedAttentionLoadEncoder"].execute("mine.safetensors").args
    encode, save = nodes["NestedAttentionEncodeSubject"], nodes["NestedAttentionSaveSubject"]
    load = nodes["NestedAttentionLoadSubject"]
    before = set(folders["output"].parent.rglob("*"))
    refused = 0
    for number in range(CASES):
        rng = random.Random(f"picture {number}")
        image = picture(rng)
        weights = rng.choice(["1", "1, 2", "1 0 1", "0", "-1", "nan", "1e999", text(rng, 4)])
        weights = weights if rng.random() < 0.3 else ""
        try:
            (subject,) = encode.execute(encoder, Vision(), image, weights).args
            assert subject.tokens.isfinite().all()
            assert len(subject.tokens) == 6 * subject.images <= 6 * len(image)
            prefix = rng.choice(
                ["a", "sub/a", "ä b", text(rng, 5), rng.choice(NASTY), f"../{rng.choice(NASTY)}"]
            )
            save.execute(subject, prefix, image if rng.random() < 0.5 else None)
            names = list_subjects({"output": folders["output"]})
            loaded = load.execute(f"{rng.choice(names)} [output]").args[0]
            assert loaded.fingerprint == encoder.fingerprint
            for name in names:
                (folders["output"] / name).unlink()
        except ValueError as error:
            assert type(error).__name__ == "NestedAttentionError", error
            assert str(error).startswith(("Encode Subject: ", "Save Subject: ", "Load Subject: ")), error
            refused += 1
    new = set(folders["output"].parent.rglob("*")) - before
    assert all(path.is_relative_to(folders["output"]) or path.is_relative_to(folders["temp"]) for path in new)
    assert 0.2 * CASES < refused < 0.9 * CASES
    print(f"{CASES} malformed pictures, weights and prefixes: {refused} refused")
