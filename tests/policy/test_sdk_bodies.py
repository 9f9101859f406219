"""The bodies that the published clients really send pass, with all their options set."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import ollama
import openai
import pytest

from policy.rules.requests import Ask, find, parse
from tests.policy.bodies import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable


class Outbox(list[tuple[str, str, bytes]]):
    """Method, path and body of what the clients write; nothing leaves the process."""

    def ollama(self) -> ollama.Client:
        def keep(request: httpx.Request) -> httpx.Response:
            self.append((request.method, request.url.raw_path.decode(), request.read()))
            return httpx.Response(400, json={"error": "enough"})

        return ollama.Client(host="http://ollama.test", transport=httpx.MockTransport(keep))

    def openai(self) -> openai.OpenAI:
        def keep(request: httpx2.Request) -> httpx2.Response:
            self.append((request.method, request.url.raw_path.decode(), request.read()))
            return httpx2.Response(400, json={"error": "enough"})

        http = httpx2.Client(transport=httpx2.MockTransport(keep))
        return openai.OpenAI(base_url="http://ollama.test/v1", api_key="nz_x", max_retries=0, http_client=http)


def written(call: Callable[[Outbox], object]) -> Ask:
    """What policy makes of the request that `call` sends."""
    outbox = Outbox()
    with pytest.raises((ollama.ResponseError, openai.BadRequestError)):
        call(outbox)
    method, path, body = outbox[0]
    found = find(method, path)
    assert found is not None, path
    ask = parse(found[0], body, BOUNDS, found[1])
    assert isinstance(ask, Ask), (ask, json.loads(body or b"null"))
    return ask


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
      a: one number
      b: another
    """
    return a + b


TURNS: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1? é中😀"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 1}}}]},
    {"role": "tool", "tool_name": "add", "content": "2"},
    ollama.Message(role="assistant", content="two", thinking="hm"),
    ollama.Message(role="user", content="and this?", images=[ollama.Image(value=b"\x89PNG")]),
]
OPTIONS = ollama.Options(temperature=0.1, num_predict=50, stop=["\n"], top_k=5, mirostat=0, penalize_newline=False)


def test_ollama_chat() -> None:
    ask = written(
        lambda outbox: outbox.ollama().chat(
            "llama3.1:8b", TURNS, tools=[add], think="low", logprobs=True, top_logprobs=3,
            format={"type": "object"}, options=OPTIONS, keep_alive="5m",
        )
    )  # fmt: skip
    assert (ask.model, ask.stream, ask.max_tokens) == ("llama3.1:8b", False, 50)
    assert ask.prompt_bytes > 4096


@pytest.mark.parametrize("think", [True, False, None, "high"])
@pytest.mark.parametrize("format_", [None, "", "json"])
def test_ollama_streams(think: Any, format_: Any) -> None:
    ask = written(
        lambda outbox: list(
            outbox.ollama().chat(
                "llama3.1", [{"role": "user", "content": "hi"}], stream=True, think=think, format=format_
            )
        )
    )
    assert (ask.model, ask.stream) == ("llama3.1:latest", True)


def test_ollama_generate() -> None:
    ask = written(
        lambda outbox: outbox.ollama().generate(
            "llama3.1:8b", "hi", suffix="bye", system="s", template="{{ .Prompt }}", context=[1, 2], raw=True,
            images=[b"\x89PNG"], options={"seed": 1, "num_ctx": None}, keep_alive=0, width=512, height=512, steps=4,
        )
    )  # fmt: skip
    assert not ask.empty


def test_ollama_loads() -> None:
    assert written(lambda outbox: outbox.ollama().generate("llama3.1:8b")).empty
    assert written(lambda outbox: outbox.ollama().chat("llama3.1:8b", keep_alive=600.0)).empty


def test_ollama_embeds_and_shows() -> None:
    written(lambda outbox: outbox.ollama().embed("nomic-embed-text", ["a", "b"], truncate=True, dimensions=8))
    written(lambda outbox: outbox.ollama().embed("nomic-embed-text", "a", options={}, keep_alive="1h"))
    written(lambda outbox: outbox.ollama().embeddings("nomic-embed-text", "a"))
    assert written(lambda outbox: outbox.ollama().show("hf.co/Org/Model:Q4")).model == "hf.co/org/model:q4"


MESSAGES: list[Any] = [
    {"role": "developer", "content": "be brief", "name": "d"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "2"},
]


def test_openai_chat() -> None:
    fields: dict[str, Any] = {
        "model": "llama3.1:8b", "messages": MESSAGES, "max_completion_tokens": 9, "n": 2, "stop": ["a"],
        "temperature": 0, "top_p": 1, "seed": 5, "logprobs": True, "top_logprobs": 2, "user": "u",
        "store": False, "metadata": {"k": "v"},
        "parallel_tool_calls": False, "reasoning_effort": "low", "tool_choice": "auto", "logit_bias": {"1": 1},
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    }  # fmt: skip
    ask = written(lambda outbox: outbox.openai().chat.completions.create(**fields))
    assert (ask.stream, ask.max_tokens, ask.completions) == (False, 9, 2)
    ask = written(lambda outbox: outbox.openai().chat.completions.create(**fields, stream=True))
    assert (ask.stream, ask.wants_usage) == (True, False)
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    ask = written(lambda outbox: outbox.openai().chat.completions.create(**fields))
    assert ask.wants_usage


def test_openai_completions_embeddings_and_models() -> None:
    ask = written(
        lambda outbox: outbox.openai().completions.create(
            model="llama3.1:8b", prompt="def f(", suffix="return", max_tokens=5, best_of=2, echo=False, logprobs=1
        )
    )
    assert (ask.max_tokens, ask.completions) == (5, 2)
    written(lambda outbox: outbox.openai().embeddings.create(model="nomic-embed-text", input=["a"], dimensions=8))
    assert written(lambda outbox: outbox.openai().models.retrieve("hf.co/Org/Model:Q4")).model == "hf.co/org/model:q4"


def test_every_argument_of_the_ollama_client_has_been_thought_of() -> None:
    taken = set(inspect.signature(ollama.Client.chat).parameters) | set(
        inspect.signature(ollama.Client.generate).parameters
    )
    known = set(
        "self model messages tools stream think logprobs top_logprobs format options keep_alive prompt suffix system "
        "template context raw images width height steps".split()
    )
    assert taken == known
