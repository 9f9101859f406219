"""`policy/rules/decision.py`: what a refusal tells the client."""

from __future__ import annotations

import json

import pytest

from policy.edge.check import CheckRequest, request_from, response_to
from policy.rules.decision import Deny, Reason

LIMIT = ("x-ratelimit-limit-requests", "60")


@pytest.mark.parametrize(
    ("deny", "beside"),
    [
        (Deny(Reason.RATE_REQUESTS, retry_after=7), (("retry-after", "7"),)),
        (Deny(Reason.STORE_DOWN), (("retry-after", "1"),)),
        (Deny(Reason.DATABASE_DOWN, retry_after=3), (("retry-after", "3"),)),
        (Deny(Reason.KEY_MISSING), (("www-authenticate", "Bearer"),)),
        (Deny(Reason.MODEL), ()),
        (Deny(Reason.UPSTREAM), ()),
    ],
)
def test_what_http_asks_for_beside_a_status(deny: Deny, beside: tuple[tuple[str, str], ...]) -> None:
    assert deny.answer_headers == beside
    limited = Deny(deny.reason, retry_after=deny.retry_after, headers=(LIMIT,))
    assert limited.answer_headers == (LIMIT, *beside)


def test_envoy_is_given_them_and_the_type_of_the_body() -> None:
    request = request_from(CheckRequest())
    denied = response_to(Deny(Reason.RATE_TOKENS, retry_after=9, headers=(LIMIT,)), request).denied_response
    sent = [(one.header.key, one.header.value) for one in denied.headers]
    assert sent == [("content-type", "application/json"), LIMIT, ("retry-after", "9")]
    assert denied.status.code == 429
    assert json.loads(denied.body)["error"]["type"] == "rate_limited"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_status_and_one_error_shape(reason: Reason) -> None:
    deny = Deny(reason)
    body = json.loads(deny.body("an-id"))
    assert body["error"]["code"] == deny.status
    assert body["request_id"] == "an-id"
