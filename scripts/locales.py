#!/usr/bin/env python3
"""The nodes' texts in other languages, where ComfyUI looks for them: locales/<language>/nodeDefs.json.

    python scripts/locales.py                  writes the English texts, as the nodes have them
    python scripts/locales.py --missing de     prints what is to be translated, with its English texts
    python scripts/locales.py --fill de FILE   takes in what --missing printed, translated
    python scripts/locales.py --check          exits with 1, saying what is missing or stale in any language

Which English text each translation was made from is remembered in locales/sources.json, so that a reworded
tooltip shows up as missing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from definitions import ROOT, load_definitions, slots  # noqa: E402

LOCALES = ROOT / "locales"
SOURCES = LOCALES / "sources.json"
LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")

CORES_OWN = {"sampler_name", "scheduler"}

Texts = dict[str, str]
"""Path such as NestedAttentionDemoWorld/inputs/person/tooltip → text."""

KEPT = re.compile(r"<[\w:]+>|[λα]|\d+(?:\.\d+)?")
"""What a translation keeps as it is: placeholders, symbols, numbers."""

FORBIDDEN = re.compile(r"[{}@|]")
"""What the editor's translation library would take for syntax of its own."""


def english(definitions: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """nodeDefs.json of the texts that the nodes themselves have."""
    return {
        number: {
            "display_name": definition["display_name"],
            "description": definition["description"],
            "inputs": {
                name: {
                    "name": options.get("display_name") or name,
                    "tooltip": options["tooltip"],
                    **choices(name, kind, options),
                }
                for name, kind, options, _ in slots(definition)
            },
            "outputs": {
                str(index): {"name": name, "tooltip": tooltip}
                for index, (name, tooltip) in enumerate(
                    zip(definition["output_name"], definition["output_tooltips"], strict=True)
                )
            },
        }
        for number, definition in sorted(definitions.items())
    }


def choices(name: str, kind: str, options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The options of a list that are ours to translate: no files, and nothing that ComfyUI names."""
    if kind != "COMBO" or name in CORES_OWN:
        return {}
    return {"options": {option: option for option in options["options"] if "." not in option}}


def flat(tree: Mapping[str, Any], above: str = "") -> Texts:
    """nodeDefs.json → Texts"""
    texts: Texts = {}
    for key, value in tree.items():
        path = f"{above}/{key}" if above else key
        if isinstance(value, str):
            texts[path] = value
        else:
            texts.update(flat(value, path))
    return texts


def tree(texts: Texts) -> dict[str, Any]:
    """Texts → nodeDefs.json"""
    root: dict[str, Any] = {}
    for path, text in texts.items():
        *above, last = path.split("/")
        place = root
        for key in above:
            place = place.setdefault(key, {})
        place[last] = text
    return root


def read(language: str) -> Texts:
    path = LOCALES / language / "nodeDefs.json"
    return flat(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(language: str, texts: Texts, order: Texts) -> None:
    """In the order of the English texts."""
    sorted_texts = {path: texts[path] for path in order if path in texts}
    _dump(LOCALES / language / "nodeDefs.json", tree(sorted_texts))


def sources() -> dict[str, Texts]:
    """Language → path → checksum of the English text that the translation was made from."""
    return dict(json.loads(SOURCES.read_text(encoding="utf-8"))) if SOURCES.is_file() else {}


def checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def missing(language: str, texts: Texts) -> Texts:
    """What is untranslated, or translated from another English text."""
    there, made_from = read(language), sources().get(language, {})
    return {
        path: text
        for path, text in texts.items()
        if path not in there or made_from.get(path) != checksum(text)
    }


def problems(language: str, texts: Texts) -> Iterator[str]:
    """What is wrong with a language, one line each."""
    there = read(language)
    for path in missing(language, texts):
        yield f"{language}: {path} is {'made from another English text' if path in there else 'missing'}"
    for path, text in there.items():
        if path not in texts:
            yield f"{language}: {path} is stale: no node has it"
            continue
        differing = kept(texts[path]) ^ kept(text)
        if path.endswith("/name"):  # may say more than the English identifier: "attention (λ)"
            differing -= kept(text)
        if differing:
            yield f"{language}: {path} and the English text differ in {', '.join(sorted(differing))}"
        if FORBIDDEN.search(text):
            yield f"{language}: {path} has one of {{}}@|, which the editor takes for syntax"
        if text == texts[path] and " " in text:
            yield f"{language}: {path} is the English text"


def kept(text: str) -> set[str]:
    return set(KEPT.findall(text))


def fill(language: str, translated: Texts, texts: Texts) -> None:
    """Takes in translations of the present English texts."""
    strangers = set(translated) - set(texts)
    if strangers:
        sys.exit(f"no node has {', '.join(sorted(strangers))}")
    write(language, {**read(language), **translated}, texts)
    made_from = sources()
    own = {**made_from.get(language, {}), **{path: checksum(texts[path]) for path in translated}}
    made_from[language] = {path: own[path] for path in texts if path in own}
    _dump(SOURCES, made_from)


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--missing", choices=LANGUAGES, metavar="LANGUAGE")
    parser.add_argument("--fill", nargs=2, metavar=("LANGUAGE", "FILE"))
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    nodes = english(load_definitions())
    texts = flat(nodes)
    if chosen.missing:
        print(json.dumps(missing(chosen.missing, texts), indent=2, ensure_ascii=False))
    elif chosen.fill:
        fill(chosen.fill[0], json.loads(Path(chosen.fill[1]).read_text(encoding="utf-8")), texts)
    elif chosen.check:
        stale = [] if read("en") == texts else ["en: run python scripts/locales.py"]
        found = [*stale, *(line for language in LANGUAGES for line in problems(language, texts))]
        if found:
            sys.exit("\n".join(found))
    else:
        _dump(LOCALES / "en" / "nodeDefs.json", nodes)


if __name__ == "__main__":
    main()
