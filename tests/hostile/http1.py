"""Malformed HTTP/1.1, class by class. Every request carries its canary where bodies, headers and queries are.

No canary stands in a path or a method, which are logged, nor in the header that Envoy takes for the request's path
where it refuses a request before it has taken it off (one without a host).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hostile.inputs import corpus

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

PATHS = (
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/tags", "/api/version",
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/llama3.1:8b",
    "/v1/chat/secure_completion", "/pki/public_key", "/session", "/openai/chat/completions", "/openai/models",
    "/healthz", "/metrics", "/api/pull", "/api/delete", "/", "*",
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "G\x00T", "")
_CONTROL = ("\x00", "\x01", "\x0b", "\x7f", "\r", "\n", "\t", "\x80", "\xff", " ")
_BODIES = [
    body for target in ("requests_keep_what_was_judged", "strict_json_says_what_json_says", "packages_have_one_form")
    for body in corpus(target).values()
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wire:
    """What is written to one connection. `owes`: the server may rightly wait for more, until the client hangs up."""

    kind: str
    data: bytes
    owes: bool = False


@dataclass(slots=True)
class Maker:
    """Draws requests: `key` opens the door, `canary` is new for each request."""

    drawn: random.Random
    key: str
    canary: str = ""

    def make(self, number: int) -> Wire:
        """Request `number` of a run; classes take turns, what is drawn within a class does not repeat."""
        self.canary = f"kanarie{number:08x}"
        kind = _CLASSES[number % len(_CLASSES)]
        data, owes = kind(self)
        return Wire(kind.__name__.strip("_"), data, owes)

    def any(self, *of: str) -> str:
        return self.drawn.choice(of)

    def head(self, start: str, *headers: str, host: bool = True) -> bytes:
        lines = [start, *(["host: gateway.example"] if host else []), *headers]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"

    def post(self, body: bytes, *headers: str, path: str | None = None, key: str | None = None) -> bytes:
        """An ordinary request with this body."""
        said = f"authorization: Bearer {self.key if key is None else key}"
        start = f"POST {path or self.any(*PATHS[:6], *PATHS[7:10])} HTTP/1.1"
        return self.head(start, said, f"content-length: {len(body)}", *headers) + body

    def json(self) -> bytes:
        """A good body."""
        message = {"role": "user", "content": f"{self.canary} !tokens=1"}
        return json.dumps({"model": "llama3.1:8b", "messages": [message], "stream": False}).encode()


def _request_lines(make: Maker) -> tuple[bytes, bool]:
    method, path = make.any(*_METHODS), make.any(*PATHS)
    query = f"?{make.canary}"
    version = make.any("HTTP/0.9", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/11", "http/1.1", "HTTP/1.1 x", "", "ICY/1")
    target = make.any(
        path, f"http://[::{path}", f"http://evil.example{path}", f"{path} x", f"{path}\t", "", path * 2000
    )
    start = f"{method} {target}{query} {version}"
    if make.drawn.random() < 0.3:
        at = make.drawn.randrange(len(start))
        start = start[:at] + make.any(*_CONTROL) + start[at:]
    return make.head(start), True


def _targets(make: Maker) -> tuple[bytes, bool]:
    steps = (
        "..", ".", "%2e%2e", "%2f", "%5c", "\\", "%00", "%0d%0a", ";x", "//", "%", "%zz", "%C0%AF", "é", "api", "chat",
        "%61pi", "API", "v1", "models", "{model}", "#", "\x7f",
    )  # fmt: skip
    path = "/" + "/".join(make.drawn.choice(steps) for _ in range(make.drawn.randint(1, 6)))
    key = f"authorization: Bearer {make.key}"
    start = f"{make.any('GET', 'POST')} {path}?q={make.canary} HTTP/1.1"
    return make.head(start, key, "content-length: 0"), False


def _methods(make: Maker) -> tuple[bytes, bool]:
    start = f"{make.any(*_METHODS, 'BREW', 'X' * 3000)} {make.any(*PATHS)}?{make.canary} HTTP/1.1"
    return make.head(start, f"authorization: Bearer {make.key}", "content-length: 0"), True


def _headers(make: Maker) -> tuple[bytes, bool]:
    odd = (
        f": {make.canary}",
        f"x-a b: {make.canary}",
        f"x-a : {make.canary}",
        f" folded {make.canary}",
        make.canary,
        f"x_under: {make.canary}",
        f"x-a: {make.canary}\x00",
        f"x-a: {make.canary}\r",
        f"x-\x80: {make.canary}",
        f"x-é: {make.canary} é",
        f"host: {make.canary}",
        f"content-length: {make.canary}",
        f"expect: {make.canary}",
        f"connection: {make.canary}, close",
        f"upgrade: {make.canary}",
        f"te: {make.canary}",
        f"x-a: {make.canary}\ny: z",
        f"x-request-id: {make.canary}",
        "x-envoy-original-path: /api/pull",
        f"x-paddock-grant: {make.canary}",
        f"cookie: {make.canary}",
        f"traceparent: {make.canary}",
        f"x-forwarded-for: {make.canary}",
        f"range: {make.canary}",
        f"user-agent: {make.canary}",
        f"referer: {make.canary}",
        f"content-encoding: {make.canary}",
        f"via: {make.canary}",
        f"content-type: {make.canary}",
        f"accept: {make.canary}",
        f"origin: {make.canary}",
        f"if-match: {make.canary}",
    )
    headers = [make.drawn.choice(odd) for _ in range(make.drawn.randint(1, 4))]
    start = f"{make.any('GET', 'POST')} {make.any(*PATHS)} HTTP/1.1"
    return make.head(start, *headers, host=make.drawn.random() < 0.8), True


def _many_headers(make: Maker) -> tuple[bytes, bool]:
    if make.drawn.random() < 0.5:
        headers = [f"x-{number}: {make.canary}" for number in range(make.drawn.choice((99, 101, 500)))]
    else:
        headers = [f"x-long: {make.canary}" + "a" * make.drawn.choice((8_000, 33_000, 70_000))]
    return make.head(f"GET {make.any(*PATHS)} HTTP/1.1", *headers), True


def _lengths(make: Maker) -> tuple[bytes, bool]:
    body = make.json()
    length = make.any(
        "-1",
        "+5",
        "0x5",
        "5 5",
        "5,5",
        "5, 6",
        "",
        "1e3",
        "9" * 30,
        "18446744073709551616",
        str(len(body) + 9),
        "5\x00",
        str(len(body) - 9),
        "٣",
    )
    headers = [f"authorization: Bearer {make.key}", f"content-length: {length}"]
    if make.drawn.random() < 0.3:
        headers.append(f"content-length: {len(body)}")
    return make.head("POST /api/chat HTTP/1.1", *headers) + body, True


def _chunks(make: Maker) -> tuple[bytes, bool]:
    body = make.json()
    size = make.any(
        "g",
        "-1",
        "0x10",
        "",
        " 5",
        "5;" + make.canary,
        "5;" + "x" * 20_000,
        "f" * 17,
        f"{len(body):x} ",
        "00000000000000000",
        f"{len(body):x}",
        f"{len(body) + 2:x}",
        "5\n",
    )
    end = make.any(
        "\r\n0\r\n\r\n", "\n0\n\n", "0\r\n\r\n", "\r\n0\r\nx-t: " + make.canary + "\r\n\r\n", "\r\n-0\r\n\r\n", ""
    )
    coding = make.any(
        "chunked", "Chunked", "chunked, chunked", "gzip, chunked", "chunked, identity", "xchunked", " chunked"
    )
    head = make.head("POST /api/chat HTTP/1.1", f"authorization: Bearer {make.key}", f"transfer-encoding: {coding}")
    return head + size.encode() + b"\r\n" + body + end.encode(), True


def _smuggling(make: Maker) -> tuple[bytes, bool]:
    """Two readers of these bytes could disagree on where the first request ends."""
    hidden = f"POST /api/pull HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nx-c: {make.canary}\r\n\r\n{{}}"
    coding = make.any(
        "transfer-encoding: chunked",
        "transfer-encoding : chunked",
        "transfer-encoding:\tchunked",
        "Transfer_Encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: x\r\n chunked",
        "x: y\ntransfer-encoding: chunked",
        "transfer-encoding:\x0bchunked",
        "connection: content-length",
        "connection: transfer-encoding",
        "upgrade: h2c",
    )
    body = make.any(f"0\r\n\r\n{hidden}", f"{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n", hidden)
    length = make.drawn.choice((0, 4, 6, len(body), len(body) + 50))
    key = f"authorization: Bearer {make.key}"
    return make.head("POST /api/chat HTTP/1.1", key, f"content-length: {length}", coding) + body.encode(), True


def _bodies(make: Maker) -> tuple[bytes, bool]:
    body = make.drawn.choice(_BODIES)[:4000]
    for _ in range(make.drawn.randint(1, 4)):
        at = make.drawn.randrange(len(body) + 1)
        new = make.drawn.choice(
            (make.canary.encode(), b"\xff", b"\x00", b'"', b"{", b"]", b"\\ud800", b",", b"1e999", b"\xef\xbb\xbf")
        )
        body = body[:at] + new + body[at + make.drawn.randint(0, 9) :]
    return make.post(body), False


def _wrong_fields(make: Maker) -> tuple[bytes, bool]:
    good = json.loads(make.json())
    if make.drawn.random() < 0.2:
        return make.post(
            json.dumps({**good, "model": make.drawn.choice((None, [], 7, "", "x" * 300, "é"))}).encode()
        ), False
    odd = make.drawn.choice((None, [], {}, -1, 1e300, True, make.canary, {"a": [make.canary] * 3}, [make.canary]))
    name = make.any("messages", "stream", "options", "keep_alive", "format", "tools", "n", "Model", "_x", make.canary)
    message = {"role": odd, "content": odd, make.canary: odd}
    return make.post(json.dumps({**good, name: make.drawn.choice((odd, [message]))}).encode()), False


def _sizes(make: Maker) -> tuple[bytes, bool]:
    size = make.drawn.choice((0, 1, 262_143, 262_145, 700_000) if make.drawn.random() < 0.2 else (0, 1, 2, 3))
    return make.post((make.canary.encode() + b"[" * size)[: size or 0]), False


def _keys(make: Maker) -> tuple[bytes, bool]:
    """Keys that are none. Those that are well formed and wrong have a suite of their own."""
    key = make.any(
        make.key[:-1],
        make.key + "x",
        make.key.swapcase(),
        f"{make.key} {make.key}",
        f"{make.key},x",
        f"nz_{make.canary}",
        "",
        "eyJhbGciOiJub25lIn0.e30.",
        f"nzp_{make.canary}",
        "é" * 41,
        "\x00",
        make.canary * 500,
    )
    if make.drawn.random() < 0.3:
        scheme = make.any("Basic", "bearer  ", "Bearer\t", "Digest", "")
        start = f"POST {make.any(*PATHS)} HTTP/1.1"
        return make.head(
            start, f"authorization: {scheme} {key}", f"x-api-key: {make.canary}", "content-length: 0"
        ), False
    return make.post(make.json(), f"x-api-key: {make.any(key, make.canary)}", key=key), False


def _sessions(make: Maker) -> tuple[bytes, bool]:
    path = make.any("/session", "/openai/chat/completions", "/openai/models", "/session/x")
    headers = (
        f"origin: {make.any('null', 'https://' + make.canary, 'http://localhost:3000', '*')}",
        f"x-publishable-key: {make.any('nzp_' + make.canary, make.canary)}",
        f"x-request-signature: v1={make.canary}", f"x-timestamp: {make.any('0', make.canary, '9' * 15)}",
        f"x-fingerprint: {make.canary}",
    )  # fmt: skip
    body = make.any("{}", "[]", f'{{"entropyData": "{make.canary}"}}', make.canary, '{"fingerprint": 1}').encode()
    return make.post(body, *headers, path=path, key=make.any("", "a.b.c", make.key)), False


def _envelopes(make: Maker) -> tuple[bytes, bool]:
    headers = (
        f"x-payload-id: {make.any(make.canary, 'a/b', '', 'x' * 200)}",
        f"x-public-key: {make.any('%zz', make.canary, '', 'A' * 3000)}",
        f"x-security-tier: {make.any('standard', make.canary)}",
        f"x-envelope-stream: {make.any('1', '2', make.canary)}",
    )
    body = make.drawn.choice((*_BODIES[-9:], make.canary.encode(), b""))
    return make.post(body, *headers, path="/v1/chat/secure_completion"), False


def _noise(make: Maker) -> tuple[bytes, bool]:
    noise = make.drawn.randbytes(make.drawn.randint(1, 400))
    return make.any("", "GET ", "POST / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00", "\r\n\r\n").encode() + noise, True


_CLASSES: tuple[Callable[[Maker], tuple[bytes, bool]], ...] = (
    _request_lines, _targets, _methods, _headers, _many_headers, _lengths, _chunks, _smuggling, _bodies, _wrong_fields,
    _sizes, _keys, _sessions, _envelopes, _noise,
)  # fmt: skip
