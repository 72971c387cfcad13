#!/usr/bin/env python3
"""Turns MediaPipe's short-range face detector (.tflite) into weights/blazeface/face_detection.safetensors.

    npm pack @mediapipe/face_detection@0.4.1657300184 && tar xzf mediapipe-face_detection-*.tgz
    pip install tflite ai-edge-litert
    python scripts/convert_blazeface.py package/face_detection_short_range.tflite

The weights in the .tflite are fp16 already and are copied bit for bit. Then the torch network and the
.tflite itself, run by ai-edge-litert, see the same pictures, and the largest differences are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.pictures.blazeface import SIDE, BlazeFace, load_blazeface  # noqa: E402
from nested_attention.storage.tensors import write_tensors  # noqa: E402

TARGET = ROOT / "weights" / "blazeface" / "face_detection.safetensors"
SHA256 = "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633"
"""Of the .tflite in version 0.4.1657300184 of the package."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert MediaPipe's short-range face detector.")
    parser.add_argument("tflite", type=Path)
    source = parser.parse_args().tflite
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{source} has the SHA-256 {digest}; expected {SHA256}")
    weights = read_weights(source)
    write_tensors(TARGET, dict(renamed(weights)), {"source_sha256": digest, "license": "Apache-2.0"})
    print(f"{TARGET.relative_to(ROOT)}: SHA-256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")
    compare(source, load_blazeface(TARGET))


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The constant fp16 tensors of a .tflite, under their own names."""
    import tflite

    model = tflite.Model.GetRootAs(path.read_bytes())
    graph = model.Subgraphs(0)
    weights = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if tensor.Type() == tflite.TensorType.FLOAT16:
            data = model.Buffers(tensor.Buffer()).DataAsNumpy()
            weights[tensor.Name().decode()] = np.frombuffer(data.tobytes(), np.float16).reshape(
                tensor.ShapeAsNumpy()
            )
    return weights


def renamed(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and axes of TensorFlow → those of `BlazeFace`."""
    layers = {"stem": "conv2d", "scores.0": "classificator_8", "scores.1": "classificator_16"}
    layers |= {"values.0": "regressor_8", "values.1": "regressor_16"}
    shallow = len(BlazeFace().blocks)
    for number in range(shallow + len(BlazeFace().deep_blocks)):
        block = f"blocks.{number}" if number < shallow else f"deep_blocks.{number - shallow}"
        layers[f"{block}.depthwise"] = f"depthwise_conv2d_{number}" if number else "depthwise_conv2d"
        layers[f"{block}.pointwise"] = f"conv2d_{number + 1}"
    for ours, theirs in layers.items():
        kernel = torch.from_numpy(weights[f"{theirs}/Kernel"].copy())
        # (out, h, w, in), or (1, h, w, channels) of a depthwise layer
        kernel = kernel.permute(3, 0, 1, 2) if "depthwise" in ours else kernel.permute(0, 3, 1, 2)
        yield f"{ours}.weight", kernel.contiguous()
        yield f"{ours}.bias", torch.from_numpy(weights[f"{theirs}/Bias"].copy())


def compare(path: Path, network: BlazeFace) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from skimage import data, transform

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    places = {entry["name"]: entry["index"] for entry in interpreter.get_output_details()}
    astronaut = transform.resize(data.astronaut(), (SIDE, SIDE), anti_aliasing=True)
    face = transform.resize(data.astronaut()[:256, 96:352], (SIDE, SIDE), anti_aliasing=True)
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3))
    for name, picture in {"astronaut": astronaut, "its upper half": face, "noise": noise}.items():
        pixels = picture[None].astype(np.float32)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels * 2 - 1)
        interpreter.invoke()
        with torch.no_grad():
            logits, values = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        raw = torch.from_numpy(interpreter.get_tensor(places["regressors"]))
        theirs = torch.from_numpy(interpreter.get_tensor(places["classificators"]))[..., 0]
        print(
            f"{name}: best score {float(logits.max().sigmoid()):.4f}, largest difference of a logit "
            f"{float((logits - theirs).abs().max()):.1e}, of a place "
            f"{float((values - network._place(raw)).abs().max()):.1e} px"
        )


if __name__ == "__main__":
    main()
