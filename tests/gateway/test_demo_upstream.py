"""The demo upstream answers as Ollama does: raw over HTTP, and through the published clients."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from typing import TYPE_CHECKING, Any

import ollama
import openai
import pytest

from gateway.demo.models import SECRET
from tests.gateway.demo_process import Demo, chat, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running() as started:
        yield started


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def events(answer: httpx.Response) -> list[Any]:
    """The data of each SSE event; `[DONE]` as it is."""
    assert answer.headers["content-type"] == "text/event-stream"
    found = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def test_reads(demo: Demo) -> None:
    assert demo.http.get("/").text == "Ollama is running"
    assert demo.http.head("/").headers["content-length"] == "17"
    assert set(demo.http.get("/api/version").json()) == {"version"}
    listed = demo.http.get("/api/tags").json()["models"]
    assert [model["name"] for model in listed] == ["llama3.1:8b", "mistral:7b", "nomic-embed-text:latest"]
    assert set(listed[0]) == {"name", "model", "modified_at", "size", "digest", "details"}
    cards = demo.http.get("/v1/models").json()
    assert cards["data"][1] | {"created": 0} == {
        "id": "mistral:7b",
        "object": "model",
        "created": 0,
        "owned_by": "library",
    }
    assert demo.http.get("/v1/models/Mistral:7B").json()["id"] == "Mistral:7B"
    assert demo.http.get("/v1/models/none").json()["error"]["type"] == "not_found_error"
    assert demo.http.head("/api/tags").status_code == 200


def test_show_tells_too_much(demo: Demo) -> None:
    shown = demo.post("/api/show", {"name": "library/llama3.1:8b"}).json()
    for field in ("modelfile", "template", "system", "parameters", "messages", "license", "tensors", "projector_info"):
        assert SECRET in json.dumps(shown[field])
    assert SECRET in shown["remote_host"] + shown["remote_model"]
    assert SECRET not in json.dumps([shown["details"], shown["capabilities"], shown["modified_at"]])
    assert shown["model_info"]["llama.context_length"] == 131072
    assert demo.post("/api/show", {"model": "none"}).status_code == 404


def test_native_chat_streams_by_default(demo: Demo) -> None:
    answer = demo.post("/api/chat", chat("one two"))
    assert answer.headers["content-type"] == "application/x-ndjson"
    *tokens, end = lines(answer)
    assert [token["message"]["content"] for token in tokens] == ["Echo:", " one", " two"]
    assert {token["done"] for token in tokens} == {False}
    assert (end["done"], end["done_reason"], end["prompt_eval_count"], end["eval_count"]) == (True, "stop", 2, 3)
    assert end["message"] == {"role": "assistant", "content": ""}
    assert min(end[f"{name}_duration"] for name in ("total", "load", "prompt_eval", "eval")) > 0


def test_native_generate_whole_and_capped(demo: Demo) -> None:
    body = {"model": "mistral:7b", "prompt": "a b c d", "system": "x y", "stream": False, "options": {"num_predict": 3}}
    answer = demo.post("/api/generate", body).json()
    assert (answer["response"], answer["done_reason"]) == ("Echo: a b", "length")
    assert (answer["prompt_eval_count"], answer["eval_count"], len(answer["context"])) == (6, 3, 9)
    assert demo.post("/api/generate", body | {"raw": True}).status_code == 400
    assert "b" not in demo.post("/api/generate", body | {"options": {"stop": ["b"]}}).json()["response"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), (0, "unload"), ("0s", "unload"), ("5m", "load")])
def test_nothing_to_say_loads_or_unloads(demo: Demo, path: str, keep_alive: object, reason: str) -> None:
    answer = demo.post(path, {"model": "mistral:7b", "keep_alive": keep_alive}).json()
    assert (answer["done"], answer["done_reason"]) == (True, reason)
    assert "eval_count" not in answer
    assert demo.last()["completion_tokens"] == 0


def test_openai_chat_streams_when_asked_and_counts_when_asked(demo: Demo) -> None:
    whole = demo.post("/v1/chat/completions", chat("one two")).json()
    assert whole["choices"][0]["message"]["content"] == "Echo: one two"
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    chunks = events(demo.post("/v1/chat/completions", chat("one two", stream=True)))
    assert [one["choices"][0]["delta"]["content"] for one in chunks[:-1]] == ["Echo:", " one", " two", ""]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1] == "[DONE]"
    assert not any("usage" in one for one in chunks)
    assert demo.last()["reported"] is False
    asked = chat("one two", stream=True, stream_options={"include_usage": True}, max_tokens=2)
    *_, finish, last, done = events(demo.post("/v1/chat/completions", asked))
    assert (finish["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 2)
    assert demo.last()["reported"] is True


def test_openai_completions_have_zero_usage_until_the_last(demo: Demo) -> None:
    body = {"model": "mistral:7b", "prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(demo.post("/v1/completions", body))
    assert {one["usage"]["total_tokens"] for one in chunks} == {0}
    assert (last["choices"], last["usage"]["total_tokens"], done) == ([], 3, "[DONE]")
    assert demo.post("/v1/completions", body | {"prompt": ["a"]}).status_code == 400


def test_embeddings(demo: Demo) -> None:
    many = demo.post("/api/embed", {"model": "nomic-embed-text", "input": ["a b", "c"]}).json()
    assert (len(many["embeddings"]), len(many["embeddings"][0]), many["prompt_eval_count"]) == (2, 768, 3)
    one = demo.post("/api/embed", {"model": "nomic-embed-text", "input": "a b", "dimensions": 8}).json()
    assert (len(one["embeddings"][0]), one["prompt_eval_count"]) == (8, 2)
    assert demo.post("/api/embed", {"model": "nomic-embed-text", "input": [1]}).status_code == 400
    legacy = demo.post("/api/embeddings", {"model": "nomic-embed-text", "prompt": "a b"}).json()
    assert legacy == {"embedding": many["embeddings"][0]}
    assert (demo.last()["prompt_tokens"], demo.last()["reported"]) == (2, False)
    body = {"model": "nomic-embed-text", "input": "a b", "encoding_format": "base64"}
    coded = demo.post("/v1/embeddings", body).json()
    assert struct.unpack("<768f", base64.b64decode(coded["data"][0]["embedding"]))[0] == pytest.approx(
        many["embeddings"][0][0]
    )
    assert coded["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert demo.post("/api/chat", chat("x", model="nomic-embed-text")).status_code == 400


def test_responses(demo: Demo) -> None:
    body = {"model": "mistral:7b", "instructions": "be kind", "input": "a !think=2", "max_output_tokens": 9}
    whole = demo.post("/v1/responses", body).json()
    assert whole["output"][1]["content"][0]["text"] == "Echo: a"
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (4, 4)
    streamed = events(demo.post("/v1/responses", body | {"stream": True}))
    assert [one["sequence_number"] for one in streamed] == list(range(len(streamed)))
    assert streamed[-1]["type"] == "response.completed"
    assert streamed[-1]["response"]["usage"] == whole["usage"]
    assert streamed[-1]["response"]["output"][1]["content"] == whole["output"][1]["content"]


def test_anthropic_messages(demo: Demo) -> None:
    body = chat("a " * 40, system="be kind", max_tokens=5)
    whole = demo.post("/v1/messages", body).json()
    assert (whole["stop_reason"], whole["usage"]) == ("max_tokens", {"input_tokens": 42, "output_tokens": 5})
    streamed = events(demo.post("/v1/messages", body | {"stream": True}))
    assert streamed[0]["message"]["usage"]["input_tokens"] not in (0, 42)  # an estimate
    assert streamed[-2]["usage"] == whole["usage"]
    assert [one["type"] for one in streamed[1:3]] == ["content_block_start", "content_block_delta"]
    assert streamed[-1] == {"type": "message_stop"}
    refused = demo.post("/v1/messages", chat("a")).json()
    assert (refused["type"], refused["error"]["type"]) == ("error", "invalid_request_error")


TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}, "required": ["a"]}},
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_when_asked_for(demo: Demo, stream: bool) -> None:
    body = chat("use the tool", tools=[TOOL], stream=stream, max_tokens=50)
    native = lines(demo.post("/api/chat", body))[0]["message"]["tool_calls"][0]["function"]
    assert native == {"index": 0, "name": "add", "arguments": {"a": "echo"}}
    answer = demo.post("/v1/chat/completions", body)
    choices = [one["choices"][0] for one in (events(answer)[:-1] if stream else [answer.json()])]
    message = choices[0]["delta" if stream else "message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": "echo"}
    assert choices[-1]["finish_reason"] == "tool_calls"
    body["tools"] = [{"name": "add", "input_schema": TOOL["function"]}]
    answer = demo.post("/v1/messages", body)
    assert "tool_use" in answer.text
    assert demo.last()["completion_tokens"] == 1
    after = chat("use the tool", tools=[TOOL], stream=False)
    after["messages"].append({"role": "tool", "content": "3"})
    assert demo.post("/api/chat", after).json()["message"]["content"] == "Echo: use the tool"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", {"model": "x", "messages": []}, 404, 'model "x" not found, try pulling it first'),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/generate", {"model": "a b"}, 400, "invalid model name"),
        ("/api/generate", {"model": 1}, 400, "cannot unmarshal number"),
        ("/api/chat", chat("x", options={"num_predict": "1"}), 400, "must be of type integer"),
        ("/v1/chat/completions", {"model": "x", "messages": []}, 400, "too short"),
        ("/v1/chat/completions", chat("x", model="x"), 404, "not found"),
        ("/v1/chat/completions", chat("x", max_tokens=1.0), 400, "cannot unmarshal number"),
    ],
)
def test_refusals(demo: Demo, path: str, body: dict[str, Any], status: int, text: str) -> None:
    answer = demo.post(path, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    if path.startswith("/v1/"):
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
        error = error["message"]
    assert text in error


def test_the_body_is_read_as_go_reads_it(demo: Demo) -> None:
    raw = '{"model":"mistral:7b","MODEL":"llama3.1:8b","me\u017f\u017fage\u017f":[{"Role":"User","CONTENT":"hi"}]} x'
    answer = demo.http.post(
        "/api/chat", content=raw.encode(), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert lines(answer)[1] | {"created_at": 0} == {
        "model": "llama3.1:8b",
        "created_at": 0,
        "message": {"role": "assistant", "content": " hi"},
        "done": False,
    }
    assert demo.last()["body_keys"] == ["model", "MODEL", "me\u017f\u017fage\u017f"]
    assert demo.http.post("/api/chat", content=b"").json() == {"error": "missing request body"}
    assert demo.http.post("/api/chat", content=b"{").status_code == 400


def test_only_v1_decompresses_its_body(demo: Demo) -> None:
    packed = gzip.compress(json.dumps(chat("hi")).encode())
    zipped = {"content-encoding": "gzip"}
    answer = demo.http.post("/v1/chat/completions", content=packed, headers=zipped)
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert demo.http.post("/api/chat", content=packed, headers=zipped).status_code == 400
    assert demo.http.post("/v1/chat/completions", content=packed[:-9], headers=zipped).status_code == 400


def test_gin_routing_and_the_guards_before_it(demo: Demo) -> None:
    assert demo.http.get("/api/chat").status_code == 405
    assert demo.http.post("/api/nothing").text == "404 page not found"
    assert demo.http.post(demo.url + "//api//chat/").headers["location"] == "/api/chat"
    assert demo.http.get("/api%2Ftags").status_code == 200
    for headers in ({"host": "ai.example.com"}, {"origin": "https://ai.example.com"}):
        answer = demo.http.get("/api/tags", headers=headers)
        assert (answer.status_code, answer.content) == (403, b"")
    for headers in ({"host": "box.internal:1"}, {"host": "10.1.2.3"}, {"origin": "http://localhost:3000"}):
        assert demo.http.get("/api/tags", headers=headers).status_code == 200
    asked = demo.http.options("/api/chat", headers={"origin": "http://localhost:3000"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "http://localhost:3000")


def test_the_ollama_package(demo: Demo) -> None:
    client = ollama.Client(demo.url)
    try:
        assert client.list().models[0].model == "llama3.1:8b"
        assert client.show("mistral:7b").capabilities
        messages = [{"role": "user", "content": "one two"}]
        parts = list(client.chat("llama3.1:8b", messages, stream=True))
        assert "".join(part.message.content or "" for part in parts) == "Echo: one two"
        assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 3)
        whole = client.chat("llama3.1:8b", messages, think=True)
        assert (whole.message.thinking, whole.eval_count) == ("t0 t1 t2", 6)
        assert client.generate("llama3.1:8b", "one").response == "Echo: one"
        assert len(client.embed("nomic-embed-text", ["a", "b"]).embeddings) == 2
        with pytest.raises(ollama.ResponseError, match="try pulling it first") as refused:
            client.chat("none", messages)
        assert refused.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="terminated"):
            list(client.chat("llama3.1:8b", [{"role": "user", "content": "!error-after=1"}], stream=True))
    finally:
        client._client.close()  # the package offers no other way, and an open socket is a warning


def test_the_openai_package(demo: Demo) -> None:
    with openai.OpenAI(base_url=demo.url + "/v1", api_key="none", max_retries=0) as client:
        assert client.models.list().data[0].owned_by == "library"
        assert client.models.retrieve("mistral:7b").id == "mistral:7b"
        stream = client.chat.completions.create(
            model="llama3.1:8b",
            messages=[{"role": "user", "content": "one two"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == "Echo: one two"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 5
        assert client.completions.create(model="mistral:7b", prompt="one").choices[0].text == "Echo: one"
        vectors = client.embeddings.create(model="nomic-embed-text", input=["a", "b"])  # asks for base64
        assert len(vectors.data[1].embedding) == 768
        assert client.responses.create(model="mistral:7b", input="one").output_text == "Echo: one"
        with client.responses.stream(model="mistral:7b", input="one") as responses:
            assert responses.get_final_response().output_text == "Echo: one"
        with pytest.raises(openai.NotFoundError, match="try pulling it first"):
            client.completions.create(model="none", prompt="one")
