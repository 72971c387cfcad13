#!/usr/bin/env python3
"""Photographs nodes as they stand in ComfyUI's editor, for their help pages, with ComfyUI and Chromium.

python scripts/node_pictures.py [NAME …]     web/docs/<name>.png; all, if none is named
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "workflows"), str(ROOT / "tests" / "comfyui")]

from editor import PICTURES, Editor, find_chromium, open_editor  # noqa: E402
from names import template  # noqa: E402
from parts import Context, draw  # noqa: E402

from nested_attention.demo.server import ComfyServer  # noqa: E402
from nested_attention.find_comfyui import find_comfyui  # noqa: E402

PAGE, MARGIN = (1700, 1500), 6


@dataclass(frozen=True)
class Shown:
    """A part of the editor: the groups of a workflow with these titles, after it has run for some steps if
    wanted."""

    workflow: str
    titles: tuple[str, ...]
    run: bool = False
    steps: int = 1


EDITOR: Mapping[str, Shown] = {
    "load_encoder": Shown("avatar_person", ("2. It becomes a subject",)),
    "encode_subject": Shown(
        "avatar_two_people",
        ("2. Each becomes a subject",),
    ),
    "mix_subjects": Shown("avatar_mixing", ("2. A blend of the two",)),
    "save_subject": Shown("avatar_saved_subject", ("2. The subject is made and saved",), run=True),
    "load_subject": Shown(
        "avatar_load_subject", ("2. A subject that was saved", "3. It is attached"), run=True
    ),
    "apply_subject": Shown("avatar_two_people", ("3. Each is attached to a name, in a place",)),
    "personalize": Shown("personalize", ("A photograph in the prompt",), run=True),
    "observe": Shown("avatar_inspect", ("3. They are observed while the picture is sampled",), True, 20),
    "view_maps": Shown("avatar_inspect", ("4. Point at a place of the picture",), True, 20),
    "mark_prompt": Shown("mark_prompt", ("The words of a prompt are marked",)),
}


def mark_prompt(context: Context) -> Any:
    draft = context.draft("mark_prompt", "", "")
    group = draft.group("The words of a prompt are marked")
    applied = group.add("NestedAttentionApplySubject", name="alice")
    group.column()
    text = "a photo of <alice> at the beach"
    other = group.add("CLIPTextEncode", "Any other text node", clip=applied["CLIP"], text=text)
    group.add("NestedAttentionMarkPrompt", conditioning=other.out, clip=applied["CLIP"], text=text)
    return draft.editor()


def personalize(context: Context) -> Any:
    """One node between Demo World and the rest, which draws a picture of the person."""
    draft = context.draft("personalize", "", "")
    group = draft.group("A world and a person")
    world = group.add("NestedAttentionDemoWorld", person=7)
    group = draft.group("A photograph in the prompt")
    given = {"model": world["MODEL"], "clip": world["CLIP"], "image": world["person"]}
    applied = group.add("NestedAttentionPersonalize", **given)
    draw(draft, world, applied, "a photo of a person in a forest")
    return draft.editor()


DRAFTS: Mapping[str, Callable[[Context], Any]] = {"mark_prompt": mark_prompt, "personalize": personalize}


def photographs(names: list[str]) -> None:
    comfyui, where = find_comfyui()
    program, browser_where = find_chromium()
    if comfyui is None or program is None:
        sys.exit(f"ComfyUI: {where}; Chromium: {browser_where}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        context = Context(dict(server.get("/object_info")), "", "")
        with open_editor(server, program, PAGE) as editor:
            for name in names:
                picture = photograph(editor, EDITOR[name], context).quantize(128, dither=Image.Dither.NONE)
                picture.save(HELP / f"{name}.png", optimize=True)


def photograph(editor: Editor, shown: Shown, context: Context) -> Image.Image:
    if shown.workflow in DRAFTS:
        graph = DRAFTS[shown.workflow](context)
    else:
        path = ROOT / "workflows" / f"{template(shown.workflow)}.json"
        graph = json.loads(path.read_text(encoding="utf-8"))
    frames = [group["bounding"] for group in graph["groups"] if group["title"] in shown.titles]
    assert len(frames) == len(shown.titles), f"{shown.workflow} has other groups now: {shown.titles}"
    left, top = (min(frame[axis] for frame in frames) - MARGIN for axis in (0, 1))
    width, height = (
        max(frame[axis] + frame[axis + 2] for frame in frames) + MARGIN - start
        for axis, start in ((0, left), (1, top))
    )
    editor.load(graph, shown.workflow)
    if shown.run:
        editor.set_widget("steps", shown.steps)
        editor.set_widget("batch_size", 1)
        editor.run.click()
        editor.page.wait_for_function(f"() => ({PICTURES})().every(shown => shown > 0)", timeout=300_000)
    editor.page.wait_for_timeout(1500)  # the view glides to where it was told to go
    x, y = editor.evaluate("(r => [r.x, r.y])(app.canvas.canvas.getBoundingClientRect())")
    place = (100, 100)  # clear of the editor's side bar and tabs
    offset = [place[0] - left - x, place[1] - top - y]
    editor.evaluate("offset => { Object.assign(app.canvas.ds, {scale: 1, offset}) }", offset)
    editor.evaluate("() => { app.canvas.setDirty(true, true) }")
    editor.page.wait_for_timeout(1500)
    with Image.open(io.BytesIO(editor.page.screenshot())) as page:
        corner = place[0] + width, place[1] + height
        assert corner[0] <= page.width and corner[1] <= page.height, f"{shown} is larger than the page"
        return page.convert("RGB").crop((*place, *corner))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EDITOR))
    chosen = parser.parse_args().names
    if unknown := set(chosen) - set(EDITOR):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(EDITOR)}")
    photographs(chosen or list(EDITOR))
