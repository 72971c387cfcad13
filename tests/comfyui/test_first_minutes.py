"""From an empty ComfyUI to a picture, as one who has just installed the pack gets there, in a real browser.

Nodes are found by typing, and placed from what is found. Wires are drawn by the editor's own `connect`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from editor import TOASTS, Editor
from front_ends import FRONT_ENDS
from PIL import Image
from skimage import data

from nested_attention.pictures.prepare import prepare_pictures
from nested_attention.pictures.pyramid import face_detector

pytestmark = [
    pytest.mark.browser,
    pytest.mark.parametrize(
        "front_end", [one for one in FRONT_ENDS if one.own], indirect=True, ids=str, scope="module"
    ),
]

PERSON_OR_PET = "Person or Pet in Picture"
BOTH = "a photo of a person on the left and a pet on the right in a forest"
WIRES = (
    *(("text", "CONDITIONING", "sampler", "positive"), ("no text", "CONDITIONING", "sampler", "negative")),
    *(("world", "latent", "sampler", "latent_image"), ("sampler", "LATENT", "decoded", "samples")),
    *(("world", "VAE", "decoded", "vae"), ("decoded", "IMAGE", "saved", "images")),
)
NODES = {
    "text": ("clip text encode", "CLIP Text Encode"),
    "no text": ("clip text encode", "CLIP Text Encode"),
    "sampler": ("ksampler", "KSampler"),
    "decoded": ("vae decode", "VAE Decode"),
    "saved": ("save image", "Save Image"),
}
"""What ComfyUI itself has of a picture: what is typed, and the name of the node."""


class Canvas:
    """The editor's canvas, with the nodes that were placed on it by names of ours."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.numbers: dict[str, str | int] = {}
        editor.evaluate("() => app.graph.clear()")

    def place(self, name: str, words: str, title: str, **values: Any) -> None:
        """A node that is found by some words, with values in its widgets."""
        self.editor.place_from_search(words, title)
        number = self.editor.evaluate("() => app.graph._nodes.at(-1).id")
        assert number not in self.numbers.values()
        self.numbers[name] = number
        place = [420 * (len(self.numbers) % 4), 620 * (len(self.numbers) // 4)]
        self.editor.evaluate("([id, place]) => { app.graph.getNodeById(id).pos = place }", [number, place])
        self.set(name, **values)

    def set(self, name: str, **values: Any) -> None:
        self.editor.evaluate(
            """([id, values]) => {
                for (const [name, value] of Object.entries(values))
                    app.graph.getNodeById(id).widgets.find(widget => widget.name === name).value = value
            }""",
            [self.numbers[name], values],
        )

    def connect(self, *wires: tuple[str, str, str, str]) -> None:
        """Each: a node, its output, another node, its input."""
        ids = [(self.numbers[one], output, self.numbers[other], name) for one, output, other, name in wires]
        self.editor.evaluate(
            """wires => {
                for (const [from, output, to, input] of wires) {
                    const [one, other] = [app.graph.getNodeById(from), app.graph.getNodeById(to)]
                    one.connect(one.findOutputSlot(output), other, other.findInputSlot(input))
                }
            }""",
            ids,
        )

    def place_a_picture(self, source: str, text: str) -> None:
        """What it takes from MODEL and CLIP of a node to a picture in the output folder."""
        for name, (words, title) in NODES.items():
            self.place(name, words, title)
        self.set("text", text=text)
        self.set("no text", text="")
        self.set("sampler", steps=4, cfg=3.0, seed=0, control_after_generate="fixed")
        self.connect(*WIRES, (source, "MODEL", "sampler", "model"))
        self.connect(*((source, "CLIP", name, "clip") for name in ("text", "no text")))

    def run(self) -> None:
        """Queues the graph and waits for the end, which has to be a good one."""
        runs = "async () => Object.values(await (await app.api.fetchApi('/history')).json())"
        before = len(self.editor.evaluate(runs))
        self.editor.run.click()
        end = time.monotonic() + 300
        while len(self.editor.evaluate(runs)) == before and time.monotonic() < end:
            self.editor.page.wait_for_timeout(100)
        last = max(self.editor.evaluate(runs), key=lambda one: one["prompt"][0])
        assert last["status"]["status_str"] == "success", last["status"]

    def run_anew(self) -> None:
        """As `run`, after ComfyUI has forgotten every result."""
        free = "() => app.api.fetchApi('/free', {method: 'POST', body: '{\"free_memory\": true}'})"
        self.editor.evaluate(free)
        self.run()

    def pictures(self, name: str) -> np.ndarray:
        """The files a node has just saved or shown. (n, height, width, 3) uint8"""
        shown: list[Mapping[str, str]] = self.editor.evaluate(
            "id => app.nodeOutputs[id].images", self.numbers[name]
        )
        files = [self.editor.server.base / one["type"] / one["subfolder"] / one["filename"] for one in shown]
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    def says(self, name: str) -> list[str]:
        """The lines on a node."""
        lines: str = self.editor.evaluate(
            """id => app.graph.getNodeById(id).widgets
                .find(widget => widget.name === 'nested_attention_state')?.element.textContent ?? ''""",
            self.numbers[name],
        )
        return lines.split("\n")


@pytest.fixture
def canvas(editor: Editor) -> Canvas:
    return Canvas(editor)


def test_a_person_in_a_picture_from_an_empty_canvas(canvas: Canvas) -> None:
    """Type "face", place the node, connect the small world and one of its people, queue: there he is."""
    canvas.place("node", "face", PERSON_OR_PET)
    canvas.place("world", "small world", "Demo World", person=7)
    canvas.connect(
        *(("world", name, "node", name.lower()) for name in ("MODEL", "CLIP")),
        ("world", "person", "node", "image"),
    )
    canvas.place_a_picture("node", "a photo of a person in a forest")
    canvas.run()
    canvas.editor.fit()
    canvas.editor.wait_for_pictures(4)
    assert canvas.editor.says() == []
    assert canvas.says("node") == [
        "1 picture: used as it is",
        "word: person (the encoder's)",
        "encoder: person_encoder.safetensors · 7 of 7 layers",
        "MODEL reaches a sampler",
    ]
    with_person = canvas.pictures("saved")
    canvas.connect(("world", "MODEL", "sampler", "model"))
    canvas.connect(*(("world", "CLIP", name, "clip") for name in ("text", "no text")))
    canvas.run()
    without = canvas.pictures("saved")
    assert with_person.shape == without.shape == (4, 128, 128, 3)
    assert np.abs(with_person.astype(float) - without).mean() > 5


def test_a_person_and_a_pet_in_either_order_and_a_branch_queued_three_times(canvas: Canvas) -> None:
    canvas.place("person", "person", PERSON_OR_PET)
    canvas.place("pet", "pet", PERSON_OR_PET, preset="pet")
    canvas.place("world", "small world", "Demo World", person=7, pet=3, figures=2)
    canvas.connect(*(("world", kind, kind, "image") for kind in ("person", "pet")))

    def chain(first: str, second: str) -> None:
        canvas.connect(*(("world", name, first, name.lower()) for name in ("MODEL", "CLIP")))
        canvas.connect(*((first, name, second, name.lower()) for name in ("MODEL", "CLIP")))

    def draw(node: str) -> np.ndarray:
        canvas.connect((node, "MODEL", "sampler", "model"))
        canvas.connect(*((node, "CLIP", name, "clip") for name in ("text", "no text")))
        canvas.run_anew()
        return canvas.pictures("saved")

    chain("person", "pet")
    canvas.place_a_picture("pet", BOTH)
    both = [draw("pet")]
    assert both[0].shape == (4, 128, 192, 3)
    alone = draw("person")  # the branch, while the pet hangs on the person as well
    both += [draw("pet"), draw("pet")]
    assert np.array_equal(both[0], both[1]) and np.array_equal(both[0], both[2])
    assert np.abs(both[0].astype(float) - alone).mean() > 2
    chain("pet", "person")
    other_order = draw("person")
    assert np.abs(both[0].astype(float) - other_order).max() <= 2  # sums in another order
    assert canvas.editor.says() == []
    assert canvas.says("person")[1] == "word: person (the encoder's), after <pet>"


def test_of_a_photograph_the_face_is_taken_and_the_small_world_says_it_cannot_draw_it(
    canvas: Canvas,
) -> None:
    photograph = data.astronaut()
    Image.fromarray(photograph).save(canvas.editor.server.base / "input" / "astronaut.png")
    canvas.place("node", "face", PERSON_OR_PET)
    canvas.place("world", "small world", "Demo World")
    canvas.place("photograph", "load image", "Load Image", image="astronaut.png")
    canvas.connect(*(("world", name, "node", name.lower()) for name in ("MODEL", "CLIP")))
    canvas.connect(("photograph", "IMAGE", "node", "image"))
    canvas.place_a_picture("node", "a photo of a person in a forest")
    canvas.run()
    assert canvas.says("node")[0] == "1 picture: face found"
    detect = face_detector()
    picture = torch.from_numpy(photograph).float() / 255
    prepared = prepare_pictures([picture], "auto", detect)
    assert prepared.taken == ("face",)
    expected = (prepared.pictures * 255).numpy()
    assert np.abs(canvas.pictures("node") - expected).max() <= 1.01
    said = canvas.editor.page.locator(TOASTS).filter(has_text="was trained with drawings of the small world")
    said.first.wait_for()
