"""A stream of events cut into events, however it comes: what one record of an encrypted stream carries."""

from __future__ import annotations

from processor import sse
from processor.envelope_stream import MAX_PIECE_BYTES


class Pieces:
    """Bytes in, whole events out. What is longer than a record does not wait for its end."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._scanned = 0

    def feed(self, data: bytes, end: bool) -> list[bytes]:
        """The events that end with this data; with `end` also what is left."""
        self._rest += data
        rest, found, start = self._rest, [], 0
        scan = max(0, self._scanned - 2)  # an event ends in up to three bytes
        while (stop := sse.boundary(rest, start, scan, whole=True)) >= 0:
            found.append(bytes(rest[start:stop]))
            start = scan = stop
        del rest[:start]
        if rest and (end or len(rest) >= MAX_PIECE_BYTES):
            found.append(bytes(rest))
            rest.clear()
        self._scanned = len(rest)
        return found
