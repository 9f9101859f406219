"""Request bodies: strict JSON, the schema of each endpoint, and the edits that are made without a second parse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from policy.rules import requests, strict_json
from policy.rules.grant import Splice
from policy.rules.requests import Ask, Bounds, Kind, Refusal
from policy.rules.splices import apply
from policy.rules.strict_json import NotAcceptable, Object
from tests.hostile.targets.cutting import chance

if TYPE_CHECKING:
    from policy.rules.endpoints import Endpoint

_WALKED = frozenset({"options", "stream_options"})
_BODIES = tuple(
    endpoint
    for endpoint in dict.fromkeys(requests.ENDPOINTS.values())
    if endpoint.kind not in (Kind.LIST, Kind.VERSION, Kind.MODEL, Kind.ENVELOPE)
)
_BOUNDS = Bounds()
_AGAIN = Bounds(depth=65, containers=_BOUNDS.containers + 2)  # an edit may add an object
_CAP = 7
_EDITED = ("model", "name", "options", "stream_options", "max_tokens", "max_completion_tokens")


class TwiceError(Exception):
    """A name stands twice in one object."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise TwiceError
    return dict(pairs)


def _plain(value: object) -> object:
    if isinstance(value, Object):
        return {name: _plain(member.value) for name, member in value.members.items()}
    return value


def _same(one: object, other: object) -> bool:
    """Equal, and of the same types: 1, 1.0 and true are three things."""
    return repr(one) == repr(other)


def strict_json_says_what_json_says(data: bytes) -> None:
    """What passes is what the standard library reads, with no name twice; every place that is reported is right."""
    try:
        whole, places = strict_json.read(data, depth=64, containers=1000, walked=_WALKED)
    except NotAcceptable as refused:
        assert str(refused).isascii()
        return
    expected = json.loads(data, object_pairs_hook=_unique)  # TwiceError: a name passed that Go takes the last of
    assert _same(_plain(whole), expected)
    json.dumps(expected, ensure_ascii=False, allow_nan=False).encode()  # no half surrogate, no number beyond a float
    _check_places(data, whole, places)


def _check_places(data: bytes, whole: Object, places: strict_json.Places) -> None:
    assert data[places.byte(whole.inside) - 1 : places.byte(whole.inside)] == b"{"
    for name, member in whole.members.items():
        start, end = places.byte(member.start), places.byte(member.end)
        assert _same(json.loads(data[start:end]), _plain(member.value))
        assert places.size(member) == end - start
        assert json.loads(data[places.byte(member.name) : start].rstrip(b" \t\r\n").removesuffix(b":")) == name
        if isinstance(member.value, Object):
            _check_places(data, member.value, places)


def requests_keep_what_was_judged(data: bytes) -> None:
    """The body that goes on is the body that was judged, but for what policy changes; and says so when read again."""
    for endpoint in _BODIES:
        ask = requests.parse(endpoint, data, _BOUNDS)
        if isinstance(ask, Refusal):
            assert ask.message.isprintable()
            continue
        splices = requests.rewrite(ask, cap=_CAP, model=ask.model)
        sent = apply(data, splices)
        _check_edits(endpoint, json.loads(data), json.loads(sent, object_pairs_hook=_unique))
        again = requests.parse(endpoint, sent, _AGAIN)
        assert isinstance(again, Ask), again
        assert (again.model, again.model_as_sent, again.stream) == (ask.model, ask.model, ask.stream)
        assert again.prompt_bytes == ask.prompt_bytes
        assert again.fingerprint is None, "the upstream sees a client's fingerprint"
        if endpoint.generates:
            assert again.max_tokens == (ask.max_tokens or _CAP)
            assert again.slots.cap == ()
            assert again.wants_usage
        assert requests.rewrite(again, cap=_CAP, model=again.model) == (), "a second pass has nothing to do"


def _check_edits(endpoint: Endpoint, before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in before.keys() | after.keys():
        if name not in _EDITED and not (endpoint.session and name == "fingerprint"):
            assert _same(before.get(name), after.get(name)), name
    for name in ("options", "stream_options"):
        said, sent = before.get(name) or {}, after.get(name) or {}
        for inner in said.keys() | sent.keys():
            if inner not in ("num_predict", "include_usage"):
                assert _same(said.get(inner), sent.get(inner)), inner


def splices_cut_and_join(data: bytes) -> None:
    """Splices do to bytes what they say, and refuse to be made where they do not fit."""
    drawn = chance(data)
    splices = [
        Splice(drawn.randint(-2, len(data) + 2), drawn.randint(-1, 9), drawn.choice(("", "é", "[1]")))
        for _ in range(drawn.randint(0, 4))
    ]
    if drawn.random() < 0.7:
        splices.sort(key=lambda splice: splice.offset)
    ends = [0, *(splice.offset + splice.length for splice in splices)]
    fits = all(
        end <= splice.offset and splice.length >= 0 and splice.offset + splice.length <= len(data)
        for end, splice in zip(ends, splices, strict=False)
    )
    try:
        found = apply(data, splices)
    except ValueError:
        assert not fits
        return
    assert fits
    for splice in reversed(splices):
        data = data[: splice.offset] + splice.text.encode() + data[splice.offset + splice.length :]
    assert found == data


TARGETS = (strict_json_says_what_json_says, requests_keep_what_was_judged, splices_cut_and_join)
