"""Envoy's meter against the one in Python: whatever an upstream sends, however it is cut, both say the same bytes for
each chunk and the same usage after it. Frames are realistic ones and hostile ones; see lua_meter.Pair for what must
agree."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.rules.decision import error_body
from processor.answers import clean_status
from tests.envoy.lua_meter import LuaMeter, function, pair_for, runtime

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"
NATIVE, OPENAI = ("/api/chat", "/api/generate"), ("/v1/chat/completions", "/v1/completions")
DOCUMENTS = (*NATIVE, *OPENAI, "/api/embed", "/api/embeddings", "/v1/embeddings", "/openai/embeddings")

# JSON as written, with what readers differ in: escapes, halves of surrogate pairs, broken UTF-8, numbers of any form.
TEXTS = [
    b"", b"Hi", "é€😀".encode(), rb"\n\"\\\/\b\f\r\t\u0001", rb"\ud83d\ude00", rb"\ud83d", rb"\ude00\ud83dx",
    rb"\uD83D\u0041", b"\xff\xc3", b"\xed\xa0\x80\xe2\x82", b"\xf0\x90", b"\x7f", rb"\u00e9", rb"\"done\":false}",
    rb'\"error\":', rb'\"usage\":{\"prompt_tokens\":9}', rb'\"finish_reason\":null', b"\\x", b"\x01", rb"\u12",
]  # fmt: skip
NUMBERS = [
    b"0", b"3", b"26", b"-0", b"-1", b"1.0", b"1e3", b"1E-3", b"0.1", b"-0.0", b"1e999", b"-1e999", b"1e-999", b"1e16",
    b"123456.789", b"1e22", b"0.00001", b"9007199254740991", b"9007199254740992", b"9007199254740993",
    b"-9007199254740993",
    b"123456789012345678", b"1234567890123456789", b"9" * 30, b"007", b"1.", b"1e", b"-", b"NaN", b"Infinity",
    b"-Infinity",
    b"2" * 4300, b"2" * 4301, b"1." + b"0" * 5000, b"5e-324", b"2.5e-7",
]  # fmt: skip
strings = st.sampled_from(TEXTS).map(lambda text: b'"%s"' % text)
numbers = st.sampled_from(NUMBERS)
plain = st.one_of(
    strings, strings, numbers, st.sampled_from([b"true", b"false", b"null", b"[]", b"{}", b"tru", b"", b"nul"])
)


def listed(items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(items, max_size=3).map(lambda row: b"[" + b",".join(row) + b"]")


def members(*choices: tuple[str, st.SearchStrategy[bytes]]) -> st.SearchStrategy[bytes]:
    """Some of these members in any order, some twice, with white space now and then."""

    def named(name: str, values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        return values.map(lambda value: b'"%s":%s' % (name.encode(), value))

    member = st.one_of([named(name, values) for name, values in choices])
    spaced = st.tuples(member, st.sampled_from([b"", b"", b"", b" ", b"\r", b"\t"])).map(b"".join)
    return st.lists(spaced, max_size=7).map(lambda row: b"{" + b",".join(row) + b"}")


nested = st.recursive(
    plain, lambda inner: listed(inner) | members(("a", inner), ("\\u0061", inner), ("b", inner)), max_leaves=5
)
likely = st.one_of(st.sampled_from([b"0", b"3", b"26"]), numbers, plain)
counts = [
    (name, likely) for name in ("prompt_eval_count", "eval_count", "total_duration", "load_duration", "eval_duration")
]
calls = listed(members(("function", members(("name", strings), ("arguments", nested), ("usage", nested)))))
parts = [
    ("content", strings),
    ("thinking", strings),
    ("reasoning", strings),
    ("tool_calls", calls),
    ("content", nested),
]
message = st.one_of(members(*parts), members(*parts), nested)
error = st.one_of(st.just(b"null"), strings, nested)
usages = st.one_of(
    members(("prompt_tokens", likely), ("completion_tokens", likely), ("total_tokens", likely), ("details", nested)),
    st.sampled_from([b"null", b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}']),
    nested,
)
reasons = st.one_of(st.sampled_from([b"null", b'"stop"', b'"length"']), nested)
choices = st.one_of(
    listed(
        st.one_of(
            members(("delta", message), ("text", strings), ("finish_reason", reasons), ("message", message)), nested
        )
    ),
    nested,
)
heads = [(name, nested) for name in ("model", "created_at", "id", "object", "created", "system_fingerprint")]
done = st.sampled_from([b"true", b"false", b"1", b'"true"'])
native_object = members(
    *heads[:2], ("message", message), ("response", strings), ("done", done), *counts, ("error", error)
)
openai_object = members(*heads, ("choices", choices), ("usage", usages), ("error", error))
embedded = members(("embeddings", listed(nested)), ("usage", usages), *counts)

ORDINARY = st.one_of(
    strings.map(
        lambda text: b'{"model":"m","created_at":"t","message":{"role":"assistant","content":%s},"done":false}\n' % text
    ),
    strings.map(lambda text: b'{"model":"m","created_at":1.5,"response":%s,"done":false}\n' % text),
    strings.map(lambda text: b'{"model":"m","message":{"content":"","thinking":%s},"done":false}\n' % text),
    calls.map(lambda call: b'{"model":"m","message":{"content":"","tool_calls":%s},"done":false}\n' % call),
    st.tuples(likely, likely).map(
        lambda two: b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":%s,"eval_count":%s}\n' % two
    ),
    error.map(lambda text: b'{"error":%s}\n' % text),
    error.map(lambda text: b'{"model":"m","created_at":"t","error":%s,"done":false}\n' % text),
)
ENDS = st.sampled_from([b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\n", b"\r\r\n\n", b""])
ZEROS = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
EVENT = b'data: {"id":"c","created":1,"choices":[{"index":0,%s,"finish_reason":null}]%s}\n\n'
EVENTS = st.one_of(
    strings.map(lambda text: EVENT % (b'"delta":{"role":"assistant","content":%s}' % text, b"")),
    strings.map(lambda text: EVENT % (b'"delta":{"content":"","reasoning":%s}' % text, b"")),
    calls.map(lambda call: EVENT % (b'"delta":{"content":"","tool_calls":%s}' % call, b"")),
    strings.map(lambda text: EVENT % (b'"text":%s' % text, ZEROS)),
    usages.map(lambda usage: EVENT % (b'"text":""', b',"usage":%s' % usage)),
    usages.map(lambda usage: b'data: {"id":"c","choices":[],"usage":%s}\n\n' % usage),
    reasons.map(lambda reason: b'data: {"choices":[{"delta":{"content":""},"finish_reason":%s}]}\n\n' % reason),
    error.map(lambda text: b'data: {"error":%s}\n\n' % text),
    st.sampled_from([b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b": ping\n", b": a\r\n\r\n", b"\n", b"\r\n", b":"]),
    st.tuples(st.sampled_from([b"data: ", b"data:", b"e: x\ndata: ", b"data"]), openai_object, ENDS).map(b"".join),
)  # fmt: skip
LINES = st.one_of(
    ORDINARY, ORDINARY, st.tuples(native_object, st.sampled_from([b"\n", b"\r\n", b" \n", b""])).map(b"".join)
)
JUNK = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 200 + b"1" + b"}" * 200, TEXTS[2]])
)


def body_of(frames: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(frames, frames, frames, frames, frames, JUNK), max_size=8).map(b"".join)


places = st.lists(st.integers(0, 100_000), max_size=14)
slow = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def compare(
    path: str,
    kind: str,
    body: bytes,
    cuts: list[int],
    *,
    cap: int = 100,
    hide: bool = False,
    end: int = 1,
    estimate: int = 7,
) -> None:
    """Feed both; `end`: 0 never comes, 1 with the last chunk, 2 after it."""
    pair = pair_for(path, content_type=kind, content_encoding="", hide_usage=hide, cap=cap, prompt_estimate=estimate)
    marks = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    chunks = [body[start:stop] for start, stop in pairwise(marks)] or [b""]
    if end == 2:
        chunks.append(b"")
    for number, piece in enumerate(chunks, 1):
        pair.feed(piece, end > 0 and number == len(chunks))


@pytest.mark.parametrize("path", NATIVE)
@slow
@given(body=body_of(LINES), cuts=places, cap=st.integers(-1, 4), end=st.integers(0, 2), estimate=st.integers(0, 2))
def test_native_streams(path: str, body: bytes, cuts: list[int], cap: int, end: int, estimate: int) -> None:
    compare(path, NDJSON, body, cuts, cap=cap, end=end, estimate=estimate)


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("hide", [False, True])
@slow
@given(body=body_of(EVENTS), cuts=places, cap=st.integers(0, 4), end=st.integers(0, 2))
def test_event_streams(path: str, hide: bool, body: bytes, cuts: list[int], cap: int, end: int) -> None:
    compare(path, SSE, body, cuts, cap=cap, hide=hide, end=end)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if not path.startswith("/openai")])
@settings(slow, max_examples=60)
@given(body=st.one_of(native_object, openai_object, embedded, ORDINARY, JUNK),
       before=st.sampled_from([b"", b" \n", b"\x0b"]),
       cuts=places, end=st.integers(0, 2), keep=st.integers(0, 9))  # fmt: skip
def test_documents(path: str, body: bytes, before: bytes, cuts: list[int], end: int, keep: int) -> None:
    body = before + body
    compare(path, JSON, body if keep else body[: len(body) // 2], cuts, end=end)


@pytest.mark.parametrize("path", [*NATIVE, *OPENAI])
@settings(slow, max_examples=12)
@given(frame=st.one_of(ORDINARY, EVENTS), after=st.one_of(ORDINARY, EVENTS),
       size=st.sampled_from([7_001, 65_536, 1 << 21]),
       text=st.sampled_from([b"x", b'\\"usage\\":{', b'"error"', b'","error":"', b"1,", b"\xc3\xa9"]),
       end=st.integers(0, 2), hide=st.booleans(), cap=st.integers(0, 2))  # fmt: skip
def test_frames_too_long_to_keep(
    path: str, frame: bytes, after: bytes, size: int, text: bytes, end: int, hide: bool, cap: int
) -> None:
    at = max(frame.find(b'"m"'), frame.find(b'":"'), 0) + 3
    body = after + frame[:at] + text * ((1 << 20) // len(text) + 9) + frame[at:] + after
    compare(path, NDJSON if path in NATIVE else SSE, body, list(range(0, len(body), size)), hide=hide, end=end, cap=cap)


@pytest.mark.parametrize("path", DOCUMENTS[:-1])
@settings(slow, max_examples=12)
@given(last=st.one_of(native_object, openai_object, embedded), size=st.sampled_from([1_001, 30_000, 1 << 20]))
def test_documents_too_long_to_keep(path: str, last: bytes, size: int) -> None:
    body = b'{"data":[' + b"0.25," * 20_000 + b"1]," + last[1:]
    compare(path, JSON, body, list(range(0, len(body), size)))


@slow
@given(text=st.text(), other=st.text())
def test_the_error_body_is_policys_byte_for_byte(text: str, other: str) -> None:
    text, other = (piece.encode("utf-8", "replace").decode() for piece in (text, other))
    got = function(b"paddock.error_body")(403, b"forbidden", text.encode(), other.encode())
    assert got == error_body(403, "forbidden", text, other)


def test_every_status_has_the_answer_that_processor_gives() -> None:
    lua = function(b"paddock.clean_status")
    for status in (*range(200), *range(300, 700)):
        code, kind, message_ = lua(status)
        assert (code, kind.decode(), message_.decode()) == clean_status(status)
    with pytest.raises(Exception, match="204 is not an error"):
        lua(204)


def test_a_browser_sessions_paths_are_the_same_ones() -> None:
    for path in ("/openai/chat/completions", "/openai/completions"):
        compare(path, SSE, b'data: {"choices":[]}\n\n', [3])
    compare("/openai/embeddings", JSON, b'{"usage":{"prompt_tokens":8}}', [3])


@pytest.mark.parametrize(
    "path", ["/api/tags", "/v1/models", "/", "", "/v1/responses", "/v1/messages", "/openai/messages"]
)
def test_what_is_not_metered_here_has_no_meter(path: str) -> None:
    with pytest.raises(ValueError, match=path or "^$"):
        LuaMeter(path, content_type=JSON, content_encoding="", hide_usage=False, cap=1, prompt_estimate=0)


@pytest.mark.parametrize("encoding", ["gzip", "br", "x-gzip", "deflate", "identity, gzip"])
def test_what_is_compressed_passes_unread(encoding: str) -> None:
    reader = LuaMeter(
        "/api/chat", content_type=NDJSON, content_encoding=encoding, hide_usage=True, cap=0, prompt_estimate=0
    )
    assert reader.feed(b'{"error":"x"}\n', False) is None
    assert reader.feed(b"", True) is None
    assert not reader.usage().readable


def test_a_streamed_answer_is_told_from_a_document() -> None:
    for kind, streams in ((NDJSON, True), ("", True), (" Application/JSON ; charset=utf-8", False)):
        reader = LuaMeter(
            "/api/chat", content_type=kind, content_encoding=" Identity,", hide_usage=True, cap=1, prompt_estimate=0
        )
        assert reader.streams is streams


def test_a_frame_in_single_bytes_takes_bounded_memory_and_time() -> None:
    runtime().execute(b"""
        collectgarbage()
        local before = collectgarbage("count")
        local meter = paddock.meter{endpoint="/v1/chat/completions", content_type="text/event-stream",
            content_encoding="", hide_usage=true, cap=9}
        for number = 1, 1500000 do meter:feed(string.char(32 + number % 3), false) end
        collectgarbage()
        grown = collectgarbage("count") - before
    """)
    assert json.loads(str(runtime().globals()[b"grown"])) < 4096  # KiB
