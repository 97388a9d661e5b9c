"""A headless Chromium, driven over its own pipe with the standard library alone (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import itertools
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

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
).split()
TIMEOUT = 60.0  # seconds for one answer


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser with one tab.

    Attributes:
        faults: what its console was told as warnings and errors, and exceptions that nobody caught.
    """

    def __init__(self, process: subprocess.Popen, to_it: int, from_it: int):
        self.faults: list[str] = []
        self._process = process
        self._to_it = to_it
        self._from_it = from_it
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            reply = self._read(deadline)
            if reply.get("id") == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]
            self._note(reply)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from_it], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser says nothing"
            content = os.read(self._from_it, 1 << 20)
            assert content, "the browser is gone"
            self._rest += content
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method = event.get("method", "")
        self._events.append(method)
        given = event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(given["exceptionDetails"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("warning", "error"):
            self.faults.append(given["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("warning", "error", "assert"):
            self.faults.append(json.dumps(given["args"]))

    def open(self, page: Path, fragment: str = "") -> None:
        """Opens a file and waits until it is loaded."""
        self._load("about:blank")  # the same file with another fragment would not be loaded again
        self._load(page.resolve().as_uri() + (f"#{fragment}" if fragment else ""))

    def _load(self, address: str) -> None:
        self._events.clear()
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + TIMEOUT
        while "Page.loadEventFired" not in self._events:
            self._note(self._read(deadline))

    def run(self, script: str) -> Any:
        """The value of an expression in the page, a promise's when it is kept."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """Writes what the window shows as PNG, to look at it."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def started(chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block.

    Args:
        profile: an empty folder.
    """
    its_input, to_it = os.pipe()
    from_it, its_output = os.pipe()
    redirect = f'exec "$@" 3<&{its_input} 4>&{its_output}'  # the descriptors that it expects
    command = ["bash", "-c", redirect, "bash", chromium, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(its_input, its_output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(its_input)
    os.close(its_output)
    try:
        yield Browser(process, to_it, from_it)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_it)
        os.close(from_it)
