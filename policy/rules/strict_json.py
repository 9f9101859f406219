"""One strict JSON object, with the places of its members.

Ollama decodes with Go's encoding/json, which takes the last of two equal names, folds case, stops at the end of the
first value, replaces broken UTF-8 and lone surrogates, and knows neither NaN nor a number beyond a float64. Python
agrees with none of it by default. Only what both read in the same way passes: no names given twice at any depth, no
constants, no surrogates, nothing before or after the object, bounded numbers and nesting.

Values are read by the C scanner of the standard library; only the members of the body itself, and of the objects in
it that have to be edited, are walked here, because their places are needed. Places are counted in characters;
`Places` turns them into bytes.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # undocumented, and older than Python 3
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_NUMBER = 64  # characters: more than any float64 needs, and cheap to convert
_MAX_MEMBERS = 1024  # of an object that is walked here


class NotAcceptable(ValueError):
    """The body will not be judged. The message is for the client and repeats nothing that the client wrote."""


class Member(NamedTuple):
    """One member: its value, the place of its name's quote, and where its value starts and ends."""

    value: object
    name: int
    start: int
    end: int


class Object(NamedTuple):
    """An object whose places are known."""

    inside: int  # just after its opening brace
    members: dict[str, Member]

    def get(self, name: str) -> object:
        """The value of a member; None where it is absent, which null is as good as."""
        member = self.members.get(name)
        return None if member is None else member.value


class Places:
    """Characters to bytes, for one text. Each answer starts from the one before, so that asking in order is cheap."""

    __slots__ = ("_ascii", "_byte", "_char", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._ascii = text.isascii()
        self._char = self._byte = 0

    def byte(self, char: int) -> int:
        if self._ascii:
            return char
        if char >= self._char:
            self._byte += len(self._text[self._char : char].encode())
        else:
            self._byte -= len(self._text[char : self._char].encode())
        self._char = char
        return self._byte

    def size(self, member: Member) -> int:
        """The bytes of a member's value, as written."""
        return member.end - member.start if self._ascii else len(self._text[member.start : member.end].encode())


def read(body: bytes, *, depth: int, containers: int, walked: frozenset[str]) -> tuple[Object, Places]:
    """The object that `body` is. Members named in `walked` that are objects come as `Object` in their turn.

    NotAcceptable where `body` is anything but one strict JSON object within `depth` and `containers`.
    """
    if not body:
        raise NotAcceptable("the body is empty: a JSON object is expected")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise NotAcceptable("the body is not valid UTF-8") from None
    if _HALF.search(body):
        _refuse_lone_surrogates(body)
    brackets = body.count(b"{") + body.count(b"[")
    if brackets > containers:
        _refuse_many(body, containers)
    start = _past_space(text, 0)
    if text[start : start + 1] != "{":
        raise NotAcceptable("the body is not a JSON object")
    try:
        whole, end = _walk(text, start, walked)
    except NotAcceptable:
        raise
    except RecursionError:  # the scanner stops by itself, near a thousand levels
        raise _too_deep(depth) from None
    except (ValueError, StopIteration):  # StopIteration is how the scanner says that no value starts here
        raise NotAcceptable("the body is not valid JSON") from None
    if _past_space(text, end) != len(text):
        raise NotAcceptable("the body goes on after its JSON object")
    if brackets > depth:
        _refuse_deep(whole, depth)
    return whole, Places(text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse_twice()
    return members


def _refuse_twice() -> NoReturn:
    raise NotAcceptable("a name is given twice in one JSON object")


def _whole(text: str) -> int:
    if len(text) > _MAX_NUMBER:
        raise NotAcceptable("a number in the body is too long")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > _MAX_NUMBER:
        raise NotAcceptable("a number in the body is too long")
    value = float(text)
    if value - value != 0:  # infinite: Go refuses it
        raise NotAcceptable("a number in the body is too large")
    return value


def _constant(_: str) -> NoReturn:
    raise NotAcceptable("NaN and Infinity are not JSON")


_scan = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_fraction, parse_constant=_constant
).scan_once  # type: ignore[attr-defined]  # raw_decode, which is documented, is this with a slower error path

_space = re.compile(r"[ \t\n\r]*").match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_next = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*").match


def _past_space(text: str, at: int) -> int:
    found = _space(text, at)
    return at if found is None else found.end()


def _walk(text: str, brace: int, walked: frozenset[str]) -> tuple[Object, int]:
    """The object whose brace is at `brace`, and where it ends."""
    members: dict[str, Member] = {}
    name_at = _past_space(text, brace + 1)
    if text[name_at : name_at + 1] == "}":
        return Object(brace + 1, members), name_at + 1
    while True:
        if text[name_at : name_at + 1] != '"':
            raise ValueError("a member has no name")
        name, end = scanstring(text, name_at + 1, True)
        colon = _colon(text, end)
        if colon is None:
            raise ValueError("a name has no value")
        start = colon.end()
        value: object
        if name in walked and text[start : start + 1] == "{":
            value, end = _walk(text, start, frozenset())
        else:
            value, end = _scan(text, start)
        if name in members:
            _refuse_twice()
        if len(members) == _MAX_MEMBERS:
            raise NotAcceptable("an object in the body has too many members")
        members[name] = Member(value, name_at, start, end)
        after = _next(text, end)
        if after is None:
            raise ValueError("a member ends in nothing")
        if after[1] == "}":
            return Object(brace + 1, members), after.start(1) + 1
        name_at = after.end()


_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def _refuse_lone_surrogates(body: bytes) -> None:
    # With escaped backslashes out of the way, every backslash that is left starts an escape.
    escapes = body.replace(b"\\\\", b"..")
    if _HALF.search(escapes) and _HALF.search(_PAIR.sub(b"..", escapes)):
        raise NotAcceptable("the body holds half of a surrogate pair")


_NOT_BRACKETS = bytes(set(range(256)) - set(b"{["))


def _refuse_many(body: bytes, containers: int) -> None:
    """Count the brackets that stand outside strings, before an object is made for each."""
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if len(outside.translate(None, _NOT_BRACKETS)) > containers:
        raise NotAcceptable(f"the body has more than {containers} objects and arrays")


def _refuse_deep(whole: Object, depth: int) -> None:
    """Measure nesting without recursion: layer by layer."""
    layer = containers_in(member.value for member in whole.members.values())
    for _ in range(depth - 1):
        if not layer:
            return
        layer = [inner for value in layer for inner in containers_in(inside(value))]
    if layer:
        raise _too_deep(depth)


def inside(value: object) -> Iterable[object]:
    """The values that a value of JSON holds."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, Object):
        return [member.value for member in value.members.values()]
    return value if isinstance(value, list) else ()


def containers_in(values: Iterable[object]) -> list[object]:
    """Those of `values` that hold values in their turn."""
    return [value for value in values if type(value) is dict or type(value) is list or type(value) is Object]


def _too_deep(depth: int) -> NotAcceptable:
    return NotAcceptable(f"the body nests more than {depth} deep")
