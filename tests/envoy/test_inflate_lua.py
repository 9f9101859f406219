"""What Envoy's meter decompresses, beside zlib and the reader of processor: in every cut, with every kind of block."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.decoding import inflater
from tests.envoy import inflating
from tests.envoy.inflating import agrees_with_zlib, lua_inflater
from tests.envoy.lua_meter import LuaError

if TYPE_CHECKING:
    from collections.abc import Iterable

LINE = b'{"model":"llama3.1:8b","message":{"role":"assistant","content":" w%d"},"done":false}\n'
LINES = b"".join(LINE % number for number in range(400))
NOISE = random.Random(7).randbytes(70_000)  # longer than the window, and nothing in it twice
FAR = NOISE[:40_000] + LINES + NOISE[8_000:40_000] + NOISE[10:30]
WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15, "bare": -15}
STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FILTERED]


def inflate(encoding: str, pieces: Iterable[bytes]) -> bytes:
    return inflating.inflate(encoding.replace("bare", "deflate"), pieces)


def pack(encoding: str, data: bytes, level: int = 6, strategy: int = 0) -> bytes:
    packer = zlib.compressobj(level, wbits=WBITS[encoding], strategy=strategy)
    return packer.compress(data) + packer.flush()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("encoding", WBITS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("data", [b"", b"x", LINES, FAR], ids=["nothing", "a byte", "lines", "far"])
def test_all_that_zlib_packs(encoding: str, strategy: int, level: int, data: bytes) -> None:
    packed = pack(encoding, data, level, strategy)
    for size in (997, 16_384):
        assert inflate(encoding, cut(packed, size)) == data


@pytest.mark.parametrize("encoding", WBITS)
def test_every_cut(encoding: str) -> None:
    packed = pack(encoding, LINES[:700])
    for place in range(len(packed) + 1):
        assert inflate(encoding, [packed[:place], b"", packed[place:]]) == LINES[:700]
    assert inflate(encoding, cut(packed, 1)) == LINES[:700]


@pytest.mark.parametrize("encoding", WBITS)
def test_a_line_is_there_when_it_came(encoding: str) -> None:
    """What a stream flushes is given on at once, not when the next piece comes."""
    packer = zlib.compressobj(wbits=WBITS[encoding])
    reads = lua_inflater(encoding.replace("bare", "deflate"))
    assert reads
    for number in range(50):
        assert reads(packer.compress(LINE % number) + packer.flush(zlib.Z_SYNC_FLUSH)) == LINE % number
    assert reads(packer.flush()) == b""


def test_a_gzip_file_of_many_members_with_all_that_a_head_may_have() -> None:
    named = b"\x1f\x8b\x08\x1f" + bytes(6) + b"\x03\x00abc" + b"name\x00" + b"a comment\x00" + b"\x12\x34"
    named += gzip.compress(b"two")[10:]
    packed = gzip.compress(b"one") + named + gzip.compress(b"") + gzip.compress(LINES)
    for size in (1, 5, len(packed)):
        assert inflate("gzip", cut(packed, size)) == b"onetwo" + LINES


def test_after_the_end_of_deflate_nothing_is_read() -> None:
    for encoding in ("deflate", "bare"):
        assert inflate(encoding, [pack(encoding, b"all") + b"more", b"and more"]) == b"all"


@pytest.mark.parametrize("encoding", ["", "identity", "br", "zstd", "gzip, gzip", "gzip, br", "gzipped", " ", ","])
def test_what_is_not_decompressed(encoding: str) -> None:
    assert lua_inflater(encoding) is None


@pytest.mark.parametrize("encoding", ["GZIP", " gzip ", "identity, gzip", "x-gzip,", "Deflate"])
def test_the_spellings_that_processor_knows_too(encoding: str) -> None:
    assert lua_inflater(encoding)
    assert inflater(encoding)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        pytest.param(*case, id=name)
        for name, case in {
            "no gzip": ("gzip", b"{}" + bytes(20)),
            "another method": ("gzip", b"\x1f\x8b\x07" + bytes(20)),
            "unknown flags": ("gzip", b"\x1f\x8b\x08\x80" + bytes(20)),
            "its sum": ("gzip", gzip.compress(LINES)[:-8] + bytes(4) + gzip.compress(LINES)[-4:]),
            "its length": ("gzip", gzip.compress(LINES)[:-4] + b"\x01\x00\x00\x00"),
            "what follows it": ("gzip", gzip.compress(LINES) + b"not a member"),
            "the sum of deflate": ("deflate", zlib.compress(LINES)[:-1] + b"\x00"),
            "a block of no kind": ("bare", b"\x07\x00"),
            "a stored length": ("bare", b"\x01\x05\x00\x05\x00hello"),
            "a distance to before the beginning": ("bare", b"\x03\x02\x00"),
            "a dictionary": ("deflate", b"\x78\xbb" + bytes(10)),
        }.items()
    ],
)
def test_what_is_damaged_raises(encoding: str, packed: bytes) -> None:
    with pytest.raises(LuaError):
        inflate(encoding, [packed])
    with pytest.raises(LuaError):
        inflate(encoding, cut(packed, 1))


@pytest.mark.parametrize("encoding", WBITS)
def test_what_grows_beyond_measure_raises(encoding: str) -> None:
    bomb = pack(encoding, bytes(50 << 20))
    given_out = 0
    reads = lua_inflater(encoding.replace("bare", "deflate"))
    assert reads
    with pytest.raises(LuaError):
        for piece in cut(bomb, 4096):
            given_out += len(reads(piece))
    assert given_out <= 65536 + 100 * 4096


@given(data=st.binary(max_size=3000), places=st.lists(st.integers(1, 400)), encoding=st.sampled_from(sorted(WBITS)))
def test_anything_in_any_cut(data: bytes, places: list[int], encoding: str) -> None:
    packed, pieces = pack(encoding, data + data), []
    for size in places:
        pieces.append(packed[:size])
        packed = packed[size:]
    assert inflate(encoding, [*pieces, packed]) == data + data


@given(
    data=st.binary(max_size=300),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=4),
    encoding=st.sampled_from(sorted(WBITS)),
)
def test_damage_is_damage_or_what_zlib_makes_of_it(data: bytes, flips: list[tuple[int, int]], encoding: str) -> None:
    packed = bytearray(pack(encoding, data * 3))
    for place, mask in flips:
        packed[place % len(packed)] ^= mask
    agrees_with_zlib(encoding.replace("bare", "deflate"), [bytes(packed)])


@given(noise=st.binary(max_size=600), encoding=st.sampled_from(sorted(WBITS)))
def test_noise(noise: bytes, encoding: str) -> None:
    start = {"gzip": b"\x1f\x8b\x08\x00" + bytes(6), "x-gzip": b"", "deflate": b"\x78\x9c", "bare": b""}[encoding]
    agrees_with_zlib(encoding.replace("bare", "deflate"), cut(start + noise, 37))
