#!/usr/bin/env python3
"""Turns face-api.js's face recogniser into weights/face_recognition/face_recognition.safetensors.

    npm pack @vladmandic/face-api@1.7.15 && tar xzf vladmandic-face-api-*.tgz
    pip install dlib-bin face-recognition-models
    python scripts/convert_face_recognition.py package/model

The weights are copied bit for bit: 8 bits a value with a step and a minimum a tensor, fp32 where the source
has it. Then the torch network and dlib's own, with dlib's own weights, see the same photographs, and the
largest differences are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.paths import FACE_RECOGNISER as TARGET  # noqa: E402
from nested_attention.pictures.pyramid import face_detector  # noqa: E402
from nested_attention.pictures.recognise import (  # noqa: E402
    SIDE,
    FaceRecogniser,
    describe,
    face_chip,
    load_face_recogniser,
)
from nested_attention.storage.tensors import write_tensors  # noqa: E402

SHA256 = "b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589"
"""Of face_recognition_model.bin in version 1.7.15 of the package."""

BLOCKS = (
    *("conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3"),
    *("conv128_down", "conv128_1", "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
)
"""The source's names of the residual blocks, in order."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert face-api.js's face recogniser.")
    parser.add_argument("folder", type=Path, help="package/model of the npm package")
    folder = parser.parse_args().folder
    source = folder / "face_recognition_model.bin"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{source} has the SHA-256 {digest}; expected {SHA256}")
    manifest = json.loads((folder / "face_recognition_model-weights_manifest.json").read_text())
    (group,) = manifest
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    tensors = dict(renamed(read_weights(source.read_bytes(), group["weights"])))
    write_tensors(TARGET, tensors, {"source_sha256": digest, "license": "MIT"})
    print(f"{TARGET.relative_to(ROOT)}: SHA-256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")
    compare(load_face_recogniser(TARGET))


def read_weights(data: bytes, entries: list[dict[str, Any]]) -> dict[str, tuple[torch.Tensor, list[float]]]:
    """Name → the values as they are stored, and step and minimum of those of 8 bits."""
    found, start = {}, 0
    for entry in entries:
        coded = entry.get("quantization")
        values = np.frombuffer(
            data, coded["dtype"] if coded else entry["dtype"], int(np.prod(entry["shape"])), start
        )
        start += values.nbytes
        tensor = torch.from_numpy(values.reshape(entry["shape"]).copy())
        found[entry["name"]] = tensor, [coded["scale"], coded["min"]] if coded else []
    if start != len(data):
        sys.exit(f"the manifest describes {start} bytes, and the file has {len(data)}")
    return found


def renamed(weights: dict[str, tuple[torch.Tensor, list[float]]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and axes of TensorFlow → those of `FaceRecogniser`."""
    layers = {"stem": "conv32_down"}
    for number, block in enumerate(BLOCKS):
        layers[f"blocks.{number}.first"] = f"{block}/conv1"
        layers[f"blocks.{number}.second"] = f"{block}/conv2"
    names = {"head.weight": "fc"}
    for ours, theirs in layers.items():
        names[f"{ours}.convolution.weight"] = f"{theirs}/conv/filters"
        names[f"{ours}.convolution.bias"] = f"{theirs}/conv/bias"
        names[f"{ours}.scale"] = f"{theirs}/scale/weights"
        names[f"{ours}.offset"] = f"{theirs}/scale/biases"
    for ours, theirs in names.items():
        tensor, coding = weights[theirs]
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[tensor.dim()]  # (h, w, in, out), (in, out)
        yield ours, tensor.permute(axes).contiguous()
        if coding:
            yield f"{ours}.range", torch.tensor(coding, dtype=torch.float32)


def photographs() -> dict[str, torch.Tensor]:
    """What scikit-image ships: an astronaut as she is and changed, and ten faces of Labeled Faces in the
    Wild, 25 × 25 pixels and grey. Chips (3, 150, 150)."""
    from skimage import data, filters, transform

    picture = torch.from_numpy(data.astronaut() / 255).float()
    detect = face_detector()

    def chip(values: torch.Tensor) -> torch.Tensor:
        return face_chip(values, detect(values)[0])

    smooth = torch.from_numpy(filters.gaussian(picture.numpy(), 2, channel_axis=-1)).float()
    chips = {
        "astronaut": chip(picture),
        "mirrored": chip(picture.flip(1)),
        "darker": chip(picture * 0.4),
        "blurred": chip(smooth),
    }
    for number, face in enumerate(data.lfw_subset()[:10]):
        large = torch.from_numpy(transform.resize(face, (SIDE, SIDE), order=3)).float().clamp(0, 1)
        chips[f"LFW {number}"] = large.expand(3, -1, -1)
    return chips


def compare(network: FaceRecogniser) -> None:
    """The distances of all pairs, by the torch network and by dlib; then with each one's own landmarks."""
    import dlib
    import face_recognition_models as models
    from skimage import data

    original = dlib.face_recognition_model_v1(models.face_recognition_model_location())
    chips = photographs()
    pixels = {name: (chip * 255).round().byte() for name, chip in chips.items()}
    with torch.no_grad():
        ours = network(torch.stack([chip.float() / 255 for chip in pixels.values()]))
    theirs = torch.stack(
        [
            torch.tensor(list(original.compute_face_descriptor(chip.permute(1, 2, 0).contiguous().numpy())))
            for chip in pixels.values()
        ]
    )
    distances, expected = torch.cdist(ours, ours), torch.cdist(theirs, theirs)
    names, differences = list(chips), []
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            found, wanted = float(distances[first, second]), float(expected[first, second])
            differences.append(abs(found - wanted))
            if first == 0:
                print(f"{names[first]} – {names[second]}: dlib {wanted:.4f}, torch {found:.4f}")
    print(
        f"{len(differences)} pairs: largest difference {max(differences):.4f}, "
        f"mean {sum(differences) / len(differences):.4f}"
    )
    photo = data.astronaut()
    (rectangle, *_) = dlib.get_frontal_face_detector()(photo, 1)
    landmarks = dlib.shape_predictor(models.pose_predictor_five_point_model_location())(photo, rectangle)
    whole = torch.tensor(list(original.compute_face_descriptor(photo, landmarks)))
    picture = torch.from_numpy(photo / 255).float()
    face = face_detector()(picture)[0]
    apart = float((describe(network, picture, [face])[0] - whole).norm())
    print(f"astronaut, each with its own detector, landmarks and weights: descriptors {apart:.4f} apart")


if __name__ == "__main__":
    main()
