"""What is outside and must answer: told apart by what it does."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, TCPServer
from typing import TYPE_CHECKING

import pytest

from gateway import upstreams
from gateway.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://gpu-box/", "http://gpu-box:11434"),
        ("gpu-box:8000", "http://gpu-box:8000"),
        ("https://ollama.example.org", "https://ollama.example.org:443"),
        (" http://[::1]:11434 ", "http://[::1]:11434"),
    ],
)
def test_addresses_that_people_write(written: str, meant: str) -> None:
    assert upstreams.normal(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        "ftp://x",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://u:p@h",
        "http://h/v1",
        "http://h?x",
        "http://h#x",
    ],
)
def test_what_is_no_address_of_an_ollama(written: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        upstreams.normal(written)


class Html(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *args: object) -> None:
        pass


class Missing(Html):
    def do_GET(self) -> None:
        self.send_error(404)


class Greeting(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        self.rfile.readline()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = request.param
    kind = HTTPServer if issubclass(handler, BaseHTTPRequestHandler) else TCPServer
    with kind(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (Html, "answers, but not as Ollama does"),
        (Missing, "answers with status 404"),
        (Greeting, "answers, but not as Ollama does"),
    ],
    indirect=["server"],
)
def test_something_else_listens_there(server: str, reason: str) -> None:
    with pytest.raises(Failure, match="Ollama does not answer") as caught:
        asyncio.run(upstreams.check([server], print))
    assert f"  | {server} {reason}" in str(caught.value)


def test_one_of_several_is_enough_and_the_others_are_told(gateway: Gateway) -> None:
    said: list[str] = []
    asyncio.run(upstreams.check(["http://127.0.0.1:1", gateway.upstream.url], said.append))
    assert any("http://127.0.0.1:1 does not answer: Connection refused" in line for line in said)
    assert any(gateway.upstream.url in line and "does not" not in line for line in said)
