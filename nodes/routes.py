"""What web/nested_attention.js asks the server: what nodes are found by, what a saved subject is."""

from __future__ import annotations

import asyncio
import base64
import io as bytes_io
from typing import Any

from aiohttp import web
from PIL import Image

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy.notices import running_server
from .common import SEARCH_WORDS
from .subjects import look_at

PREFIX = "/nested_attention"


def register_routes() -> None:
    """On the server, where one is running; ComfyUI calls this once, when it loads the pack."""
    server = running_server()
    if server is not None:
        server.routes.get(f"{PREFIX}/search_words")(search_words)
        server.routes.get(f"{PREFIX}/subject")(subject)


async def search_words(_: Any) -> web.Response:
    """Node id → words, in the order in which nodes of the same word are offered. Editors of older versions of
    ComfyUI look at names alone."""
    return web.json_response(SEARCH_WORDS)


async def subject(request: Any) -> web.Response:
    """?name=…: what is known of a saved subject, in lines, and its thumbnail as a data URL."""
    try:
        lines, thumbnail = await asyncio.to_thread(look_at, request.query.get("name", ""))
    except NestedAttentionError as error:
        return web.json_response({"error": str(error)}, status=404)
    buffer = bytes_io.BytesIO()
    Image.fromarray(thumbnail.numpy()).save(buffer, "png")
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return web.json_response({"lines": lines, "thumbnail": picture})
