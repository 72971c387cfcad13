"""What goes without its subject says so where it is seen: on the node that is being run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
    "2": {"class_type": "NestedAttentionApplySubject", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1]}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["3", 0]}},
}


class Editor:
    """A server with one run going on, that notes what it is told to show."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []  # node, text
        self.toasts: list[tuple[str, str]] = []
        self.client_id = "of another run"
        self.asked: str | None = "editor"  # the client of the run
        self.prompt_queue = SimpleNamespace(currently_running={})

    def send_sync(self, event: str, data: dict[str, str], sid: str) -> None:
        assert (event, sid) == ("nested_attention.warning", self.asked)
        assert sid is not None  # to None is to every editor
        ((_, run, _, more, _),) = self.prompt_queue.currently_running.values()
        assert (data["prompt_id"], data["workflow"]) == (run, more["extra_pnginfo"]["workflow"]["id"])
        self.texts.append((data["node"], data["shown"]))
        self.toasts.append((data["node"], data["text"]))

    @contextmanager
    def running(self, node: str, run: str = "run", graph: Any = None) -> Iterator[None]:
        from comfy_execution.utils import CurrentNodeContext

        asked: dict[str, Any] = {} if self.asked is None else {"client_id": self.asked}
        asked["extra_pnginfo"] = {"workflow": {"id": "of the graph"}}
        self.prompt_queue.currently_running = {0: (0, run, GRAPH if graph is None else graph, asked, [])}
        with CurrentNodeContext(run, node):
            yield


@pytest.fixture
def editor(world: Any, monkeypatch: pytest.MonkeyPatch) -> Editor:
    import nodes  # noqa: F401  ComfyUI's, which knows what its nodes put out

    from nested_attention.hosts.comfy import notices

    monkeypatch.setattr(notices, "_notices", notices._Notices())
    editor = Editor()
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=editor))
    monkeypatch.setitem(sys.modules, "server", module)
    return editor


@pytest.fixture(autouse=True)
def anew(world: Any) -> None:
    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()


def test_a_warning_is_shown_on_the_node_in_each_run_that_has_its_cause(
    world: Any, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    empty, half = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    for run in ("a", "b"):
        with editor.running("2", run):
            world.apply(world.model, world.clip, region=empty)
            world.apply(world.model, world.clip, region=empty)  # told once
    with editor.running("2", "c"):
        world.apply(world.model, world.clip, region=half)
    node, text = editor.texts[0]
    assert node == "2" and "the region of 'person' is empty" in text
    assert editor.texts == [("2", text), ("2", text)]
    assert editor.toasts == [("2", text), ("2", text)]
    said = [r.getMessage() for r in caplog.records if r.name == "nested_attention"]
    assert len(said) == 1 and said[0].endswith("(NestedAttentionApplySubject, node 2)")


def test_a_warning_on_its_node_leaves_the_nodes_name_out(
    world: Any, editor: Editor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for little. The message beside it and the log say which node it is."""
    import nodes

    from nested_attention.hosts.comfy.notices import warn

    titles = {**nodes.NODE_DISPLAY_NAME_MAPPINGS, "NestedAttentionApplySubject": "Apply Subject"}
    monkeypatch.setattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", titles)
    for said in ("Apply Subject: one", "Encode Subject: two", "Nested Attention: three"):
        with editor.running("2"):
            warn(said)
        assert said in caplog.text
    assert editor.texts[-1] == ("2", "one\n\nEncode Subject: two\n\nthree")
    # Its title is the pack's name.
    assert [text for _, text in editor.toasts] == ["Apply Subject: one", "Encode Subject: two", "three"]


def test_several_warnings_stand_one_below_the_other(world: Any, editor: Editor) -> None:
    from nested_attention.hosts.comfy.notices import warn

    with editor.running("4"):
        warn("one")
        warn("two")
        warn("one")
    assert editor.texts == [("4", "one"), ("4", "one\n\ntwo")]
    warn("outside of a run")
    assert len(editor.texts) == 2


def test_a_run_that_no_editor_has_queued_is_told_of_in_the_log_alone(
    world: Any, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    from nested_attention.hosts.comfy.notices import send, warn, warn_once

    editor.asked = None
    with editor.running("4"):
        warn("one")
        warn_once("two")
        send("nested_attention.warning", {"node": "4", "text": "three"})
    assert editor.texts == editor.toasts == []
    assert "one" in caplog.text and "two" in caplog.text


def test_a_prompt_is_no_markup_on_the_node(
    world: Any, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """The editor makes HTML of the text on a node. The message beside it and the log are text."""
    _, clip = world.apply(world.model, world.clip)
    for written in ("<alice>", "<img src=x onerror=alert(1)>", "＜alice＞"):
        with editor.running("3", written):
            clip.tokenize(f"a person {written}")
        node, shown = editor.texts[-1]
        assert node == "3" and not {*"<>"} & {*shown}
        assert shown == editor.toasts[-1][1].replace("<", "‹").replace(">", "›")
        assert f"{written} in a prompt calls none of the subjects <person>" in editor.toasts[-1][1]
        assert written in caplog.text


def draw(model: Any, clip: Any, world: Any, text: str = "a person") -> Tensor:
    from tiny import encode, sample

    return sample(model, encode(clip, text), encode(world.clip, "bad"), steps=1)


def graph(**models: list[Any]) -> dict[str, Any]:
    """GRAPH with more nodes; models: where each sampler's MODEL comes from, by its id."""
    return {
        **GRAPH,
        **{n[1:]: {"class_type": "KSampler", "inputs": {"model": model}} for n, model in models.items()},
    }


LORA = {"5": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0], "clip": ["2", 1]}}}


def test_a_model_that_is_wired_to_no_sampler_is_an_error(world: Any, editor: Editor) -> None:
    from tiny import carries, same

    from nested_attention.errors import NestedAttentionError

    _, clip = world.apply(world.model, world.clip)
    message = "Apply Subject: a prompt carries 'person', and no sampler of this graph.*Connect the MODEL"
    for forgotten in (GRAPH, {**GRAPH, **LORA}):
        for _ in range(2):  # each time it is queued
            with editor.running("4", graph=forgotten), pytest.raises(NestedAttentionError, match=message):
                draw(world.model, clip, world)
    # A pass that goes without, beside one that does not.
    plain = draw(world.model, world.clip, world)
    for used in (
        graph(n6=["2", 0]),
        {**graph(n6=["5", 0]), **LORA},
        {**GRAPH, "6": {"class_type": "SomebodysPipe", "inputs": {"model": ["2", 0]}}},
    ):
        with editor.running("4", run=str(len(editor.texts)), graph=used):
            assert not carries(draw(world.model, clip, world), plain, threshold=2e-5)
        assert (
            editor.texts[-1][0] == "4"
            and "the model that samples it carries no subject" in editor.texts[-1][1]
        )
    # Not required, and not on: a warning, and nothing.
    _, lenient = world.apply(world.model, world.clip, when_missing="warn")
    with editor.running("4", "warned"):
        draw(world.model, lenient, world)
    assert "carries no subject" in editor.texts[-1][1]
    _, off = world.apply(world.model, world.clip, strength=0.0)
    with editor.running("4", "off"):
        assert not carries(draw(world.model, off, world), plain, threshold=2e-5)
    with editor.running("4", "unmarked"):
        assert same(
            draw(world.model, clip, world, "a house"), draw(world.model, world.clip, world, "a house")
        )


def test_a_subject_that_a_merge_loses_is_named(world: Any, editor: Editor) -> None:
    """ModelMergeSimple keeps the first model's wrappers, and the CLIP may still carry both."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    merge = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["2", 0], "model2": ["5", 0]}}
    merged = {
        **GRAPH,
        "5": {
            "class_type": "NestedAttentionApplySubject",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": "rex"},
        },
        "6": merge,
        "4": {"class_type": "KSampler", "inputs": {"model": ["6", 0], "positive": ["3", 0]}},
    }
    import nodes

    known = {**nodes.NODE_CLASS_MAPPINGS, "ModelMergeSimple": ModelMergeSimple}
    apply_types = SimpleNamespace(RETURN_TYPES=("MODEL", "CLIP"))
    known["NestedAttentionApplySubject"] = apply_types
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nodes, "NODE_CLASS_MAPPINGS", known)
        with editor.running("2", graph=merged):
            first, clip = world.apply(world.model, world.clip)
        with editor.running("5", graph=merged):
            second, _ = world.apply(world.model, world.clip, world.rex)
        with editor.running("4", graph=merged):
            draw(ModelMergeSimple().merge(first, second, 0.5)[0], clip, world)
        assert editor.texts == [("4", editor.texts[0][1])]
        assert "the subject of Apply Subject (node 5) is lost where models are merged" in editor.texts[0][1]
        # ComfyUI remembers the MODELs where nodes have got other ids, as in a subgraph.
        in_subgraph = json.loads(re.sub(r'"([256])"', r'"50:\1"', json.dumps(merged)))
        with editor.running("4", run="in a subgraph", graph=in_subgraph):
            draw(ModelMergeSimple().merge(first, second, 0.5)[0], clip, world)
        assert "the subject of Apply Subject (node 50:5) is lost where" in editor.texts.pop()[1]
        alone = {
            **merged,
            "6": {"class_type": "ModelMergeSimple", "inputs": {"model1": ["1", 0], "model2": ["5", 0]}},
        }
        for when, text in (("error", None), ("warn", "is lost where models are merged")):
            with editor.running("5", graph=alone):
                second, lost = world.apply(world.model, world.clip, world.rex, when_missing=when)
            with editor.running("4", run=when, graph=alone):
                merge_of = ModelMergeSimple().merge(world.model, second, 0.5)[0]
                if text is None:
                    with pytest.raises(ValueError, match="lost where models are merged"):
                        draw(merge_of, lost, world, "a photo of a pet")
                else:
                    draw(merge_of, lost, world, "a photo of a pet")
                    assert text in editor.texts.pop()[1]
        in_a_row = {**merged, "5": {**merged["5"], "inputs": {"model": ["2", 0], "clip": ["2", 1]}}}
        in_a_row["4"] = {"class_type": "KSampler", "inputs": {"model": ["5", 0], "positive": ["3", 0]}}
        del in_a_row["6"]
        with editor.running("4", run="another", graph=in_a_row):
            draw(first, clip, world)
        assert len(editor.texts) == 1


@pytest.mark.parametrize("output", ["MODEL", "COMFY_MATCHTYPE_V3"])
def test_a_switch_between_models_is_no_merge(
    world: Any, editor: Editor, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """It passes one of two MODELs on, and what the other one carries is not missed."""
    import nodes
    from tiny import carries

    kinds = {"NestedAttentionApplySubject": ("MODEL", "CLIP"), "SomebodysSwitch": (output,)}
    for name, types in kinds.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, SimpleNamespace(RETURN_TYPES=types))
    switched = {
        **GRAPH,
        "5": {"class_type": "NestedAttentionApplySubject", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
        "6": {"class_type": "SomebodysSwitch", "inputs": {"a": ["2", 0], "b": ["5", 0], "on": True}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["6", 0], "positive": ["3", 0]}},
    }
    with editor.running("2", graph=switched):
        person, clip = world.apply(world.model, world.clip)
    with editor.running("4", graph=switched):
        drawn = draw(person, clip, world)
    assert editor.texts == []
    with editor.running("4", "without", graph=switched):  # on purpose, so it is told and no error
        assert carries(drawn, draw(world.model, clip, world))
    assert [node for node, _ in editor.texts] == ["4"]
    assert "the model that samples it carries no subject" in editor.texts[0][1]


def astronaut() -> Tensor:
    from skimage import data

    return torch.from_numpy(np.ascontiguousarray(data.astronaut() / 255)).float()[None]


def cat() -> Tensor:
    from skimage import data

    picture = torch.from_numpy(np.ascontiguousarray(data.chelsea() / 255)).float()
    return picture[None, :300, 75:375]


class Photographs:
    """A CLIP vision model of a photograph's encoder, by its width alone."""

    def encode_image(self, pictures: Tensor) -> dict[str, Tensor]:
        seen = torch.nn.functional.interpolate(pictures.movedim(-1, 1), (16, 32), mode="area").flatten(2)
        return {"last_hidden_state": seen[..., :512].float()}


WHITE = torch.ones(1, 64, 64, 3)


@pytest.mark.parametrize(
    ("word", "picture", "message"),
    [
        ("person", lambda: WHITE, "the picture shows one colour.*16 bits"),
        (
            "person",
            lambda: torch.cat([astronaut()[:, :64, 192:256], 0.3 * WHITE]),
            "picture 2 of 2 shows one",
        ),
        ("person", cat, "no face in the square around its middle.*Align Face"),
        ("person", astronaut, "a small face"),
        ("pet", astronaut, "a person's face, and the encoder is one for a pet"),
        ("pet", lambda: WHITE, "one colour"),
        ("pet", cat, None),
        ("person", lambda: astronaut()[:, 20:220, 120:320], None),
        ("car", astronaut, None),
    ],
)
def test_pictures_without_what_the_encoder_looks_for(
    world: Any, editor: Editor, word: str, picture: Any, message: str | None
) -> None:
    import re

    from tiny import make_encoder

    from nested_attention.hosts.comfy import encode_subject

    encoder = make_encoder(world.model, seed=1, word=word, vision_dim=512)
    with editor.running("7"):
        encode_subject(encoder, Photographs(), picture())
    told = " ".join(text for _, text in editor.texts)
    assert (told == "") if message is None else re.search(message, told), told


def test_a_small_subject_on_white_is_not_blank_and_drawings_are_not_searched_for_faces(
    world: Any, editor: Editor
) -> None:
    from nested_attention.hosts.comfy import encode_subject

    picture = torch.ones(1, 128, 128, 3)
    picture[:, 60:72, 60:72] = 0.4
    width = world.person.config.vision_dim

    class Vision:
        def encode_image(self, pictures: Tensor) -> dict[str, Tensor]:
            return {"last_hidden_state": pictures.flatten(1)[:, : 10 * width].view(-1, 10, width)}

    with editor.running("7"):
        encode_subject(world.person, Vision(), picture)
    assert editor.texts == []
