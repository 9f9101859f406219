"""One generation: the tokens of an answer, at the pace and with the faults that were asked for, in any dialect.

A dialect turns tokens into bytes and knows nothing of time or connections; this module is the reverse. It writes what
it hands over into the journal's record as it goes, so that the record is true whenever it is read.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, TypeAlias

from gateway.demo import controls as control_words
from gateway.demo.models import SECRET, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.demo.controls import Controls
    from gateway.demo.journal import Served
    from gateway.demo.wire import Channel, Headers

# Ollama's own text for a full queue, and a crash text of the kind that tells a stranger about the machine.
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
CRASHED = f"llama runner process has terminated: exit status 2 (/usr/lib/{SECRET}/runners)"
_THOUGHTS = 3  # tokens of thinking when the request asks for it and no control says how many


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. The id is fixed by the name, so that an answer depends on its request alone."""

    name: str
    arguments: dict[str, str]

    @property
    def id(self) -> str:
        return f"call_{sum(self.name.encode()) % 36**4:08x}"


@dataclass(frozen=True, slots=True)
class Ask:
    """A generation request, whatever dialect it came in."""

    model: str  # as the caller wrote it: Ollama echoes that
    text: str  # the last user message: what is echoed, and where the controls are
    prompt_tokens: int
    stream: bool
    cap: int | None = None  # tokens; None or below 1 is no cap
    stop: tuple[str, ...] = ()
    call: Call | None = None
    think: bool = False
    reason: str | None = None  # set when nothing is to be generated: load, unload, or an embedding


@dataclass(frozen=True, slots=True)
class End:
    """The final counts and durations (nanoseconds); zeros stand for what is not told."""

    reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0
    total: int = 0
    load: int = 0
    prompt_eval: int = 0
    eval: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Answer:
    """What was produced so far."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call: Call | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)


class Dialect(Protocol):
    """How one endpoint writes an answer."""

    stream_type: str
    stream_headers: Headers
    whole_type: str

    def content(self, text: str) -> bytes: ...
    def thinking(self, text: str) -> bytes: ...
    def tool(self, call: Call) -> bytes: ...
    def final(self, end: End) -> bytes: ...
    def broken(self, message: str) -> bytes:
        """What is left of an error after the first token; may be nothing."""

    def whole(self, answer: Answer, end: End) -> bytes: ...
    def reports(self, stream: bool) -> bool:
        """Whether the final object carries the counts."""


Kind: TypeAlias = Literal["content", "thinking", "tool"]


class _Broken(Exception):
    """The answer fails here, as it was asked to."""


def _words(controls: Controls, ask: Ask, words: list[str]) -> Iterator[tuple[Kind, str]]:
    thoughts = controls.think if controls.think is not None else _THOUGHTS if ask.think else 0
    for n in range(thoughts):
        yield "thinking", f" t{n}" if n else "t0"
    if ask.call:
        yield "tool", ""
    elif controls.tokens is not None:
        for n in range(controls.tokens):
            yield "content", f" w{n}" if n else "w0"
    else:
        yield "content", "Echo:"
        for word in words:
            yield "content", " " + word


def _until(stop: tuple[str, ...], tokens: Iterator[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
    """The tokens before the one that completes a stop sequence."""
    text = ""
    for kind, token in tokens:
        text += token if kind == "content" else ""
        if any(sequence and sequence in text for sequence in stop):
            return
        yield kind, token


class Generation:
    """One generation on its way. `run` returns when the answer has ended in whichever way."""

    def __init__(self, ask: Ask, dialect: Dialect, channel: Channel, served: Served, started: int) -> None:
        self._ask = ask
        self._dialect = dialect
        self._channel = channel
        self._served = served
        self._started = started  # monotonic nanoseconds at arrival
        self._loaded = time.monotonic_ns()
        self._first = self._loaded
        self._controls, self._words = control_words.parse(ask.text)
        self._answer = Answer()

    async def run(self) -> None:
        """Raises Refused when the answer is an error status, ClientGone never: the caller watches the connection."""
        controls, ask, served = self._controls, self._ask, self._served
        if controls.error_before is not None:
            served.prompt_tokens = 0
            served.end("error")
            raise Refused(controls.error_before, QUEUE_FULL if controls.error_before == 503 else CRASHED)
        self._channel.shape(controls, self._dialect.stream_type, self._dialect.stream_headers)
        if controls.first:
            await asyncio.sleep(controls.first / 1000)
        try:
            reason = await self._tokens()
        except _Broken:
            served.end("error")
            if not self._channel.started:
                raise Refused(500, CRASHED) from None
            await self._channel.line(self._dialect.broken(CRASHED))
            await self._channel.finish()
            return
        end = self._end(reason)
        if ask.stream:
            await asyncio.sleep(0)
            await self._channel.line(self._dialect.final(end))
            await self._channel.flush()
        else:
            await self._channel.whole(200, self._dialect.whole(self._answer, end), self._dialect.whole_type)
        served.done_reason = reason
        served.reported = not controls.nocount and self._dialect.reports(ask.stream)
        served.end("completed")
        if ask.stream:
            await self._channel.finish()

    async def _tokens(self) -> str:
        """Produce the tokens; the reason why they ended."""
        controls, ask, dialect, line = self._controls, self._ask, self._dialect, self._channel.line
        served, answer = self._served, self._answer
        if ask.reason is not None:
            await self._fault(0)
            return ask.reason
        cap = ask.cap if ask.cap and ask.cap > 0 and not controls.overrun else -1
        delay = (controls.delay or 0) / 1000
        waits = ask.stream or delay > 0
        faulty = not (controls.error_after is controls.die_after is controls.hang_after is None)
        tokens = _words(controls, ask, self._words)
        produced = 0
        for kind, text in _until(ask.stop, tokens) if ask.stop else tokens:
            if faulty:
                await self._fault(produced)
            if produced and waits:
                await asyncio.sleep(delay)  # even a sleep of nothing lets the token out and others in
            if kind == "content":
                answer.texts.append(text)
            elif kind == "thinking":
                answer.thoughts.append(text)
            else:
                answer.call = ask.call
            if ask.stream:
                await line(self._encode(dialect, kind, text))
            produced += 1
            served.completion_tokens = produced
            if produced == 1:
                self._first = time.monotonic_ns()
            if produced == cap:
                return "length"
        await self._fault(produced)
        return "stop"

    def _encode(self, dialect: Dialect, kind: Kind, text: str) -> bytes:
        if kind == "content":
            return dialect.content(text)
        if kind == "thinking" or self._ask.call is None:
            return dialect.thinking(text)
        return dialect.tool(self._ask.call)

    async def _fault(self, produced: int) -> None:
        controls = self._controls
        if controls.error_after == produced:
            raise _Broken
        if controls.die_after == produced:
            self._served.end("error")
            await self._channel.die()
            await _for_ever()
        if controls.hang_after == produced:
            await self._channel.flush()
            await _for_ever()

    def _end(self, reason: str) -> End:
        now, served = time.monotonic_ns(), self._served
        served.total_duration = now - self._started
        served.load_duration = max(self._loaded - self._started, 1)
        if self._ask.reason is None:
            served.prompt_eval_duration = max(self._first - self._loaded, 1)
            served.eval_duration = max(now - self._first, 1)
        counted = not self._controls.nocount
        return End(
            reason,
            served.prompt_tokens if counted else 0,
            served.completion_tokens if counted else 0,
            (self._controls.cached or 0) if counted else 0,
            served.total_duration,
            served.load_duration,
            served.prompt_eval_duration,
            served.eval_duration,
        )


async def _for_ever() -> NoReturn:
    """Wait to be cancelled: the connection's watcher does that when the client is gone."""
    while True:
        await asyncio.Event().wait()
