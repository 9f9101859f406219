"""`_metadata`: what it says, and that adding it changes nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.envelope_metadata import add_metadata, response_metadata
from processor.memory import Protection

PROTECTION = Protection("linux", memory_locking=False, secure_zeroing=True, core_dump_prevention=True, missing=("x",))


def test_metadata_is_what_the_published_clients_know() -> None:
    metadata = response_metadata(payload_id="p-1", processed_at=7, security_tier="high", protection=PROTECTION)
    assert metadata == {
        "payload_id": "p-1",
        "processed_at": 7,
        "is_encrypted": True,
        "encryption_algorithm": "hybrid-aes256-rsa4096",
        "response_status": "success",
        "security_tier": "high",
        "memory_protection": {
            "platform": "linux",
            "memory_locking": False,
            "secure_zeroing": True,
            "core_dump_prevention": True,
        },
        "cuda_device": {"available": False, "device_hash": ""},
    }
    assert "security_tier" not in response_metadata(
        payload_id="p-1", processed_at=7, security_tier="", protection=PROTECTION
    )


@given(
    st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.lists(st.integers())),
    st.sampled_from(["", " ", "\r\n\t"]),
)
def test_the_answer_keeps_its_bytes(answer: dict[str, object], space: str) -> None:
    text = (space + json.dumps(answer) + space).encode()
    added = add_metadata(text, {"a": 1})
    assert json.loads(added) == answer | {"_metadata": {"a": 1}}
    assert added.startswith(text.rstrip()[:-1])


def test_an_empty_object_gets_no_comma() -> None:
    assert add_metadata(b"{ }\n", {}) == b'{ "_metadata":{}}\n'


@pytest.mark.parametrize("text", [b"", b"{", b"}", b"[]", b"null", b'"}"', b"\xef\xbb\xbf{}", b"{} x"])
def test_what_is_no_object_is_a_fault(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        add_metadata(text, {})
