"""Why an envelope was refused: one sentence for the client, one closed code for the log and the metric.

The client reads the same 400 whatever was wrong, so that nobody learns from it how far a forged package came. Where
the cause depends on a private key, not even the code tells padding from tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from policy.rules.decision import Deny, Reason


class Cause(StrEnum):
    """The code that is logged; it never reaches the client."""

    CLIENT_KEY = "client_key"  # X-Public-Key is not a percent-encoded RSA public key of 2048 to 4096 bits
    PAYLOAD_ID = "payload_id"  # X-Payload-ID is absent or no identifier
    STREAM_VERSION = "stream_version"  # X-Envelope-Stream names a version that is not spoken here
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"  # not one strict JSON object
    FIELDS = "fields"  # a field is missing, unknown, repeated or of another type
    VERSION = "version"
    ALGORITHM = "algorithm"
    ENCODING = "encoding"  # a field is not canonical base64, or not of its length
    UNDECIPHERABLE = "undecipherable"  # no key in force opens it: a wrong key, or any change to key, nonce, text or tag
    REPLAYED = "replayed"  # the same payload id again from the same API key
    STREAM = "stream"  # `stream` inside the package disagrees with X-Envelope-Stream outside
    PLAINTEXT = "plaintext"  # opened, but its content is not a request


@dataclass(frozen=True, slots=True)
class Refusal:
    """An envelope that is not accepted."""

    cause: Cause

    def body(self, request_id: str) -> bytes:
        """The body of the 400: equal for all causes."""
        return Deny(Reason.ENVELOPE).body(request_id, detail=True)
