"""What a reservation becomes: values that pass between admission, processor and the stores."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Seed:
    """What PostgreSQL knows a scope to have used: the day and month it counts for, and tokens in each and ever."""

    day: int  # days since the epoch, UTC
    day_tokens: int
    month: int  # yyyymm
    month_tokens: int
    total: int


@dataclass(frozen=True, slots=True)
class Known:
    """What PostgreSQL knows of a tenant and one of its keys, and up to which event: the last one carried there, in that
    life of the counter store. What came after it still waits in the store's stream."""

    tenant: Seed
    key: Seed
    epoch: str = ""
    event: str = "0-0"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a request really used. `prompt_tokens` None: the estimate stands, and the row says `estimated`."""

    prompt_tokens: int | None
    completion_tokens: int
    exact: bool
    event: dict[str, object] = field(default_factory=dict)  # for the audit row: status, durations in ns, ttft in µs


@dataclass(frozen=True, slots=True)
class Identity:
    """What a settlement must know of the admission, kept with the reservation and in the grant."""

    started_at: int  # microseconds since the epoch
    tenant_id: int
    tenant: str
    key_id: int
    key_prefix: str
    model: str
    endpoint: str
    scopes: tuple[str, ...] = ()  # names of those besides tenant and key
    counts_as: int = 0  # the key whose counters it is charged to, where that is not key_id

    @property
    def counted(self) -> int:
        return self.counts_as or self.key_id


@dataclass(frozen=True, slots=True)
class Expired:
    """A reservation that nobody settled in time, with the last sign of how far its answer had come."""

    request_id: str
    identity: Identity
    completion_tokens: int
    cap: int = 0  # completion tokens reserved
    seen_at: int = 0  # the last sign of it, in microseconds since the epoch by the store's clock
