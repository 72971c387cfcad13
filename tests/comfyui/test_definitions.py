"""What the editor gets of every node: stable inputs, texts on everything, help pages, translations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nested_attention.demo.server import PACK_NAME, ComfyServer

ROOT = Path(__file__).resolve().parent.parent.parent
HELP = ROOT / "web" / "docs"
LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def nodes(comfyui: Path, script: Script) -> dict[str, Any]:
    return dict(script("definitions.py").load_definitions())


def test_saved_workflows_keep_working(nodes: dict[str, Any], script: Script) -> None:
    snapshots = script("node_snapshot.py")
    before = json.loads(snapshots.SNAPSHOT.read_text(encoding="utf-8"))
    now = snapshots.snapshot(nodes)
    problems = list(snapshots.broken(before, now))
    assert not problems, "workflows saved before would break:\n" + "\n".join(problems)
    new = snapshots.added(before, now)
    assert not new, "not in the snapshot yet; run python scripts/node_snapshot.py:\n" + "\n".join(new)


def test_every_node_and_slot_explains_itself(nodes: dict[str, Any], script: Script) -> None:
    for number, definition in nodes.items():
        assert len(definition["description"]) > 40, number
        named = [
            (name, options.get("tooltip"))
            for name, _, options, _ in script("definitions.py").slots(definition)
        ]
        named += list(zip(definition["output_name"], definition["output_tooltips"], strict=True))
        for name, tooltip in named:
            assert tooltip and tooltip.endswith("."), f"{number}: {name} has no tooltip, or no sentence"


def test_what_few_people_change_is_folded_away(nodes: dict[str, Any], script: Script) -> None:
    """In versions of ComfyUI whose editor can."""
    from comfy_api.latest import io

    folded = {
        number: {
            name
            for name, _, options, _ in script("definitions.py").slots(definition)
            if options.get("advanced")
        }
        for number, definition in nodes.items()
    }
    expected = {
        "NestedAttentionLoadEncoder": {"features", "norm", "ignore_unexpected"},
        "NestedAttentionApplySubject": {
            *("start_percent", "end_percent", "when_missing", "apply_to_negative"),
            *("bounded", "bound_self_attention", "blocks", "injection", "weight"),
        },
        "NestedAttentionObserve": {"start_percent", "end_percent", "tokens", "megabytes"},
        "NestedAttentionViewMaps": {"only_layers", "only_steps"},
        "NestedAttentionSheet": {"sampler_name", "scheduler", "name"},
    }
    can = hasattr(io.Float.Input("any"), "advanced")
    assert {number: names for number, names in folded.items() if names} == (expected if can else {})


def test_every_node_has_a_help_page_that_names_its_slots(nodes: dict[str, Any], script: Script) -> None:
    missing = [number for number in nodes if not (HELP / f"{number}.md").is_file()]
    assert not missing, f"write web/docs/<node id>.md for {', '.join(missing)}"
    for number, definition in nodes.items():
        page = (HELP / f"{number}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {definition['display_name']}\n"), number
        for name, *_ in script("definitions.py").slots(definition):
            assert name in page, f"{number}.md does not say what {name} does"
        for name in definition["output_name"]:
            assert name in page, f"{number}.md does not say what {name} is"
        pictures = re.findall(r"!\[.{20,}?\]\((.+?)\)", page)
        assert pictures, f"{number}.md shows no picture, or does not say what is on it"
        for picture in pictures:
            assert (HELP / picture).is_file(), f"{number}.md shows {picture}, which is not there"
    strangers = {path.stem for path in HELP.glob("*.md")} - set(nodes)
    assert not strangers, f"help pages of no node: {strangers}"


def test_english_texts_are_the_nodes_own(nodes: dict[str, Any], script: Script) -> None:
    locales = script("locales.py")
    texts = locales.flat(locales.english(nodes))
    assert locales.read("en") == texts, "stale: run python scripts/locales.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_complete_and_true_to_the_english(
    nodes: dict[str, Any], script: Script, language: str
) -> None:
    locales = script("locales.py")
    problems = list(locales.problems(language, locales.flat(locales.english(nodes))))
    assert not problems, (
        "\n".join(problems) + f"\nsee what is missing: python scripts/locales.py --missing {language}"
    )


def test_the_editor_is_served_help_and_translations(server: ComfyServer, nodes: dict[str, Any]) -> None:
    translations = server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert set(nodes) <= set(translations[language]["nodeDefs"])
    for number in nodes:
        page = server.text(f"/extensions/{PACK_NAME}/docs/{number}.md")
        assert page == (HELP / f"{number}.md").read_text(encoding="utf-8")
    for language in LANGUAGES:  # where the editor looks for a page in its language
        path = f"{number}/{language}.md"
        page = server.text(f"/extensions/{PACK_NAME}/docs/{path}")
        assert page == (HELP / path).read_text(encoding="utf-8")
