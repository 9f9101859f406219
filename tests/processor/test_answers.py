"""An upstream's error, in our terms: its class survives, its text does not."""

from __future__ import annotations

import json

import pytest

from policy.rules.decision import Deny, Reason
from processor.answers import clean_answer, clean_status

REFUSED = (400, "bad_request", "the model server refused the request")
BROKEN = (502, "bad_gateway", "upstream error")
BUSY = (503, "unavailable", "temporarily unavailable")


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, REFUSED), (402, REFUSED), (405, REFUSED), (422, REFUSED), (499, REFUSED),
        (401, BROKEN), (403, BROKEN), (407, BROKEN),
        (404, (403, "forbidden", "forbidden")),
        (413, (413, "payload_too_large", "request body too large")),
        (408, BUSY), (429, BUSY), (503, BUSY),
        (500, BROKEN), (501, BROKEN), (502, BROKEN), (504, BROKEN), (599, BROKEN),
        (101, BROKEN), (301, BROKEN), (304, BROKEN), (0, BROKEN), (600, BROKEN),
    ],
)  # fmt: skip
def test_each_status_has_one_clean_answer(status: int, answer: tuple[int, str, str]) -> None:
    assert clean_status(status) == answer
    whole = clean_answer(status, "id-1")
    assert whole.status == answer[0]
    error = {"message": answer[2], "type": answer[1], "code": answer[0]}
    assert json.loads(whole.body) == {"error": error, "request_id": "id-1"}


def test_a_model_that_vanished_is_refused_like_any_other_byte_for_byte() -> None:
    denied = Deny(Reason.MODEL)
    answer = clean_answer(404, "id-1")
    assert (answer.status, answer.body) == (denied.status, denied.body("id-1"))


def test_only_what_is_busy_says_when_to_come_back() -> None:
    assert dict(clean_answer(503, "").headers) == {"content-type": "application/json", "retry-after": "1"}
    assert dict(clean_answer(500, "").headers) == {"content-type": "application/json"}


@pytest.mark.parametrize("status", [200, 204, 299])
def test_a_good_answer_is_no_error(status: int) -> None:
    with pytest.raises(ValueError, match="not an error"):
        clean_status(status)
