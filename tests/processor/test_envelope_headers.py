"""The small headers."""

from __future__ import annotations

import uuid

from processor.envelope_headers import parse_payload_id, parse_stream
from processor.envelope_refusal import Cause, Refusal


def test_payload_ids() -> None:
    for text in (str(uuid.uuid4()), "openai-compat-abc123", "a", "A.b_c:d-0", "x" * 128):
        assert parse_payload_id(text) == text


def test_what_is_no_payload_id() -> None:
    for text in (None, "", " ", "-a", "a b", "a\n", "a\r\nX: 1", "é", "a\0", "{s01}", "x" * 129, "x" * 10**6):
        assert parse_payload_id(text) == Refusal(Cause.PAYLOAD_ID)


def test_stream_versions() -> None:
    assert parse_stream(None) is False
    assert parse_stream("1") is True
    for other in ("", "0", "2", "1.0", "01", " 1", "true", "1,1", "1" * 10**6):
        assert parse_stream(other) == Refusal(Cause.STREAM_VERSION)
