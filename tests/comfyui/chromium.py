"""Chromium without a window, driven over its DevTools pipe: no package, no port, and it ends when the pipe
does, so none is left behind however the tests end."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--lang=en-US",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and answers on 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> tuple[str | None, str]:
    """The program or None, and in words where it is or was looked for."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return shutil.which(named), f"CHROMIUM_PATH is {named}"
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return found, found or f"there is no {', '.join(NAMES[:-1])} or {NAMES[-1]} on PATH"


class BrowserError(Exception):
    """The browser did not do what it was told, or not in time."""


class Chromium:
    """A context manager around one browser with one page.

    program: see find_chromium. profile: a folder for it, empty or not there yet. size: of the page, in
    pixels.
    """

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (1600, 900)) -> None:
        self._command = [
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._size = size
        self._log = profile / "chromium.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: tuple[int, int] = (-1, -1)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.messages: list[dict[str, Any]] = []
        """What the page logged and threw, as the browser's events."""

    def __enter__(self) -> Chromium:
        self._log.parent.mkdir(exist_ok=True)
        commands, our_commands = os.pipe()
        our_answers, answers = os.pipe()
        # Above 4, so that neither is overwritten on its way to 3 and 4.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, *map(str, theirs), *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=theirs,
                    start_new_session=True,
                )
        finally:
            for end in (commands, answers, *theirs):
                os.close(end)
        self._pipes = our_commands, our_answers
        try:
            self._attach()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_pipes()
        if self._process is not None:
            self.wait(limit_s=5)
            with contextlib.suppress(ProcessLookupError):  # its helpers are in its process group too
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)

    @property
    def pid(self) -> int:
        """Of the browser, and of the process group that its helpers are in."""
        assert self._process is not None
        return self._process.pid

    def close_pipes(self) -> None:
        """What the system does if this process dies; the browser then ends by itself."""
        for end in self._pipes:
            with contextlib.suppress(OSError):
                os.close(end)
        self._pipes = (-1, -1)

    def wait(self, limit_s: float) -> bool:
        """Whether the browser has ended within the time."""
        assert self._process is not None
        try:
            self._process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def call(self, method: str, *, limit_s: float = 60, **params: Any) -> dict[str, Any]:
        """A DevTools command and its result. Raises BrowserError if it fails or takes longer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._pipes[0], json.dumps(message).encode() + b"\0")
        end = time.monotonic() + limit_s
        while True:
            answer = self._read(end, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.messages.append(answer)

    def evaluate(self, script: str, *, limit_s: float = 60) -> Any:
        """The value of a JavaScript expression in the page, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate",
            limit_s=limit_s,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", details["text"])
            raise BrowserError(f"{script[:200]}: {thrown}")
        return result["result"].get("value")

    def wait_for(self, script: str, what: str, *, limit_s: float = 60) -> Any:
        """The expression's value as soon as it is true; `what` is for the message if it never is."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                value = self.evaluate(script, limit_s=max(1.0, end - time.monotonic()))
            except BrowserError:  # the page is being replaced
                value = None
            if value:
                return value
            time.sleep(0.2)
        raise BrowserError(f"waited {limit_s:.0f} s for {what} in vain; the page shows: {self.text()[:2000]}")

    def open(self, url: str) -> None:
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise BrowserError(f"{url}: {failed}")

    def text(self) -> str:
        """What is written on the page."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of the first element that a CSS selector finds."""
        box = self.evaluate(
            f"(r => r && [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({json.dumps(selector)})?.getBoundingClientRect())"
        )
        if box is None:
            raise BrowserError(f"nothing on the page is {selector}; it shows: {self.text()[:2000]}")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _attach(self) -> None:
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0]["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        width, height = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _read(self, end: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._pipes[1]], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise BrowserError(f"{method}: no answer in time")
            read = os.read(self._pipes[1], 1 << 20)
            if not read:
                log = self._log.read_text(errors="replace")[-2000:]
                raise BrowserError(f"{method}: Chromium has ended. Its last words:\n{log}")
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))
