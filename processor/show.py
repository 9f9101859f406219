"""What a client may know of a model: the answers of POST /api/show and GET /v1/models/{model}, by keep-list.

A keep-list, by name and by type: the template, the system prompt, the license, the file system path in the modelfile
and whatever a later Ollama adds stay behind. What is of another type than Ollama's own is dropped, since a nested
value could hold anything.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

# Keys of model_info are an architecture (or a part of one) and a property: `llama.context_length`,
# `qwen25vl.vision.embedding_length`.
_LENGTH = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.(context_length|embedding_length)")


def sanitize(body: bytes) -> bytes:
    """The answer of /api/show with what may be known; ValueError if `body` is no JSON object."""
    answer = _read(body)
    kept: dict[str, object] = {}
    details, info = answer.get("details"), answer.get("model_info")
    if isinstance(details, dict):
        kept["details"] = known = _keep(details, _DETAILS)
        if "parent_model" in known:
            known["parent_model"] = ""  # it may name a model that is not this key's
    if isinstance(info, dict):
        lengths = {key: value for key, value in info.items() if _LENGTH.fullmatch(key) and _whole(value)}
        kept["model_info"] = _keep(info, _INFO) | lengths
    return _write(kept | _keep(answer, _SHOW))


def sanitize_model(body: bytes) -> bytes:
    """The answer of /v1/models/{model} with what may be known; ValueError if `body` is no JSON object."""
    return _write(_keep(_read(body), _MODEL))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(value: object) -> bool:
    return type(value) is int


def _texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


_DETAILS: dict[str, Callable[[object], bool]] = {
    "parent_model": _text,
    "format": _text,
    "family": _text,
    "families": _texts,  # null where the model file names none
    "parameter_size": _text,
    "quantization_level": _text,
}
_INFO: dict[str, Callable[[object], bool]] = {"general.architecture": _text, "general.parameter_count": _whole}
_SHOW: dict[str, Callable[[object], bool]] = {"modified_at": _text, "capabilities": _texts}
_MODEL: dict[str, Callable[[object], bool]] = {"id": _text, "object": _text, "created": _whole, "owned_by": _text}


def _read(body: bytes) -> dict[str, object]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError("not one JSON object") from error
    if not isinstance(value, dict):
        raise ValueError("not one JSON object")
    return value


def _write(kept: dict[str, object]) -> bytes:
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _keep(value: dict[str, object], allowed: dict[str, Callable[[object], bool]]) -> dict[str, object]:
    return {key: value[key] for key, fits in allowed.items() if key in value and fits(value[key])}
