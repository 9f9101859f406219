"""Headless Chromium over the DevTools protocol's pipe: no driver, no port, no package.

The browser reads commands from file descriptor 3 and writes answers and events to 4, as JSON with a NUL after each
(`--remote-debugging-pipe`). A page of its own browser context has storage of its own, so tests do not meet.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL = Path(__file__).with_name("chromium.sh")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--remote-debugging-pipe",
)
# The pipe's two ends must be 3 and 4 in the browser: this little program puts them there and becomes it.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_PATIENCE = 60.0  # seconds for one answer, on a machine that does much else


class PageError(Exception):
    """What a script in the page threw."""


class Browser:
    """One running browser."""

    def __init__(self, executable: str, profile: str) -> None:
        command, self._answers = os.pipe(), os.pipe()
        high = [os.dup(end) for end in (command[0], self._answers[1])]  # so that neither is 3 or 4 by chance
        high = [_above(end, 9) for end in high]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, *map(str, high), executable, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*high, command[0], self._answers[1]):
            os.close(end)
        self._commands = os.fdopen(command[1], "wb", buffering=0)
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.call("Browser.getVersion")

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """One command's result; PageError with the browser's words where it failed."""
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._ids)
            self._waiting[number] = answer
            message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
            self._commands.write(json.dumps(message).encode() + b"\0")
        found = answer.result(_PATIENCE)
        if "error" in found:
            raise PageError(f"{method}: {found['error']['message']}")
        result: dict[str, Any] = found["result"]
        return result

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """A new page, with cookies and storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)
            del self._pages[session]

    def close(self) -> None:
        with contextlib.suppress(PageError, OSError, TimeoutError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        self._commands.close()

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._answers[0], 1 << 16):
            *whole, rest = (rest + data).split(b"\0")
            for text in whole:
                self._take(json.loads(text))
        os.close(self._answers[0])
        for answer in self._waiting.values():
            answer.set_exception(PageError("the browser is gone"))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._waiting.pop(message["id"]).set_result(message)
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.events.put(message)


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._seen: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def goto(self, url: str) -> None:
        """Load `url` and return when its modules have run."""
        found = self.call("Page.navigate", url=url)
        if "errorText" in found:
            raise PageError(f"{url}: {found['errorText']}")
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def run(self, script: str) -> Any:
        """What the body of an async function returns; PageError with what it throws."""
        found = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in found:
            thrown = found["exceptionDetails"]
            raise PageError(thrown.get("exception", {}).get("description") or thrown["text"])
        return found["result"].get("value")

    def until(self, condition: str, patience: float = 30.0) -> Any:
        """The value of an expression as soon as it is true; AssertionError with what the page said otherwise."""
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(PageError):  # between two documents there is nothing to ask
                if found := self.run(f"const it = ({condition}); return it instanceof Node ? true : it;"):
                    return found
            assert time.monotonic() < deadline, f"{condition}: not within {patience} s; {self.complaints()}"
            time.sleep(0.03)

    def complaints(self) -> list[str]:
        """Everything that the page, its scripts or its policies complained about so far."""
        while not self.events.empty():
            self._seen.append(self.events.get())
        found = []
        for event in self._seen:
            params = event["params"]
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
            elif event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(" ".join(str(arg.get("value", "")) for arg in params["args"]))
        return found

    def requests(self) -> list[dict[str, Any]]:
        """Every request that the page sent so far, as DevTools tells it."""
        self.complaints()
        return [event["params"]["request"] for event in self._seen if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, *, width: int = 1100, height: int = 760, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def running(executable: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(executable, profile)
        try:
            yield browser
        finally:
            browser.close()


def executable() -> tuple[str, str]:
    """Where Chromium is, installed if need be; or "", and why there is none."""
    found = subprocess.run([INSTALL], capture_output=True, text=True, check=False)
    path = found.stdout.strip().splitlines()
    return (path[-1], "") if found.returncode == 0 and path else ("", found.stderr.strip())


def _above(end: int, lowest: int) -> int:
    import fcntl

    moved = fcntl.fcntl(end, fcntl.F_DUPFD, lowest)
    os.close(end)
    os.set_inheritable(moved, True)
    return moved
