"""What this upstream saw and did: the truth that the chaos run and the tests compare a gateway's ledger with.

`Served` is one generation (chat, completion or embedding) that passed Ollama's own checks. `completion_tokens` counts
what was handed to the connection, token by token, so it is right at any moment and however the request ends.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.demo.go_json import Json
    from gateway.demo.wire import Request

CREDENTIALS = ("authorization", "cookie", "proxy-authorization", "x-api-key", "x-goog-api-key")
_REQUESTS = 10_000
_SERVED = 200_000
_BODY = 4096  # bytes of a body that are kept


@dataclass(slots=True)
class Served:
    """One generation. Durations are in nanoseconds, times in seconds since 1970."""

    index: int
    request_id: str | None  # the x-request-id header, as it arrived
    model: str  # as asked
    canonical: str  # as installed
    cloud: bool  # would have run on ollama.com
    endpoint: str
    stream: bool
    prompt_tokens: int
    headers: list[str]
    credentials: list[str]  # names of credential headers that arrived: there should be none
    body_keys: list[str]  # top-level keys as written, duplicates included
    settings: dict[str, object]  # top-level numbers, booleans and nulls, `options`, `stream_options`, `keep_alive`
    options: dict[str, object]
    started_at: float = field(default_factory=time.time)
    completion_tokens: int = 0
    outcome: str = "running"  # then: completed, aborted (the client left), error (we failed, or were told to)
    done_reason: str | None = None
    reported: bool = False  # the final counts were written
    ended_at: float | None = None
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0

    def end(self, outcome: str) -> None:
        """The first outcome stands."""
        if self.outcome == "running":
            self.outcome = outcome
            self.ended_at = time.time()

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of any kind."""

    index: int
    at: float
    method: str
    path: str  # decoded
    raw_path: str  # as it arrived
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    sha256: str
    length: int

    def as_dict(self) -> dict[str, object]:
        headers: dict[str, str] = {}
        for name, value in self.headers:
            shown = "present" if name in CREDENTIALS else value
            headers[name] = f"{headers[name]}, {shown}" if name in headers else shown
        return {
            "index": self.index,
            "at": self.at,
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "query": self.query,
            "headers": headers,
            "body_length": self.length,
            "body_sha256": self.sha256,
            "body": self.body.decode("utf-8", "replace"),
        }


class Journal:
    def __init__(self) -> None:
        self._served: deque[Served] = deque(maxlen=_SERVED)
        self._seen: deque[Seen] = deque(maxlen=_REQUESTS)
        self._next_served = 0
        self._next_seen = 0

    def reset(self) -> None:
        """Forget both lists; indexes go on, so that a `since` taken before stays true."""
        self._served.clear()
        self._seen.clear()

    def saw(self, request: Request) -> None:
        self._seen.append(
            Seen(
                self._next_seen,
                time.time(),
                request.method,
                request.path,
                request.raw_path,
                request.query,
                request.headers,
                request.body[:_BODY],
                hashlib.sha256(request.body).hexdigest(),
                len(request.body),
            )
        )
        self._next_seen += 1

    def add(self, served: Served) -> None:
        self._served.append(served)
        self._next_served += 1

    @property
    def next_index(self) -> int:
        return self._next_served

    def served(self, since: int = 0) -> list[dict[str, object]]:
        return [one.as_dict() for one in self._served if one.index >= since]

    def requests(self) -> list[dict[str, object]]:
        return [one.as_dict() for one in self._seen]


def settings(members: list[tuple[str, Json]], plain: dict[str, object]) -> dict[str, object]:
    """The part of a request that steers the answer and is not its text."""
    kept = {key for key, value in members if value is None or isinstance(value, bool | int | float)}
    kept |= {"options", "stream_options", "keep_alive"} & plain.keys()
    return {key: value for key, value in plain.items() if key in kept}
