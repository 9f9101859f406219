"""The `_metadata` of an encrypted answer: what the server says of itself, inside the envelope."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from processor.envelope import ALGORITHM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from processor.memory import Protection

_SPACE = b" \t\r\n"  # RFC 8259, section 2
_OPEN, _CLOSE = b"{}"


def response_metadata(
    *, payload_id: str, processed_at: int, security_tier: str, protection: Protection
) -> dict[str, object]:
    """The object as the published clients know it. `processed_at` in Unix seconds; no tier, no member.

    `cuda_device` speaks of this process, which has no such device; what Ollama computes on is not known here.
    """
    metadata: dict[str, object] = {
        "payload_id": payload_id,
        "processed_at": processed_at,
        "is_encrypted": True,
        "encryption_algorithm": ALGORITHM,
        "response_status": "success",
        "memory_protection": protection.as_metadata(),
        "cuda_device": {"available": False, "device_hash": ""},
    }
    if security_tier:
        metadata["security_tier"] = security_tier
    return metadata


def add_metadata(answer: bytes | bytearray, metadata: Mapping[str, object]) -> bytearray:
    """The upstream's JSON object with `_metadata` as its last member, byte for byte what it was before that.

    Spliced rather than decoded: the answer stays in buffers that can be overwritten. ValueError if it is no object.
    """
    text = bytearray(answer)
    first, last = 0, len(text) - 1
    while first < last and text[first] in _SPACE:
        first += 1
    while last > first and text[last] in _SPACE:
        last -= 1
    if first >= last or text[first] != _OPEN or text[last] != _CLOSE:
        raise ValueError("not a JSON object")
    before = last - 1
    while text[before] in _SPACE:
        before -= 1
    text[last:last] = (b"" if before == first else b",") + b'"_metadata":' + json.dumps(metadata).encode("ascii")
    return text
