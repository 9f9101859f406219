"""The demo upstream as the tests run it: a process of its own, on a free port, asked over real HTTP."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "listening on "


class Demo:
    """A running demo upstream."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=10)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def served(self, since: int = 0) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.http.get(f"/__demo/served?since={since}").json()
        return listed

    def last(self) -> dict[str, Any]:
        return self.served()[-1]

    def requests(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.http.get("/__demo/requests").json()
        return listed


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Demo]:
    command = [sys.executable, "-m", "gateway.demo", "--port", "0", *arguments]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(PREFIX), line
        demo = Demo(process, line.removeprefix(PREFIX).strip())
        try:
            yield demo
        finally:
            demo.http.close()
            process.terminate()
            process.wait(10)
        log.seek(0)
        assert log.read() == "", "the demo upstream logs its own faults alone, and should have none"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "llama3.1:8b", "messages": [{"role": "user", "content": text}], **fields}
