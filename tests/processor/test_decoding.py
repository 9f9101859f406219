"""Reading compressed answers piece by piece."""

from __future__ import annotations

import gzip
import zlib

import pytest

from processor.decoding import Inflater, inflater


def inflate(reader: Inflater, *chunks: bytes) -> bytes:
    return b"".join(piece for chunk in chunks for piece in reader.pieces(chunk))


@pytest.mark.parametrize("encoding", ["", "identity", " Identity ", "identity, identity"])
def test_identity_needs_no_inflater(encoding: str) -> None:
    assert inflater(encoding) is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip", "x"])
def test_what_is_not_known_is_said(encoding: str) -> None:
    with pytest.raises(ValueError, match="can not be read"):
        inflater(encoding)


@pytest.mark.parametrize("extra", range(0, 260, 13))
def test_nothing_stays_behind_where_a_piece_is_full(extra: int) -> None:
    """A bare stream has no trailer: zlib may have taken all of the input and still hold output."""
    text = b"a" * ((64 << 10) + extra)
    for wbits in (-15, 15, 31):
        packer = zlib.compressobj(wbits=wbits)
        packed = packer.compress(text) + packer.flush()
        assert inflate(Inflater(gzip=wbits == 31), packed) == text
        assert inflate(Inflater(gzip=wbits == 31), packed[:1], packed[1:9], packed[9:]) == text


def test_what_was_flushed_is_read_at_once() -> None:
    """A stream that compresses its answer flushes after each chunk: none may wait for the next."""
    for wbits in (-15, 15, 31):
        packer, reader = zlib.compressobj(wbits=wbits), Inflater(gzip=wbits == 31)
        for text in (b"one", b"two", b"x" * 200_000):
            assert inflate(reader, packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)) == text


def test_members_of_a_gzip_follow_each_other() -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    assert inflate(Inflater(gzip=True), packed) == b"one two"
    assert inflate(Inflater(gzip=True), *(bytes([byte]) for byte in packed)) == b"one two"


def test_what_follows_a_deflate_stream_is_not_read() -> None:
    assert inflate(Inflater(gzip=False), zlib.compress(b"one") + b"rest", b"more") == b"one"


def test_what_is_not_gzip_is_refused() -> None:
    packed = gzip.compress(b"one")
    for broken in (b"not gzip", packed + b"junk", packed[:-8] + bytes(8)):
        with pytest.raises(ValueError, match="not a readable stream"):
            inflate(Inflater(gzip=True), broken)
