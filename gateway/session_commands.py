"""What the commands about browser sessions do: ask `policy.admission.session_admin`, then print what became of it.

Live sessions are in the counter store alone, so listing them asks there; taking one back is written to PostgreSQL,
which every policy follows, and where the counter store answers the session is forgotten there too.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from gateway import admin_output as output
from gateway import running
from gateway.administration import act_as, tenant_name
from gateway.failure import Failure
from gateway.key_prefix import refuse_secret
from gateway.sessions import COUNTS, LIMITS, SCOPES
from policy.admission.session_admin import SessionAdmin, Terms
from policy.rules.faults import StoreDown
from policy.rules.sessions import EntropyPolicy, FingerprintPolicy, SignaturePolicy
from policy.stores import redis
from policy.stores.sessions_postgres import SessionRegistries
from policy.stores.sessions_redis import SessionCounters

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from policy.admission.session_admin import Allowed
    from policy.rules.publishable_keys import PublishableKey
    from policy.rules.sessions import SessionPolicy
    from policy.stores.sessions_redis import LiveSession

T = TypeVar("T")
_WORDS = {
    "fingerprint_policy": FingerprintPolicy,
    "signature_policy": SignaturePolicy,
    "entropy_policy": EntropyPolicy,
}


def allow_sessions(args: argparse.Namespace) -> int:
    terms = _terms(args)
    name = tenant_name(args)
    return _allowed(args, _act(args, lambda admin: admin.allow(name, terms)))


def deny_sessions(args: argparse.Namespace) -> int:
    name, origins = tenant_name(args), args.origin or ()
    return _allowed(args, _act(args, lambda admin: admin.deny(name, origins)))


def create_publishable_key(args: argparse.Namespace) -> int:
    name = tenant_name(args)
    key, tenant, notes = _act(args, lambda admin: admin.create_publishable(name, args.label))
    if args.json:
        return output.print_document(
            {"publishable_key": key, "tenant": tenant.name, "label": args.label, "notes": list(notes)}
        )
    print(key)
    print()
    print(f"It names tenant {tenant.name} and is no secret: it may stand in a page.")
    output.print_notes(notes)
    return 0


def revoke_publishable_key(args: argparse.Namespace) -> int:
    found = _act(args, lambda admin: admin.revoke_publishable(args.key.strip(), datetime.now(UTC)))
    if args.json:
        return output.print_document(_publishable(found))
    print(f"Publishable key {found.key} of tenant {found.tenant} revoked. Its sessions have ended.")
    return 0


def rotate_session_key(args: argparse.Namespace) -> int:
    kid, kids = _act(args, lambda admin: admin.rotate_key(at_once=args.at_once))
    if args.json:
        return output.print_document({"kid": kid, "verifying": kids})
    if args.at_once:
        print(f"Session key {kid} signs and verifies from now on, alone: every session has ended.")
    else:
        print(f"Session key {kid} signs new sessions within half a minute. Sessions that live go on.")
    return 0


def list_sessions(args: argparse.Namespace) -> int:
    name = tenant_name(args, needed=False) or None

    async def look(admin: SessionAdmin) -> tuple[list[SessionPolicy], list[PublishableKey]]:
        policies = [one for one in await admin.policies() if name is None or one.tenant.name.lower() == name.lower()]
        return policies, list(await admin.list_publishable(name))

    policies, keys = _act(args, look)
    live = _live(args, [policy.tenant.id for policy in policies])
    names = {policy.tenant.id: policy.tenant.name for policy in policies}
    if args.json:
        return output.print_document(
            {
                "policies": [_policy(policy) for policy in policies],
                "publishable_keys": [_publishable(key) for key in keys],
                "sessions": [_session(one, names[one.tenant_id]) for one in live[: args.limit]],
                "live": len(live),
            }
        )
    if not policies:
        print("No tenant allows browser sessions: `paddock allow-sessions TENANT --origin https://…` does.")
    for policy in policies:
        print(f"Tenant {policy.tenant.name}")
        print(output.lines(_facts(policy)))
        print()
    if keys:
        rows = [(key.key, key.tenant, key.label, "revoked" if key.revoked_at else "active") for key in keys]
        print(output.table(("PUBLISHABLE KEY", "TENANT", "LABEL", "STATE"), rows))
        print()
    if policies:
        print(_sessions_table(live[: args.limit], names) if live else "No session lives.")
    if len(live) > args.limit:
        print(f"and {len(live) - args.limit:,} more")
    return 0


def revoke_session(args: argparse.Namespace) -> int:
    if (args.session is None) == (args.all_of is None):
        args.wrong("say which session, or --tenant for all of a tenant's")
    now = datetime.now(UTC)
    if args.all_of is not None:
        refuse_secret(args.all_of)
        allowed = _act(args, lambda admin: admin.revoke_all(args.all_of, now))
        ended = _end(args, [allowed.tenant.id], None)
        if args.json:
            return output.print_document({"tenant": allowed.tenant.name, "revoked": True, "live": ended})
        print(f"Every session of tenant {allowed.tenant.name} has ended.")
        return 0
    session_id = args.session.strip()
    _act(args, lambda admin: admin.revoke_session(session_id, now))
    tenants = [policy.tenant.id for policy in _act(args, lambda admin: admin.policies())]
    ended = _end(args, tenants, session_id)
    if args.json:
        return output.print_document({"session": session_id, "revoked": True, "live": ended})
    print(f"Session {session_id} has ended." if ended else f"Session {session_id} passes nowhere any more.")
    if ended == 0:
        print("Note: no such session lives; it may have ended before.")
    return 0


# Arguments that argparse cannot check by itself.


def _terms(args: argparse.Namespace) -> Terms:
    fields: dict[str, object] = {name: getattr(args, name) for name in (*COUNTS, "max_tokens") if hasattr(args, name)}
    if args.lifetime is not None:
        fields["lifetime"] = args.lifetime
    for name, words in _WORDS.items():
        if getattr(args, name) is not None:
            fields[name] = words(getattr(args, name))
    limits = {
        scope: {name: getattr(args, prefix + name) for name in LIMITS if hasattr(args, prefix + name)}
        for scope, (prefix, _) in SCOPES.items()
    }
    return Terms(
        origins=tuple(args.origin or ()),
        models=tuple(args.model or ()),
        all_models=args.all_models,
        endpoints=tuple(args.endpoint or ()),
        fields=fields,
        limits={scope: figures for scope, figures in limits.items() if figures},
    )


# Doing it.


def _act(args: argparse.Namespace, act: Callable[[SessionAdmin], Awaitable[T]]) -> T:
    return act_as(lambda postgres: SessionAdmin(SessionRegistries(postgres).open), args, act)


def _with_live(args: argparse.Namespace, work: Callable[[SessionCounters], Awaitable[T]]) -> T | None:
    """None where it is not known where the counter store is."""
    url = running.stores(args).redis_url
    if url is None:
        return None

    async def within() -> T:
        store = await redis.open_store(url, epoch="")
        try:
            return await work(SessionCounters(store))
        finally:
            await store.close()

    return asyncio.run(within())


def _live(args: argparse.Namespace, tenants: list[int]) -> list[LiveSession]:
    async def look(counters: SessionCounters) -> list[LiveSession]:
        return [one for tenant_id in tenants for one in await counters.live(tenant_id)]

    try:
        found = _with_live(args, look)
    except StoreDown as fault:
        raise Failure("the counter store does not answer, and only it knows the live sessions") from fault
    if found is None:
        raise Failure("only the counter store knows the live sessions", do="Name it in PADDOCK_REDIS_URL.")
    return found


def _end(args: argparse.Namespace, tenants: list[int], session_id: str | None) -> int | None:
    """Forget live sessions in the counter store: one, or all. How many there were; None where that cannot be known,
    which ends them no less: every policy has heard of it."""

    async def forget(counters: SessionCounters) -> int:
        ended = 0
        for tenant_id in tenants:
            for one in await counters.live(tenant_id):
                if session_id in (None, one.session_id):
                    await counters.end(one.session_id, tenant_id, one.fingerprint)
                    ended += 1
        return ended

    try:
        return _with_live(args, forget)
    except StoreDown:
        return None


# Saying so.


def _allowed(args: argparse.Namespace, allowed: Allowed) -> int:
    if args.json:
        about = {"tenant": allowed.tenant.name, "sessions": False}
        return output.print_document(
            {**about, **(_policy(allowed.policy) if allowed.policy else {}), "notes": list(allowed.notes)}
        )
    if allowed.policy is None:
        print(f"Tenant {allowed.tenant.name} allows no browser sessions any more. Those it had have ended.")
        return 0
    print(f"Tenant {allowed.tenant.name} allows browser sessions.")
    print(output.lines(_facts(allowed.policy)))
    output.print_notes(allowed.notes)
    return 0


def _policy(policy: SessionPolicy) -> dict[str, object]:
    return {
        "tenant": policy.tenant.name,
        "sessions": True,
        "origins": sorted(policy.origins),
        "models": None if policy.models is None else sorted(policy.models),
        "endpoints": sorted(policy.endpoints),
        "lifetime_seconds": policy.lifetime,
        "fingerprint_policy": policy.fingerprint_policy.value,
        "signature_policy": policy.signature_policy.value,
        "entropy_policy": policy.entropy_policy.value,
        "max_tokens": policy.max_tokens,
        "max_per_fingerprint": policy.max_per_fingerprint,
        "max_live": policy.max_live,
        "opened_per_minute": policy.opened_per_minute,
        "limits": {scope: asdict(getattr(policy, scope)) for scope in SCOPES},
    }


def _facts(policy: SessionPolicy) -> output.Facts:
    return [
        ("origins", ", ".join(sorted(policy.origins))),
        ("models", "as its tenant" if policy.models is None else ", ".join(sorted(policy.models)) or "none"),
        ("asks", ", ".join(sorted(policy.endpoints))),
        ("lasts", output.span(timedelta(seconds=policy.lifetime))),
        ("trust", f"fingerprint {policy.fingerprint_policy.value}, signature {policy.signature_policy.value}, "
                  f"entropy {policy.entropy_policy.value}"),
        ("at most", f"{policy.opened_per_minute} opened a minute and address, {policy.max_per_fingerprint} live of a "
                    f"fingerprint, {policy.max_live} in all"),
        ("session", output.limits(policy.session, policy.max_tokens)),
        ("client", output.limits(policy.fingerprint)),
        ("address", output.limits(policy.address)),
        ("all", output.limits(policy.together)),
    ]  # fmt: skip


def _publishable(key: PublishableKey) -> dict[str, object]:
    return {
        "publishable_key": key.key,
        "tenant": key.tenant,
        "label": key.label,
        "state": "revoked" if key.revoked_at else "active",
        "created_at": output.iso(key.created_at),
        "revoked_at": output.iso(key.revoked_at),
    }


def _session(one: LiveSession, tenant: str) -> dict[str, object]:
    return {
        "session": one.session_id,
        "tenant": tenant,
        "opened_at": output.iso(_moment(one.opened_at)),
        "ends_at": output.iso(_moment(one.ends_at)),
        "last_request_at": output.iso(_moment(one.last_request_at)),
        "requests": one.requests,
        "tokens": one.tokens,
        "reserved_tokens": one.reserved,
        "under_way": one.under_way,
        "fingerprint": one.fingerprint,
        "address": one.address,
        "origin": one.origin,
        "publishable_key": one.publishable_key or None,
    }


def _sessions_table(live: list[LiveSession], names: dict[int, str]) -> str:
    now = datetime.now(UTC)
    rows = [
        (
            one.session_id,
            names[one.tenant_id],
            output.span(datetime.fromtimestamp(one.ends_at, UTC) - now),
            f"{one.requests:,}",
            f"{one.tokens:,}",
            one.fingerprint[:8],
            one.address,
            one.origin,
        )
        for one in live
    ]
    headings = ("SESSION", "TENANT", "ENDS IN", "REQUESTS", "TOKENS", "CLIENT", "ADDRESS", "ORIGIN")
    return output.table(headings, rows, numbers=("REQUESTS", "TOKENS"))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
