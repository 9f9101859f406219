"""An upstream's list of models: read with suspicion, written back in Ollama's and in OpenAI's form.

Reading is bounded in every direction, because an Ollama may be old, new, half broken or not an Ollama at all: what is
not understood is left out, and only an answer that is no list of models at all is an error. Entries are kept by a
keep-list: a field that a later Ollama adds must not leak, and `remote_host` and `remote_model` are the operator's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from policy.rules.models import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BODY_MAX = 4 * 1024 * 1024  # bytes of one answer; 2,000 models take about 1 MB
MODELS_MAX = 2_000  # of one upstream; the rest is left out
_TEXT_MAX = 1_024
_DETAILS_MAX = 8_192  # characters of JSON

# What an entry may carry: Ollama's api.ListModelResponse, less what runs elsewhere.
_KEPT: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "model": str,
    "modified_at": str,
    "size": int,
    "digest": str,
    "details": dict,
    "capabilities": list,
}


@dataclass(frozen=True, slots=True)
class Installed:
    """One model as one upstream lists it."""

    canonical: str
    name: str  # the upstream's own spelling
    details: Mapping[str, object]  # the kept fields of its entry, values untouched


def read(body: bytes) -> tuple[Installed, ...]:
    """The models in the body of `GET /api/tags`; ValueError when it is no such list."""
    try:
        answer = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(answer, dict):
        raise ValueError("not an object")
    entries = answer.get("models")
    if entries is None:  # Go writes an empty slice as null
        return ()
    if not isinstance(entries, list):
        raise ValueError("models is not a list")
    found: dict[str, Installed] = {}
    for entry in entries[:MODELS_MAX]:
        installed = _entry(entry)
        if installed is not None:
            found.setdefault(installed.canonical, installed)
    return tuple(found.values())


def tags_body(entries: Iterable[Mapping[str, object]]) -> bytes:
    """The body of `GET /api/tags`."""
    return _dump({"models": [dict(entry) for entry in entries]})


def models_body(entries: Iterable[Mapping[str, object]]) -> bytes:
    """The body of `GET /v1/models`: the same models as an OpenAI list."""
    data = [
        {
            "id": entry["name"],
            "object": "model",
            "created": _unix_seconds(entry.get("modified_at")),
            "owned_by": _namespace(str(entry["name"])),
        }
        for entry in entries
    ]
    return _dump({"object": "list", "data": data})


def _entry(entry: object) -> Installed | None:
    if not isinstance(entry, dict):
        return None
    kept = {name: entry[name] for name, kind in _KEPT.items() if _sound(entry.get(name), kind)}
    name = kept.get("name") or kept.get("model")
    if not isinstance(name, str):
        return None
    details = kept.get("details")
    if isinstance(details, dict) and "parent_model" in details:
        kept["details"] = {**details, "parent_model": ""}  # it may name a model that is not this key's
    try:
        return Installed(canonical(name), name, {"name": name, **kept})
    except ValueError:  # a name that no request could spell
        return None


def _sound(value: object, kind: type | tuple[type, ...]) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    if isinstance(value, str):
        return len(value) <= _TEXT_MAX
    return isinstance(value, int) or len(json.dumps(value)) <= _DETAILS_MAX


def _namespace(name: str) -> str:
    """Whose model it is, as Ollama reads a name: [host/][namespace/]model[:tag], `library` where none is given."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else "library"


def _unix_seconds(modified_at: object) -> int:
    """RFC 3339 with Go's nanoseconds as Unix seconds; 0 where there is no such time."""
    try:
        return int(datetime.fromisoformat(str(modified_at)).timestamp())
    except (ValueError, OverflowError):
        return 0


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
