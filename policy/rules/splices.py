"""Apply splices: small edits of a request body, in bytes of the body as it was received.

Policy finds the places while it judges the body; processor, which sees the same bytes later, only cuts and joins. So
a body is parsed once, and whatever was not judged is passed on untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.rules.grant import Splice


def apply(body: bytes, splices: Sequence[Splice]) -> bytes:
    """`body` with every splice made. ValueError where they overlap, are out of order or do not fit the body."""
    if not splices:
        return body
    pieces: list[bytes] = []
    at = 0
    for splice in splices:
        if splice.length < 0 or not at <= splice.offset <= len(body) - splice.length:
            raise ValueError("splices that do not fit this body")
        pieces += (body[at : splice.offset], splice.text.encode())
        at = splice.offset + splice.length
    pieces.append(body[at:])
    return b"".join(pieces)
