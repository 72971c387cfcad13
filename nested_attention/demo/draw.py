"""The same cases drawn by either host: a real ComfyUI server running the shipped workflows, or diffusers."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..avatars.figures.cases import Case
from ..paths import PACK, SMALL_WORLD
from .cases import Drawn, Row
from .server import ComfyServer

Graph = dict[str, Any]


def draw_with_comfyui(rows: Sequence[Row], comfyui: Path) -> list[Drawn]:
    """Runs `workflows/api/avatar_person.json` and `avatar_person_and_pet.json` in a headless server.

    The plain base model is the first of them with the subject's strength at 0. Raises NestedAttentionError if
    the server does not start or a workflow fails.
    """
    one, two = load_workflow("avatar_person"), load_workflow("avatar_person_and_pet")
    with (
        tempfile.TemporaryDirectory(prefix="nested-attention-") as folder,
        ComfyServer(comfyui, Path(folder)) as server,
    ):

        def picture(graph: Graph, row: Row, case: Case, strength: float = 1.0) -> np.ndarray:
            graph = adapt(graph, row, case, strength=strength)
            return art_pixels(server.run(graph)[node_of(graph, "SaveImage")][0])

        return [
            Drawn(
                base=picture(one, row, row.alone, strength=0.0),
                alone=picture(one, row, row.alone),
                together=picture(two, row, row.together),
            )
            for row in rows
        ]


def draw_with_diffusers(rows: Sequence[Row]) -> list[Drawn]:
    """The same with the small world's own modules and the attention processors for diffusers."""
    from ..avatars.models.world import load_world
    from ..checkpoint import load_subject_encoder

    world = load_world()
    alone, together = [row.alone for row in rows], [row.together for row in rows]
    encoders = {
        word: load_subject_encoder(SMALL_WORLD / f"{word}_encoder.safetensors", dtype=torch.float32)
        for word in ("person", "pet")
    }

    def draw(cases: list[Case], *words: str) -> np.ndarray:
        crops = {word: np.stack([case.reference(word) for case in cases]) for word in words}
        attached = [world.attach(encoders[word], crops[word], word) for word in words]
        prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
        return world.generate(prompts, seeds, attached, latent_width=cases[0].latent_width)

    pictures = draw(alone), draw(alone, "person"), draw(together, "person", "pet")
    return [Drawn(*row) for row in zip(*pictures, strict=True)]


def load_workflow(name: str) -> Graph:
    """A shipped workflow in API format."""
    return dict(json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")))


def adapt(graph: Graph, row: Row, case: Case, *, strength: float = 1.0) -> Graph:
    """A shipped avatar workflow with a row's subjects, and a case's prompt and noise, for one picture."""
    graph = copy.deepcopy(graph)
    graph[node_of(graph, "NestedAttentionDemoWorld")]["inputs"].update(person=row.person, pet=row.pet)
    sampler = graph[node_of(graph, "KSampler")]["inputs"]
    sampler["seed"] = case.seed
    graph[sampler["positive"][0]]["inputs"]["text"] = case.prompt
    graph[sampler["latent_image"][0]]["inputs"]["batch_size"] = 1
    for node in graph.values():
        if node["class_type"] == "NestedAttentionApplySubject":
            node["inputs"]["strength"] = strength
    return graph


def node_of(graph: Graph, class_type: str) -> str:
    """The id of the only node of a class."""
    (number,) = (number for number, node in graph.items() if node["class_type"] == class_type)
    return str(number)


def art_pixels(path: Path) -> np.ndarray:
    """A saved picture of the small world, enlarged any number of times → (32, W, 3) uint8"""
    from PIL import Image

    from ..avatars.drawing.canvas import SIZE

    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    step = rgb.shape[0] // SIZE
    return rgb[step // 2 :: step, step // 2 :: step]
