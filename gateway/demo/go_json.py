"""JSON as Go's encoding/json reads and writes it, where that differs from Python's.

Ollama decodes a body with `json.Decoder.Decode` into structs. So: the first value counts and whatever follows is never
read; keys bind to fields without regard to case, by Unicode *simple* folding, and the last one wins; `null` leaves a
plain field as it was; objects that bind to one map are merged; invalid UTF-8 and lone surrogates become U+FFFD. A
gateway that reads the body by other rules judges a request that Ollama never sees, and the tests show it with this.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

# Go: space, tab, carriage return, line feed; Python's str.strip() would take more.
_SPACE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}  # json.Marshal escapes HTML unless told not to


class GoError(ValueError):
    """The text that Go's decoder would have returned."""


class Object:
    """A JSON object as it was written: every member, in order, duplicates included."""

    __slots__ = ("members",)

    def __init__(self, members: list[tuple[str, Json]]) -> None:
        self.members = members


Json: TypeAlias = "bool | int | float | str | list[Json] | Object | None"


def _constant(name: str) -> float:
    raise GoError(f"invalid character {name[0]!r} looking for beginning of value")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # longer than any int64; int() has its own limit


_DECODER = json.JSONDecoder(object_pairs_hook=Object, parse_constant=_constant, parse_int=_integer)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def decode(body: bytes) -> Json:
    """The first JSON value in the body; whatever stands behind it is ignored. Raises GoError."""
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    if not text:
        raise GoError("EOF")
    try:
        value: Json = _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated"):
            raise GoError("unexpected EOF") from error
        raise GoError(f"invalid character {text[error.pos]!r} looking for beginning of value") from error
    except RecursionError as error:
        raise GoError("exceeded max depth") from error
    return value


def encode(value: object) -> bytes:
    """Compact JSON with `<`, `>`, `&`, U+2028 and U+2029 escaped."""
    text = _ENCODER.encode(value)
    if "<" in text or ">" in text or "&" in text or not text.isascii():
        text = text.translate(_UNSAFE)
    return text.encode()


def plain(value: Json) -> object:
    """The value as Python's own dicts and lists, as Go decodes into `any`: exact keys, the last of each."""
    if isinstance(value, Object):
        return {clean(key): plain(member) for key, member in value.members}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def clean(text: str) -> str:
    """The text with each lone surrogate replaced, as Go does."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def fold(key: str) -> str:
    """The key under simple case folding, as far as ASCII field names can tell.

    Only two letters beyond ASCII fold to an ASCII one: U+017F to `s` (which lower() leaves alone) and U+212A to `k`.
    """
    return key.replace("\u017f", "s").lower()


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


class Struct:
    """A JSON value bound to a Go struct. Fields are decoded when asked for; a wrong type raises GoError."""

    __slots__ = ("_fields", "_name")

    def __init__(self, name: str, value: Json) -> None:
        self._name = name
        self._fields: dict[str, list[Json]] = {}
        if value is None:
            return  # null into a struct is a no-op
        if not isinstance(value, Object):
            raise GoError(f"json: cannot unmarshal {_kind(value)} into Go value of type api.{name}")
        for key, member in value.members:
            self._fields.setdefault(fold(key), []).append(member)

    def _wrong(self, field: str, value: Json, wanted: str) -> GoError:
        return GoError(
            f"json: cannot unmarshal {_kind(value)} into Go struct field {self._name}.{field} of type {wanted}"
        )

    def string(self, field: str) -> str:
        result = ""
        for value in self._fields.get(field, ()):
            if isinstance(value, str):
                result = clean(value)
            elif value is not None:
                raise self._wrong(field, value, "string")
        return result

    def boolean(self, field: str, *, pointer: bool = False) -> bool | None:
        """A bool, or None when absent. Null unsets a `*bool` and leaves a `bool` as it was."""
        result: bool | None = None
        for value in self._fields.get(field, ()):
            if isinstance(value, bool):
                result = value
            elif value is not None:
                raise self._wrong(field, value, "bool")
            elif pointer:
                result = None
        return result

    def integer(self, field: str) -> int | None:
        """An `*int`: 10.0 is refused as Go refuses it."""
        result: int | None = None
        for value in self._fields.get(field, ()):
            if value is None or (isinstance(value, int) and not isinstance(value, bool)):
                result = value
            else:
                raise self._wrong(field, value, "int")
        return result

    def mapping(self, field: str) -> dict[str, object]:
        """A map: a second object under the same field adds to the first, null empties it."""
        result: dict[str, object] = {}
        for value in self._fields.get(field, ()):
            if isinstance(value, Object):
                result.update((clean(key), plain(member)) for key, member in value.members)
            elif value is None:
                result = {}
            else:
                raise self._wrong(field, value, "map[string]interface {}")
        return result

    def items(self, field: str) -> list[Json]:
        result: list[Json] = []
        for value in self._fields.get(field, ()):
            if isinstance(value, list):
                result = value
            elif value is None:
                result = []
            else:
                raise self._wrong(field, value, "slice")
        return result

    def anything(self, field: str) -> Json:
        values = self._fields.get(field)
        return values[-1] if values else None

    def __contains__(self, field: str) -> bool:
        return field in self._fields
