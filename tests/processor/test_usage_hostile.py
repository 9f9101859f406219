"""Whatever arrives, a meter answers, in bounded memory, and the same however it is cut: no upstream is a reason for a
stream to fail in our hands."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.usage import Meter, meter_for

STREAMS = [
    ("/api/chat", "application/x-ndjson"),
    ("/api/generate", "application/x-ndjson"),
    ("/v1/chat/completions", "text/event-stream"),
    ("/v1/completions", "text/event-stream"),
    ("/v1/responses", "text/event-stream"),
    ("/v1/messages", "text/event-stream"),
]
DOCUMENTS = [
    (path, "application/json")
    for path in ("/api/chat", "/api/embed", "/api/embeddings", "/v1/completions", "/v1/embeddings", "/v1/messages")
]

# What streams are made of, so that a random row of it comes close to a real one.
PARTS = [
    b'{"model":"m",', b'"message":{"role":"assistant","content":"a"}', b'"message":{"content":""}', b'"response":"x"',
    b'"done":false}\n', b'"done":true,', b'"eval_count":3', b'"prompt_eval_count":7}\n', b'{"error":"secret"}\n',
    b'"error":', b"data: ", b"data:", b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}',
    b'{"choices":[{"text":"a","finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}',
    b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}', b'{"choices":[{"finish_reason":"stop"}]}',
    b"[DONE]", b'"usage":{', b"event: content_block_delta\n", b"event: response.output_text.delta\n",
    b'{"type":"message_delta","usage":{"input_tokens":1,"output_tokens":1}}', b'{"type":"message_stop"}',
    b'{"type":"response.completed","response":{"usage":{"input_tokens":1,"output_tokens":1}}}', b"event: error\n",
    b"\n", b"\n\n", b"\r\n", b"\r", b": ping\n", b" ", b"}", b"{", b"]", b"[", b",", b'"', b"\\", b"\xff", b"\xc3",
    "é".encode(), b"\x00", b"NaN", b"1e999", b"[" * 3000,
]  # fmt: skip
bodies = st.one_of(st.lists(st.sampled_from(PARTS), max_size=25).map(b"".join), st.binary(max_size=200))
caps = st.integers(0, 4)


def meter(path: str, kind: str, *, cap: int = 100, hide: bool = False, encoding: str = "") -> Meter:
    return meter_for(path, content_type=kind, content_encoding=encoding, hide_usage=hide, cap=cap)


def play(reader: Meter, chunks: list[bytes]) -> bytes:
    out = []
    for number, piece in enumerate(chunks, 1):
        instead = reader.feed(piece, number == len(chunks))
        out.append(piece if instead is None else instead)
        reader.usage()
    return b"".join(out)


def cut_up(body: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:stop] for start, stop in pairwise(marks)] or [b""]


@pytest.mark.parametrize(("path", "kind"), STREAMS + DOCUMENTS)
@pytest.mark.parametrize("hide", [False, True])
@settings(max_examples=60, deadline=None)
@given(body=bodies, places=st.lists(st.integers(0, 10_000), max_size=12), cap=caps)
def test_any_bytes_in_any_chunks_come_to_the_same(
    path: str, kind: str, hide: bool, body: bytes, places: list[int], cap: int
) -> None:
    whole, cut = meter(path, kind, cap=cap, hide=hide), meter(path, kind, cap=cap, hide=hide)
    expected, got = play(whole, [body]), play(cut, cut_up(body, places))
    assert cut.usage() == whole.usage()
    assert cut.cut == whole.cut
    assert cut.usage().deltas <= cap + 5 or kind == "application/json"  # at an end of its own, or a token in two halves
    # An error late in a frame that had begun to pass is the one thing that the chunks may change in the output.
    if b'"error"' not in body:
        assert got == expected


@pytest.mark.parametrize(("path", "kind"), STREAMS)
@settings(max_examples=60, deadline=None)
@given(body=bodies, places=st.lists(st.integers(0, 10_000), max_size=12))
def test_where_nothing_is_hidden_cut_or_wrong_nothing_changes(
    path: str, kind: str, body: bytes, places: list[int]
) -> None:
    reader = meter(path, kind)
    out = play(reader, cut_up(body, places))
    if b"error" not in body:
        assert out.startswith(body)
        assert out == body or kind == "text/event-stream"  # the end that was missing is added


@pytest.mark.parametrize(("path", "kind"), STREAMS)
@settings(max_examples=60, deadline=None)
@given(before=bodies, places=st.lists(st.integers(0, 10_000), max_size=12))
def test_no_text_of_an_error_passes(path: str, kind: str, before: bytes, places: list[int]) -> None:
    error = b'{"error":{"message":"UPSTREAM TEXT"}}\n'
    body = before + (b"\n" + error if path.startswith("/api/") else b"\n\ndata: " + error + b"\n")
    assert b"UPSTREAM TEXT" not in play(meter(path, kind), cut_up(body, places))


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate"]), places=st.lists(st.integers(0, 300))
)
def test_any_bytes_called_compressed_pass(body: bytes, encoding: str, places: list[int]) -> None:
    reader = meter("/api/chat", "application/x-ndjson", encoding=encoding)
    assert play(reader, cut_up(body, places)) == body


@settings(max_examples=30, deadline=None)
@given(body=bodies, flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), max_size=3))
def test_a_damaged_gzip_passes(body: bytes, flips: list[tuple[int, int]]) -> None:
    packed = bytearray(gzip.compress(body))
    for place, flip in flips:
        packed[place % len(packed)] ^= flip
    reader = meter("/v1/chat/completions", "text/event-stream", encoding="gzip")
    assert play(reader, [bytes(packed)]) == packed


@pytest.mark.parametrize(("path", "kind"), STREAMS + DOCUMENTS)
@pytest.mark.parametrize("piece", [b"x", b'{"error":"', b"data: {", b": ", b'{"model":"', b"\r", b" "])
def test_a_frame_without_an_end_takes_bounded_memory(path: str, kind: str, piece: bytes) -> None:
    reader = meter(path, kind)
    filler = random.Random(7).randbytes(1 << 15).replace(b"\n", b"n")
    tracemalloc.start()
    try:
        reader.feed(piece, False)
        for _ in range(500):  # 16 MB
            reader.feed(filler, False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


def test_a_long_frame_in_small_pieces_costs_in_proportion() -> None:
    """Each byte is looked at a few times, not once for every byte that follows: this took minutes if it did."""
    reader = meter("/v1/chat/completions", "text/event-stream", hide=True)
    reader.feed(b"data: {", False)
    for _ in range(150_000):
        reader.feed(b'"a":1,', False)
    assert reader.usage().deltas == 0
