"""The inflater of Envoy's script, and what must be said of it beside zlib."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from processor.decoding import inflater
from tests.envoy.lua_meter import LuaError, function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GROWTH, SLACK = 100, 65536  # as in envoy/meter.lua


def lua_inflater(encoding: str) -> Callable[[bytes], bytes] | None:
    found: Callable[[bytes], bytes] | None = function(b"paddock.inflater")(encoding.encode())
    return found


def inflate(encoding: str, pieces: Iterable[bytes]) -> bytes:
    reads = lua_inflater(encoding)
    assert reads is not None
    return b"".join(reads(piece) for piece in pieces)


def agrees_with_zlib(encoding: str, pieces: list[bytes]) -> None:
    """The same bytes. Damage may be found out later than by zlib, and gives a bounded answer until then; where the end
    has not come, sooner as well: zlib looks at some things when they are complete.
    """
    reader: Any = inflater(encoding)
    data = b"".join(pieces)
    expected, ended = None, False
    with suppress(ValueError):
        expected = b"".join(reader.pieces(data))
        ended = reader._stream is not None and reader._stream.eof
    reads = lua_inflater(encoding)
    assert reads is not None
    given: list[bytes] = []
    try:
        for piece in pieces:
            given.append(reads(piece))
            assert len(given[-1]) <= SLACK + GROWTH * len(piece)
    except LuaError:
        assert not ended or len(expected or b"") > SLACK, (encoding, pieces)
        assert expected is None or expected.startswith(b"".join(given))
    else:
        assert expected is None or b"".join(given) == expected, (encoding, pieces)
