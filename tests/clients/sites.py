"""Sites of other origins than the gateway's: their servers, letting their pages in, and how their scripts begin."""

from __future__ import annotations

import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

import httpx

from tests.harness import MODELS, eventually

if TYPE_CHECKING:
    from tests.harness import Gateway

CHAT = "/openai/chat/completions"


class Site:
    """A web server of another origin than the gateway's. Every path is an empty page, or what `answers` says."""

    def __init__(self) -> None:
        site = self
        self.answers: list[tuple[int, dict[str, str], str]] = []  # for requests other than GET, one after the other
        self.asked: list[tuple[str, str]] = []
        self.pages: dict[str, str] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                text = site.pages.get(self.path, "<!doctype html><title>site</title>")
                self._say(200, {"content-type": "text/html"}, text)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                site.asked.append((self.path, body.decode()))
                self._say(*site.answers.pop(0))

            def _say(self, status: int, headers: dict[str, str], text: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def allow(gateway: Gateway, origin: str, *options: str) -> str:
    """A new tenant that allows `origin`, alone: what other tests allowed for it is taken back."""
    for policy in gateway.paddock("list-sessions")["policies"]:
        if origin in policy["origins"]:
            gateway.paddock("deny-sessions", policy["tenant"])
    tenant = gateway.tenant()
    gateway.paddock("allow-sessions", tenant, "--origin", origin, "--opened-per-minute", "1000", *options)

    def opened() -> bool:
        response = httpx.post(f"{gateway.url}/session", json={"fingerprint": "probe"}, headers={"origin": origin})
        return response.status_code == 200

    eventually(opened)
    return tenant


def client(gateway: Gateway, **options: Any) -> str:
    """Script: a client in `client`, and whatever the module has."""
    told = json.dumps({"proxyUrl": gateway.url, **options})
    return f"""
        const {{ PerishableClient, PerishableError, events }} = await import("{gateway.url}/session/client.js");
        const client = new PerishableClient({told});
        const chat = (text, more = {{}}) => client.makeRequest("{CHAT}", {{
          method: "POST",
          body: JSON.stringify({{ model: "{MODELS[0]}", messages: [{{ role: "user", content: text }}], ...more }}),
        }});
    """
