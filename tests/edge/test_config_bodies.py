"""The one body limit: the same figure at every place that buffers, so that a large body is refused and never stalls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2

from tests.edge.rig import Rig, running
from tests.edge.services import Mode, Seen, header, reply, script

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from tests.edge.services import Message

LIMIT = 262_144
MEBIBYTE = 1_048_576


def test_a_body_of_the_limit_passes_through_every_buffer(rig: Rig) -> None:
    rig.processor.process = script(request_body=Mode.BUFFERED)
    body = b"x" * LIMIT
    assert rig.client.post("/api/chat", content=body).status_code == 200
    assert rig.client.post("/api/chat", content=iter([body[:1000], body[1000:]])).status_code == 200
    assert [seen.body == body for seen in rig.upstream.seen] == [True, True]
    assert rig.policy.checks[0].attributes.request.http.raw_body == body
    assert dict(rig.policy.checks[0].attributes.request.http.headers)["x-envoy-auth-partial-body"] == "false"


@pytest.mark.parametrize("path", ["/api/chat", "/v1/embeddings", "/api/show", "/api/pull", "/nothing"])
def test_one_byte_more_is_413_by_length_and_by_count(rig: Rig, path: str) -> None:
    body = b"x" * (LIMIT + 1)
    for content in (body, iter([body[:100_000], body[100_000:]])):
        response = rig.client.post(path, content=content)
        if path in ("/api/pull", "/nothing"):  # refused before the body is read, or for the body: never let in
            assert response.status_code in (403, 413)
        else:
            assert response.status_code == 413
            assert response.json()["error"]["type"] == "payload_too_large"
        assert response.json()["request_id"] == response.headers["x-request-id"]
    assert rig.policy.checks == []
    assert rig.upstream.seen == []


def test_a_request_for_a_page_cannot_carry_a_flood(rig: Rig) -> None:
    body = b"x" * (LIMIT + 1)
    assert rig.client.request("GET", "/api/tags", content=body).status_code == 413
    assert rig.client.request("GET", "/v1/models/mistral:7b", content=body).status_code == 413


@pytest.fixture(scope="module")
def large_rig() -> Iterator[Rig]:
    with running(max_body=16 * MEBIBYTE) as rig:
        yield rig


def test_the_one_setting_reaches_16_mib(large_rig: Rig) -> None:
    rig = large_rig
    rig.reset()
    rig.processor.process = script(request_body=Mode.BUFFERED)
    body = bytes(range(256)) * (16 * MEBIBYTE // 256)
    assert rig.client.post("/api/chat", content=body).status_code == 200
    assert rig.upstream.seen[0].body == body
    assert rig.client.post("/api/chat", content=iter([body, b"x"])).status_code == 413
    assert rig.client.post("/api/chat", content=body + b"x").status_code == 413


def test_processor_can_make_a_body_longer(rig: Rig) -> None:
    longer = b"y" * (LIMIT + 60_000)

    def edit(_request: Message) -> Message:
        answer = external_processor_pb2.ProcessingResponse()
        change = answer.request_body.response
        change.body_mutation.body = longer
        change.header_mutation.set_headers.append(header("content-length", str(len(longer)), raw=True))
        return answer

    rig.processor.process = script(request_body=Mode.BUFFERED, steps={"request_body": edit})
    assert rig.client.post("/api/chat", content=b"short").status_code == 200
    assert rig.upstream.seen[0].body == longer
    assert rig.upstream.seen[0].header("content-length") == str(len(longer))


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/show"), ("GET", "/v1/models/mistral:7b")])
def test_a_long_description_of_a_model_can_be_held_whole(rig: Rig, method: str, path: str) -> None:
    long = b"l" * (8 * MEBIBYTE)

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        await reply(writer, 200, long)

    rig.upstream.answer = answer
    rig.processor.process = script(response_body=Mode.BUFFERED)
    response = rig.client.request(method, path)
    assert (response.status_code, response.content) == (200, long)


def test_a_description_longer_than_that_is_refused(rig: Rig) -> None:
    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        await reply(writer, 200, b"l" * (17 * MEBIBYTE))

    rig.upstream.answer = answer
    rig.processor.process = script(response_body=Mode.BUFFERED)
    response = rig.client.post("/api/show", content=b"{}")
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "bad_gateway"
