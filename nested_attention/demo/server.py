"""A headless ComfyUI server with this pack in it, for the demo and for tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import NestedAttentionError
from ..paths import PACK

PACK_NAME = "nested-attention"
"""Folder name in custom_nodes, and the pack's id in ComfyUI's registry."""

Workflow = Mapping[str, Any]
"""A graph in API format: node id → class_type and inputs."""


class ComfyServer:
    """A context manager around one server process on the CPU, with a base directory of its own.

    comfyui: ComfyUI's folder. base: an existing folder that will hold custom_nodes (with a link to this
    pack), models, input, output and the log; nothing is written anywhere else. python: the interpreter
    ComfyUI's requirements are installed for. arguments: more of ComfyUI's command line. Raises
    NestedAttentionError, with the end of the log, if the server does not come up.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        *,
        python: str = sys.executable,
        start_s: float = 300,
        arguments: Sequence[str] = (),
    ) -> None:
        self.base = base
        self._arguments = tuple(arguments)
        self._comfyui, self._python, self._start_s = comfyui, python, start_s
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(exist_ok=True)
        _link(PACK, self.base / "custom_nodes" / PACK_NAME)
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [self._python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}", "--disable-api-nodes"]
        command += self._arguments
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._comfyui, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def url(self) -> str:
        """Where the editor is, while the server runs."""
        return self._url

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    def get(self, path: str) -> Any:
        """The JSON at a path of the server."""
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return json.load(answer)

    def text(self, path: str) -> str:
        """The text at a path of the server."""
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def run(self, workflow: Workflow, *, limit_s: float = 600) -> dict[str, list[Path]]:
        """Queue a graph in API format and wait for it: node id → the files its node saved.

        Raises NestedAttentionError with ComfyUI's own messages if it refuses the graph, or a part of it, or a
        node fails.
        """
        prompt_id = self._queue(workflow)
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self._check_alive()
            with contextlib.suppress(TimeoutError, urllib.error.URLError):  # a busy machine: ask again
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
                if entry is not None:
                    return self._files(entry)
            time.sleep(0.1)
        raise NestedAttentionError(
            f"ComfyUI did not finish the workflow in {limit_s:.0f} s.\n{self._log_end()}"
        )

    def _queue(self, workflow: Workflow) -> str:
        body = json.dumps({"prompt": workflow}).encode()
        request = urllib.request.Request(
            self._url + "/prompt", body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                accepted = json.load(answer)
        except urllib.error.HTTPError as error:
            refused = json.load(error)
            detail = _problems(refused) or refused.get("error", {}).get("message", str(refused))
            raise NestedAttentionError(f"ComfyUI refuses the workflow: {detail}") from error
        left_out = _problems(accepted)  # it runs what other output nodes ask for
        if left_out:
            raise NestedAttentionError(f"ComfyUI refuses a part of the workflow: {left_out}")
        return str(accepted["prompt_id"])

    def _files(self, entry: Mapping[str, Any]) -> dict[str, list[Path]]:
        for kind, detail in entry["status"]["messages"]:
            if kind == "execution_error":
                raise NestedAttentionError(
                    f"ComfyUI stopped at {detail['node_type']} ({detail['node_id']}): "
                    f"{detail['exception_message']}"
                )
        return {
            number: [
                self.base / file["type"] / file["subfolder"] / file["filename"] for file in saved["images"]
            ]
            for number, saved in entry["outputs"].items()
            if "images" in saved
        }

    def _wait_until_up(self) -> None:
        end = time.monotonic() + self._start_s
        while time.monotonic() < end:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise NestedAttentionError(
            f"ComfyUI in {self._comfyui} did not start in {self._start_s:.0f} s.\n{self._log_end()}"
        )

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise NestedAttentionError(
                f"ComfyUI in {self._comfyui} stopped with exit code {self._process.returncode}; is "
                f"everything in its requirements.txt installed for {self._python}? The end of its "
                f"log:\n{self._log_end()}"
            )

    def _log_end(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-15:])


def _problems(answer: Mapping[str, Any]) -> str:
    """What ComfyUI says of the nodes it will not run, in one line; nothing if it runs them all."""
    return "; ".join(
        f"{node['class_type']} ({number}): {problem['message']} {problem['details']}"
        for number, node in answer.get("node_errors", {}).items()
        for problem in node["errors"]
    )


def _link(pack: Path, place: Path) -> None:
    """The pack in custom_nodes: a link, or a copy where the system allows no links."""
    if place.exists():
        return
    try:
        os.symlink(pack, place, target_is_directory=True)
    except OSError:
        unneeded = shutil.ignore_patterns(".git", ".venv", "runs", "output", "__pycache__", ".*_cache")
        shutil.copytree(pack, place, ignore=unneeded)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
