"""One spelling for every value, whatever the length."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.strict_base64 import decode, encode

PIECE = 262_144  # characters that the decoder takes at a time


@given(st.binary(max_size=100))
def test_what_is_encoded_decodes(data: bytes) -> None:
    assert encode(data) == base64.b64encode(data).decode()
    assert decode(encode(data)) == data


@settings(max_examples=500)
@given(st.text("AQgw+/=-_ \n", max_size=12))
def test_what_decodes_has_no_other_spelling(text: str) -> None:
    try:
        data = decode(text)
    except ValueError:
        return
    assert encode(data) == text


@pytest.mark.parametrize("size", [PIECE // 4 * 3 - 1, PIECE // 4 * 3, PIECE // 4 * 3 + 1, PIECE * 2])
def test_pieces_are_joined(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    assert decode(encode(data[:size])) == data[:size]


@pytest.mark.parametrize("last", ["", "QQ==", "QUI=", "QUJD", "QUJDQQ=="])
@pytest.mark.parametrize("end", ["QQ==", "QUI="])
def test_padding_inside_is_refused_where_pieces_meet(end: str, last: str) -> None:
    text = "A" * (PIECE - 4) + end + last
    if not last:
        assert encode(decode(text)) == text
        return
    with pytest.raises(ValueError, match="canonical"):
        decode(text)


@pytest.mark.parametrize(
    "text", ["Q", "QQ", "QQ=", "QR==", "QUJ=", "=QQ=", "QQ===", "QQ==\n", " QQ==", "Q\0==", "ÄÄÄÄ", "QQ=="[::-1]]
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)
