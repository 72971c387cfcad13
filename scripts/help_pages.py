#!/usr/bin/env python3
"""Help pages in other languages, web/docs/<node id>/<language>.md: what follows from the nodes' texts.

    python scripts/help_pages.py            writes titles, and the tables of inputs and outputs, anew
    python scripts/help_pages.py --check    exits with 1, saying which page is missing or has others

The rest of a page is written by hand. The tables name inputs and outputs as the translated nodes show them,
and say what their tooltips say (locales/<language>/nodeDefs.json).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"

HEADINGS = {
    "zh": {"inputs": ("输入", "作用"), "outputs": ("输出", "内容")},
    "ja": {"inputs": ("入力", "働き"), "outputs": ("出力", "内容")},
    "ko": {"inputs": ("입력", "하는 일"), "outputs": ("출력", "내용")},
    "fr": {"inputs": ("entrée", "rôle"), "outputs": ("sortie", "contenu")},
    "de": {"inputs": ("Eingang", "Bedeutung"), "outputs": ("Ausgang", "Bedeutung")},
    "es": {"inputs": ("entrada", "significado"), "outputs": ("salida", "contenido")},
}
"""Language → what stands over the columns of its tables."""

WRITTEN = re.compile(
    r"<!-- (inputs|outputs): written by `scripts/help_pages.py` -->\n.*?<!-- end of \1 -->", re.S
)


def texts(language: str) -> dict[str, Any]:
    """Node id → its texts."""
    path = ROOT / "locales" / language / "nodeDefs.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def table(language: str, part: str, node: Mapping[str, Any]) -> str:
    """The table of a node's inputs or outputs, between its marks."""
    lines = ["| {} | {} |".format(*HEADINGS[language][part]), "|---|---|"]
    for slot in node[part].values():
        says = re.sub(r"<[\w:]+>", r"`\g<0>`", slot["tooltip"])
        choices = [f"`{option}` {name}" for option, name in slot.get("options", {}).items() if option != name]
        lines.append(f"| **{slot['name']}** | {says}{'<br>' * bool(choices)}{' · '.join(choices)} |")
    body = "\n".join(lines)
    return f"<!-- {part}: written by `scripts/help_pages.py` -->\n\n{body}\n\n<!-- end of {part} -->"


def renewed(page: str, language: str, node: Mapping[str, Any]) -> str:
    """A page with its title and its tables as they are to be."""
    body = page.partition("\n")[2]
    body = WRITTEN.sub(lambda found: table(language, found[1], node), body)
    return f"# {node['display_name']}\n{body}"


def pages() -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Path, language and texts of every page that there should be."""
    for language in HEADINGS:
        for number, node in texts(language).items():
            yield HELP / number / f"{language}.md", language, node


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path, language, node in pages():
        page = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not page or renewed(page, language, node) != page:
            stale.append(f"{path.relative_to(ROOT)} {'differs' if page else 'is missing'}")
            if page and not check:
                path.write_text(renewed(page, language, node), encoding="utf-8")
    if stale and check:
        sys.exit("\n".join(stale))


if __name__ == "__main__":
    main()
