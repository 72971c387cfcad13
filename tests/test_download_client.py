"""The download through the real client of the hub, against a server of our own on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parent.parent
CONTENT = save({"latents": torch.zeros(1, 6000, 1000)})  # 24 MB: the client writes 10 at a time
PATH = "/orpatashnik/NestedAttentionEncoder/resolve/"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TARGET = Path("ComfyUI", "models", "nested_attention", "nested_attention_person.safetensors")


class Hub(ThreadingHTTPServer):
    """Serves one file as the hub does. break_at: bytes after which the line breaks, once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_at: int | None = None
        self.sent = CONTENT
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if not self.path.startswith(PATH):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range") if body else None
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        part = self.server.sent[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        self.server.ranges.append(asked)
        cut, self.server.break_at = self.server.break_at, None
        self.wfile.write(part[:cut])
        if cut is not None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(hub: Hub | None, folder: Path) -> tuple[int, str]:
    """The command in a process of its own, whose client knows no other hub."""
    (folder / "ComfyUI" / "models").mkdir(parents=True, exist_ok=True)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nested_attention.cli.app import app; "
        f"app(['download', 'nested-attention-person', '--accept-licence', '--comfyui', "
        f"{str(folder / 'ComfyUI')!r}])"
    )
    endpoint = "http://127.0.0.1:9" if hub is None else f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "COLUMNS": "500"}
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        environment.pop(name, None)
    environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_file_comes_whole(hub: Hub, tmp_path: Path) -> None:
    code, said = download(hub, tmp_path)
    assert code == 0, said
    assert (tmp_path / TARGET).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / TARGET).parent.iterdir()] == [TARGET.name]
    assert said.index("CC BY-NC-SA 4.0") < said.index("Saved: ")


def test_a_broken_line_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """By the client itself, or by the next try: what has come is not fetched again."""
    hub.break_at = len(CONTENT) * 3 // 4
    code, said = download(hub, tmp_path)
    if code:
        assert not (tmp_path / TARGET).exists()
        assert "Or by hand: Download https://huggingface.co/orpatashnik" in said
        code, said = download(hub, tmp_path)
    assert code == 0, said
    assert (tmp_path / TARGET).read_bytes() == CONTENT
    assert hub.ranges[0] is None, hub.ranges
    assert hub.ranges[-1] not in (None, "bytes=0-"), hub.ranges


def test_another_content_of_the_right_size_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.sent = CONTENT[:-1] + b"x"
    code, said = download(hub, tmp_path)
    assert code == 1
    assert "the hub announced" in said
    assert not (tmp_path / TARGET).exists()


def test_without_a_hub_it_says_what_to_do(tmp_path: Path) -> None:
    code, said = download(None, tmp_path)
    assert code == 1
    assert "could not be fetched" in said
    assert f"save it as {tmp_path / TARGET}" in said
