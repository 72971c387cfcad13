"""Subject Sheet in a real server: the pictures that the stock nodes draw, on one sheet; and its messages."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nested_attention.demo.draw import load_workflow, node_of
from nested_attention.demo.server import ComfyServer
from nested_attention.errors import NestedAttentionError

PROMPTS = ["a photo of a person at the beach", "a mosaic of <alice> in the snow"]
SAMPLER = {
    "steps": 4,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "width": 128,
    "height": 128,
}


def sheet(**options: Any) -> dict[str, Any]:
    """Demo World's person on a sheet, saved as 20; its pictures as 21."""
    drawn = load_workflow("avatar_person")
    kept = ("NestedAttentionDemoWorld", "NestedAttentionLoadEncoder", "NestedAttentionEncodeSubject")
    graph = {node_of(drawn, kind): drawn[node_of(drawn, kind)] for kind in kept}
    apply = copy.deepcopy(drawn[node_of(drawn, "NestedAttentionApplySubject")]["inputs"])
    world = node_of(drawn, "NestedAttentionDemoWorld")
    decode = drawn[node_of(drawn, "VAEDecode")]["inputs"]
    inputs = {
        **{name: apply[name] for name in ("model", "clip", "encoder", "subject")},
        "vae": decode["vae"],
        "prompts": "\n".join(PROMPTS),
        "negative": "",
        "attention_scales": "1, 2",
        "without": True,
        "seeds": "0; 7",
        "name": "alice",
        **SAMPLER,
        **options,
    }
    graph["10"] = {"class_type": "NestedAttentionSheet", "inputs": inputs}
    for number, slot in (("20", 0), ("21", 1)):
        saved = {"images": ["10", slot], "filename_prefix": f"sheet/{number}"}
        graph[number] = {"class_type": "SaveImage", "inputs": saved}
    assert world in graph
    return graph


def by_hand(text: str, seed: int, **settings: Any) -> dict[str, Any]:
    """The same picture by Apply Subject, text encoders, sampler and decoder."""
    graph = load_workflow("avatar_person")
    apply, sampler = (
        graph[node_of(graph, f"{name}")]["inputs"] for name in ("NestedAttentionApplySubject", "KSampler")
    )
    apply.update({"name": "alice", "alpha": 2.0, **settings})
    names = ("steps", "cfg", "sampler_name", "scheduler")
    sampler.update({"seed": seed, "denoise": 1.0, **{name: SAMPLER[name] for name in names}})
    graph[sampler["positive"][0]]["inputs"]["text"] = text
    graph[sampler["negative"][0]]["inputs"]["text"] = ""
    graph[sampler["latent_image"][0]]["inputs"].update(width=128, height=128, batch_size=1)
    return graph


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_sheet_has_the_pictures_of_the_stock_nodes(server: ComfyServer) -> None:
    before = len(server.log.read_text())
    saved = server.run(sheet())
    assert "a prompt" not in server.log.read_text()[before:]  # no warning of a prompt without its subject
    found = [pixels(path) for path in saved["21"]]
    assert len(found) == 2 * 2 * 3
    columns = [{"strength": 0.0}, {"attention_scale": 1.0}, {"attention_scale": 2.0}]
    cases = [(text, seed, column) for text in PROMPTS for seed in (0, 7) for column in columns]
    for number in (0, 1, 5, 11):
        text, seed, settings = cases[number]
        graph = by_hand(text, seed, **settings)
        expected = pixels(server.run(graph)[node_of(graph, "SaveImage")][0])
        size = expected.shape[0] // found[number].shape[0]  # the workflow saves it enlarged
        assert np.array_equal(found[number], expected[::size, ::size]), cases[number]
    assert not np.array_equal(found[1], found[2])

    (whole,) = saved["20"]
    with Image.open(whole) as picture:
        width, height = picture.size
    side = found[0].shape[0] * -(-192 // found[0].shape[0])
    assert width > 3 * side and height > 4 * side and width < 4 * side + 200


def test_one_picture_without_labels_for_seeds(server: ComfyServer) -> None:
    one = sheet(prompts=PROMPTS[0], attention_scales="1", seeds="3", without=False)
    assert len(server.run(one)["21"]) == 1


def test_it_speaks_of_itself_and_not_of_the_nodes_it_is_made_of(server: ComfyServer) -> None:
    server.run(sheet(prompts=PROMPTS[0], attention_scales="1", seeds="3", steps=1, word="person"))
    outputs = list(server.get("/history").values())[-1]["outputs"]
    told = {node: out.get("nested_attention_state") for node, out in outputs.items() if node.startswith("10")}
    assert told == {
        "10": [["word: person, in the prompt <alice>", "encoder: person_encoder.safetensors · 2 pictures"]]
    }
    with pytest.raises(NestedAttentionError, match="Sheet .10.: Subject Sheet: no prompt") as caught:
        server.run(sheet(prompts="a house", attention_scales="1", steps=1))
    assert "set word of Subject Sheet" in str(caught.value) and "when missing" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": " \n "}, "there is no prompt"),
        ({"attention_scales": "1, many"}, "attention_scales is '1, many'; expected numbers from 0.05 to 10"),
        ({"attention_scales": "0"}, "attention_scales is '0'"),
        ({"seeds": ""}, "seeds is ''; expected numbers from 0"),
        ({"seeds": "1.5"}, "seeds is '1.5'"),
        ({"seeds": ",".join(map(str, range(40)))}, "2 prompts × 40 seeds × 3 columns are 240 pictures"),
        (  # said before anything is drawn
            {"seeds": "1 2 3 4 5 6 7 8", "width": 1024, "height": 1024, "steps": 10_000},
            "Subject Sheet: the sheet would have .* expected 16384 a side at most",
        ),
    ],
)
def test_what_is_wrong_is_said(server: ComfyServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        server.run(sheet(**options))
