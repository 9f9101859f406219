"""Events: what happened to a request, on its way from the counters to the ledger.

Three kinds meet in one audit row, in any order and any number of times: the admission (or refusal) that policy decided,
the settlement that processor or the sweeper made, and what Envoy's access log says of the finished exchange. A request
is identified by its id and Envoy's start time together, which all three know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished request, as Envoy's access log tells it."""

    request_id: str
    started_at: int  # microseconds since the epoch
    tenant_id: int | None
    address: str
    refused: bool  # refused by the gateway without reaching an upstream
    recorded: bool  # policy took the refusal down itself
    counted: bool  # policy only counted it: past the rate, it has no row of its own
    grant: str  # the grant's JSON; "" where nothing was admitted
    settled: bool  # processor says that it settled
    reached_upstream: bool
    response_bytes: int
    event: str  # JSON for the ledger
    edge_reason: str = ""  # why Envoy refused it by itself; "" where it did not


@dataclass(slots=True)
class Batch:
    """Events of one shard, sorted by kind; later news of one request and kind replaces earlier news."""

    admissions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    settlements: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.admissions) + len(self.settlements) + len(self.logs)


def batch(events: Iterable[Mapping[bytes, bytes]]) -> Batch:
    """Sort raw stream entries (see the scripts in `policy/stores`) into a batch. ValueError on one that is none."""
    found = Batch()
    for event in events:
        kind = event.get(b"k")
        if kind == b"admit":
            facts = json.loads(event[b"e"])
            verdict = event[b"v"].decode()
            facts["reason"] = facts["reason"] if verdict == "ok" else verdict
            facts["decision"] = "denied" if facts["reason"] else "allowed"
            found.admissions[facts["s"], facts["id"]] = facts
        elif kind == b"settle":
            identity = json.loads(event[b"i"])
            facts = json.loads(event[b"e"])
            prompt, completion, estimated = (int(n) for n in event[b"u"].split())
            facts.update(
                s=identity["s"], t=identity["t"], tn=identity["tn"], k=identity["k"], kp=identity["kp"],
                model=identity["model"], ep=identity["ep"], day=int(event[b"d"]), pt=prompt, ct=completion,
                est=bool(estimated),
            )  # fmt: skip
            found.settlements.setdefault((facts["s"], facts["id"]), facts)  # the first settlement is the one charged
        elif kind == b"log":
            facts = json.loads(event[b"e"])
            found.logs[facts["s"], facts["id"]] = facts
        else:
            raise ValueError(f"an event of no known kind: {kind!r}")
    return found


def local_reason(status: int) -> str:
    """The reason of a refusal that Envoy made by itself, from its status alone."""
    return {
        400: "bad_request", 403: "endpoint_blocked", 413: "too_large", 429: "address_rate", 502: "upstream_unavailable",
        503: "fault", 504: "upstream_unavailable",
    }.get(status, "edge")  # fmt: skip
