"""Server-sent events, as far as a stream of answers needs them (WHATWG HTML, section 9.2).

An event is what comes up to and with a blank line. Blank lines before it and comment lines stand for themselves: they
are keep-alives, and must not wait for the next event. Lines end in LF or CRLF; a lone CR, which the standard also
takes for an end of line, is not one here: no server of this surface sends it.
"""

from __future__ import annotations

import json
import re

_BLANK = re.compile(rb"\r?\n")
_END = re.compile(rb"\n\r?\n")


def boundary(data: bytes | bytearray, start: int, scan: int, *, whole: bool) -> int:
    """See `frames.Dialect.boundary`."""
    if whole and data.startswith(b":", start):
        # Not by a pattern from its start: a comment that comes byte by byte would be read anew with every byte.
        end_of_line = data.find(b"\n", max(start, scan))
        return end_of_line + 1 if end_of_line >= 0 else -1
    if whole and (blank := _BLANK.match(data, start)):
        return blank.end()
    end = _END.search(data, max(start, scan))
    return end.end() if end else -1


def data_of(event: bytes) -> bytes:
    """The event's data: its `data` lines, joined."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 2:
        return event[6:].rstrip(b"\r\n")
    lines = (line.removesuffix(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def event(data: dict[str, object], *, name: str = "") -> bytes:
    """An event of our own."""
    head = b"event: %s\n" % name.encode() if name else b""
    return head + b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
