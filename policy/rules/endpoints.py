"""The endpoints that pass the gate. What is not in this table is refused: there is no list of what is blocked.

Ollama decides by method and path and parses the body whatever its Content-Type says; so does this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """The shape of a request body, or what takes its place."""

    NATIVE_CHAT = "native_chat"
    NATIVE_GENERATE = "native_generate"
    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETION = "openai_completion"
    EMBED = "embed"
    EMBEDDINGS_LEGACY = "embeddings_legacy"
    OPENAI_EMBEDDINGS = "openai_embeddings"
    SHOW = "show"
    MODEL = "model"  # the model's name is in the path
    ENVELOPE = "envelope"  # sealed: processor opens it, and what is inside is an OPENAI_CHAT
    LIST = "list"  # the gateway answers, for this key
    VERSION = "version"  # the gateway answers, for anybody


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. `path` is its name in grants, metrics and audit rows; a path parameter shows as {model}."""

    path: str
    kind: Kind
    metered: bool = False  # its answers cost tokens
    generates: bool = False  # it makes completion tokens: caps apply
    streams_by_default: bool = False
    session: str = ""  # by the word of a session policy that allows it: for browser sessions, and for no key

    @property
    def forwarded(self) -> bool:
        """Whether an upstream answers it, and not the gateway."""
        return self.kind not in (Kind.LIST, Kind.VERSION)


_CHAT = Endpoint("/api/chat", Kind.NATIVE_CHAT, metered=True, generates=True, streams_by_default=True)
_GENERATE = Endpoint("/api/generate", Kind.NATIVE_GENERATE, metered=True, generates=True, streams_by_default=True)
_TAGS = Endpoint("/api/tags", Kind.LIST)
_VERSION = Endpoint("/api/version", Kind.VERSION)
_MODEL = Endpoint("/v1/models/{model}", Kind.MODEL)
# One door, judged twice: its key and its rate by what stands outside, then what was inside as any chat is.
ENVELOPE = Endpoint("/v1/chat/secure_completion", Kind.ENVELOPE)
OPENED_ENVELOPE = Endpoint(ENVELOPE.path, Kind.OPENAI_CHAT, metered=True, generates=True)
PUBLIC_KEY_PATH = "/pki/public_key"
DETAILED = frozenset({ENVELOPE.path, PUBLIC_KEY_PATH})  # errors there carry `detail`, which envelope clients read

ENDPOINTS: Mapping[tuple[str, str], Endpoint] = MappingProxyType(
    {
        ("POST", "/api/chat"): _CHAT,
        ("POST", "/api/generate"): _GENERATE,
        ("POST", "/api/embed"): Endpoint("/api/embed", Kind.EMBED, metered=True),
        ("POST", "/api/embeddings"): Endpoint("/api/embeddings", Kind.EMBEDDINGS_LEGACY, metered=True),
        ("POST", "/api/show"): Endpoint("/api/show", Kind.SHOW),
        ("POST", "/v1/chat/completions"): Endpoint(
            "/v1/chat/completions", Kind.OPENAI_CHAT, metered=True, generates=True
        ),
        ("POST", "/v1/completions"): Endpoint("/v1/completions", Kind.OPENAI_COMPLETION, metered=True, generates=True),
        ("POST", "/v1/embeddings"): Endpoint("/v1/embeddings", Kind.OPENAI_EMBEDDINGS, metered=True),
        ("POST", ENVELOPE.path): ENVELOPE,
        ("GET", _MODEL.path): _MODEL,
        ("GET", "/v1/models"): Endpoint("/v1/models", Kind.LIST),
        ("GET", _TAGS.path): _TAGS,
        ("HEAD", _TAGS.path): _TAGS,
        ("GET", _VERSION.path): _VERSION,
        ("HEAD", _VERSION.path): _VERSION,
        # What browser sessions reach. Upstream each is the /v1 endpoint of that name.
        ("POST", "/openai/chat/completions"): Endpoint(
            "/openai/chat/completions", Kind.OPENAI_CHAT, metered=True, generates=True, session="chat"
        ),
        ("POST", "/openai/completions"): Endpoint(
            "/openai/completions", Kind.OPENAI_COMPLETION, metered=True, generates=True, session="completions"
        ),
        ("POST", "/openai/embeddings"): Endpoint(
            "/openai/embeddings", Kind.OPENAI_EMBEDDINGS, metered=True, session="embeddings"
        ),
        ("GET", "/openai/models"): Endpoint("/openai/models", Kind.LIST, session="models"),
    }
)

PATHS = frozenset(endpoint.path for endpoint in ENDPOINTS.values())

_MODEL_PREFIX = "/v1/models/"
_PATH_TEXT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+")  # RFC 3986, pchar and "/"
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


def find(method: str, path: str) -> tuple[Endpoint, str | None] | None:
    """The endpoint and the model named in its path (None where the path names none). None: nothing passes here.

    `path` comes without its query, as it stood in the request line: an escaped path is decoded once, here, and only in
    the place of a model name. A name that is not properly escaped comes back as "", which is no model's name.
    """
    endpoint = ENDPOINTS.get((method, path))
    if endpoint is not None:
        return None if endpoint is _MODEL else (endpoint, None)  # a literal {model} is no path
    if method == "GET" and path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
        return _MODEL, _decoded(path[len(_MODEL_PREFIX) :])
    return None


def _decoded(text: str) -> str:
    if not _PATH_TEXT.fullmatch(text):
        return ""
    raw = _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), text.encode("ascii"))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
