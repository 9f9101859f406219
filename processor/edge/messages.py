"""The ext_proc codec: ProcessingRequest → plain values, Verdict → ProcessingResponse. Nothing else touches them.

Envoy takes a `mode_override` in replies to request_headers and response_headers and ignores it in replies to bodies, so
each of the two header replies says what it wants to see next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2

from policy.rules.grant import Grant
from processor.exchange import Answer, Pass, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

ProcessingRequest = external_processor_pb2.ProcessingRequest
ProcessingResponse = external_processor_pb2.ProcessingResponse
AUTHZ = "envoy.filters.http.ext_authz"

_MODE = processing_mode_pb2.ProcessingMode
_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_BODY_MODES = {"stream": _MODE.STREAMED, "buffer": _MODE.BUFFERED, "": _MODE.NONE}
# Chunks that pass unchanged are most of all traffic: their reply is made once.
UNCHANGED_BODY = ProcessingResponse(response_body=external_processor_pb2.BodyResponse())


def phase(message: Any) -> str:
    """request_headers, request_body, response_headers, response_body, or a trailers phase."""
    name: str = message.WhichOneof("request")
    return name


def grant(message: Any) -> Grant | None:
    """The grant that policy gave; None where this request passed no policy. ValueError on one that cannot be read."""
    metadata = message.metadata_context.filter_metadata
    # A mesh names its filters after its own resources: envoy.filters.http.ext_authz/securitypolicy/… is ext_authz too.
    # No client can write any of them, and the operator chooses which are handed over.
    name = AUTHZ if AUTHZ in metadata else next((one for one in metadata if one.startswith(f"{AUTHZ}/")), None)
    if name is None:
        return None
    fields = metadata[name].fields
    return Grant.from_json(fields["grant"].string_value) if "grant" in fields else None


def headers(message: Any) -> dict[str, str]:
    """Header names are lower-case; of a repeated header the last value. Bytes that are no UTF-8 are replaced."""
    part = getattr(message, phase(message))
    return {
        header.key: header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        for header in part.headers.headers
    }


def ended(message: Any) -> bool:
    return bool(getattr(message, phase(message)).end_of_stream)


def body(message: Any) -> bytes:
    found: bytes = getattr(message, phase(message)).body
    return found


def reply(name: str, verdict: Verdict, *, settled: bool = False) -> Any:
    """The answer to the phase `name`; `settled` tells the access log that this request needs no second look."""
    if isinstance(verdict, Answer):
        response = _immediate(verdict)
    elif name == "response_body" and verdict.body is None and not verdict.set_headers and not settled:
        return UNCHANGED_BODY
    else:
        response = _common(name, verdict)
    if settled:
        response.dynamic_metadata.fields["paddock"].struct_value.fields["settled"].string_value = "1"
    return response


def _common(name: str, verdict: Pass) -> Any:
    response = ProcessingResponse()
    part = getattr(response, name)
    if name.endswith("trailers"):
        part.SetInParent()
        return response
    common = part.response
    _set(common.header_mutation.set_headers, verdict.set_headers)
    common.header_mutation.remove_headers.extend(verdict.remove_headers)
    if verdict.body is not None:
        common.body_mutation.body = verdict.body
    if verdict.reroute:
        common.clear_route_cache = True
    if verdict.upstream:
        response.dynamic_metadata.fields["paddock"].struct_value.fields["upstream"].string_value = verdict.upstream
    if verdict.replace:
        common.status = external_processor_pb2.CommonResponse.CONTINUE_AND_REPLACE
    part.SetInParent()
    if name == "request_headers":
        mode = response.mode_override
        mode.request_header_mode = _MODE.SEND
        mode.request_body_mode = _MODE.BUFFERED if verdict.buffer_request else _MODE.NONE
        mode.response_header_mode = _MODE.SEND if verdict.watch_response else _MODE.SKIP
        mode.response_body_mode = _MODE.NONE
        mode.request_trailer_mode = _MODE.SKIP
        mode.response_trailer_mode = _MODE.SKIP
    elif name == "response_headers":
        mode = response.mode_override
        mode.request_header_mode = _MODE.SEND
        mode.response_header_mode = _MODE.SEND
        mode.response_body_mode = _BODY_MODES[verdict.body_mode]
        mode.response_trailer_mode = _MODE.SEND if verdict.body_mode else _MODE.SKIP
    return response


def _immediate(answer: Answer) -> Any:
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = answer.status
    immediate.body = answer.body
    immediate.details = answer.details
    _set(immediate.headers.set_headers, answer.headers)
    return response


def _set(target: Any, pairs: Iterable[tuple[str, str]]) -> None:
    for name, value in pairs:
        option = target.add()
        option.header.key = name
        option.header.raw_value = value.encode()
        option.append_action = _OVERWRITE
