"""The download through the real client of the hub, against a server of our own on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
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
    """Serves one file as the hub does.

    break_at: bytes after which the line breaks, once. stall_at: after which nothing more comes, once.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_at: int | None = None
        self.stall_at: int | None = None
        self.released = threading.Event()
        self.refuses = False  # to send anything
        self.refuses_after = False  # once the line has broken
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
        if not self.path.startswith(PATH) or (body and self.server.refuses):
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
        stalls, self.server.stall_at = self.server.stall_at, None
        with contextlib.suppress(ConnectionError):  # the client has been killed
            self.wfile.write(part[: stalls or cut])
        if stalls is not None:
            self.wfile.flush()
            self.server.released.wait(60)
        if cut is not None:
            self.server.refuses = self.server.refuses_after
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


def start(hub: Hub | None, folder: Path) -> subprocess.Popen[str]:
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
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def download(hub: Hub | None, folder: Path) -> tuple[int, str]:
    process = start(hub, folder)
    said, _ = process.communicate()
    return process.returncode, said


def test_a_file_comes_whole(hub: Hub, tmp_path: Path) -> None:
    code, said = download(hub, tmp_path)
    assert code == 0, said
    assert (tmp_path / TARGET).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / TARGET).parent.iterdir()] == [TARGET.name]
    assert said.index("CC BY-NC-SA 4.0") < said.index("Saved: ")


def test_a_broken_line_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """By the client itself, within a run."""
    hub.break_at = len(CONTENT) * 3 // 4
    code, said = download(hub, tmp_path)
    assert code == 0, said
    assert (tmp_path / TARGET).read_bytes() == CONTENT
    assert hub.ranges[0] is None, hub.ranges
    assert hub.ranges[-1] not in (None, "bytes=0-"), hub.ranges


def there(folder: Path) -> int:
    """Bytes that have come and are kept."""
    return sum(path.stat().st_size for path in (folder / TARGET).parent.glob("*/*/*.part"))


@pytest.mark.parametrize("end", ["killed", "given up"])
def test_the_next_run_goes_on_where_one_was_killed_or_failed(hub: Hub, tmp_path: Path, end: str) -> None:
    if end == "killed":
        hub.stall_at = len(CONTENT) * 3 // 4
        process = start(hub, tmp_path)
        try:
            for _ in range(600):
                if process.poll() is not None or there(tmp_path) > len(CONTENT) // 4:
                    break
                time.sleep(0.1)
        finally:
            process.kill()
            process.communicate()
            hub.released.set()
    else:
        hub.break_at, hub.refuses_after = len(CONTENT) * 3 // 4, True
        code, said = download(hub, tmp_path)
        assert code == 1
        assert "is kept, and the next run goes on from there" in said
    kept = there(tmp_path)
    assert kept > len(CONTENT) // 4
    assert not (tmp_path / TARGET).exists()
    hub.refuses_after = hub.refuses = False
    code, said = download(hub, tmp_path)
    assert code == 0, said
    assert (tmp_path / TARGET).read_bytes() == CONTENT
    assert hub.ranges == [None, f"bytes={kept}-"]
    assert [path.name for path in (tmp_path / TARGET).parent.iterdir()] == [TARGET.name]


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
