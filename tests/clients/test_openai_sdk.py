"""The published `openai` package, unmodified, against the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from tests.harness import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=gateway.client().key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=MODELS[0], messages=[{"role": "user", "content": "one two"}])
    assert answer.choices[0].message.content == "Echo: one two"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)


@pytest.mark.parametrize("usage", [False, True])
def test_chat_stream(sdk: openai.OpenAI, usage: bool) -> None:
    stream = sdk.chat.completions.create(
        model=MODELS[0],
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True} if usage else openai.omit,
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Echo: one two"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([5] if usage else [])


def test_newer_names(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODELS[0],
        messages=[{"role": "developer", "content": "be short"}, {"role": "user", "content": "one two three"}],
        max_completion_tokens=2,
        user="someone",
        seed=1,
        store=False,
        metadata={"a": "b"},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_tools(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODELS[0],
        messages=[{"role": "user", "content": "use the tool"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        parallel_tool_calls=True,
    )
    assert answer.choices[0].message.tool_calls


def test_completions_embeddings_models(sdk: openai.OpenAI) -> None:
    assert sdk.completions.create(model=MODELS[0], prompt="one").choices[0].text == "Echo: one"
    text = "".join(
        chunk.choices[0].text for chunk in sdk.completions.create(model=MODELS[0], prompt="one", stream=True)
    )
    assert text == "Echo: one"
    assert len(sdk.embeddings.create(model="nomic-embed-text", input=["a", "b"]).data) == 2
    assert {model.id for model in sdk.models.list()} == set(MODELS)
    assert sdk.models.retrieve(MODELS[0]).id == MODELS[0]


def test_errors_are_the_sdks_own_classes(gateway: Gateway, sdk: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.PermissionDeniedError, match="forbidden"):
        sdk.chat.completions.create(model="not-there", messages=messages)  # type: ignore[arg-type]  # as callers write it
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(model=MODELS[0], messages=messages, n=-1)  # type: ignore[arg-type]  # as callers write it
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="nz_wrong").models.list()
    limited = gateway.client(None, "--rpm", "1")
    with (
        openai.OpenAI(api_key=limited.key, base_url=f"{gateway.url}/v1", max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
    ):
        for _ in range(2):
            client.chat.completions.create(model=MODELS[0], messages=messages)  # type: ignore[arg-type]  # as callers write it
