"""What Envoy reads of answers, in Lua, beside what processor reads in Python: the two must not differ in a byte or a
count, whatever an upstream sends. The fuzzer sees the paths of the Python side, which has the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.envoy.inflating import agrees_with_zlib
from tests.envoy.lua_meter import pair_for
from tests.hostile.targets.cutting import chance, cuttings

if TYPE_CHECKING:
    from collections.abc import Callable

_NDJSON, _EVENTS, _JSON = "application/x-ndjson", "text/event-stream", "application/json"
_KINDS = (
    ("/api/chat", _NDJSON), ("/api/generate", _NDJSON), ("/v1/chat/completions", _EVENTS), ("/v1/completions", _EVENTS),
    ("/api/chat", _JSON), ("/v1/chat/completions", _JSON), ("/v1/completions", _JSON), ("/api/embed", _JSON),
    ("/v1/embeddings", _JSON),
)  # fmt: skip


def both_meters_say_the_same(data: bytes) -> None:
    """A Pair fails where the two differ, at any piece of any cut."""
    drawn = chance(data)
    cap, hide = drawn.choice((0, 1, 3, 100)), drawn.random() < 0.5
    looks = {b"d": _EVENTS, b":": _EVENTS, b"e": _EVENTS}.get(data[:1], drawn.choice((_NDJSON, _JSON)))
    path, kind = drawn.choice([one for one in _KINDS if one[1] == looks])
    for chunks in cuttings(data):
        meter = pair_for(path, content_type=kind, content_encoding="", hide_usage=hide, cap=cap, prompt_estimate=7)
        for number, chunk in enumerate(chunks, 1):
            meter.feed(chunk, number == len(chunks))


def what_is_inflated_is_what_zlib_makes_of_it(data: bytes) -> None:
    """The same bytes in every cut; where zlib finds damage, what comes is bounded."""
    for encoding in ("gzip", "deflate"):
        for chunks in cuttings(data):
            agrees_with_zlib(encoding, chunks)


TARGETS: tuple[Callable[[bytes], None], ...] = (both_meters_say_the_same, what_is_inflated_is_what_zlib_makes_of_it)
