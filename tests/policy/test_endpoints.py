"""Which methods and paths pass, and the model's name in a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.endpoints import ENDPOINTS, Kind, find


@pytest.mark.parametrize(("method", "path"), [key for key in ENDPOINTS if "{" not in key[1]])
def test_every_endpoint_is_found_by_its_own_name(method: str, path: str) -> None:
    assert find(method, path) == (ENDPOINTS[method, path], None)
    assert ENDPOINTS[method, path].path == path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:00"),
        ("GET", "/api/ps"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/api/chat"),
        ("post", "/api/chat"),
        ("POST", "/api/chat/"),
        ("POST", "//api/chat"),
        ("POST", "/API/chat"),
        ("POST", "/api/chat?stream=false"),
        ("POST", "/api/%63hat"),
        ("PUT", "/api/show"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/{model}"),
        ("POST", "/v1/models/llama3.1:8b"),
        ("DELETE", "/v1/models/llama3.1:8b"),
    ],
)
def test_everything_else_is_not(method: str, path: str) -> None:
    assert find(method, path) is None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("llama3.1:8b", "llama3.1:8b"),
        ("llama3.1%3A8b", "llama3.1:8b"),
        ("llama3.1%3a8b", "llama3.1:8b"),
        ("hf.co/org/model:q4", "hf.co/org/model:q4"),
        ("hf.co%2Forg%2Fmodel%3Aq4", "hf.co/org/model:q4"),
        ("a%252Fb", "a%2Fb"),  # once, and no more
        ("a%2", ""),
        ("a%zz", ""),
        ("a%", ""),
        ("a%ff", ""),
        ("a?b", ""),
        ("a#b", ""),
        ("a b", ""),
        ("a\\b", ""),
        ("é", ""),
        ("%C3%A9", "é"),
        ("..%2f..%2fapi%2ftags", "../../api/tags"),
    ],
)
def test_the_model_in_a_path_is_decoded_once(path: str, model: str) -> None:
    found = find("GET", f"/v1/models/{path}")
    assert found is not None
    endpoint, name = found
    assert endpoint.kind is Kind.MODEL
    assert endpoint.path == "/v1/models/{model}"
    assert name == model


@given(st.text(max_size=40))
def test_find_takes_any_path(path: str) -> None:
    found = find("GET", "/v1/models/" + path)
    assert found is None or found[1] is not None


def test_what_is_metered_forwarded_and_streamed() -> None:
    by_path = {endpoint.path: endpoint for endpoint in ENDPOINTS.values()}
    assert {path for path, endpoint in by_path.items() if endpoint.generates} == {
        "/api/chat",
        "/api/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/openai/chat/completions",
        "/openai/completions",
    }
    assert {path for path, endpoint in by_path.items() if not endpoint.metered} == {
        "/api/show",
        "/v1/models/{model}",
        "/v1/models",
        "/api/tags",
        "/api/version",
        "/openai/models",
        "/v1/chat/secure_completion",  # what is inside is metered, once processor has opened it
    }
    assert {path for path, endpoint in by_path.items() if endpoint.streams_by_default} == {"/api/chat", "/api/generate"}
    assert {path for path, endpoint in by_path.items() if not endpoint.forwarded} == {
        "/v1/models",
        "/api/tags",
        "/api/version",
        "/openai/models",
    }


def test_what_sessions_reach_keys_do_not() -> None:
    by_path = {endpoint.path: endpoint for endpoint in ENDPOINTS.values()}
    assert {path: endpoint.session for path, endpoint in by_path.items() if endpoint.session} == {
        "/openai/chat/completions": "chat",
        "/openai/completions": "completions",
        "/openai/embeddings": "embeddings",
        "/openai/models": "models",
    }
    for path, endpoint in by_path.items():
        twin = by_path.get(path.replace("/openai/", "/v1/"))
        assert not endpoint.session or (twin is not None and twin.kind is endpoint.kind)
