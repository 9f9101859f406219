"""The codec of checks over HTTP: what Envoy's `http_service` sends → Request, a decision → the bytes of a reply.

Envoy repeats the client's request: method, target, headers (repeated ones joined by a comma) and body. What a request
cannot say of itself it adds as x-paddock-*, of which no client's copy comes this far. A reply of 200 admits; its
headers named in `dynamic_metadata_from_headers` become metadata under these very names, of refusals too. Two kinds of
answer cannot say their status to Envoy, for to it 200 means «go on» and 5xx «policy is broken»: they are sent under
stand-ins, which `local_reply_config` of envoy.yaml turns back.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from policy.rules.decision import Allow, Answer, Deny, Request
from policy.rules.endpoints import DETAILED
from policy.rules.grant import Duty

if TYPE_CHECKING:
    from collections.abc import Mapping

STARTED, CLIENT, LENGTH = "x-paddock-started", "x-paddock-client", "x-paddock-length"
BODY_OF_HEAD = "x-paddock-body"  # what a refused HEAD would have as its body: HTTP leaves no other place to say it
METADATA = (
    "grant", "meter", "tenant", "key_prefix", "model", "upstream", "signals", "reason", "endpoint", "recorded",
    "tenant_id",
)  # fmt: skip
STAND_INS = {200: 299, 502: 492, 503: 493}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# About the check and not about the request: ours, and Envoy's own to whomever it calls.
_MARKS = frozenset(
    (STARTED, CLIENT, LENGTH, "content-length", "x-envoy-internal", "x-envoy-expected-rq-timeout-ms")
)  # fmt: skip
_JSON = ("content-type", "application/json")
_Pairs = list[tuple[str, str]]


class Unmarked(ValueError):
    """A check without what the shipped configuration adds to each: it cannot be judged."""


def request_from(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
    """`headers` with lower-case names. Unmarked where Envoy's own marks are missing or more than one."""
    started, address = headers.get(STARTED, ""), headers.get(CLIENT, "")
    if not (started.isascii() and started.isdecimal()) or not address or "," in address:
        raise Unmarked("x-paddock-started and x-paddock-client are not as authorization_request adds them")
    length = headers.get(LENGTH, "")
    stated = int(length) if length.isascii() and length.isdecimal() else 0
    # Envoy writes here how much of the body it sends; the client's own word comes as a mark.
    theirs = {name: value for name, value in headers.items() if name not in _MARKS}
    if length:
        theirs["content-length"] = length
    path, question, _ = target.partition("?")
    return Request(
        request_id=headers.get("x-request-id", "") or str(uuid.uuid4()),
        started_at=int(started),
        method=method,
        path=path,
        query=bool(question),
        headers=theirs,
        body=body,
        complete=headers.get("x-envoy-auth-partial-body", "false") != "true" and not 0 < len(body) < stated,
        address=address,
        withheld=stated > 0 and not body,
    )


def reply_to(decision: Allow | Deny | Answer, request: Request) -> bytes:
    """What Envoy is to do."""
    if isinstance(decision, Allow):
        return reply(200, _told(decision, [*decision.headers]))
    if isinstance(decision, Answer):
        return refusal(request.method, decision.status, _answered(decision, [_JSON, *decision.headers]), decision.body)
    body = decision.body(request.request_id, detail=request.path in DETAILED)
    return refusal(request.method, decision.status, _denied(decision, [_JSON, *decision.answer_headers]), body)


def refusal(method: str, status: int, headers: _Pairs, body: bytes) -> bytes:
    """To Envoy an answer of policy's own is a denial, whatever its status says: the request goes no further."""
    if method == "HEAD" and body:
        headers, body = [*headers, (BODY_OF_HEAD, body.decode())], b""
    return reply(STAND_INS.get(status, status), headers, body)


def reply(status: int, headers: _Pairs, body: bytes = b"") -> bytes:
    """One whole HTTP/1.1 response. Where a value has characters that would end its line, they are replaced."""
    lines = [f"{name}: {value if value.isprintable() else _CONTROL.sub('�', value)}\r\n" for name, value in headers]
    length = "" if status == 204 else f"content-length: {len(body)}\r\n"  # a 204 must not have one
    return f"HTTP/1.1 {status} -\r\n{''.join(lines)}{length}\r\n".encode("utf-8", "replace") + body


def _told(allow: Allow, headers: _Pairs) -> _Pairs:
    if allow.upstream:
        headers.append(("upstream", allow.upstream))
    grant = allow.grant
    if grant is not None:
        headers += (
            ("grant", grant.to_json()), ("tenant", grant.tenant), ("key_prefix", grant.key_prefix),
            ("model", grant.model),
        )  # fmt: skip
        if grant.duty is Duty.METER:
            headers.append(("meter", grant.to_meter()))
    else:
        headers.append(("tenant", allow.tenant))
    if allow.signals:
        headers.append(("signals", ",".join(allow.signals)))
    return headers


def _answered(answer: Answer, headers: _Pairs) -> _Pairs:
    named = (("tenant", answer.tenant), ("key_prefix", answer.key_prefix), ("endpoint", answer.endpoint))
    headers += [(name, value) for name, value in named if value]
    if answer.tenant_id:
        headers.append(("tenant_id", str(answer.tenant_id)))
    if answer.unrecorded:
        headers.append(("recorded", "0"))
    return headers


def _denied(deny: Deny, headers: _Pairs) -> _Pairs:
    named = (
        ("reason", deny.reason.value), ("tenant", deny.tenant), ("key_prefix", deny.key_prefix),
        ("model", deny.model), ("endpoint", deny.endpoint),
    )  # fmt: skip
    headers += [(name, value) for name, value in named if value]
    if deny.recorded is not None:
        headers.append(("recorded", "1" if deny.recorded else "0"))
    if deny.tenant_id:
        headers.append(("tenant_id", str(deny.tenant_id)))
    return headers
