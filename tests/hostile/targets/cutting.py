"""The same bytes in other chunks. Which ones follows from the bytes, so a finding is its input and nothing else."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

_SINGLE_MAX = 400  # bytes: a longer input is not also fed byte by byte


def chance(data: bytes) -> random.Random:
    """Choices that belong to these bytes."""
    return random.Random(zlib.crc32(data))


def cuttings(data: bytes) -> list[list[bytes]]:
    """Ways to cut `data`: whole, at three random rows of places, and byte by byte. Some chunks are empty."""
    drawn = chance(data)
    found = [[data]]
    for count in (1, 3, 12):
        marks = sorted([0, len(data), *(drawn.randint(0, len(data)) for _ in range(count))])
        found.append([data[start:stop] for start, stop in pairwise(marks)])
    if len(data) <= _SINGLE_MAX:
        found.append([data[at : at + 1] for at in range(len(data))] or [b""])
    return found
