"""Streamed answers: NDJSON and server-sent events, whatever the chunks, compressed or not."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING

from processor import sse
from processor.decoding import inflater
from processor.pieces import Pieces
from processor.usage import Meter, meter_for
from tests.hostile.targets.cutting import chance, cuttings

if TYPE_CHECKING:
    from collections.abc import Callable

    from processor.usage import Usage

_LARGEST = 2**53


def play(meter: Meter, chunks: list[bytes]) -> bytes:
    """What the client gets of these chunks."""
    out = []
    for number, chunk in enumerate(chunks, 1):
        instead = meter.feed(chunk, number == len(chunks))
        out.append(chunk if instead is None else instead)
    return b"".join(out)


def counts(usage: Usage) -> None:
    """A usage is a row that the ledger takes."""
    assert 0 <= usage.deltas and 0 <= usage.completion_tokens <= _LARGEST
    assert usage.prompt_tokens is None or 0 <= usage.prompt_tokens <= _LARGEST
    assert not usage.exact or usage.prompt_tokens is not None
    for duration in (usage.load_duration, usage.prompt_eval_duration, usage.eval_duration, usage.total_duration):
        assert 0 <= duration <= _LARGEST


def _stream(path: str, kind: str, data: bytes) -> None:
    drawn = chance(data)
    cap, hide = drawn.choice((0, 1, 3, 100)), drawn.random() < 0.5

    def meter() -> Meter:
        return meter_for(path, content_type=kind, content_encoding="", hide_usage=hide, cap=cap)

    whole = meter()
    expected = play(whole, [data])
    counts(whole.usage())
    # Half a token may be spare where reasoning turns into an answer, and a chunk that says why it ends is not cut.
    assert whole.usage().deltas <= 2 * cap + 2 + data.count(b'"finish_reason"') or b"\\u" in data
    for chunks in cuttings(data)[1:]:
        cut = meter()
        got = play(cut, chunks)
        assert cut.usage() == whole.usage(), chunks
        assert cut.cut == whole.cut, chunks
        if b'"error"' not in data:  # half of an error that looked like content may be gone when it shows
            assert got == expected, chunks
    if b'"error"' not in data and not hide and not whole.cut:
        assert expected.startswith(data)
    if whole.cut:
        assert whole.feed(data, end=True) in (b"", None) and whole.usage().deltas <= 2 * cap + data.count(b"\n")


def _compressed(data: bytes) -> None:
    """A compressed answer passes as it is, and is counted as what it holds; a broken one passes, too."""
    plain = meter_for("/api/chat", content_type="", content_encoding="", hide_usage=False, cap=10**9)
    play(plain, [data])
    for encoding, packed in (
        ("gzip", gzip.compress(data[:100], 1) + gzip.compress(data[100:], 1)),
        ("deflate", zlib.compress(data, 1)),
    ):
        for chunks in cuttings(packed):
            meter = meter_for("/api/chat", content_type="", content_encoding=encoding, hide_usage=False, cap=1)
            assert play(meter, chunks) == packed
            assert meter.usage() == plain.usage(), (encoding, chunks)
    for encoding in ("gzip", "deflate"):
        for chunks in cuttings(data):
            meter = meter_for("/api/chat", content_type="", content_encoding=encoding, hide_usage=False, cap=1)
            assert play(meter, chunks) == data
            counts(meter.usage())


def native_chat_stream(data: bytes) -> None:
    _stream("/api/chat", "application/x-ndjson", data)


def native_generate_stream(data: bytes) -> None:
    _stream("/api/generate", "application/x-ndjson", data)


def openai_chat_stream(data: bytes) -> None:
    _stream("/v1/chat/completions", "text/event-stream", data)


def openai_completion_stream(data: bytes) -> None:
    _stream("/v1/completions", "text/event-stream", data)


def responses_stream(data: bytes) -> None:
    _stream("/v1/responses", "text/event-stream", data)


def messages_stream(data: bytes) -> None:
    _stream("/v1/messages", "text/event-stream", data)


def compressed_stream(data: bytes) -> None:
    _compressed(data)


def encodings_are_known_or_refused(data: bytes) -> None:
    """A header of a content encoding: one that is known, none, or ValueError, which leaves the answer unread."""
    try:
        found = inflater(data.decode("latin-1"))
    except ValueError:
        return
    names = [name.strip() for name in data.decode("latin-1").lower().split(",")]
    coded = [name for name in names if name not in ("", "identity")]
    assert (found is None) == (not coded) and len(coded) <= 1


def events_are_cut_whole(data: bytes) -> None:
    """Events in any chunks are the same events, and together the same bytes; our own events are read back."""

    def pieces(chunks: list[bytes]) -> list[bytes]:
        reader = Pieces()
        return [piece for number, chunk in enumerate(chunks, 1) for piece in reader.feed(chunk, number == len(chunks))]

    whole = pieces([data])
    assert b"".join(whole) == data
    for chunks in cuttings(data):
        assert pieces(chunks) == whole, chunks
    text = data.decode("utf-8", "replace")
    written = sse.event({"text": text}, name="x")
    assert pieces([written]) == [written]
    assert json.loads(sse.data_of(written)) == {"text": text}


TARGETS: tuple[Callable[[bytes], None], ...] = (
    native_chat_stream,
    native_generate_stream,
    openai_chat_stream,
    openai_completion_stream,
    responses_stream,
    messages_stream,
    compressed_stream,
    encodings_are_known_or_refused,
    events_are_cut_whole,
)
