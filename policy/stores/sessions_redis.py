"""Browser sessions in Redis or Valkey: opened in one atomic step, listed, and ended. Nothing else knows a live session.

Everything of a tenant's sessions lies in the tenant's shard:

    s:<session>                 the session, until its end: what it has used (see `counters.lua`), what is known of it
    sp:<tenant>:<fingerprint>   live sessions of one fingerprint, by their ends
    sl:<tenant>                 live sessions of the tenant, by their ends
    so:<tenant>:<address>       sessions that an address opened in the last minute
    sf:<tenant>:<fingerprint>   what a fingerprint uses, sa:<tenant>:<address> what an address uses
    sg:<session>:<signature>    request signatures seen

A fingerprint is a digest, an address is Envoy's and an id is ours: nothing that a client wrote is part of a name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.rules.addresses import neighbourhood
from policy.rules.decision import Reason
from policy.rules.sessions import Refused, session_scope
from policy.stores.redis import KEYS, Script, shard_of

if TYPE_CHECKING:
    from policy.rules.session_token import Claims
    from policy.rules.sessions import SessionPolicy
    from policy.stores.redis import RedisStore

REFUSALS_KEPT = 20  # of opening sessions, per client address and minute, each with a row of its own
_LISTED = 10_000  # of one tenant
_FIELDS = ("from", "ends", "fp", "addr", "org", "pk", "asked", "last", "tot", "open", "n")

OPEN_SESSION = Script("open_session")


@dataclass(frozen=True, slots=True)
class LiveSession:
    """One live session. Times are seconds since the epoch."""

    session_id: str
    tenant_id: int
    opened_at: float
    ends_at: float
    fingerprint: str  # its digest
    address: str
    origin: str
    publishable_key: str
    requests: int
    last_request_at: float | None
    tokens: int  # settled
    reserved: int  # by requests under way
    under_way: int


class SessionCounters:
    """Sessions beside the counters. Every call raises StoreDown when the store does not answer."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def open(self, policy: SessionPolicy, claims: Claims, address: str) -> Refused | None:
        """Open the session that `claims` describe; or why not."""
        tenant_id = policy.tenant.id
        keys = KEYS[shard_of(tenant_id)]
        reply = await self._store.script(
            OPEN_SESSION,
            (
                keys.scope(session_scope(claims.session_id)),
                keys.scope(f"sp:{tenant_id}:{claims.fingerprint}"),
                keys.scope(f"sl:{tenant_id}"),
                keys.scope(f"so:{tenant_id}:{neighbourhood(address)}"),
                keys.refusals,
            ),
            (
                self._store.clock, claims.session_id, (claims.expires_at - claims.issued_at) * 1000,
                policy.opened_per_minute, policy.max_per_fingerprint, policy.max_live, address, REFUSALS_KEPT,
                "fp", claims.fingerprint, "addr", address, "org", claims.origin, "pk", claims.publishable_key,
            ),
        )  # fmt: skip
        verdict = reply[0].decode()
        if verdict == "ok":
            return None
        return Refused(Reason(verdict), wait=max(1, -(-int(reply[1]) // 1000)), counted=reply[2] == 1)

    async def live(self, tenant_id: int) -> list[LiveSession]:
        """The tenant's live sessions, those that end first first; at most some thousands."""
        keys = KEYS[shard_of(tenant_id)]
        ids = await self._store.ask(
            "ZRANGEBYSCORE", keys.scope(f"sl:{tenant_id}"), f"({int(time.time() * 1000)}", "+inf", "LIMIT", "0", _LISTED
        )
        found = []
        for raw in ids:
            session_id = raw.decode()
            values = await self._store.ask("HMGET", keys.scope(session_scope(session_id)), *_FIELDS)
            if values[0] is not None:  # ended since
                found.append(_session(session_id, tenant_id, [value or b"" for value in values]))
        return found

    async def end(self, session_id: str, tenant_id: int, fingerprint: str) -> None:
        """Forget a live session: nothing passes with it from now on, whoever knows what of its revocation."""
        keys = KEYS[shard_of(tenant_id)]
        await self._store.ask("DEL", keys.scope(session_scope(session_id)))
        await self._store.ask("ZREM", keys.scope(f"sl:{tenant_id}"), session_id)
        await self._store.ask("ZREM", keys.scope(f"sp:{tenant_id}:{fingerprint}"), session_id)


def _session(session_id: str, tenant_id: int, values: list[bytes]) -> LiveSession:
    began, ends, fingerprint, address, origin, key, asked, last, tokens, reserved, under_way = (
        value.decode("utf-8", "replace") for value in values
    )
    return LiveSession(
        session_id, tenant_id, int(began) / 1000, int(ends) / 1000, fingerprint, address, origin, key, int(asked or 0),
        int(last) / 1000 if last else None, int(tokens or 0), int(reserved or 0), int(under_way or 0),
    )  # fmt: skip
