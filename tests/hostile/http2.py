"""Malformed HTTP/2 (RFC 9113), written frame by frame: a library would refuse to send it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.hostile.http1 import PATHS, Maker, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*fields: tuple[str, str]) -> bytes:
    """Header fields as HPACK literals without indexing or Huffman (RFC 7541, 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, prefix = len(raw) - 127, b"\x7f"
    while rest >= 128:
        prefix += bytes([rest % 128 + 128])
        rest //= 128
    return prefix + bytes([rest]) + raw


def make(maker: Maker, number: int) -> Wire:
    """Request `number` of a run, over HTTP/2."""
    maker.canary = f"kanarie{number:08x}"
    kind = _CLASSES[number % len(_CLASSES)]
    return Wire(f"h2 {kind.__name__.strip('_')}", PREFACE + frame(SETTINGS, 0, 0) + kind(maker), owes=True)


def _fields(make: Maker, method: str = "POST") -> list[tuple[str, str]]:
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", f"{make.any(*PATHS[:10])}"),
        (":authority", "gateway.example"),
        ("authorization", f"Bearer {make.key}"),
        ("x-canary", make.canary),
    ]


def _pseudo_headers(make: Maker) -> bytes:
    fields = _fields(make, make.any("GET", "", "G T", "CONNECT", "x" * 999))
    at = make.drawn.randrange(len(fields))
    odd = (
        (":path", ""),
        (":path", "api"),
        (":status", "200"),
        (":x", make.canary),
        ("Host", make.canary),
        ("", make.canary),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("te", make.canary),
        ("content-length", make.canary),
        ("content-length", "5"),
        ("x-a\x00", "y"),
        ("x-a", f"{make.canary}\r\nx: y"),
        (":authority", make.canary),
        ("host", make.canary),
        ("x_under", make.canary),
        (":scheme", make.canary),
        (":path", f"/api/../api/pull?{make.canary}"),
        ("upgrade", "websocket"),
    )
    if make.drawn.random() < 0.3:
        del fields[at]
    fields.insert(at, make.drawn.choice(odd))
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*fields))


def _bodies(make: Maker) -> bytes:
    body = make.json()[: make.drawn.randint(0, 60)] + make.canary.encode()
    length = ("content-length", str(make.drawn.choice((0, 3, len(body), len(body) + 7))))
    head = frame(HEADERS, END_HEADERS, 1, block(*_fields(make), length))
    data = frame(DATA, make.drawn.choice((END_STREAM, PADDED, PADDED | END_STREAM)), 1, body)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, block((make.any("x-t", ":path", "T"), make.canary)))
    return head + data + (trailers if make.drawn.random() < 0.4 else b"")


def _streams(make: Maker) -> bytes:
    """Streams that are not open, not allowed, or not theirs."""
    head = block(*_fields(make))
    number = make.drawn.choice((0, 2, 1 << 31, 0x7FFFFFFF, 3))
    return make.drawn.choice(
        (
            frame(HEADERS, END_HEADERS | END_STREAM, number, head) + frame(HEADERS, END_HEADERS | END_STREAM, 1, head),
            frame(DATA, END_STREAM, 1, make.canary.encode()),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, head) + frame(DATA, 0, 1, make.canary.encode()),
            frame(PUSH, END_HEADERS, 1, struct.pack(">I", 2) + head),
            frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, struct.pack(">IB", 1, 0) + head),
        )
    )


def _settings(make: Maker) -> bytes:
    number, value = make.drawn.choice(
        ((2, 9), (4, 1 << 31), (5, 1), (5, 1 << 24), (1, 0xFFFFFFFF), (99, 1), (8, 7), (3, 0))
    )
    return (
        frame(SETTINGS, 0, make.drawn.choice((0, 0, 1)), struct.pack(">HI", number, value))
        + frame(SETTINGS, make.drawn.choice((0, 1)), 0, b"x" * make.drawn.choice((0, 5, 6)))
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*_fields(make, "GET")))
    )


def _windows(make: Maker) -> bytes:
    step = make.drawn.choice((0, 1, 0x7FFFFFFF))
    return (
        frame(HEADERS, END_HEADERS, 1, block(*_fields(make)))
        + frame(WINDOW, 0, make.drawn.choice((0, 1, 5)), struct.pack(">I", step)) * make.drawn.randint(1, 3)
        + frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 0)[: make.drawn.choice((5, 4))])
    )


def _sizes(make: Maker) -> bytes:
    fields = block(*_fields(make), ("x-long", make.canary + "a" * make.drawn.choice((10, 16_000))))
    return frame(
        make.drawn.randrange(12), make.drawn.randrange(256), 1, fields, make.drawn.choice((None, 1 << 15, 0, 3))
    )


def _continuations(make: Maker) -> bytes:
    piece = block(("x-c", make.canary))
    many = make.drawn.choice((1, 5, 300))
    return frame(HEADERS, END_STREAM, 1, block(*_fields(make))) + frame(CONTINUATION, 0, 1, piece) * many


def _hpack(make: Maker) -> bytes:
    bad = (
        b"\x80",
        b"\xff" * 12,
        b"\x00\x7f\xff\xff\xff\xff\xff\x0f",
        b"\x3f\xff\xff\xff\x7f",
        b"\xbe",
        b"\x00\x83\xff\xff\xff\x00",
    )
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*_fields(make)) + make.drawn.choice(bad))


def _resets(make: Maker) -> bytes:
    """Requests that are taken back at once, the "rapid reset"."""
    count = make.drawn.choice((1, 5, 40))
    head = block(*_fields(make, "GET"))
    return b"".join(
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * one + 1, head) + frame(RESET, 0, 2 * one + 1, struct.pack(">I", 8))
        for one in range(count)
    )


def _floods(make: Maker) -> bytes:
    many = make.drawn.choice(
        ((PING, b"kanarien"), (SETTINGS, b""), (DATA, b""), (GOAWAY, bytes(8)), (WINDOW, b"\0\0\0\1"))
    )
    return frame(many[0], 0, 0, many[1]) * make.drawn.choice((3, 300))


def _noise(make: Maker) -> bytes:
    return make.drawn.randbytes(make.drawn.randint(1, 300))


_CLASSES: tuple[Callable[[Maker], bytes], ...] = (
    _pseudo_headers, _bodies, _streams, _settings, _windows, _sizes, _continuations, _hpack, _resets, _floods, _noise,
)  # fmt: skip
