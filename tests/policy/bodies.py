"""Small request bodies for every endpoint, and what policy says to them."""

from __future__ import annotations

import json

from policy.rules.requests import ENDPOINTS, Ask, Bounds, Kind, Refusal, parse

ENDPOINT = {endpoint.path: endpoint for endpoint in ENDPOINTS.values()}
BOUNDS = Bounds()
# An envelope's body is none that policy could read.
POSTS = [path for (method, path), one in ENDPOINTS.items() if method == "POST" and one.kind is not Kind.ENVELOPE]
NATIVE = [path for path in POSTS if path.startswith("/api/")]
CHATS = ["/api/chat", "/v1/chat/completions", "/openai/chat/completions"]
GENERATING = [*CHATS, "/api/generate", "/v1/completions", "/openai/completions"]
USER: dict[str, object] = {"role": "user", "content": "hi"}


def document(path: str, **fields: object) -> dict[str, object]:
    """The smallest ordinary body of an endpoint, with more fields."""
    least: dict[str, object] = {"model": "llama3.1:8b"}
    if path in CHATS:
        least["messages"] = [USER]
    elif path in ("/api/generate", "/v1/completions", "/openai/completions", "/api/embeddings"):
        least["prompt"] = "hi"
    elif path in ("/api/embed", "/v1/embeddings", "/openai/embeddings"):
        least["input"] = "hi"
    return least | fields


def judge(path: str, body: object, bounds: Bounds = BOUNDS) -> Ask | Refusal:
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return parse(ENDPOINT[path], raw, bounds)


def accepted(path: str, body: object, bounds: Bounds = BOUNDS) -> Ask:
    ask = judge(path, body, bounds)
    assert isinstance(ask, Ask), ask
    return ask


def refused(path: str, body: object, bounds: Bounds = BOUNDS) -> str:
    refusal = judge(path, body, bounds)
    assert isinstance(refusal, Refusal), refusal
    return refusal.message
