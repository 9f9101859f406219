"""A document as Envoy's own types: `envoy-data-plane`'s dataclasses, with the line of each message.

Rules read typed objects and never raw mappings: a misspelt field cannot pass for an absent one. Extensions
(`typed_config`) are loaded too, by the module that their type URL names.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import betterproto2
from betterproto2.casing import safe_snake_case
from envoy_data_plane.google.protobuf import Any as Packed
from envoy_data_plane.google.protobuf import Struct
from envoy_data_plane.message_pool import default_message_pool

from gateway.check import newer_types
from gateway.check.document import Document, Path, Plain, Unreadable, snake

if TYPE_CHECKING:
    from collections.abc import Iterator

M = TypeVar("M", bound=betterproto2.Message)
_URL = "type.googleapis.com/"


@dataclass(slots=True)
class Typed:
    """One document in types."""

    document: Document
    unknown: list[tuple[Path, str]] = field(default_factory=list)  # types and fields that the library does not know
    _paths: dict[int, Path] = field(default_factory=dict, repr=False)
    _messages: list[betterproto2.Message] = field(default_factory=list, repr=False)  # so that an id stays theirs
    _unpacked: dict[int, betterproto2.Message | None] = field(default_factory=dict, repr=False)

    def load(self, kind: type[M], path: Path = ()) -> M:
        """The mapping at `path` as a message. Raises Unreadable."""
        data: Plain = self.document.content
        for step in path:
            data = data[step]  # type: ignore[index]  # the path was walked before
        known = self._known(data, path)
        if not isinstance(known, dict):
            raise Unreadable(self.document.line(path), "not a mapping")
        known.pop("@type", None)
        message = _message(kind, known, path, self.document)
        self._walk(message, known, path)
        return message

    def unpacked(self, packed: Packed | None) -> betterproto2.Message | None:
        """The extension inside; None where there is none, or its type is not known."""
        return None if packed is None else self._unpacked.get(id(packed))

    def line(self, message: betterproto2.Message, *steps: str | int) -> int:
        """Where a field of the message stands, or the nearest thing around it."""
        return self.document.line((*self._paths.get(id(message), ()), *steps))

    def has(self, message: betterproto2.Message) -> bool:
        return id(message) in self._paths

    def _known(self, data: Plain, path: Path) -> Plain:
        """The data without extensions of types that the library does not know, each noted."""
        if isinstance(data, list):
            return [self._known(item, (*path, number)) for number, item in enumerate(data)]
        if not isinstance(data, dict):
            return data
        kept: dict[str, Plain] = {}
        for name, value in data.items():
            where = (*path, snake(name))
            if isinstance(value, dict) and str(value.get("@type")).endswith(".TypedStruct"):
                why = "what is in a TypedStruct is not read here: give its type_url as @type, and its value beside it"
                raise Unreadable(self.document.line(where), why)
            if isinstance(value, dict) and "@type" in value and not _importable(value["@type"]):
                self.unknown.append((where, f"type {value['@type']}"))
            else:
                kept[name] = self._known(value, where)
        return kept

    def _walk(self, message: betterproto2.Message, data: dict[str, Plain], path: Path) -> None:
        self._paths[id(message)] = path
        self._messages.append(message)
        for name, value in data.items():
            attribute = snake(name)
            if attribute == "@type":
                continue
            where = (*path, attribute)
            if not hasattr(message, attribute) or safe_snake_case(name) not in (attribute, f"{attribute}_"):
                if attribute not in newer_types.FIELDS:
                    self.unknown.append((where, f"field {name}"))
                continue
            if value is not None and getattr(message, attribute) is None:
                raise Unreadable(self.document.line(where), f"{name} and another field exclude each other")
            for part, content, at in _pairs(getattr(message, attribute), value, where):
                if isinstance(part, Packed):
                    inside = self._unpacked[id(part)] = part.unpack()
                    self._messages.append(part)
                    self._paths[id(part)] = at
                    if inside is not None:
                        self._walk(inside, content, at)
                else:
                    self._walk(part, content, at)


def _pairs(value: object, data: Plain, path: Path) -> Iterator[tuple[betterproto2.Message, dict[str, Plain], Path]]:
    if isinstance(value, Struct):  # free form: it has no fields of its own
        return
    if isinstance(value, betterproto2.Message) and isinstance(data, dict):
        yield value, data, path
    elif isinstance(value, list) and isinstance(data, list):
        for number, (one, item) in enumerate(zip(value, data, strict=False)):
            yield from _pairs(one, item, (*path, number))
    elif isinstance(value, dict) and isinstance(data, dict):
        for name, one in value.items():
            yield from _pairs(one, data.get(name), (*path, snake(name)))


def _importable(url: Plain) -> bool:
    if not isinstance(url, str) or not url.startswith(_URL):
        return False
    if url not in default_message_pool.url_to_type:
        package = url.removeprefix(_URL).rpartition(".")[0]
        if not all(part.isidentifier() for part in package.split(".")):
            return False
        try:
            importlib.import_module(f"envoy_data_plane.{package}")
        except ModuleNotFoundError:
            return False
    return url in default_message_pool.url_to_type


def _message(kind: type[M], data: dict[str, Plain], path: Path, document: Document) -> M:
    try:
        return kind.from_dict(data, ignore_unknown_fields=True)
    except Exception as error:  # a value of another kind: the library raises what comes, with no place
        _try_extensions(data, path, document)
        at = _culprit(kind, data)
        what = ".".join(str(step) for step in at) or "this"
        raise Unreadable(document.line((*path, *at)), f"{what} has a value of the wrong kind") from error


def _culprit(kind: type[betterproto2.Message], data: dict[str, Plain]) -> Path:
    """The smallest value without which the message loads."""
    found: Path = ()
    inner: Plain = data
    while isinstance(inner, (dict, list)):
        steps = list(inner) if isinstance(inner, dict) else range(len(inner))
        step = next((step for step in steps if _loads_without(kind, data, (*found, step))), None)
        if step is None:
            break
        found = (*found, step)
        inner = inner[step]  # type: ignore[index]  # one of its own keys
    return tuple(snake(step) if isinstance(step, str) else step for step in found)


def _loads_without(kind: type[betterproto2.Message], data: dict[str, Plain], path: Path) -> bool:
    try:
        kind.from_dict(_without(data, path), ignore_unknown_fields=True)
    except Exception:  # the library raises what comes
        return False
    return True


def _without(data: Plain, path: Path) -> Plain:
    first, *rest = path
    if isinstance(data, list):
        kept = [(number, item) for number, item in enumerate(data) if rest or number != first]
        return [_without(item, tuple(rest)) if number == first else item for number, item in kept]
    assert isinstance(data, dict)  # noqa: S101  # the path leads through mappings and lists
    named = {name: item for name, item in data.items() if rest or name != first}
    return {name: _without(item, tuple(rest)) if name == first else item for name, item in named.items()}


def _try_extensions(data: Plain, path: Path, document: Document) -> None:
    """Load each extension by itself, the innermost first, so that a wrong value is found in a small message."""
    if isinstance(data, list):
        for number, item in enumerate(data):
            _try_extensions(item, (*path, number), document)
    elif isinstance(data, dict):
        for name, item in data.items():
            _try_extensions(item, (*path, snake(name)), document)
        if "@type" in data:
            kind = default_message_pool.url_to_type[str(data["@type"])]
            inside = {name: value for name, value in data.items() if name != "@type"}
            try:
                kind.from_dict(inside, ignore_unknown_fields=True)
            except Exception as error:  # likewise
                at = _culprit(kind, inside)
                what = ".".join(str(step) for step in at) or "this"
                raise Unreadable(document.line((*path, *at)), f"{what} has a value of the wrong kind") from error
