"""The demo upstream fails, waits and writes as it is told to, and its journal tells what really happened."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.gateway.demo_process import Demo, chat, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running() as started:
        yield started


def settled(demo: Demo) -> dict[str, Any]:
    """The last record, once it is no longer running."""
    deadline = time.monotonic() + 5
    while (record := demo.last())["outcome"] == "running":
        assert time.monotonic() < deadline, record
    return record


def writes(demo: Demo, path: str, body: dict[str, Any], headers: str = "") -> tuple[bytes, list[bytes]]:
    """The head and the HTTP chunks of an answer, as they were written."""
    host, port = demo.url.removeprefix("http://").split(":")
    raw = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as sock:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {len(raw)}\r\n\r\n"
        )
        sock.sendall(head.encode() + raw)
        with sock.makefile("rb") as stream:
            top, _, rest = stream.read().partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return top, [chunk for chunk in chunks if chunk]


@pytest.mark.parametrize("status", [404, 500, 503])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_an_error_before(demo: Demo, status: int, path: str) -> None:
    answer = demo.post(path, chat(f"x !error-before={status}", stream=True, max_tokens=9))
    assert answer.status_code == status
    assert ("maximum pending requests exceeded" in answer.text) == (status == 503)
    record = demo.last()
    assert (record["outcome"], record["prompt_tokens"], record["completion_tokens"]) == ("error", 0, 0)


def test_an_error_after_is_a_line_under_200(demo: Demo) -> None:
    answer = demo.post("/api/chat", chat("a b c !error-after=2"))
    assert answer.status_code == 200
    *tokens, error = [json.loads(line) for line in answer.text.splitlines()]
    assert (len(tokens), set(error)) == (2, {"error"})
    record = demo.last()
    assert (record["outcome"], record["completion_tokens"], record["reported"]) == ("error", 2, False)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_an_error_after_is_a_500_where_nothing_was_sent(demo: Demo, path: str) -> None:
    assert demo.post(path, chat("a b c !error-after=2", stream=False)).status_code == 500
    assert demo.post(path, chat("a b c !error-after=0", stream=True)).status_code == 500


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("/v1/chat/completions", b'"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'),
        ("/v1/messages", b'"delta":{"type":"text_delta","text":" a"}}\n\n'),
    ],
)
def test_an_error_after_is_silent_in_sse(demo: Demo, path: str, ends: bytes) -> None:
    answer = demo.post(path, chat("a b c !error-after=2", stream=True, max_tokens=9))
    assert answer.status_code == 200
    assert answer.content.endswith(ends)
    assert b"[DONE]" not in answer.content


@pytest.mark.parametrize("stream", [True, False])
def test_dying_breaks_the_connection(demo: Demo, stream: bool) -> None:
    got = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        demo.http.stream("POST", "/api/chat", json=chat("a b c !die-after=2", stream=stream)) as answer,
    ):
        for part in answer.iter_raw():
            got += part
    assert got.count(b"\n") == (2 if stream else 0)
    record = demo.last()
    assert (record["outcome"], record["completion_tokens"]) == ("error", 2)


def test_hanging_ends_when_the_client_leaves(demo: Demo) -> None:
    with demo.http.stream("POST", "/api/chat", json=chat("a b c !hang-after=2")) as answer:
        stream = answer.iter_lines()
        assert [json.loads(next(stream))["done"] for _ in range(2)] == [False, False]
        assert demo.last()["outcome"] == "running"
    record = settled(demo)
    assert (record["outcome"], record["completion_tokens"], record["reported"]) == ("aborted", 2, False)


@pytest.mark.parametrize("words", ["!delay=20", "!delay=20 !merge"])
def test_a_client_that_leaves_stops_the_work(demo: Demo, words: str) -> None:
    with demo.http.stream("POST", "/api/chat", json=chat(f"!tokens=500 {words}")) as answer:
        next(answer.iter_lines())
    record = settled(demo)
    assert record["outcome"] == "aborted"
    assert 1 <= record["completion_tokens"] < 50
    assert demo.last() == record


def test_a_client_that_leaves_an_unstreamed_answer_stops_it_too(demo: Demo) -> None:
    with pytest.raises(httpx.ReadTimeout):
        demo.http.post("/api/chat", json=chat("!tokens=500 !delay=20", stream=False), timeout=0.1)
    assert settled(demo)["outcome"] == "aborted"


@pytest.mark.parametrize("stream", [True, False])
def test_delays_are_kept(demo: Demo, stream: bool) -> None:
    started = time.monotonic()
    demo.post("/api/chat", chat("!first=60 !delay=20 !tokens=4", stream=stream))
    assert time.monotonic() - started >= 0.11  # timers may be a millisecond early
    record = demo.last()
    assert record["prompt_eval_duration"] >= 55_000_000
    assert record["eval_duration"] >= 55_000_000
    assert (record["prompt_tokens"], record["completion_tokens"]) == (3, 4)


def test_tokens_counts_and_caps(demo: Demo) -> None:
    def end(words: str, cap: int) -> dict[str, Any]:
        body = chat(words, stream=False, options={"num_predict": cap})
        answer: dict[str, Any] = demo.post("/api/chat", body).json()
        return answer

    answer = end("!tokens=5", 3)
    assert (answer["message"]["content"], answer["done_reason"], answer["eval_count"]) == ("w0 w1 w2", "length", 3)
    answer = end("!tokens=5 !overrun", 3)
    assert (answer["done_reason"], answer["eval_count"]) == ("stop", 5)
    assert end("!tokens=5", -1)["eval_count"] == 5
    answer = end("a !nocount !cached=7", 9)
    assert not {"eval_count", "prompt_eval_count", "prompt_eval_cached_count"} & answer.keys()
    assert (demo.last()["completion_tokens"], demo.last()["reported"]) == (2, False)
    assert end("a !cached=7", 9)["prompt_eval_cached_count"] == 7
    assert end("a !think=3", 9)["message"]["thinking"] == "t0 t1 t2"


def test_one_write_a_token(demo: Demo) -> None:
    _, chunks = writes(demo, "/api/chat", chat("a b"))
    assert [json.loads(chunk)["done"] for chunk in chunks] == [False, False, False, True]


def test_split_cuts_lines_and_merge_joins_them(demo: Demo) -> None:
    _, chunks = writes(demo, "/v1/chat/completions", chat("ünï a b c d e", stream=True))
    _, cut = writes(demo, "/v1/chat/completions", chat("ünï a b c d e !split", stream=True))
    _, joined = writes(demo, "/v1/chat/completions", chat("ünï a b c d e !merge", stream=True))
    assert len(joined) < len(chunks) < len(cut)
    assert b"".join(cut).count(b"data: ") == b"".join(chunks).count(b"data: ")
    assert max(chunk.count(b"data: ") for chunk in joined[:-1]) == 4


def test_crlf_is_for_sse_alone(demo: Demo) -> None:
    _, chunks = writes(demo, "/v1/chat/completions", chat("a !crlf", stream=True))
    assert b"".join(chunks).endswith(b"data: [DONE]\r\n\r\n")
    assert b"\n\n" not in b"".join(chunks)
    assert b"\r" not in demo.post("/api/chat", chat("a !crlf")).content


@pytest.mark.parametrize("stream", [True, False])
def test_gzip_only_for_those_who_take_it(demo: Demo, stream: bool) -> None:
    body = chat("a b !gzip !split", stream=stream)
    packed = demo.post("/api/chat", body, **{"accept-encoding": "gzip"})
    clear = demo.post("/api/chat", body, **{"accept-encoding": "identity"})
    assert (packed.headers["content-encoding"], "content-encoding" in clear.headers) == ("gzip", False)
    assert json.loads(packed.text.splitlines()[-1])["eval_count"] == 3
    assert len(packed.text.splitlines()) == len(clear.text.splitlines()) == (4 if stream else 1)


def test_what_the_journal_tells(demo: Demo) -> None:
    demo.http.post("/__demo/reset")
    assert (demo.served(), demo.requests()) == ([], [])
    body = chat("secret words", options={"num_predict": 7, "seed": 1}, keep_alive="5m", stream=True)
    headers = {"x-request-id": "abc", "authorization": "Bearer nz_x", "X-Api-Key": "k"}
    demo.http.post("/api/chat?a=b", json=body, headers=headers)
    (record,) = demo.served()
    assert (record["request_id"], record["credentials"]) == ("abc", ["authorization", "x-api-key"])
    assert record["settings"] == {"options": body["options"], "keep_alive": "5m", "stream": True}
    assert (record["canonical"], record["endpoint"], record["outcome"]) == ("llama3.1:8b", "/api/chat", "completed")
    assert demo.served(record["index"] + 1) == []
    (request,) = demo.requests()
    assert (request["method"], request["path"], request["query"]) == ("POST", "/api/chat", "a=b")
    assert request["headers"]["authorization"] == "present"
    assert json.loads(request["body"]) == body


def test_operators_endpoints_change_nothing_and_are_seen(demo: Demo) -> None:
    demo.http.post("/__demo/reset")
    paths = ("pull", "push", "create", "copy", "delete", "ps", "blobs/sha256-0", "me", "signout", "user/keys/x")
    for name in paths:
        assert demo.http.request("DELETE", f"/api/{name}").status_code == 200
    assert [one["path"] for one in demo.requests()] == [f"/api/{name}" for name in paths]
    assert len(demo.http.get("/api/tags").json()["models"]) == 3


def test_a_cloud_name_runs_and_is_told(demo: Demo) -> None:
    assert demo.post("/api/chat", chat("a", model="gpt:120b-cloud")).status_code == 200
    assert (demo.last()["cloud"], demo.last()["canonical"]) == (True, "gpt:120b")


def test_many_at_once_are_counted_each(demo: Demo) -> None:
    async def all_at_once() -> None:
        async with httpx.AsyncClient(base_url=demo.url, timeout=20) as client:
            bodies = [chat(f"!tokens={n} !delay=1") for n in range(1, 41)]
            await asyncio.gather(*(client.post("/api/chat", json=body) for body in bodies))

    demo.http.post("/__demo/reset")
    asyncio.run(all_at_once())
    records = demo.served()
    assert sorted(record["completion_tokens"] for record in records) == list(range(1, 41))
    assert {record["outcome"] for record in records} == {"completed"}


def test_other_models_another_listener_and_a_clean_end(tmp_path: Path) -> None:
    path = str(tmp_path / "demo.sock")
    with running("--unix", path) as demo:
        assert demo.http.put("/__demo/models", json=["gemma3", "hf.co/org/m:q4"]).status_code == 200
        assert demo.http.put("/__demo/models", json=["a b"]).status_code == 400
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://ollama.example") as client:
            listed = client.get("/api/tags").json()["models"]
            assert [one["name"] for one in listed] == ["gemma3:latest", "hf.co/org/m:q4"]
        assert demo.post("/api/chat", chat("a")).status_code == 404
        with demo.http.stream("POST", "/api/chat", json=chat("a !hang-after=1", model="gemma3")) as answer:
            next(answer.iter_raw())
            demo.process.send_signal(signal.SIGTERM)
            assert demo.process.wait(5) == 0
    assert not (tmp_path / "demo.sock").exists()


def test_a_taken_port_is_named(demo: Demo) -> None:
    port = demo.url.rpartition(":")[2]
    command = [sys.executable, "-m", "gateway.demo", "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
