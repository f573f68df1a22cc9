"""A page in a real headless Chromium: opened, asked in JavaScript, moved about in by mouse and wheel, photographed.

It speaks Chromium's debugging protocol over the pipe that ``--remote-debugging-pipe`` opens, so it needs nothing else.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "browser", "why_not"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
_SECONDS = 60


def _binary() -> str | None:
    return os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)


def why_not() -> str:
    """Why there is no browser here; empty where there is one."""
    if _binary() is None:
        return f"no Chromium: none of {', '.join(_NAMES)} is on the path, nor is CHROMIUM set"
    return "" if shutil.which("bash") else "no bash, which opens the pipes"


class Browser:
    """One tab. Errors of the page are errors here."""

    def __init__(self, process: subprocess.Popen, read: int, write: int):
        self.process, self.read, self.write = process, read, write
        self.rest, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            if "method" in answer and hasattr(self, "events"):
                self.events.append(answer)

    def message(self) -> dict[str, Any]:
        end = time.monotonic() + _SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self.read, 1 << 20)
            assert chunk, "Chromium has gone"
            self.rest += chunk
        first, _, self.rest = self.rest.partition(b"\0")
        return json.loads(first)

    def open(self, path: Path) -> None:
        self.events = []
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + _SECONDS
        while self.ask("document.readyState") != "complete":
            assert time.monotonic() < end
            time.sleep(0.02)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked of the page is drawn."""
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def ask(self, expression: str) -> Any:
        """What a JavaScript expression gives, waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def problems(self) -> list[str]:
        """Errors of the page, and whatever it asked the network for, since it was opened."""
        self.ask("1")
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:"):
                found.append(f"asks for {params['request']['url']}")
        return found

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    binary = _binary()
    assert binary is not None
    inner_read, write = os.pipe()
    read, inner_write = os.pipe()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,900",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder}",
    ]
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{inner_read} 4>&{inner_write}', binary, *options]
    process = subprocess.Popen(
        command, pass_fds=(inner_read, inner_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(inner_read)
    os.close(inner_write)
    try:
        yield Browser(process, read, write)
    finally:
        process.terminate()
        process.wait(30)
        os.close(read)
        os.close(write)
