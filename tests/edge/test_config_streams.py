"""Streams pass chunk by chunk through processor, end when either side ends, and are what the upstream sent."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.edge.rig import until
from tests.edge.services import Mode, allow, begin_stream, deny, look_and_leave, script, send_chunk

if TYPE_CHECKING:
    from tests.edge.rig import Rig
    from tests.edge.services import Message, Seen, Stream

TICK = 0.05
TICKS = 20


async def ticking(_: Seen, writer: asyncio.StreamWriter) -> None:
    """One line every 50 ms, each with the time at which it was sent."""
    await begin_stream(writer)
    for _number in range(TICKS):
        await send_chunk(writer, b"%.6f\n" % time.monotonic())
        await asyncio.sleep(TICK)
    await send_chunk(writer, b"")


async def endless(_: Seen, writer: asyncio.StreamWriter) -> None:
    await begin_stream(writer)
    while True:
        await send_chunk(writer, b"tick\n")
        await asyncio.sleep(TICK)


@pytest.mark.parametrize("http2", [False, True])
def test_each_chunk_arrives_when_it_is_sent(rig: Rig, http2: bool) -> None:
    rig.upstream.answer = ticking
    rig.processor.process = script(request_body=Mode.BUFFERED)
    base = f"http://127.0.0.1:{rig.port}"
    with (
        httpx.Client(base_url=base, http1=not http2, http2=http2) as client,
        client.stream("POST", "/api/chat", content=b"{}") as response,
    ):
        delays = [time.monotonic() - float(line) for line in response.iter_lines()]
    assert len(delays) == TICKS
    # One machine, one clock. A buffer anywhere would hold the first line back for the whole second.
    assert sorted(delays)[TICKS // 2] < TICK
    assert max(delays) < TICKS * TICK / 2


def test_what_the_upstream_sent_arrives_to_the_byte(rig: Rig) -> None:
    pieces = [b"\x00", b"\r\n", b'{"a":', b"\xff" * 70_000, "é\u2028".encode(), b"data: [DONE]\n\n"]

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        for piece in pieces:
            await send_chunk(writer, piece)
            await asyncio.sleep(0)
        await send_chunk(writer, b"")

    rig.upstream.answer = answer
    rig.processor.process = script()
    response = rig.client.post("/v1/chat/completions", content=b"{}")
    assert response.content == b"".join(pieces)
    assert response.headers["content-type"] == "application/x-ndjson"


@pytest.mark.parametrize("http2", [False, True])
def test_a_client_that_hangs_up_stops_the_upstream(rig: Rig, http2: bool) -> None:
    rig.upstream.answer = endless
    rig.processor.process = script()
    base = f"http://127.0.0.1:{rig.port}"
    with (
        httpx.Client(base_url=base, http1=not http2, http2=http2) as client,
        client.stream("POST", "/api/chat", content=b"{}") as response,
    ):
        assert next(response.iter_lines()) == "tick"
    assert rig.upstream.hung_up.wait(10)
    until(lambda: rig.processor.ended)


def test_a_client_that_hangs_up_while_the_model_loads_stops_it_too(rig: Rig) -> None:
    waiting = threading.Event()

    async def silent(_: Seen, writer: asyncio.StreamWriter) -> None:
        waiting.set()
        await asyncio.sleep(60)

    rig.upstream.answer = silent
    rig.processor.process = script()
    with rig.connect() as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        assert waiting.wait(10)
    assert rig.upstream.hung_up.wait(10)


def test_an_upstream_that_dies_in_the_middle_cuts_the_client(rig: Rig) -> None:
    arrived = threading.Event()

    async def dying(_: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        await send_chunk(writer, b"tick\n")
        assert await asyncio.to_thread(arrived.wait, 10)
        writer.transport.abort()

    rig.upstream.answer = dying
    rig.processor.process = script()
    with (
        pytest.raises(httpx.RemoteProtocolError),
        rig.client.stream("POST", "/api/chat", content=b"{}") as response,
    ):
        for _ in response.iter_raw():
            arrived.set()
    until(lambda: rig.processor.ended)


def test_an_upstream_that_dies_before_the_client_saw_anything_is_502(rig: Rig) -> None:
    """Processor holds the headers when the upstream breaks off; its end is then all that it is told."""
    thinking = threading.Event()

    async def dying(_: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        await send_chunk(writer, b"tick\n")
        assert await asyncio.to_thread(thinking.wait, 10)
        writer.transport.abort()

    async def slow(stream: Stream) -> Stream:
        async for answer in script()(stream):
            if answer.WhichOneof("response") == "response_headers":
                thinking.set()
                await asyncio.sleep(60)
            yield answer

    rig.upstream.answer = dying
    rig.processor.process = slow
    response = rig.client.post("/api/chat", content=b"{}")
    assert (response.status_code, response.json()["error"]["type"]) == (502, "bad_gateway")
    until(lambda: rig.processor.ended)
    assert rig.processor.phases == ["request_headers", "response_headers"]


def test_processor_dying_in_the_middle_cuts_the_client_and_the_upstream(rig: Rig) -> None:
    rig.upstream.answer = endless
    rig.processor.process = script()
    with (
        pytest.raises(httpx.RemoteProtocolError),
        rig.client.stream("POST", "/api/chat", content=b"{}") as response,
    ):
        for number, _ in enumerate(response.iter_raw()):
            if number == 2:
                rig.stop("processor")
    assert rig.upstream.hung_up.wait(10)
    rig.start("processor")


# The phases that processor asks for.


def test_processor_sees_the_request_headers_and_no_more_unless_it_asks(rig: Rig) -> None:
    rig.processor.process = look_and_leave
    assert rig.client.post("/api/chat", content=b"{}").json() == {"done": True}
    assert rig.processor.phases == ["request_headers"]


@pytest.mark.parametrize(
    ("asked", "phases"),
    [
        ({"response_body": Mode.NONE}, ["request_headers", "response_headers"]),
        ({"response_body": Mode.STREAMED}, ["request_headers", "response_headers", "response_body"]),
        ({"response_body": Mode.BUFFERED}, ["request_headers", "response_headers", "response_body"]),
        (
            {"request_body": Mode.BUFFERED, "response_headers": Mode.SKIP, "response_body": Mode.NONE},
            ["request_headers", "request_body"],
        ),
        (
            {"request_body": Mode.STREAMED, "response_body": Mode.STREAMED},
            ["request_headers", "request_body", "response_headers", "response_body"],
        ),
        (
            {"request_body": Mode.BUFFERED, "response_body": Mode.BUFFERED},
            ["request_headers", "request_body", "response_headers", "response_body"],
        ),
    ],
)
def test_the_first_reply_chooses_the_phases(rig: Rig, asked: dict[str, int], phases: list[str]) -> None:
    rig.processor.process = script(**asked)  # type: ignore[arg-type]  # three phases, all int
    assert rig.client.post("/api/chat", content=b"{}").status_code == 200
    seen = [phase for number, phase in enumerate(rig.processor.phases) if phase not in rig.processor.phases[:number]]
    assert seen == phases


def test_processor_gets_the_grant_and_the_path(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(grant='{"tenant":"acme"}')
    rig.client.post("/api/chat", content=b"{}")
    (first,) = rig.processor.requests
    namespace = first.metadata_context.filter_metadata["envoy.filters.http.ext_authz"]
    assert namespace.fields["grant"].string_value == '{"tenant":"acme"}'
    headers = {one.key: one.raw_value.decode() for one in first.request_headers.headers.headers}
    assert (headers[":method"], headers[":path"]) == ("POST", "/api/chat")


def test_a_denied_request_never_reaches_processor(rig: Rig) -> None:
    rig.policy.answer = lambda _: deny(401, "{}")
    rig.processor.process = script()
    assert rig.client.post("/api/chat", content=b"{}").status_code == 401
    assert rig.processor.requests == []


def test_a_bad_gateway_of_envoys_own_is_shown_to_processor(rig: Rig) -> None:
    """So that a reservation is settled although no upstream ever answered."""
    statuses: list[str] = []

    def note(request: Message) -> None:
        statuses.extend(
            one.raw_value.decode() for one in request.response_headers.headers.headers if one.key == ":status"
        )

    async def broken(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.close()

    rig.upstream.answer = broken
    rig.processor.process = script(steps={"response_headers": note})
    assert rig.client.post("/api/chat", content=b"{}").status_code == 502
    assert statuses == ["502"]
