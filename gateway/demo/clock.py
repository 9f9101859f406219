"""`created_at`, once a token: RFC 3339 with nanoseconds, the seconds formatted once a second."""

from __future__ import annotations

import time

_NANOSECONDS = 10**9


class Stamps:
    def __init__(self) -> None:
        self._second = -1
        self._prefix = b""

    def now(self) -> bytes:
        second, rest = divmod(time.time_ns(), _NANOSECONDS)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)).encode()
        return b"%s%09dZ" % (self._prefix, rest)
