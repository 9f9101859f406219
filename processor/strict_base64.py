"""Standard base64 with exactly one spelling for every value: no line ends, no missing padding, no stray bits.

Long texts are decoded in pieces: one call on ten megabytes would hold the interpreter's lock for tens of
milliseconds, and every other request of the process would wait for it.
"""

from __future__ import annotations

import binascii

_PIECE = 262_144  # characters, a multiple of 4: well under a millisecond


def decode(text: str) -> bytes:
    """The bytes of a canonical base64 text; ValueError for any other text."""
    pieces = [
        binascii.a2b_base64(text[start : start + _PIECE], strict_mode=True) for start in range(0, len(text), _PIECE)
    ]
    data = b"".join(pieces)
    # Padding in the middle, and bits after the last byte that strict_mode lets pass, show in length and last group.
    if len(text) != (len(data) + 2) // 3 * 4 or encode(data[(len(data) - 1) // 3 * 3 :]) != text[-4:]:
        raise ValueError("not canonical base64")
    return data


def encode(data: bytes | bytearray | memoryview) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")
