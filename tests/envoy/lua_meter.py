"""The meter that Envoy runs, in LuaJIT as there, beside the one in Python: a Pair feeds both, and fails where they
differ in a byte, a count or a flag, at any step."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processor.usage import Meter, Usage, meter_for

try:
    from lupa.luajit21 import LuaError, LuaRuntime
except ImportError:  # no LuaJIT on this platform: the same language, slower
    from lupa.lua51 import LuaError, LuaRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LuaError"]

SCRIPT = Path(__file__).parents[2] / "envoy" / "meter.lua"
UNROUTED = ("/v1/responses", "/v1/messages")  # Python alone reads these


@cache
def runtime() -> Any:
    """The script, loaded as Envoy does: nothing but its own global is new. Bytes go in and come out."""
    lua = LuaRuntime(encoding=None, unpack_returned_tuples=True)
    before = set(lua.globals())
    lua.execute(SCRIPT.read_bytes())
    assert set(lua.globals()) - before <= {b"paddock", b"envoy_on_request", b"envoy_on_response"}
    lua.execute(b"""
        function feed(meter, chunk, final) return meter:feed(chunk, final) end
        function usage(meter)
            local u = meter:usage()
            return u.prompt, u.completion, u.exact, u.deltas, u.load, u.prompt_eval, u.eval, u.total, u.finished,
                u.failed, u.readable
        end
        function state(meter) return meter.cut, meter.deltas, meter.streams end
    """)
    return lua


@cache
def function(name: bytes) -> Callable[..., Any]:
    found: Callable[..., Any] = runtime().eval(name)
    return found


class LuaMeter:
    """A meter of the script, as processor.usage.Meter; ValueError for an endpoint that has none."""

    def __init__(
        self, path: str, *, content_type: str, content_encoding: str, hide_usage: bool, cap: int, prompt_estimate: int
    ) -> None:
        options = {
            b"endpoint": path.encode(), b"content_type": content_type.encode(), b"hide_usage": hide_usage,
            b"content_encoding": content_encoding.encode(), b"cap": cap, b"prompt_estimate": prompt_estimate,
        }  # fmt: skip
        self._meter = function(b"paddock.meter")(runtime().table_from(options))
        if self._meter is None:
            raise ValueError(path)

    @property
    def cut(self) -> bool:
        return bool(function(b"state")(self._meter)[0])

    @property
    def deltas(self) -> int:
        return int(function(b"state")(self._meter)[1])

    @property
    def streams(self) -> bool:
        return bool(function(b"state")(self._meter)[2])

    def feed(self, chunk: bytes, end: bool) -> bytes | None:
        instead: bytes | None = function(b"feed")(self._meter, chunk, end)
        return instead

    def usage(self) -> Usage:
        prompt, completion, exact, deltas, *durations, finished, failed, readable = function(b"usage")(self._meter)
        load, prompt_eval, evaluation, total = durations
        return Usage(
            prompt, completion, exact, deltas, load, prompt_eval, evaluation, total, finished, failed, readable
        )


class Pair:
    """Both meters, as one."""

    def __init__(self, python: Meter, lua: LuaMeter) -> None:
        self._python = python
        self._lua = lua

    @property
    def cut(self) -> bool:
        assert self._lua.cut == self._python.cut
        return self._python.cut

    @cut.setter
    def cut(self, value: bool) -> None:
        raise AttributeError("only meters cut")

    def feed(self, chunk: bytes, end: bool) -> bytes | None:
        expected, got = self._python.feed(chunk, end), self._lua.feed(chunk, end)
        assert got == expected
        usage = self.usage()
        assert not self._lua.streams or self._lua.deltas == usage.deltas
        assert self._lua.cut == self._python.cut
        return got

    def usage(self) -> Usage:
        expected, got = self._python.usage(), self._lua.usage()
        assert got == expected
        return got


def pair_for(
    path: str, *, content_type: str, content_encoding: str, hide_usage: bool, cap: int, prompt_estimate: int = 0
) -> Meter:
    """As processor.usage.meter_for: of both meters, where both can read the answer."""
    python = meter_for(
        path, content_type=content_type, content_encoding=content_encoding, hide_usage=hide_usage, cap=cap,
        prompt_estimate=prompt_estimate,
    )  # fmt: skip
    if path in UNROUTED or ("gzip" in content_encoding and "," not in content_encoding):
        return python
    if "deflate" in content_encoding:
        return python
    lua = LuaMeter(
        path, content_type=content_type, content_encoding=content_encoding, hide_usage=hide_usage, cap=cap,
        prompt_estimate=prompt_estimate,
    )  # fmt: skip
    return Pair(python, lua)
