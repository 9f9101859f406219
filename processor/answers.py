"""What an upstream's error becomes: its class in our terms and our words, never its text (which names files, models
and addresses).

A model that policy knew and the upstream has lost answers 404; to the client that is what any model is that it may
not use, byte for byte.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from policy.rules.decision import Deny, Reason, error_body

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE = "upstream error"
RETRY_AFTER = 1  # seconds: Ollama refuses when its queue is full, which passes as soon as one answer ends


# Headers that say how to read a body. What else an upstream says may name its machine, or mean something to browsers.
_KEPT = frozenset(("content-type", "content-length", "content-encoding", "transfer-encoding"))


class Answer(NamedTuple):
    """An HTTP answer of the gateway's own."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def _as_denied(reason: Reason) -> tuple[int, str, str]:
    """How policy refuses for `reason`: one definition, so that the two can not drift apart."""
    error = json.loads(Deny(reason).body(""))["error"]
    return error["code"], error["type"], error["message"]


_BAD_GATEWAY = (502, "bad_gateway", MESSAGE)
_REFUSED = (400, "bad_request", "the model server refused the request")
_BUSY = _as_denied(Reason.STORE_DOWN)
_BY_STATUS: dict[int, tuple[int, str, str]] = {
    401: _BAD_GATEWAY,  # the upstream wants credentials that the gateway should have, not the client
    403: _BAD_GATEWAY,
    404: _as_denied(Reason.MODEL),
    407: _BAD_GATEWAY,
    408: _BUSY,
    413: _as_denied(Reason.TOO_LARGE),
    429: _BUSY,
    503: _BUSY,
}


def foreign(names: Iterable[str]) -> tuple[str, ...]:
    """Those of an upstream's headers that no client is to see."""
    return tuple(name for name in names if name not in _KEPT and name[:1] != ":")


def clean_status(status: int) -> tuple[int, str, str]:
    """Status, error type and message for an upstream's `status`; ValueError if that is no error (2xx).

    A redirect or an informational status is an error here: Ollama sends neither.
    """
    if 200 <= status < 300:
        raise ValueError(f"{status} is not an error")
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return _REFUSED if 400 <= status < 500 else _BAD_GATEWAY


def clean_answer(status: int, request_id: str) -> Answer:
    """The whole answer for an upstream's error of `status`."""
    code, kind, message = clean_status(status)
    retry = (("retry-after", str(RETRY_AFTER)),) if code == 503 else ()
    headers = (("content-type", "application/json"), *retry)
    return Answer(code, headers, error_body(code, kind, message, request_id))
