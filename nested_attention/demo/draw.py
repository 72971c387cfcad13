"""The same cases drawn by either host: a real ComfyUI server running the shipped workflows, or diffusers."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case, Drawn
from .server import PACK, ComfyServer

Graph = dict[str, Any]


def draw_with_comfyui(cases: Sequence[Case], comfyui: Path) -> list[Drawn]:
    """Runs `workflows/api/avatar_person.json` and `avatar_person_and_pet.json` in a headless server.

    The plain base model is the first of them with the subject's strength at 0. Raises NestedAttentionError if
    the server does not start or a workflow fails.
    """
    one, two = load_workflow("avatar_person"), load_workflow("avatar_person_and_pet")
    with (
        tempfile.TemporaryDirectory(prefix="nested-attention-") as folder,
        ComfyServer(comfyui, Path(folder)) as server,
    ):

        def picture(graph: Graph, case: Case, prompt: str, strength: float = 1.0) -> np.ndarray:
            graph = adapt(
                graph, person=case.person, pet=case.pet, prompt=prompt, seed=case.noise, strength=strength
            )
            return art_pixels(server.run(graph)[node_of(graph, "SaveImage")][0])

        return [
            Drawn(
                base=picture(one, case, case.alone_prompt, strength=0.0),
                alone=picture(one, case, case.alone_prompt),
                together=picture(two, case, case.together_prompt),
            )
            for case in cases
        ]


def draw_with_diffusers(cases: Sequence[Case]) -> list[Drawn]:
    """The same with the small world's own modules and the attention processors for diffusers."""
    from ..avatars.references import reference_crop
    from ..avatars.tokenizer import WEIGHTS
    from ..avatars.world import Attached, load_world
    from ..checkpoint import load_subject_encoder

    world = load_world()
    attached = []
    for number, kind in enumerate(("person", "pet")):
        encoder = load_subject_encoder(WEIGHTS / f"{kind}_encoder.safetensors").float()
        crops = np.stack([reference_crop(case.identities[number]) for case in cases])
        attached.append(Attached(encoder, encoder(world.features(crops)), encoder.config.word))
    seeds = [case.noise for case in cases]
    alone, together = [case.alone_prompt for case in cases], [case.together_prompt for case in cases]
    pictures = (
        world.generate(alone, seeds),
        world.generate(alone, seeds, attached[:1]),
        world.generate(together, seeds, attached),
    )
    return [Drawn(*row) for row in zip(*pictures, strict=True)]


def load_workflow(name: str) -> Graph:
    """A shipped workflow in API format."""
    return dict(json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")))


def adapt(graph: Graph, *, person: int, pet: int, prompt: str, seed: int, strength: float = 1.0) -> Graph:
    """A shipped avatar workflow with other subjects, prompt and noise, for one picture."""
    graph = copy.deepcopy(graph)
    graph[node_of(graph, "NestedAttentionDemoWorld")]["inputs"].update(person=person, pet=pet)
    sampler = graph[node_of(graph, "KSampler")]["inputs"]
    sampler["seed"] = seed
    graph[sampler["positive"][0]]["inputs"]["text"] = prompt
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
    """A saved picture of the small world, enlarged any number of times → (32, 32, 3) uint8"""
    from PIL import Image

    from ..avatars.canvas import SIZE

    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    step = rgb.shape[0] // SIZE
    return rgb[step // 2 :: step, step // 2 :: step]
