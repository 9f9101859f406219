"""Events cut out of a stream, whatever its chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from processor.envelope_stream import MAX_PIECE_BYTES
from processor.pieces import Pieces

ends = st.sampled_from((b"\n\n", b"\r\n\r\n", b"\n\r\n"))
lines = st.binary(min_size=1, max_size=20).map(lambda data: b"data: " + data.replace(b"\n", b"").replace(b"\r", b""))
events = st.lists(st.builds(bytes.__add__, lines, ends), max_size=8)


@given(events, st.lists(st.integers(1, 40)), st.binary(max_size=5))
def test_whole_events_in_order(made: list[bytes], cuts: list[int], tail: bytes) -> None:
    tail = tail.replace(b"\n", b"")
    stream, found, pieces = b"".join(made) + tail, [], Pieces()
    for size in cuts:
        chunk, stream = stream[:size], stream[size:]
        found += pieces.feed(chunk, end=False)
    found += pieces.feed(stream, end=True)
    assert b"".join(found) == b"".join(made) + tail
    assert found == made + ([tail] if tail else [])


def test_a_long_event_does_not_wait_for_its_end() -> None:
    pieces = Pieces()
    assert pieces.feed(b"data: " + b"x" * (MAX_PIECE_BYTES - 7), end=False) == []
    (long,) = pieces.feed(b"x", end=False)
    assert len(long) == MAX_PIECE_BYTES
    assert pieces.feed(b"xx\n\ndata: y\n\n", end=True) == [b"xx\n\n", b"data: y\n\n"]


def test_comments_and_blank_lines_stand_for_themselves() -> None:
    assert Pieces().feed(b": alive\n\ndata: x\n\n", end=False) == [b": alive\n", b"\n", b"data: x\n\n"]


def test_one_byte_at_a_time_takes_linear_time() -> None:
    pieces, event = Pieces(), b"data: " + b"x" * 50_000 + b"\n\n"
    found = [piece for byte in event for piece in pieces.feed(bytes([byte]), end=False)]
    assert found == [event]
