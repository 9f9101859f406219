"""The ext_authz codec: CheckRequest → Request, Allow or Deny → CheckResponse. Nothing else touches these messages.

`xds-protos` has no type stubs, so untyped values stay inside this module. The C messages are used because they cost
1.7 µs a request where dataclass protobuf costs a few hundred.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2
from google.rpc import code_pb2, status_pb2

from policy.rules.decision import Allow, Answer, Deny, Request
from policy.rules.endpoints import DETAILED
from policy.rules.grant import Duty

if TYPE_CHECKING:
    from collections.abc import Iterable

CheckRequest = external_auth_pb2.CheckRequest
CheckResponse = external_auth_pb2.CheckResponse

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_OK = status_pb2.Status(code=code_pb2.OK)
_DENIED = status_pb2.Status(code=code_pb2.PERMISSION_DENIED)


def request_from(message: Any) -> Request:
    """Read what Envoy says of a request. A body that Envoy cut off is marked incomplete."""
    attributes = message.attributes
    http = attributes.request.http
    path, question, _ = http.path.partition("?")
    headers = dict(http.headers) or _raw_headers(http.header_map)
    body: bytes = http.raw_body or http.body.encode()
    length = headers.get("content-length", "")
    stated = int(length) if length.isascii() and length.isdecimal() else 0
    started = attributes.request.time
    micros = started.seconds * 1_000_000 + started.nanos // 1000 if started.seconds else time.time_ns() // 1000
    return Request(
        # It names the reservation, so no two may share one: a mesh that makes none gets one here.
        request_id=headers.get("x-request-id", "") or http.id or str(uuid.uuid4()),
        started_at=micros,
        method=http.method,
        path=path,
        query=bool(question),
        headers=headers,
        body=body,
        complete=headers.get("x-envoy-auth-partial-body", "false") != "true" and not 0 < len(body) < stated,
        address=attributes.source.address.socket_address.address,
        withheld=stated > 0 and not body,
    )


def _raw_headers(header_map: Any) -> dict[str, str]:
    """Where Envoy is told to `encode_raw_headers`; repeated ones joined as it joins them otherwise."""
    found: dict[str, str] = {}
    for header in header_map.headers:
        name, value = header.key.lower(), header.raw_value.decode("utf-8", "replace") or header.value
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def response_to(decision: Allow | Deny | Answer, request: Request) -> Any:
    """What Envoy is to do."""
    if isinstance(decision, Answer):
        return _answered(decision)
    return _allowed(decision) if isinstance(decision, Allow) else _denied(decision, request)


def _allowed(allow: Allow) -> Any:
    response = CheckResponse(status=_OK)
    ok = response.ok_response
    _set(ok.response_headers_to_add, allow.headers)
    if allow.upstream:
        # Envoy's override_host policy reads it here: a header would reach Ollama, or be gone before it is read.
        response.dynamic_metadata.fields["upstream"].string_value = allow.upstream
    if allow.grant is not None:
        metadata = response.dynamic_metadata.fields
        metadata["grant"].string_value = allow.grant.to_json()
        metadata["tenant"].string_value = allow.grant.tenant
        metadata["key_prefix"].string_value = allow.grant.key_prefix
        metadata["model"].string_value = allow.grant.model
        if allow.grant.duty is Duty.METER:
            metadata["meter"].string_value = allow.grant.to_meter()
    else:
        response.dynamic_metadata.fields["tenant"].string_value = allow.tenant
    if allow.signals:
        response.dynamic_metadata.fields["signals"].string_value = ",".join(allow.signals)
    return response


def _answered(answer: Answer) -> Any:
    """To Envoy an answer of policy's own is a denial, whatever its status says: the request goes no further."""
    response = CheckResponse(status=_DENIED)
    denied = response.denied_response
    denied.status.code = answer.status
    denied.body = answer.body.decode()
    _set(denied.headers, (("content-type", "application/json"), *answer.headers))
    metadata = response.dynamic_metadata.fields
    for name, value in (("tenant", answer.tenant), ("key_prefix", answer.key_prefix), ("endpoint", answer.endpoint)):
        if value:
            metadata[name].string_value = value
    if answer.tenant_id:
        metadata["tenant_id"].string_value = str(answer.tenant_id)
    if answer.unrecorded:
        metadata["recorded"].string_value = "0"
    return response


def _denied(deny: Deny, request: Request) -> Any:
    response = CheckResponse(status=_DENIED)
    denied = response.denied_response
    denied.status.code = http_status_pb2.StatusCode.Value(http_status_pb2.StatusCode.Name(deny.status))
    denied.body = deny.body(request.request_id, detail=request.path in DETAILED).decode()
    _set(denied.headers, (("content-type", "application/json"), *deny.answer_headers))
    metadata = response.dynamic_metadata.fields
    for name, value in (
        ("reason", deny.reason.value),
        ("tenant", deny.tenant),
        ("key_prefix", deny.key_prefix),
        ("model", deny.model),
        ("endpoint", deny.endpoint),
    ):
        if value:
            metadata[name].string_value = value
    if deny.recorded is not None:
        metadata["recorded"].string_value = "1" if deny.recorded else "0"
    if deny.tenant_id:
        metadata["tenant_id"].string_value = str(deny.tenant_id)
    return response


def _set(target: Any, headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        option = target.add()
        option.header.key = name
        option.header.value = value
        option.append_action = _OVERWRITE
