"""The published `ollama` package, unmodified, against the front door."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import ollama
import pytest

from tests.harness import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Gateway


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[Callable[..., ollama.Client]]:
    """Makes clients, for a new key or a given one, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(key: str = "") -> ollama.Client:
            headers = {"Authorization": f"Bearer {key or gateway.client().key}"}
            client = ollama.Client(host=gateway.url, headers=headers, trust_env=False)
            stack.callback(client.close)
            return client

        yield make


def test_chat_generate_embed_list_show(sdk: Callable[..., ollama.Client]) -> None:
    client = sdk()
    messages = [{"role": "user", "content": "one two"}]
    answer = client.chat(model=MODELS[0], messages=messages)
    assert (answer.message.content, answer.prompt_eval_count, answer.eval_count) == ("Echo: one two", 2, 3)
    pieces = list(client.chat(model=MODELS[0], messages=messages, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == "Echo: one two"
    assert pieces[-1].done
    assert client.generate(model=MODELS[0], prompt="one").response == "Echo: one"
    assert len(list(client.generate(model=MODELS[0], prompt="one", stream=True))) == 3
    assert len(client.embed(model="nomic-embed-text", input=["a", "b"]).embeddings) == 2
    assert client.embeddings(model="nomic-embed-text", prompt="a").embedding
    assert {model.model for model in client.list().models} == set(MODELS)
    assert client.show(MODELS[0]).capabilities


def test_tools_format_and_options(sdk: Callable[..., ollama.Client]) -> None:
    def weather(city: str) -> str:
        """Say what the weather is.

        Args:
            city: the city
        """
        return city

    client = sdk()
    messages = [{"role": "user", "content": "use the tool"}]
    answer = client.chat(model=MODELS[0], messages=messages, tools=[weather])
    assert answer.message.tool_calls
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    answer = client.chat(
        model=MODELS[0], messages=messages, format=schema, options={"temperature": 0, "num_predict": 2, "seed": 1}
    )
    assert answer.eval_count == 2


def test_errors_reach_the_caller_as_the_sdk_knows_them(sdk: Callable[..., ollama.Client]) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        sdk().chat(model="not-there", messages=[{"role": "user", "content": "x"}])
    assert refused.value.status_code == 403
    with pytest.raises(ollama.ResponseError) as unknown:
        sdk("nz_wrong").list()
    assert unknown.value.status_code == 401
    with pytest.raises(ollama.ResponseError) as blocked:
        sdk().pull(MODELS[0])
    assert blocked.value.status_code == 403


def test_async(gateway: Gateway) -> None:
    key = gateway.client().key

    async def run() -> str:
        headers = {"Authorization": f"Bearer {key}"}
        async with ollama.AsyncClient(host=gateway.url, headers=headers, trust_env=False) as client:
            messages = [{"role": "user", "content": "one two"}]
            stream = await client.chat(model=MODELS[0], messages=messages, stream=True)
            return "".join([piece.message.content or "" async for piece in stream])

    assert asyncio.run(run()) == "Echo: one two"
