"""Exactness: for every dialect, streamed and not, what is recorded is what the upstream reported, and the client gets
the upstream's bytes, into whatever chunks the answer is cut.

The transcripts have Ollama's framing and order of keys, with short values so that every cut can be tried.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import pytest

from processor.usage import Meter, Usage, meter_for

if TYPE_CHECKING:
    from collections.abc import Iterable

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"


@dataclass(frozen=True)
class Case:
    path: str
    content_type: str
    body: bytes
    usage: Usage
    passed: bytes | None = None  # what the client gets; None: the body
    hide: bool = False

    def meter(self, encoding: str = "") -> Meter:
        return meter_for(
            self.path, content_type=self.content_type, content_encoding=encoding, hide_usage=self.hide, cap=100
        )

    @property
    def expected(self) -> bytes:
        return self.body if self.passed is None else self.passed


def exact(prompt: int, completion: int, deltas: int, *durations: int) -> Usage:
    load, prompt_eval, evaluation, total = durations or (0, 0, 0, 0)
    return Usage(
        prompt, completion, exact=True, deltas=deltas, finished=True,
        load_duration=load, prompt_eval_duration=prompt_eval, eval_duration=evaluation, total_duration=total,
    )  # fmt: skip


def chunk(choices: str, usage: str = "") -> bytes:
    return b'data: {"id":"c","choices":%s%s}\n\n' % (choices.encode(), usage.encode())


CHAT_DELTA = chunk('[{"delta":{"content":"é"},"finish_reason":null}]')
CHAT_LAST = chunk('[{"delta":{"content":""},"finish_reason":"stop"}]')
CHAT_USAGE = chunk("[]", ',"usage":{"prompt_tokens":26,"completion_tokens":3,"total_tokens":29}')
ZEROS = ',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
TEXT_DELTA = '[{"text":"Hi","finish_reason":null}]'
TEXT_LAST = '[{"text":"","finish_reason":"stop"}]'
TEXT_USAGE = chunk("[]", ',"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}')
DONE = b"data: [DONE]\n\n"

CASES = {
    "chat": Case(
        "/api/chat",
        NDJSON,
        '{"model":"m","message":{"content":"é"},"done":false}\n'
        '{"model":"m","message":{"content":""},"done":true,"done_reason":"stop",'
        '"total_duration":90,"load_duration":10,"prompt_eval_count":26,"prompt_eval_duration":20,"eval_count":3,'
        '"eval_duration":60}\n'.encode(),
        exact(26, 3, 1, 10, 20, 60, 90),
    ),
    "chat, thinking, then a tool": Case(
        "/api/chat",
        NDJSON,
        b'{"model":"m","message":{"content":"","thinking":"so"},"done":false}\n'
        b'{"model":"m","message":{"content":"","tool_calls":[{"function":{"name":"f",'
        b'"arguments":{"done":true,"error":"no","eval_count":9}}}]},"done":false}\n'
        b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":5,"eval_count":7}\n',
        exact(5, 7, 2),
    ),
    "generate": Case(
        "/api/generate",
        NDJSON,
        b'{"model":"m","created_at":"t","response":"\\"done\\":true","done":false}\n'
        b'{"model":"m","created_at":"t","response":"","done":true,"done_reason":"length","context":[1,2,3],'
        b'"total_duration":9,"prompt_eval_count":8,"eval_count":2}\n',
        exact(8, 2, 1, 0, 0, 0, 9),
    ),
    "generate, the model only loads": Case(
        "/api/generate",
        NDJSON,
        b'{"model":"m","created_at":"t","response":"","done":true,"done_reason":"load"}\n',
        exact(0, 0, 0),
    ),
    "a prompt of no tokens": Case(
        "/api/chat",
        NDJSON,
        b'{"model":"m","message":{"content":"a"},"done":false}\n'
        b'{"model":"m","message":{"content":""},"done":true,"eval_count":2}\n',
        exact(0, 2, 1),
    ),
    "chat, other spacing and line ends": Case(
        "/api/chat",
        NDJSON,
        b'\r\n{ "message": { "content": "a" }, "done": false }\r\n'
        b'{ "done": true, "eval_count": 2, "prompt_eval_count": 1, "message": { "content": "b" } }\r\n\r\n',
        exact(1, 2, 2),
    ),
    "chat, no line end after the last": Case(
        "/api/chat",
        NDJSON,
        b'{"model":"m","message":{"content":"a"},"done":false}\n'
        b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":1,"eval_count":2}',
        exact(1, 2, 1),
    ),
    "chat, whole": Case(
        "/api/chat",
        JSON,
        b'{"model":"m","created_at":"t","message":{"role":"assistant","content":"Hi"},"done":true,"done_reason":"stop",'
        b'"total_duration":90,"load_duration":10,"prompt_eval_count":26,"eval_count":3}',
        exact(26, 3, 1, 10, 0, 0, 90),
    ),
    "embed": Case(
        "/api/embed",
        JSON,
        b'{"model":"m","embeddings":[[0.1,-2e-3],[0.5,1]],"total_duration":7,"load_duration":2,"prompt_eval_count":8}',
        exact(8, 0, 0, 2, 0, 0, 7),
    ),
    "embed, nothing": Case("/api/embed", JSON, b'{"model":"m","embeddings":[]}', exact(0, 0, 0)),
    "embeddings, as Ollama is today": Case(
        "/api/embeddings", JSON, b'{"embedding":[0.1,0.2]}', Usage(None, 0, exact=False, deltas=0, finished=True)
    ),
    "embeddings, if it reported": Case(
        "/api/embeddings", JSON, b'{"embedding":[0.1,0.2],"prompt_eval_count":3}', exact(3, 0, 0)
    ),
    "v1 chat": Case("/v1/chat/completions", SSE, CHAT_DELTA + CHAT_LAST + CHAT_USAGE + DONE, exact(26, 3, 1)),
    "v1 chat, usage hidden": Case(
        "/v1/chat/completions",
        SSE,
        CHAT_DELTA + CHAT_LAST + CHAT_USAGE + DONE,
        exact(26, 3, 1),
        passed=CHAT_DELTA + CHAT_LAST + DONE,
        hide=True,
    ),
    "v1 chat, other line ends, comments, names": Case(
        "/v1/chat/completions",
        SSE,
        b'\r\n: ping\r\n\r\nevent: x\r\ndata:{"choices": [{"delta": {"reasoning": "a"}}]}\r\n\r\n'
        b'\n:\nid: 7\nevent: y\ndata:{"choices":[],\ndata: "usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'
        b": bye\ndata:[DONE]\r\n\r\n",
        exact(2, 1, 1),
        passed=b'\r\n: ping\r\n\r\nevent: x\r\ndata:{"choices": [{"delta": {"reasoning": "a"}}]}\r\n\r\n'
        b"\n:\n: bye\ndata:[DONE]\r\n\r\n",
        hide=True,
    ),
    "v1 chat, usage beside the last choice": Case(
        "/v1/chat/completions",
        SSE,
        CHAT_DELTA
        + chunk('[{"delta":{},"finish_reason":"stop"}]', ',"usage":{"prompt_tokens":6,"completion_tokens":7}')
        + DONE,
        exact(6, 7, 1),
    ),
    "v1 chat, counts not set": Case(
        "/v1/chat/completions",
        SSE,
        CHAT_DELTA + CHAT_LAST + chunk("[]", ZEROS) + DONE,
        Usage(None, 1, exact=False, deltas=1, finished=True),
    ),
    "v1 chat, whole, counts not set": Case(
        "/v1/chat/completions",
        JSON,
        f'{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"Hi"}}}}]{ZEROS}}}'.encode(),
        Usage(None, 1, exact=False, deltas=1, finished=True),
    ),
    "v1 chat, a long whole, counts not set": Case(
        "/v1/chat/completions",
        JSON,
        f'{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"{"Hi" * 110}"}}}}]{ZEROS}}}'.encode(),
        Usage(None, (69 + 220 + len(ZEROS) - 250) // 5, exact=False, deltas=1, finished=True),
    ),
    "v1 embeddings, count not set": Case(
        "/v1/embeddings",
        JSON,
        b'{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":0,"total_tokens":0}}',
        Usage(None, 0, exact=False, deltas=0, finished=True),
    ),
    "v1 embeddings, nothing": Case(
        "/v1/embeddings", JSON, b'{"object":"list","data":[],"usage":{"prompt_tokens":0}}', exact(0, 0, 0)
    ),
    "v1 chat, whole": Case(
        "/v1/chat/completions",
        JSON,
        b'{"id":"c-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},'
        b'"finish_reason":"stop"}],"usage":{"prompt_tokens":26,"completion_tokens":3,"total_tokens":29}}\n',
        exact(26, 3, 1),
    ),
    "v1 completions": Case(
        "/v1/completions",
        SSE,
        chunk(TEXT_DELTA, ZEROS) + chunk(TEXT_LAST, ZEROS) + TEXT_USAGE + DONE,
        exact(4, 2, 1),
    ),
    "v1 completions, usage hidden": Case(
        "/v1/completions",
        SSE,
        chunk(TEXT_DELTA, ZEROS) + chunk(TEXT_LAST, ZEROS) + TEXT_USAGE + DONE,
        exact(4, 2, 1),
        passed=chunk(TEXT_DELTA) + chunk(TEXT_LAST) + DONE,  # what Ollama sends where usage is not asked for
        hide=True,
    ),
    "v1 completions, whole": Case(
        "/v1/completions",
        JSON,
        b'{"id":"c-1","object":"text_completion","choices":[{"text":"Hi","finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}\n',
        exact(4, 2, 1),
    ),
    "v1 embeddings": Case(
        "/v1/embeddings",
        JSON,
        b'{"object":"list","data":[{"object":"embedding","embedding":[0.1],"index":0}],"model":"m",'
        b'"usage":{"prompt_tokens":8,"total_tokens":8}}\n',
        exact(8, 0, 0),
    ),
    "v1 responses": Case(
        "/v1/responses",
        SSE,
        b'event: response.created\ndata: {"response":{"error":null}}\n\n'
        b'event: response.output_text.delta\ndata: {"delta":"Hi"}\n\n'
        b'event: response.completed\ndata: {"response":{"error":null,"usage":{"input_tokens":9,"output_tokens":4}},'
        b'"type":"response.completed"}\n\n',
        exact(9, 4, 1),
    ),
    "v1 responses, whole": Case(
        "/v1/responses",
        JSON,
        b'{"id":"r","output":[{"type":"message"}],"error":null,"usage":{"input_tokens":9,"output_tokens":4},"store":false}',
        exact(9, 4, 1),
    ),
    "v1 messages": Case(
        "/v1/messages",
        SSE,
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":99}}}\n\n'
        b'event: content_block_delta\ndata: {"index":0,"delta":{"text":"Hi"}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":9,"output_tokens":4}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        exact(9, 4, 1),
    ),
    "v1 messages, whole": Case(
        "/v1/messages",
        JSON,
        b'{"id":"m","content":[{"type":"text","text":"Hi"}],"usage":{"input_tokens":9,"output_tokens":4}}\n',
        exact(9, 4, 1),
    ),
}
HIDDEN = {case.body for case in CASES.values() if case.hide}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def play(meter: Meter, chunks: Iterable[bytes], *, end_apart: bool = False) -> bytes:
    """What the client gets of an answer that arrives in these chunks."""
    arriving = list(chunks)
    if end_apart:
        arriving.append(b"")
    out = []
    for number, piece in enumerate(arriving, 1):
        instead = meter.feed(piece, number == len(arriving))
        out.append(piece if instead is None else instead)
    return b"".join(out)


def cut_at(body: bytes, *places: int) -> list[bytes]:
    return [body[start:stop] for start, stop in pairwise((0, *places, len(body)))]


@every_case
def test_in_one_piece(case: Case) -> None:
    meter = case.meter()
    assert play(meter, [case.body]) == case.expected
    assert meter.usage() == case.usage
    assert not meter.cut


@every_case
def test_byte_by_byte(case: Case) -> None:
    meter = case.meter()
    assert play(meter, (bytes([byte]) for byte in case.body)) == case.expected
    assert meter.usage() == case.usage


@every_case
def test_every_cut_and_an_end_of_its_own(case: Case) -> None:
    for place in range(len(case.body) + 1):
        meter = case.meter()
        assert play(meter, cut_at(case.body, place), end_apart=True) == case.expected, place
        assert meter.usage() == case.usage, place


# Where the same answer comes with its usage hidden and not, hiding it is the harder case.
HARDEST = {name: case for name, case in CASES.items() if case.hide or case.body not in HIDDEN}


@pytest.mark.parametrize("case", HARDEST.values(), ids=HARDEST.keys())
def test_every_two_cuts(case: Case) -> None:
    for places in combinations(range(1, len(case.body)), 2):
        meter = case.meter()
        assert play(meter, cut_at(case.body, *places)) == case.expected, places
        assert meter.usage() == case.usage, places


@every_case
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity, deflate", "bare"])
def test_compressed_it_is_read_and_left_alone(case: Case, encoding: str) -> None:
    bare = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(case.body),
        "x-gzip": gzip.compress(case.body[:100]) + gzip.compress(case.body[100:]),
        "deflate": zlib.compress(case.body),
        "identity, deflate": zlib.compress(case.body, 0),
        "bare": bare.compress(case.body) + bare.flush(),
    }[encoding]
    for chunks in (cut_at(packed, 1), [bytes([byte]) for byte in packed]):
        meter = case.meter("deflate" if encoding == "bare" else encoding)
        assert play(meter, chunks) == packed
        assert meter.usage() == case.usage


@every_case
def test_a_chunk_of_whole_frames_is_not_even_copied(case: Case) -> None:
    if case.expected == case.body:
        assert case.meter().feed(case.body, True) is None


@every_case
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "gzip, gzip"])
def test_what_can_not_be_read_is_marked(case: Case, encoding: str) -> None:
    meter = case.meter(encoding)
    assert play(meter, [case.body]) == case.body
    assert meter.usage() == Usage(None, 0, exact=False, deltas=0, readable=False)


def test_a_broken_encoding_keeps_what_was_read_of_it() -> None:
    case = CASES["chat"]
    packed = gzip.compress(case.body, 0)
    meter = case.meter("gzip")
    assert play(meter, [packed[:120], b"\xff" * 400]) == packed[:120] + b"\xff" * 400
    assert not meter.usage().readable
    assert not meter.usage().exact


def test_a_packed_flood_is_read_in_small_pieces() -> None:
    case = CASES["chat"]
    line = case.body.partition(b"\n")[0] + b"\n"
    meter = case.meter("gzip")
    play(meter, [gzip.compress(line * 20_000 + case.body)])
    assert meter.usage().deltas == 20_001
    assert meter.usage().completion_tokens == 3


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models", "/", ""])
def test_only_metered_endpoints_have_a_meter(path: str) -> None:
    with pytest.raises(KeyError):
        meter_for(path, content_type=JSON, content_encoding="", hide_usage=False, cap=1)
