"""Inputs for the targets: the corpus, and what hypothesis makes of it.

`corpus/<target>/` holds plain inputs: ordinary ones, and one for every fault that was ever found. A new finding goes
there under a name that says what it was. Its words are also what the generated inputs are made of: an entry with a few
edits, or a row of words, comes closer to what a parser minds than random bytes do.
"""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

_WORDS = re.compile(rb"[A-Za-z0-9_.-]+|\s+|[^A-Za-z0-9_.\s-]", re.DOTALL)
_EVERYWHERE = (
    b"", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é٣K²".encode(), b"\\ud800", b"\\u0000",
    b"\r", b"\n", b"\n\n", b"\r\n", b" ", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"-1", b"1e999",
    b"NaN", b"1" * 70, b"[" * 70, b'"error"', b"\x1f\x8b",
)  # fmt: skip


def corpus(target: str) -> dict[str, bytes]:
    """The corpus of one target, by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Generated inputs for one target."""
    entries = list(corpus(target).values())
    words = sorted({word for entry in entries for word in _WORDS.findall(entry[:4000])} | set(_EVERYWHERE))
    word = st.sampled_from(words)
    edit = st.tuples(st.integers(0, 5000), st.integers(0, 40), word | st.binary(max_size=3))
    edited = st.builds(_edit, st.sampled_from(entries), st.lists(edit, max_size=5))
    return edited | st.lists(word, max_size=30).map(b"".join) | st.binary(max_size=150)


def _edit(entry: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Some bytes taken out, others put in their place."""
    for at, length, new in edits:
        at %= len(entry) + 1
        entry = entry[:at] + new + entry[at + length :]
    return entry
