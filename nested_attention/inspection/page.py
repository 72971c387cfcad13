"""One self-contained HTML page of a document: no file and no network beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from ..paths import MAPS_VIEW

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ margin: 24px; font: 14px system-ui, sans-serif; background: #faf9f6; color: #222228 }}</style>
<h1>{title}</h1>
<div id="view"></div>
<script type="application/json" id="maps">{maps}</script>
<script type="module">
{script}
showMaps(document.getElementById("view"), JSON.parse(document.getElementById("maps").textContent))
</script>
</html>
"""


def page(maps: Mapping[str, Any], title: str) -> str:
    """maps: a `document`."""
    text = json.dumps(maps, allow_nan=False).replace("</", "<\\/")  # nothing in it ends the script
    script = MAPS_VIEW.read_text(encoding="utf-8")
    return _PAGE.format(title=html.escape(title), maps=text, script=script)
