"""Splices: byte edits, applied in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.grant import Splice
from policy.rules.splices import apply


def test_edits_are_in_bytes_of_the_body_as_received() -> None:
    body = "é—x".encode()
    assert apply(body, (Splice(0, 2, "ü"), Splice(5, 0, "中"), Splice(5, 1, "y"))) == "ü—中y".encode()


def test_nothing_to_do_is_the_same_body() -> None:
    body = b"abc"
    assert apply(body, ()) is body


@pytest.mark.parametrize(
    "splices",
    [
        (Splice(4, 0, "x"),),
        (Splice(2, 2, "x"),),
        (Splice(-1, 0, "x"),),
        (Splice(0, -1, "x"),),
        (Splice(2, 0, "x"), Splice(1, 0, "x")),
        (Splice(0, 2, "x"), Splice(1, 1, "x")),
    ],
)
def test_edits_that_do_not_fit_are_an_error(splices: tuple[Splice, ...]) -> None:
    with pytest.raises(ValueError, match="fit"):
        apply(b"abc", splices)


@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10), st.text(max_size=4))))
def test_apply_is_what_editing_from_the_end_gives(body: bytes, edits: list[tuple[int, int, str]]) -> None:
    splices: list[Splice] = []
    free = 0
    for offset, length, text in sorted(edits, key=lambda edit: edit[0]):
        if free <= offset and offset + length <= len(body):
            splices.append(Splice(offset, length, text))
            free = offset + length
    expected = body
    for splice in reversed(splices):
        expected = expected[: splice.offset] + splice.text.encode() + expected[splice.offset + splice.length :]
    assert apply(body, splices) == expected
