"""Streams that do not go to a good end: an error in the middle, an end too soon, a cap that is passed; and what may
wait for the rest of its frame and what may not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from processor.usage import Meter, Usage, meter_for

if TYPE_CHECKING:
    from collections.abc import Iterable

PATHS = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
CLEAN_LINE = b'{"error":"upstream error"}\n'
CLEAN_EVENT = b'data: {"error":{"message":"upstream error","type":"bad_gateway","code":502}}\n\n'
DONE = b"data: [DONE]\n\n"


def meter(path: str, *, cap: int = 100, hide: bool = False, estimate: int = 0, kind: str = "") -> Meter:
    kind = kind or ("application/x-ndjson" if path.startswith("/api/") else "text/event-stream")
    return meter_for(
        path, content_type=kind, content_encoding="", hide_usage=hide, cap=cap, prompt_estimate=estimate
    )  # fmt: skip


def play(reader: Meter, chunks: Iterable[bytes], *, end: bool = True) -> bytes:
    out = []
    for piece in [*chunks, *([b""] if end else [])]:
        instead = reader.feed(piece, end and piece == b"")
        out.append(piece if instead is None else instead)
    return b"".join(out)


def each_byte(body: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in body]


def chat(text: str, **more: object) -> bytes:
    line = {"model": "m", "created_at": "t", "message": {"role": "assistant", "content": text}, "done": False, **more}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def generate(text: str) -> bytes:
    return b'{"model":"m","created_at":"t","response":"%s","done":false}\n' % text.encode()


def v1_chat(delta: str, reason: str = "null") -> bytes:
    head = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp",'
    return head + b'"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}\n\n' % (delta.encode(), reason.encode())


def v1_text(text: str) -> bytes:
    choice = b'{"text":"%s","index":0,"finish_reason":null}' % text.encode()
    usage = b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
    return b'data: {"id":"c","object":"text_completion","choices":[%s],"model":"m","usage":%s}\n\n' % (choice, usage)


def response_delta(text: str, number: int = 5) -> bytes:
    data = b'{"delta":"%s","sequence_number":%d,"type":"response.output_text.delta"}' % (text.encode(), number)
    return b"event: response.output_text.delta\ndata: " + data + b"\n\n"


def message_delta(text: str, index: int = 0) -> bytes:
    data = b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":"%s"}}'
    return b"event: content_block_delta\ndata: " + data % (index, text.encode()) + b"\n\n"


CREATED = b'event: response.created\ndata: {"response":{"id":"r","model":"m"},"type":"response.created"}\n\n'
A_DELTA = {
    "/api/chat": chat("Hi"),
    "/api/generate": generate("Hi"),
    "/v1/chat/completions": v1_chat('{"role":"assistant","content":"Hi"}'),
    "/v1/completions": v1_text("Hi"),
    "/v1/responses": response_delta("Hi"),
    "/v1/messages": message_delta("Hi"),
}


# --- an error under status 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize(
    "error",
    [b'{"error":"open /root/.ollama/x: secret"}\n', b' {"error" : "secret"}\r\n', b'{"error":{"a":"secret"}}\n'],
)
def test_a_native_error_line_is_said_in_our_words(path: str, error: bytes) -> None:
    for body in ([A_DELTA[path], error], each_byte(A_DELTA[path] + error), [A_DELTA[path] + error[:-1]]):
        reader = meter(path)
        assert play(reader, body) == A_DELTA[path] + CLEAN_LINE
        assert reader.usage() == Usage(None, 1, exact=False, deltas=1, failed=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("hide", [False, True])
def test_an_error_event_is_said_in_our_words(path: str, hide: bool) -> None:
    error = b'data: {"error":{"message":"secret","type":"api_error","param":null,"code":null}}\n\n'
    for body in ([error], each_byte(error), [error[:-2]]):
        reader = meter(path, hide=hide)
        assert play(reader, body) == CLEAN_EVENT + DONE
        assert reader.usage().failed


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/responses", b'event: response.failed\ndata: {"response":{"error":"secret"},"type":"error"}\n\n'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"secret"}}\n\n'),
    ],
)  # fmt: skip
def test_an_error_of_typed_events_is_said_in_our_words(path: str, error: bytes) -> None:
    for body in ([A_DELTA[path], error], each_byte(A_DELTA[path] + error)):
        reader = meter(path)
        out = play(reader, body)
        assert out.startswith(A_DELTA[path] + b'event: error\ndata: {"type":"error",')
        assert b"secret" not in out
        assert out.count(b"event: error") == 1
        assert reader.usage() == Usage(None, 1, exact=False, deltas=1, failed=True)


@pytest.mark.parametrize("path", PATHS)
def test_an_error_that_is_torn_off_shows_nothing(path: str) -> None:
    error = b'{"error":{"message":"secret'
    body = error if path.startswith("/api/") else b"data: " + error
    for pieces in ([body], each_byte(body)):
        reader = meter(path)
        out = play(reader, [A_DELTA[path], *pieces])
        assert out.startswith(A_DELTA[path])
        assert b"secret" not in out
        assert out.count(b"upstream error") == 1
        assert reader.usage().failed


def test_an_error_late_in_a_line_that_began_to_pass_still_shows_nothing() -> None:
    line = b'{"model":"m","created_at":"t","error":"secret","done":false}\n'
    out = play(meter("/api/chat"), each_byte(line))
    assert out.endswith(b"\n" + CLEAN_LINE)
    assert b"secret" not in out


def test_ollamas_silent_end_after_an_error_becomes_an_error_event() -> None:
    empty = v1_chat('{"role":"assistant","content":""}')
    body = A_DELTA["/v1/chat/completions"] + empty
    for pieces in ([body], each_byte(body)):
        reader = meter("/v1/chat/completions")
        assert play(reader, pieces) == body + CLEAN_EVENT + DONE
        assert reader.usage() == Usage(None, 1, exact=False, deltas=1, failed=True)


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/v1/")])
def test_an_event_stream_that_breaks_off_ends_in_an_error_event(path: str) -> None:
    for body in (b"", A_DELTA[path], A_DELTA[path] + A_DELTA[path][:-9]):
        reader = meter(path)
        out = play(reader, [body])
        assert out.startswith(body + (b"\n\n" if body and not body.endswith(b"\n\n") else b""))
        last = next(event for event in reversed(out.split(b"\n\n")) if event and event != DONE.strip())
        assert json.loads(last.rpartition(b"data: ")[2])["error" if "comp" in path or "mess" in path else "code"]
        assert reader.usage().failed
        assert not reader.usage().exact


def test_a_complete_answer_that_lacks_only_its_done_gets_that() -> None:
    body = v1_chat('{"content":"a"}') + v1_chat('{"content":""}', '"stop"')
    assert play(meter("/v1/chat/completions"), [body]) == body + DONE


@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/embeddings"])
def test_a_document_that_is_an_error_is_said_in_our_words(path: str) -> None:
    body = b'\n{"error":"open /root/.ollama/secret: no such file"}'
    for pieces in ([body], each_byte(body)):
        reader = meter(path, kind="application/json")
        assert json.loads(play(reader, pieces))["error"] in ("upstream error", json.loads(CLEAN_EVENT[6:])["error"])
        assert reader.usage() == Usage(None, 0, exact=False, deltas=0, failed=True)


# --- an end too soon


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_is_charged_for_what_passed(path: str) -> None:
    reader = meter(path)
    play(reader, [A_DELTA[path]] * 7 + [A_DELTA[path][:20]], end=False)
    assert reader.usage() == Usage(None, 7, exact=False, deltas=7)


def test_zeros_in_the_middle_of_completions_are_no_report() -> None:
    for zero in (b":0", b": 0"):
        reader = meter("/v1/completions")
        play(reader, [v1_text("").replace(b":0", zero)], end=False)
        assert reader.usage() == Usage(None, 0, exact=False, deltas=0)
        play(reader, [v1_text("a").replace(b":0", zero), v1_text("b").replace(b":0", zero)], end=False)
        assert reader.usage() == Usage(None, 2, exact=False, deltas=2)


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/api/chat", b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5}\n'),
        ("/api/chat", b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5,"eval_count":0}\n'),
        ("/api/chat", b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5,"eval_count":-3}\n'),
        ("/api/chat", b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5,"eval_count":1e999}\n'),
        ("/api/chat", b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5,"eval_count":true}\n'),
        ("/v1/chat/completions", b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":0}}\n\n'),
        ("/v1/chat/completions", b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":"3"}}\n\n'),
    ],
)
def test_a_count_that_can_not_be_is_no_count(path: str, last: bytes) -> None:
    reader = meter(path)
    play(reader, [A_DELTA[path], A_DELTA[path], last], end=False)
    assert reader.usage().completion_tokens == 2
    assert reader.usage().prompt_tokens == 5
    assert not reader.usage().exact


def test_a_client_that_leaves_with_the_last_byte_of_a_document_left_nothing_unread() -> None:
    reader = meter("/api/embed", kind="application/json")
    reader.feed(b'{"model":"m","embeddings":[[1]],"prompt_ev', False)
    assert reader.usage() == Usage(None, 0, exact=False, deltas=0)
    reader.feed(b'al_count":8}', False)
    assert reader.usage().prompt_tokens == 8


# --- the cap


@pytest.mark.parametrize("path", PATHS)
def test_as_much_as_the_cap_passes(path: str) -> None:
    reader = meter(path, cap=3)
    play(reader, [A_DELTA[path] * 2, A_DELTA[path]], end=False)
    assert not reader.cut
    assert reader.usage().deltas == 3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("hide", [False, True])
def test_beyond_the_cap_the_answer_ends_and_the_rest_is_swallowed(path: str, hide: bool) -> None:
    body = CREATED * (path == "/v1/responses") + A_DELTA[path] * 5
    outs = set()
    for pieces in ([body], each_byte(body), [body[:7], body[7:]], [body, DONE, A_DELTA[path]]):
        reader = meter(path, cap=3, hide=hide, estimate=11)
        outs.add(play(reader, pieces))
        assert reader.cut
        assert reader.usage() == Usage(None, 3, exact=False, deltas=3)
    assert len(outs) == 1  # wherever the chunks are cut
    out = outs.pop()
    assert out.count(b"Hi") == 3


def test_the_end_at_the_cap_is_a_final_line() -> None:
    out = play(meter("/api/chat", cap=1, estimate=11), [chat("Hi") * 2])
    assert json.loads(out.splitlines()[-1]) == {
        "model": "m", "created_at": "t", "message": {"role": "assistant", "content": ""}, "done": True,
        "done_reason": "length", "prompt_eval_count": 11, "eval_count": 1,
    }  # fmt: skip
    out = play(meter("/api/generate", cap=0), [generate("Hi")])
    assert json.loads(out) == {"model": "m", "created_at": "t", "response": "", "done": True, "done_reason": "length"}


def test_the_end_at_the_cap_is_a_finish_chunk() -> None:
    delta = A_DELTA["/v1/chat/completions"]
    head = delta.partition(b'"choices"')[0]
    finish = head + b'"choices":[{"index":0,"finish_reason":"length","delta":{"role":"assistant","content":""}}]}\n\n'
    usage = head + b'"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":1,"total_tokens":12}}\n\n'
    hidden = play(meter("/v1/chat/completions", cap=1, hide=True, estimate=11), [delta, delta])
    assert hidden == delta + finish + DONE
    asked = play(meter("/v1/chat/completions", cap=1, estimate=11), [delta, delta])
    assert asked == delta + finish + usage + DONE


def test_the_end_at_the_cap_of_completions() -> None:
    events = play(meter("/v1/completions", cap=1, estimate=11), [v1_text("Hi") * 2]).split(b"\n\n")
    finish, usage = json.loads(events[1][6:]), json.loads(events[2][6:])
    assert finish["choices"] == [{"index": 0, "finish_reason": "length", "text": ""}]
    assert finish["usage"]["completion_tokens"] == 0
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    assert events[3:] == [b"data: [DONE]", b""]


def test_the_end_at_the_cap_of_typed_events() -> None:
    out = play(meter("/v1/messages", cap=1, estimate=11), [message_delta("Hi"), message_delta("Ho", index=2)])
    names = [event.partition(b"\n")[0] for event in out.split(b"\n\n")[1:-1]]
    assert names == [b"event: content_block_stop", b"event: message_delta", b"event: message_stop"]
    assert b'{"type":"content_block_stop","index":2}' in out
    assert b'"stop_reason":"max_tokens"' in out
    assert b'"usage":{"input_tokens":11,"output_tokens":1}' in out

    out = play(meter("/v1/responses", cap=1, estimate=11), [CREATED, response_delta("Hi"), response_delta("Ho", 6)])
    last = json.loads(out.split(b"\n\n")[-2].partition(b"data: ")[2])
    assert last["type"] == "response.incomplete"
    assert last["sequence_number"] == 6
    assert last["response"]["id"] == "r"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_final_object_beyond_the_cap_is_the_upstreams_own_end() -> None:
    last = chat("!", done=True, prompt_eval_count=2, eval_count=4)
    reader = meter("/api/chat", cap=3)
    assert play(reader, [chat("a") * 3, last]) == chat("a") * 3 + last
    assert reader.usage() == Usage(2, 4, exact=True, deltas=4, finished=True)


def test_a_token_that_ends_the_reasoning_and_begins_the_answer_comes_as_two_chunks() -> None:
    """With the cap at the very token, Ollama's own end must come through."""
    reasoning = v1_chat('{"role":"assistant","content":"","reasoning":"so"}')
    answer, last = v1_chat('{"role":"assistant","content":"Hi"}'), v1_chat('{"content":""}', '"length"')
    for pieces in ([reasoning, reasoning, answer, last, DONE], each_byte(reasoning * 2 + answer + last + DONE)):
        reader = meter("/v1/chat/completions", cap=2)
        assert play(reader, pieces) == reasoning * 2 + answer + last + DONE
        assert not reader.cut
    reader = meter("/v1/chat/completions", cap=2)
    play(reader, [reasoning, reasoning, answer, answer])
    assert reader.cut


# --- what may wait


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/v1/completions"])
def test_half_a_delta_does_not_wait_for_its_other_half(path: str) -> None:
    delta = A_DELTA[path]
    for place in range(delta.index(b"Hi"), len(delta)):
        reader = meter(path, hide=True)
        assert reader.feed(delta[:place], False) is None
        assert reader.feed(delta[place:], False) is None
        assert reader.usage().deltas == 1


def test_keep_alives_do_not_wait() -> None:
    reader = meter("/v1/chat/completions", hide=True)
    for piece in (b": ping\n", b"\n", b":\n\n", b"\r\n", b": a\r\n\r\n"):
        assert reader.feed(piece, False) is None


def test_only_the_event_that_may_be_the_usage_waits() -> None:
    usage = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
    delta = A_DELTA["/v1/chat/completions"]
    reader = meter("/v1/chat/completions", hide=True)
    assert reader.feed(delta + usage[:30], False) == delta
    assert reader.feed(usage[30:] + DONE[:3], False) == b""
    assert reader.feed(DONE[3:], False) == DONE
    assert reader.feed(b"", True) is None
    assert reader.usage() == Usage(5, 1, exact=True, deltas=1, finished=True)


# --- long frames


def test_a_final_line_with_a_context_of_megabytes_is_read() -> None:
    context = b",".join(b"%d" % number for number in range(200_000, 500_000))
    final = b'{"model":"m","created_at":"t","response":"","done":true,"done_reason":"stop","context":[' + context
    final += b'],"total_duration":9,"load_duration":1,"prompt_eval_count":26,"eval_count":3}\n'
    body = generate("Hi") + final
    assert len(body) > 2 << 20
    for size in (len(body), 65_536, 4_001):
        reader = meter("/api/generate")
        assert play(reader, [body[at : at + size] for at in range(0, len(body), size)]) == body
        usage = reader.usage()
        assert (usage.prompt_tokens, usage.completion_tokens, usage.exact, usage.total_duration) == (26, 3, True, 9)


def test_a_completed_response_of_megabytes_is_read() -> None:
    text = b'\\"usage\\":{ ...' * 200_000
    tools = b'"tools":[{"usage":{"input_tokens":1,"output_tokens":1}}]'
    body = b'event: response.completed\ndata: {"response":{"output":"' + text + b'",' + tools
    body += b',"usage":{"input_tokens":9,"output_tokens":4}},"sequence_number":7,"type":"response.completed"}\n\n'
    for size in (len(body), 65_536):
        reader = meter("/v1/responses")
        pieces = [response_delta("a"), *(body[at : at + size] for at in range(0, len(body), size))]
        assert play(reader, pieces) == response_delta("a") + body
        assert reader.usage() == Usage(9, 4, exact=True, deltas=1, finished=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_delta_of_megabytes_passes_and_is_one_delta(path: str) -> None:
    delta = A_DELTA[path].replace(b"Hi", b"x" * (3 << 20))
    reader = meter(path)
    assert play(reader, [delta[at : at + 50_000] for at in range(0, len(delta), 50_000)], end=False) == delta
    assert reader.usage().deltas == (path != "/v1/responses")  # there, only the last event can be so long
    play(reader, [A_DELTA[path]], end=False)
    assert reader.usage().deltas == 1 + (path != "/v1/responses")


def test_an_error_line_of_megabytes_does_not_pass_either() -> None:
    line = b'{"error":"' + b"secret " * 400_000 + b'"}\n'
    reader = meter("/api/chat")
    out = play(reader, [line[at : at + 50_000] for at in range(0, len(line), 50_000)] + [chat("a")])
    assert out == CLEAN_LINE + chat("a")
    assert reader.usage().failed
    assert reader.usage().deltas == 1


@pytest.mark.parametrize(
    ("path", "last", "prompt", "completion"),
    [
        ("/api/embed", b'],"total_duration":7,"load_duration":2,"prompt_eval_count":8}', 8, 0),
        ("/v1/embeddings", b'],"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}\n', 8, 0),
        ("/api/chat", b'],"done":true,"done_reason":"stop","prompt_eval_count":8,"eval_count":2}', 8, 2),
        ("/v1/chat/completions", b'],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}\n', 8, 2),
        ("/v1/responses", b'],"usage":{"input_tokens":8,"output_tokens":2},"store":false,"metadata":{}}', 8, 2),
        ("/v1/messages", b'],"usage":{"input_tokens":8,"output_tokens":2}}\n', 8, 2),
    ],
)
def test_a_document_of_megabytes_is_read_by_its_end(path: str, last: bytes, prompt: int, completion: int) -> None:
    body = b'{"data":[' + b"0.25," * 500_000 + b"1" + last
    reader = meter(path, kind="application/json")
    assert play(reader, [body[at : at + 65_536] for at in range(0, len(body), 65_536)]) == body
    usage = reader.usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.exact) == (prompt, completion, True)
    assert usage.finished


def test_embeddings_of_megabytes_that_report_nothing() -> None:
    reader = meter("/api/embeddings", kind="application/json")
    play(reader, [b'{"embedding":[' + b"0.25," * 50_000 + b"1]}"])
    assert reader.usage() == Usage(None, 0, exact=False, deltas=0, finished=True)
