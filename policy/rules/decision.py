"""What policy decides, as values: an Allow with its Grant, or a Deny with one closed Reason.

The same Reason feeds the response, the metric and the audit row. What the client reads is made here alone, so that
"not yours" and "not there" cannot drift apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.grant import Grant


class Reason(StrEnum):
    """Why a request was refused. The value is the label in metrics and audit rows; it never reaches the client."""

    KEY_MISSING = "key_missing"
    KEY_MALFORMED = "key_malformed"
    KEY_UNKNOWN = "key_unknown"
    KEY_WRONG = "key_wrong"
    KEY_EXPIRED = "key_expired"
    KEY_DISABLED = "key_disabled"
    KEY_REVOKED = "key_revoked"
    KEY_OVERLOADED = "key_overloaded"  # too many unverified keys wait: refused without a look
    SESSION_MISSING = "session_missing"
    SESSION_INVALID = "session_invalid"  # no token of ours
    SESSION_EXPIRED = "session_expired"
    SESSION_REVOKED = "session_revoked"  # by itself, with its publishable key or its tenant; or the store forgot it
    SESSION_ORIGIN = "session_origin"  # a page of an origin that its tenant does not allow
    SESSION_TENANT = "session_tenant"  # neither a publishable key nor the origin names one tenant
    SESSION_FINGERPRINT = "session_fingerprint"
    SESSION_ENTROPY = "session_entropy"
    SESSION_ADDRESS_RATE = "session_address_rate"  # sessions opened by one address
    SESSION_LIVE = "session_live"  # of one fingerprint, as many as may be
    SESSION_LIVE_TENANT = "session_live_tenant"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_WRONG = "signature_wrong"
    SIGNATURE_STALE = "signature_stale"
    SIGNATURE_REPLAYED = "signature_replayed"
    ENDPOINT = "endpoint_blocked"
    MODEL = "model_not_available"
    TIER = "tier_not_available"  # the model is theirs, at another tier than the one asked for
    BAD_REQUEST = "bad_request"
    ENVELOPE = "envelope_refused"
    NO_ENVELOPES = "envelopes_disabled"
    TOO_LARGE = "too_large"
    RATE_REQUESTS = "rate_requests"
    RATE_TOKENS = "rate_tokens"
    CONCURRENCY = "concurrency"
    BUDGET_DAY = "budget_day"
    BUDGET_MONTH = "budget_month"
    BUDGET_TOTAL = "budget_total"
    UPSTREAM = "upstream_unavailable"
    STORE_DOWN = "store_down"
    DATABASE_DOWN = "database_down"
    SERVER_KEY = "server_key_unavailable"
    ENVELOPES_WAIT = "envelopes_wait"  # more than may wait to be opened
    FAULT = "fault"


# status, error.type, default message: the reference's error model.
_ANSWERS: dict[Reason, tuple[int, str, str]] = {
    Reason.KEY_MISSING: (401, "unauthorized", "unauthorized"),
    Reason.KEY_MALFORMED: (401, "unauthorized", "unauthorized"),
    Reason.KEY_UNKNOWN: (401, "unauthorized", "unauthorized"),
    Reason.KEY_WRONG: (401, "unauthorized", "unauthorized"),
    Reason.KEY_EXPIRED: (401, "unauthorized", "unauthorized"),
    Reason.KEY_DISABLED: (401, "unauthorized", "unauthorized"),
    Reason.KEY_REVOKED: (401, "unauthorized", "unauthorized"),
    Reason.KEY_OVERLOADED: (401, "unauthorized", "unauthorized"),
    Reason.SESSION_MISSING: (401, "unauthorized", "a session token is missing"),
    Reason.SESSION_INVALID: (401, "unauthorized", "the session token is not valid"),
    Reason.SESSION_EXPIRED: (401, "unauthorized", "the session has expired"),
    Reason.SESSION_REVOKED: (401, "unauthorized", "the session is over"),
    Reason.SESSION_ORIGIN: (403, "forbidden", "this origin is not allowed"),
    Reason.SESSION_TENANT: (403, "forbidden", "this origin is not allowed"),
    Reason.SESSION_FINGERPRINT: (401, "unauthorized", "the session belongs to another client"),
    Reason.SESSION_ENTROPY: (400, "bad_request", "entropyData is missing or too poor"),
    Reason.SESSION_ADDRESS_RATE: (429, "rate_limited", "too many sessions opened from this address"),
    Reason.SESSION_LIVE: (429, "rate_limited", "too many live sessions of this client"),
    Reason.SESSION_LIVE_TENANT: (429, "rate_limited", "too many live sessions"),
    Reason.SIGNATURE_MISSING: (401, "unauthorized", "the request is not signed"),
    Reason.SIGNATURE_WRONG: (401, "unauthorized", "the request's signature is wrong"),
    Reason.SIGNATURE_STALE: (401, "unauthorized", "the request's timestamp is not of this minute"),
    Reason.SIGNATURE_REPLAYED: (401, "unauthorized", "the request was made before"),
    Reason.ENDPOINT: (403, "forbidden", "forbidden"),
    Reason.MODEL: (403, "forbidden", "forbidden"),
    Reason.TIER: (403, "forbidden", "forbidden"),
    Reason.BAD_REQUEST: (400, "bad_request", "bad request"),
    Reason.ENVELOPE: (400, "bad_request", "the encrypted request could not be accepted"),
    Reason.NO_ENVELOPES: (404, "not_found", "secure inference is not enabled"),
    Reason.TOO_LARGE: (413, "payload_too_large", "request body too large"),
    Reason.RATE_REQUESTS: (429, "rate_limited", "requests per minute exceeded"),
    Reason.RATE_TOKENS: (429, "rate_limited", "tokens per minute exceeded"),
    Reason.CONCURRENCY: (429, "rate_limited", "too many concurrent requests"),
    Reason.BUDGET_DAY: (429, "budget_exceeded", "token budget of the day exceeded"),
    Reason.BUDGET_MONTH: (429, "budget_exceeded", "token budget of the month exceeded"),
    Reason.BUDGET_TOTAL: (429, "budget_exceeded", "total token budget exceeded"),
    Reason.UPSTREAM: (502, "bad_gateway", "upstream unavailable"),
    Reason.STORE_DOWN: (503, "unavailable", "temporarily unavailable"),
    Reason.DATABASE_DOWN: (503, "unavailable", "temporarily unavailable"),
    Reason.SERVER_KEY: (503, "unavailable", "temporarily unavailable"),
    Reason.ENVELOPES_WAIT: (503, "unavailable", "temporarily unavailable"),
    Reason.FAULT: (503, "unavailable", "temporarily unavailable"),
}


@dataclass(frozen=True, slots=True)
class Deny:
    """A refusal. `message` overrides the reason's default; it must say nothing that another tenant owns."""

    reason: Reason
    message: str = ""
    retry_after: int | None = None  # whole seconds
    headers: tuple[tuple[str, str], ...] = ()
    tenant: str = ""
    tenant_id: int = 0
    key_id: int = 0
    key_prefix: str = ""
    model: str = ""
    endpoint: str = ""
    recorded: bool | None = None  # True: its event is written; False: past the rate, only counted; None: not yet known

    @property
    def status(self) -> int:
        return _ANSWERS[self.reason][0]

    @property
    def answer_headers(self) -> tuple[tuple[str, str], ...]:
        """All header fields of the answer but its type: `headers`, and what HTTP asks for beside this status."""
        if self.retry_after is not None:
            return (*self.headers, ("retry-after", str(self.retry_after)))
        if self.status == 503:
            return (*self.headers, ("retry-after", "1"))
        if self.status == 401:  # RFC 9110, section 11.6.1: a 401 names the scheme
            return (*self.headers, ("www-authenticate", "Bearer"))
        return self.headers

    def body(self, request_id: str, *, detail: bool = False) -> bytes:
        """The JSON error body; `detail` adds the top-level string that encrypted-envelope clients read."""
        status, kind, default = _ANSWERS[self.reason]
        return error_body(status, kind, self.message or default, request_id, detail=detail)


@dataclass(frozen=True, slots=True)
class Allow:
    """An admission: the grant for processor, and headers for the response and for the upstream request."""

    grant: Grant | None
    headers: tuple[tuple[str, str], ...] = ()
    upstream: str = ""  # ip:port of the Ollama that has the model; "" where nothing is forwarded
    tenant: str = field(default="")
    signals: tuple[str, ...] = ()  # what was noticed and not held against the request: counted, and in its audit row


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that policy gives by itself through Envoy: nothing is refused, and nothing goes on to an upstream."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    tenant: str = ""
    tenant_id: int = 0
    key_prefix: str = ""
    endpoint: str = ""
    unrecorded: bool = False  # of no interest to an audit


def error_body(status: int, kind: str, message: str, request_id: str, *, detail: bool = False) -> bytes:
    """The one error shape of the gateway: {"error":{"message","type","code"},"request_id"}."""
    body: dict[str, object] = {"error": {"message": message, "type": kind, "code": status}, "request_id": request_id}
    if detail:
        body["detail"] = message
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()


@dataclass(frozen=True, slots=True)
class Request:
    """One request as Envoy describes it, already our own value: no protobuf message passes the codec."""

    request_id: str
    started_at: int  # microseconds since the epoch, by Envoy's clock
    method: str
    path: str  # without the query
    query: bool  # whether there was one, even an empty one
    headers: Mapping[str, str] = field(repr=False)  # lower-case names
    body: bytes = field(repr=False)
    complete: bool  # False where Envoy was told to pass a part of the body only
    address: str  # of the client, as Envoy's trust in X-Forwarded-For has it
    withheld: bool = False  # there is a body, and Envoy was told to pass none of it
