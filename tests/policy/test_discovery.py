from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
from typing import TYPE_CHECKING

import pytest

from policy.admission import upstreams
from policy.admission.discovery import Discovery, Snapshot, UpstreamState
from policy.admission.upstreams import Fault, Upstream
from policy.rules import tags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

LLAMA = {"name": "llama3.1:8b", "model": "llama3.1:8b", "size": 4920753328, "details": {"family": "llama"}}
NOMIC = {"name": "Nomic-Embed-Text:latest", "model": "Nomic-Embed-Text:latest", "details": {"family": "bert"}}
MISTRAL = {"name": "mistral:7b", "model": "mistral:7b"}


def listing(*entries: object) -> bytes:
    return json.dumps({"models": entries}).encode()


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Ollama:
    """Answers every connection with `says`, then closes it; counts them."""

    def __init__(self, says: bytes) -> None:
        self.says = says
        self.asked = 0
        self.hold: asyncio.Event | None = None  # answer only once it is set
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[object]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def id(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._answering)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await reader.readuntil(b"\r\n\r\n")
                assert request.startswith(b"GET /api/tags HTTP/1.1\r\n")
                self.asked += 1
                if self.hold is not None:
                    await self.hold.wait()
                writer.write(self.says)
                await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._answering.discard(task)


@contextlib.asynccontextmanager
async def ollama(says: bytes) -> AsyncIterator[Ollama]:
    started = Ollama(says)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


@contextlib.asynccontextmanager
async def discovering(*of: Ollama, **settings: object) -> AsyncIterator[Discovery]:
    discovery = Discovery(tuple(one.url for one in of), **{"interval": 60.0, **settings})  # type: ignore[arg-type]  # a test's shorthand
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(discovery.run())
        yield discovery
        running.cancel()


async def until(discovery: Discovery, holds: Callable[[Snapshot], bool]) -> Snapshot:
    while not holds(discovery.snapshot):
        await discovery.changed()
    return discovery.snapshot


def played(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_models_are_known_by_canonical_name_with_the_upstreams_own_entry() -> None:
    async def scenario() -> None:
        async with ollama(http(listing(LLAMA, NOMIC))) as gpu, discovering(gpu) as discovery:
            snapshot = await discovery.first()
            assert list(snapshot.models) == ["llama3.1:8b", "nomic-embed-text:latest"]
            nomic = snapshot.models["nomic-embed-text:latest"]
            assert nomic.name == "Nomic-Embed-Text:latest"
            assert nomic.details == NOMIC
            assert nomic.upstreams == (gpu.id,)
            state = snapshot.upstreams[gpu.id]
            assert (state.reachable, state.fault, state.models) == (True, Fault.NONE, 2)
            assert snapshot.reachable

    played(scenario)


def test_the_models_stay_the_same_object_until_something_changes() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu, clock=clock) as discovery:
            before = await discovery.first()
            clock.now += 2
            discovery.refresh_soon()
            again = await discovery.changed()
            assert again is not before
            assert again.models is before.models

            gpu.says = http(listing(LLAMA, MISTRAL))
            clock.now += 2
            discovery.refresh_soon()
            changed = await discovery.changed()
            assert set(changed.models) == {"llama3.1:8b", "mistral:7b"}
            assert set(before.models) == {"llama3.1:8b"}  # what was handed out is never edited

    played(scenario)


def test_requests_are_spread_over_the_reachable_upstreams_that_have_the_model() -> None:
    async def scenario() -> None:
        async with (
            ollama(http(listing(LLAMA, MISTRAL))) as one,
            ollama(http(listing(LLAMA))) as two,
            ollama(http(listing(NOMIC))) as three,
            discovering(one, two, three, interval=0.05) as discovery,
        ):
            await discovery.first()
            assert {discovery.upstream_for("llama3.1:8b") for _ in range(4)} == {one.id, two.id}
            assert {discovery.upstream_for("mistral:7b") for _ in range(4)} == {one.id}
            assert discovery.upstream_for("absent:latest") == ""

            await two.stop()
            await until(discovery, lambda now: not now.upstreams[two.id].reachable)
            assert {discovery.upstream_for("llama3.1:8b") for _ in range(4)} == {one.id}

            await one.stop()
            await until(discovery, lambda now: not now.upstreams[one.id].reachable)
            # Nobody who has it answers: the known ones are tried all the same, and 502 is then the truth.
            assert discovery.upstream_for("llama3.1:8b") in {one.id, two.id}
            await one.start()
            await two.start()

    played(scenario)


def test_a_single_upstream_is_left_to_envoy() -> None:
    async def scenario() -> None:
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu) as discovery:
            await discovery.first()
            assert discovery.upstream_for("llama3.1:8b") == ""

    played(scenario)


def test_a_failing_upstream_keeps_its_models_for_a_bounded_time() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with (
            ollama(http(listing(LLAMA))) as gpu,
            discovering(gpu, clock=clock, interval=0.02, stale_after=60.0) as discovery,
        ):
            await discovery.first()
            gpu.says = http(b"", "500 Internal Server Error")
            failing = await until(discovery, lambda now: not now.reachable)
            assert failing.upstreams[gpu.id].fault is Fault.STATUS
            clock.now += 59
            await discovery.changed()
            assert "llama3.1:8b" in discovery.models
            clock.now += 2
            await until(discovery, lambda now: not now.models)

            gpu.says = http(listing(LLAMA))  # the very body it had before
            back = await until(discovery, lambda now: now.reachable)
            assert "llama3.1:8b" in back.models

    played(scenario)


HOSTILE = {
    "no JSON": (http(b"<html>"), Fault.MALFORMED),
    "not an object": (http(b"[]"), Fault.MALFORMED),
    "models is no list": (http(b'{"models":{"a":1}}'), Fault.MALFORMED),
    "not UTF-8": (http(b'{"models":["\xff"]}'), Fault.MALFORMED),
    "NaN": (http(b'{"models":[],"x":NaN}'), Fault.MALFORMED),
    "nested deeply": (http(b'{"models":' + b"[" * 100_000), Fault.MALFORMED),
    "a number without end": (http(b'{"models":[' + b"9" * 10_000 + b"]}"), Fault.MALFORMED),
    "too large": (http(b" " * (tags.BODY_MAX + 1)), Fault.TOO_LARGE),
    "compressed unasked": (http(gzip.compress(listing(LLAMA)), "200 OK", "content-encoding: gzip"), Fault.MALFORMED),
    "redirect": (http(b"", "302 Found", "location: http://127.0.0.1:1/"), Fault.STATUS),
    "unauthorized": (http(b"", "401 Unauthorized"), Fault.STATUS),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", Fault.MALFORMED),
    "a length that lies": (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{}", Fault.MALFORMED),
    "closes at once": (b"", Fault.MALFORMED),
}


@pytest.mark.parametrize(("says", "fault"), HOSTILE.values(), ids=HOSTILE)
def test_an_odd_answer_is_a_fault_and_discovery_goes_on(says: bytes, fault: Fault) -> None:
    async def scenario() -> None:
        async with ollama(says) as odd, ollama(http(listing(LLAMA))) as good:
            async with discovering(odd, good, interval=0.05) as discovery:
                await discovery.first()
                assert discovery.snapshot.upstreams[odd.id].fault is fault
                assert set(discovery.models) == {"llama3.1:8b"}
                odd.says = http(listing(MISTRAL))
                await until(discovery, lambda now: "mistral:7b" in now.models)

    played(scenario)


def test_an_upstream_that_never_ends_is_given_up_and_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "POLL_TIMEOUT", 0.2)

    async def scenario() -> None:
        async with ollama(http(listing(LLAMA))) as slow, ollama(http(listing(MISTRAL))) as good:
            slow.hold = asyncio.Event()
            async with discovering(slow, good) as discovery:
                await until(discovery, lambda now: "mistral:7b" in now.models)
                assert discovery.snapshot.upstreams[slow.id].last_success is None
                await discovery.first()
                assert discovery.snapshot.upstreams[slow.id].fault is Fault.TIMEOUT
            slow.hold.set()

    played(scenario)


def test_a_model_pulled_a_moment_ago_is_found_without_waiting_for_the_interval() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu, clock=clock, interval=3600.0) as discovery:
            await discovery.first()
            gpu.says = http(listing(LLAMA, MISTRAL))
            clock.now += 1
            discovery.refresh_soon()
            await until(discovery, lambda now: "mistral:7b" in now.models)

    played(scenario)


def test_refreshes_on_demand_are_at_most_one_a_second() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu, clock=clock, interval=3600.0) as discovery:
            await discovery.first()
            for _ in range(1000):  # a flood of unknown names
                discovery.refresh_soon()
            await discovery.changed()
            for _ in range(1000):
                discovery.refresh_soon()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await discovery.changed()
            assert gpu.asked == 2
            clock.now += 1
            discovery.refresh_soon()
            await discovery.changed()
            assert gpu.asked == 3

    played(scenario)


def test_a_check_asks_anew_and_sees_an_upstream_go_and_come() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu, clock=clock, interval=3600.0) as discovery:
            await discovery.first()
            await gpu.stop()
            assert await discovery.check()  # asked within the last second: believed
            clock.now += 2
            assert not await discovery.check()
            await gpu.start()
            clock.now += 2
            await until(discovery, lambda now: now.reachable)
            assert await discovery.check()

    played(scenario)


def test_every_poll_is_observed_and_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[UpstreamState] = []

    async def scenario() -> None:
        async with ollama(http(b"", "500 x")) as gpu, discovering(gpu, interval=0.01, observe=seen.append) as discovery:
            while len(seen) < 4:
                await discovery.changed()
            gpu.says = http(listing(LLAMA))
            await until(discovery, lambda now: now.reachable)
            before = len(seen)
            while len(seen) < before + 3:
                await discovery.changed()

    with caplog.at_level(logging.INFO, logger="policy.admission.discovery"):
        played(scenario)
    assert [record.message for record in caplog.records] == ["upstream_unreachable", "upstream_reachable"]
    assert {state.fault for state in seen} == {Fault.STATUS, Fault.NONE}


def test_host_names_are_resolved_as_envoy_resolves_them() -> None:
    async def scenario() -> None:
        assert await upstreams.resolve(Upstream.parse("http://localhost:11434")) == ("127.0.0.1:11434",)
        assert await upstreams.resolve(Upstream.parse("http://[::1]:11434")) == ("[::1]:11434",)
        assert await upstreams.resolve(Upstream.parse("http://no-such-host.invalid:11434")) == ()

    played(scenario)


@pytest.mark.parametrize(
    ("url", "id"),
    [
        ("http://127.0.0.1:11434", "127.0.0.1:11434"),
        (" http://ollama/ ", "ollama:11434"),
        ("https://gpu.example", "gpu.example:443"),
        ("http://[::1]:11434", "[::1]:11434"),
    ],
)
def test_upstream_urls(url: str, id: str) -> None:
    assert Upstream.parse(url).id == id


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ollama:11434",
        "ftp://ollama",
        "http://",
        "http://u:hunter2@ollama",
        "http://ollama/v1",
        "http://ollama:99999",
    ],
)
def test_upstream_urls_that_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        Upstream.parse(url)
    assert "hunter2" not in str(refused.value)


def test_no_upstream_is_refused_and_one_named_twice_is_one() -> None:
    with pytest.raises(ValueError, match="no upstream"):
        Discovery(())

    async def scenario() -> None:
        async with ollama(http(listing(LLAMA))) as gpu, discovering(gpu, gpu) as discovery:
            snapshot = await discovery.first()
            assert list(snapshot.upstreams) == [gpu.id]
            assert discovery.reachable
            assert gpu.asked == 1

    played(scenario)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
