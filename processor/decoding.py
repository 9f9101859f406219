"""Reading a compressed answer beside its way to the client (RFC 9110, section 8.4).

The gateway asks the upstream for no compression, so this is for an upstream, or a proxy before it, that compresses
all the same. Such an answer is observed and never edited.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BITE = 2 << 10  # bytes handed to zlib at once: it copies what stands behind the end of each member of a gzip file
_PIECE = 64 << 10  # decompressed bytes in hand at once, however well the chunk was packed

# zlib's window bits: 15 for the zlib format, 31 for gzip, -15 for a bare deflate stream.
_GZIP, _ZLIB, _BARE = 31, 15, -15


class Inflater:
    """Decompresses gzip or deflate as it arrives."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._stream = zlib.decompressobj(_GZIP) if gzip else None
        self._head = b""  # of deflate, until it can be told which of its two forms it has

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` adds; ValueError if it is not what the encoding says."""
        if self._stream is None:
            self._head = chunk = self._head + chunk
            if len(chunk) < 2:
                return
            # RFC 1950, 2.2. "deflate" means the zlib format, but some send the bare stream.
            wrapped = chunk[0] & 0x0F == 8 and (chunk[0] << 8 | chunk[1]) % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if wrapped else _BARE)
        try:
            for start in range(0, len(chunk), _BITE):
                bite = chunk[start : start + _BITE]
                while bite and not (self._stream.eof and not self._gzip):
                    if self._stream.eof:
                        self._stream = zlib.decompressobj(_GZIP)  # a gzip file is one or more members
                    if piece := self._stream.decompress(bite, _PIECE):
                        yield piece
                    bite = self._stream.unconsumed_tail or self._stream.unused_data
            # After a full piece zlib may hold more, though it has taken all of the input.
            while not self._stream.eof and (piece := self._stream.decompress(b"", _PIECE)):
                yield piece
        except zlib.error as error:
            raise ValueError("not a readable stream of its content encoding") from error


def inflater(content_encoding: str) -> Inflater | None:
    """The inflater for a Content-Encoding header of one known coding; ValueError for any other, None for identity."""
    codings = [name.strip().lower() for name in content_encoding.split(",")]
    codings = [name for name in codings if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) == 1 and codings[0] in ("gzip", "x-gzip", "deflate"):
        return Inflater(gzip=codings[0] != "deflate")
    raise ValueError(f"content encoding {content_encoding!r} can not be read")
