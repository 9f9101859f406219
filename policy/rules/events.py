"""Events: what happened to a request, on its way from the counters to the ledger.

Three kinds meet in one audit row, in any order and any number of times: the admission (or refusal) that policy decided,
the settlement that processor or the sweeper made, and what Envoy's access log says of the finished exchange. A request
is identified by its id and Envoy's start time together, which all three know.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import NAMESPACE_OID, uuid5

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TIME = re.compile(r"[0-9]{1,16}", re.ASCII)  # microseconds since the epoch, for the next two centuries
LONGEST_TEXT = 1000  # characters of any text in an event: what is longer was written by somebody who means no good


class Entry(NamedTuple):
    """What the counter store takes down of a finished request."""

    address: str
    refused: bool  # a refusal that policy did not record: past a rate it is only counted
    request: str  # tells it from all others
    event: str  # JSON for the ledger
    open: bool = False  # an answer for anybody: past a rate it is only counted as well


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
    status: int = 0
    microseconds: int = 0  # how long it took
    metered: bool = False  # by Envoy's own meter: no processor will settle it
    used: str = ""  # what that meter read at the end of the answer; see `policy.rules.metering`
    deltas: int | None = None  # how many pieces of content it saw pass; None where no answer came
    open: bool = False  # answered without a question who asks: health, version, pages

    @property
    def entry(self) -> Entry:
        """A client may have chosen the id of a request that Envoy refused early, but not when it came."""
        refused = self.refused and not self.recorded
        return Entry(self.address, refused, f"{self.request_id} {self.started_at}", self.event, self.open)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an answer has come that is still on its way, as Envoy's access log tells from time to time."""

    request_id: str
    tenant_id: int
    deltas: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The oldest events of one shard, as they stand in its stream."""

    shard: int
    epoch: str  # the life of the counter store that they were written in
    entries: tuple[tuple[bytes, dict[bytes, bytes]], ...]  # id and fields

    @property
    def last(self) -> str:
        """The id of the last of them."""
        return self.entries[-1][0].decode()


@dataclass(frozen=True, slots=True)
class Event:
    """One event that can be read: its kind, and its facts under the names that the ledger's statements use."""

    kind: str  # "admission", "settlement" or "log"
    facts: dict[str, Any]

    @property
    def request(self) -> tuple[str, str]:
        """Which request it is about."""
        return self.facts["s"], self.facts["id"]


class Charge(NamedTuple):
    """What settlements came to that are in the ledger now: those of one tenant, model and outcome together."""

    tenant: str
    model: str
    outcome: str
    exact: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int


class Applied(NamedTuple):
    """What became of events that were applied."""

    charges: list[Charge]  # each settlement once, however often its event comes
    refused: list[tuple[Event, str]]  # those that no table takes, with what was said of them


@dataclass(slots=True)
class Batch:
    """Events sorted by kind; of one request and kind the later news, but the first settlement: that one was charged."""

    admissions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    settlements: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.admissions) + len(self.settlements) + len(self.logs)


def batch(events: Iterable[Event]) -> Batch:
    """Sort events, which come in the order in which they were written."""
    found = Batch()
    for event in events:
        if event.kind == "settlement":
            found.settlements.setdefault(event.request, event.facts)
        else:
            kind = found.admissions if event.kind == "admission" else found.logs
            kind[event.request] = event.facts
    return found


def read(fields: Mapping[bytes, bytes]) -> Event:
    """Read a raw stream entry (the scripts in `policy/stores` write them). ValueError on one that is none."""
    try:
        match fields[b"k"]:
            case b"admit":
                return Event("admission", _checked(_admission(fields)))
            case b"settle" | b"again":
                return Event("settlement", _checked(_settlement(fields)))
            case b"log":
                return Event("log", _checked(_object(fields[b"e"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks something: {error!r}") from error
    raise ValueError("it is of no known kind")


def _admission(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    facts = _object(fields[b"e"])
    verdict = fields[b"v"].decode()
    facts["reason"] = facts["reason"] if verdict == "ok" else verdict
    facts["decision"] = "denied" if facts["reason"] else "allowed"
    return facts


def _settlement(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    who = _object(fields[b"i"])
    prompt, completion, estimated = (int(number) for number in fields[b"u"].split())
    return {
        **_object(fields[b"e"]),
        "s": who["s"], "t": who["t"], "tn": who["tn"], "k": who["k"], "kp": who["kp"], "model": who["model"],
        "ep": who["ep"], "day": int(fields[b"d"]), "pt": prompt, "ct": completion, "est": bool(estimated),
    }  # fmt: skip


def _object(text: bytes) -> dict[str, Any]:
    found = json.loads(text.decode("utf-8", "replace"))
    if type(found) is not dict:
        raise ValueError("it holds no object")
    return found


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with texts that PostgreSQL takes: without NUL and lone surrogates, and of a sane length."""
    if type(facts["id"]) is not str or not facts["id"] or not _TIME.fullmatch(facts["s"]):
        raise ValueError("it is about no request")
    for name, value in facts.items():
        if type(value) is str and (not value.isascii() or "\0" in value or len(value) > LONGEST_TEXT):
            clean = value[:LONGEST_TEXT].replace("\0", "\N{REPLACEMENT CHARACTER}")
            facts[name] = clean.encode("utf-8", "replace").decode()
    return facts


def local_reason(status: int) -> str:
    """The reason of a refusal that Envoy made by itself, from its status alone."""
    return {
        400: "bad_request", 403: "endpoint_blocked", 413: "too_large", 429: "address_rate", 502: "upstream_unavailable",
        503: "fault", 504: "upstream_unavailable",
    }.get(status, "edge")  # fmt: skip


def lacks_answer(status: int) -> bool:
    """Whether this status says that nobody answered: what the gateway answers by itself, a list of models or a page,
    goes to no upstream and lacks nothing."""
    return not 0 < status < 400


# Routes of answers that policy gives as pages: Envoy calls policy their upstream.
OWN_PAGES = frozenset(("readyz", "version", "metrics", "tags", "v1-models", "public-key", "session-pages"))

# What Envoy makes of its own refusals for a client that says it speaks gRPC: all have status 200, and this beside it.
_OF_GRPC = {"7": 403, "8": 429, "12": 403, "13": 400, "14": 503, "16": 401}


def refusal_status(status: int, grpc_status: str, *, limited: bool) -> int:
    """The status of a refusal of Envoy's own in terms of HTTP; `limited`: by the rate of its address."""
    if status != 200 or grpc_status in ("", "-", "0"):
        return status
    return 429 if limited else _OF_GRPC.get(grpc_status, 400)


_REQUEST_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def unjudged_id(text: str) -> str:
    """The id under which a request is recorded that never came to policy: a UUID, as Envoy makes them.

    What Envoy refuses very early (a request without a host) it refuses before it has replaced the client's own
    X-Request-ID. No client writes into the records: what is no UUID is replaced by one that follows from it, so that
    Envoy's log stream and its file agree.
    """
    return text if _REQUEST_ID.fullmatch(text) else str(uuid5(NAMESPACE_OID, text))
