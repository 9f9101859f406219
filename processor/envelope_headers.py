"""The headers that accompany an envelope, besides `X-Public-Key` (see `client_key`)."""

from __future__ import annotations

import re

from processor.envelope_refusal import Cause, Refusal

PAYLOAD_ID = "x-payload-id"
PUBLIC_KEY = "x-public-key"
SECURITY_TIER = "x-security-tier"
STREAM = "x-envelope-stream"
STREAM_VERSION = "1"

# The published clients send a UUID. Other identifiers of the same sort are fine: it is bound, echoed and remembered,
# so it is short and cannot break out of a header, a log line or a store's key.
_PAYLOAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def parse_payload_id(header: str | None) -> str | Refusal:
    """The client's name for this request."""
    if header is None or not _PAYLOAD_ID.fullmatch(header):
        return Refusal(Cause.PAYLOAD_ID)
    return header


def parse_stream(header: str | None) -> bool | Refusal:
    """Whether the answer is to be an encrypted stream. Absent: no; a version that is not spoken here: refused."""
    if header is None:
        return False
    return True if header == STREAM_VERSION else Refusal(Cause.STREAM_VERSION)
