"""Both services called as an Envoy calls that a mesh configured: no body, part of one, other metadata, other phases.

They are driven over gRPC by themselves, beside the shared gateway's stores: each does its work or refuses in its words.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc

from policy.rules.grant import Duty, Grant, Splice
from tests import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Client, Gateway

AUTHZ = "envoy.filters.http.ext_authz"
BODY = json.dumps(
    {"model": harness.MODELS[0], "messages": [{"role": "user", "content": "hi"}], "stream": False}
).encode()
FINAL = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":true,"prompt_eval_count":3,"eval_count":2}\n'


@dataclass(frozen=True)
class Services:
    check: Any
    process: Any
    client: Client


@pytest.fixture(scope="module")
def services(gateway: Gateway) -> Iterator[Services]:
    with tempfile.TemporaryDirectory(prefix="mesh") as name:
        directory = Path(name)
        environment = {
            **os.environ,
            "PADDOCK_DATABASE_URL": gateway.instance.running.database_url,
            "PADDOCK_REDIS_URL": gateway.instance.running.redis_url,
            "PADDOCK_UPSTREAMS": gateway.upstream.url,
            "PADDOCK_POLICY_LISTEN": f"unix:{directory}/policy.sock",
            "PADDOCK_POLICY_HTTP_LISTEN": f"unix:{directory}/pages.sock",
            "PADDOCK_POLICY_EDGE_LISTEN": f"unix:{directory}/edge.sock",
            "PADDOCK_PROCESSOR_LISTEN": f"unix:{directory}/processor.sock",
        }
        running = []
        for service in ("policy", "processor"):
            with (directory / f"{service}.log").open("wb") as log:
                command = [sys.executable, "-m", service]
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        try:
            for service in ("policy", "processor"):
                harness.eventually(lambda: _accepts(directory / f"{service}.sock"), patience=30)  # noqa: B023
            with (
                grpc.insecure_channel(f"unix:{directory}/policy.sock") as policy,
                grpc.insecure_channel(f"unix:{directory}/processor.sock") as processor,
            ):
                yield Services(
                    external_auth_pb2_grpc.AuthorizationStub(policy).Check,
                    external_processor_pb2_grpc.ExternalProcessorStub(processor).Process,
                    gateway.client(),
                )
        finally:
            for one in running:
                one.send_signal(signal.SIGTERM)
            for one in running:
                one.wait(60)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


# Policy: what an ext_authz filter may send.


def _check(services: Services, *, body: bytes = BODY, raw: bool = True, **headers: str) -> Any:
    request = external_auth_pb2.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path = "POST", "/api/chat"
    given = {"authorization": f"Bearer {services.client.key}", "x-request-id": str(uuid.uuid4()), **headers}
    http.headers.update({name.replace("_", "-"): value for name, value in given.items()})
    if raw:
        http.raw_body = body
    else:
        http.body = body.decode()
    return services.check(request, timeout=10)


def _refusal(response: Any) -> tuple[int, str]:
    assert response.HasField("denied_response"), response
    return response.denied_response.status.code, json.loads(response.denied_response.body)["error"]["message"]


def _grant(response: Any) -> Grant:
    assert response.HasField("ok_response"), response
    return Grant.from_json(response.dynamic_metadata.fields["grant"].string_value)


@pytest.mark.parametrize("raw", [True, False], ids=["bytes", "text"])
def test_a_whole_body_is_judged_however_it_is_packed(services: Services, raw: bool) -> None:
    assert _grant(_check(services, raw=raw)).model == harness.MODELS[0]


def test_no_body_where_there_is_one_is_an_outage_and_not_the_clients_fault(services: Services) -> None:
    assert _refusal(_check(services, body=b"", content_length="100")) == (503, "temporarily unavailable")


def test_no_body_where_there_is_none_is_the_clients_fault(services: Services) -> None:
    status, _ = _refusal(_check(services, body=b"", content_length="0"))
    assert status == 400


def test_a_part_of_a_body_is_too_large(services: Services) -> None:
    assert _refusal(_check(services, x_envoy_auth_partial_body="true"))[0] == 413
    # Even where a client says otherwise of its own part.
    cut = _check(services, content_length=str(len(BODY) + 1), x_envoy_auth_partial_body="false")
    assert _refusal(cut)[0] == 413


def test_two_requests_without_an_id_are_two(services: Services) -> None:
    ids = {_grant(_check(services, x_request_id="")).request_id for _ in range(2)}
    assert len(ids) == 2
    assert "" not in ids


def test_headers_may_come_raw(services: Services) -> None:
    request = external_auth_pb2.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.raw_body = "POST", "/api/chat", BODY
    for name, value in (("Authorization", f"Bearer {services.client.key}"), ("x-request-id", "raw")):
        http.header_map.headers.add(key=name, raw_value=value.encode())
    assert _grant(services.check(request, timeout=10)).request_id == "raw"


def test_without_anything_it_is_a_refusal(services: Services) -> None:
    assert _refusal(services.check(external_auth_pb2.CheckRequest(), timeout=10))[0] == 403


# Processor: what an ext_proc filter may send.


def _message(name: str, *, grant: Grant | None = None, namespace: str = AUTHZ, **fields: Any) -> Any:
    message = external_processor_pb2.ProcessingRequest()
    part = getattr(message, name)
    for header, value in fields.pop("headers", {}).items():
        part.headers.headers.add(key=header, raw_value=value.encode())
    for field, value in fields.items():
        setattr(part, field, value)
    part.SetInParent()
    if grant is not None:
        metadata = message.metadata_context.filter_metadata[namespace]
        metadata.update({"grant": grant.to_json()})
    return message


def _admitted(services: Services, *splices: Splice) -> Grant:
    """A grant that policy really gave, so that there is something to settle."""
    given = _grant(_check(services))
    return replace(given, splices=splices)


def _exchange(services: Services, *messages: Any) -> list[Any]:
    return list(services.process(iter(messages), timeout=20))


def _headers(grant: Grant | None, **more: Any) -> Any:
    return _message("request_headers", grant=grant, headers={"x-request-id": "r"}, **more)


ANSWER = {":status": "200", "content-type": "application/json"}


def test_the_grant_may_stand_under_a_name_that_the_mesh_gave_the_filter(services: Services) -> None:
    grant = _admitted(services)
    replies = _exchange(
        services,
        _headers(grant, namespace=f"{AUTHZ}/securitypolicy/default/paddock"),
        _message("response_headers", headers=ANSWER),
        _message("response_body", body=FINAL, end_of_stream=True),
    )
    assert [reply.WhichOneof("response") for reply in replies] == [
        "request_headers",
        "response_headers",
        "response_body",
    ]
    assert replies[-1].dynamic_metadata.fields["settled"] or replies[-1].dynamic_metadata.fields["paddock"]


@pytest.mark.parametrize("name", ["request_headers", "request_body", "response_headers", "response_body"])
def test_without_a_grant_nothing_goes_on(services: Services, name: str) -> None:
    (reply,) = _exchange(services, _message(name))
    assert reply.immediate_response.status.code == 503
    assert json.loads(reply.immediate_response.body)["error"]["type"] == "unavailable"


def test_a_grant_of_another_filter_is_none(services: Services) -> None:
    (reply,) = _exchange(services, _headers(_admitted(services), namespace="somebody.else"))
    assert reply.immediate_response.status.code == 503


def test_all_phases_sent_though_nobody_asked(services: Services) -> None:
    """`processingMode` of a mesh is fixed: bodies streamed both ways, trailers too."""
    replies = _exchange(
        services,
        _headers(_admitted(services)),
        _message("request_body", body=BODY[:10]),
        _message("request_body", body=BODY[10:], end_of_stream=True),
        _message("request_trailers"),
        _message("response_headers", headers=ANSWER),
        _message("response_body", body=FINAL),
        _message("response_trailers"),
    )
    assert len(replies) == 7
    assert not any(reply.HasField("immediate_response") for reply in replies)
    assert not any(reply.request_body.response.HasField("body_mutation") for reply in replies[1:3])


SPLICE = Splice(offset=1, length=0, text=' "options":{"num_predict":1},')


def test_a_whole_body_is_edited(services: Services) -> None:
    _, reply = _exchange(
        services, _headers(_admitted(services, SPLICE)), _message("request_body", body=BODY, end_of_stream=True)
    )
    assert json.loads(reply.request_body.response.body_mutation.body)["options"] == {"num_predict": 1}


def test_a_body_in_pieces_that_must_be_edited_is_refused(services: Services) -> None:
    replies = _exchange(services, _headers(_admitted(services, SPLICE)), _message("request_body", body=BODY[:10]))
    assert replies[-1].immediate_response.status.code == 503


def test_an_answer_to_a_body_that_was_not_edited_is_withheld(services: Services) -> None:
    replies = _exchange(services, _headers(_admitted(services, SPLICE)), _message("response_headers", headers=ANSWER))
    assert replies[-1].immediate_response.status.code == 503


def test_an_answers_body_without_its_headers_is_withheld(services: Services) -> None:
    replies = _exchange(services, _headers(_admitted(services)), _message("response_body", body=FINAL))
    assert replies[-1].immediate_response.status.code == 503


def test_whatever_happens_is_settled(services: Services, gateway: Gateway) -> None:
    grant = _admitted(services)
    assert grant.duty is Duty.METER
    _exchange(services, _headers(grant))  # Envoy went away
    row = harness.eventually(
        lambda: gateway.sql("SELECT * FROM audit WHERE request_id = $1 AND settled_at IS NOT NULL", grant.request_id),
        patience=20,
    )
    assert row[0]["outcome"] == "aborted"
