"""Tenants and keys as people and programs read them. A program gets every field always, null where there is nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from policy.rules.limits import Limits
    from policy.rules.tenants import Key, Tenant

Facts = list[tuple[str, str]]


def tenant(tenant: Tenant) -> dict[str, object]:
    return {
        "tenant": tenant.name,
        "id": tenant.id,
        "state": "disabled" if tenant.disabled else "active",
        "allow_all_models": tenant.allow_all_models,
        "models": sorted(tenant.models),
        "max_tokens": tenant.max_tokens,
        "limits": asdict(tenant.limits),
    }


def key(key: Key, now: datetime) -> dict[str, object]:
    """`models` is null for a key that may use whatever its tenant may."""
    return {
        "prefix": key.prefix,
        "tenant": key.tenant.name,
        "id": key.id,
        "owner": key.owner,
        "label": key.label,
        "state": key.state_at(now),
        "models": None if key.models is None else sorted(key.models),
        "max_tokens": key.max_tokens,
        "limits": asdict(key.limits),
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "last_used_at": iso(key.last_used_at),
        "revoked_at": iso(key.revoked_at),
    }


def tenant_facts(tenant: Tenant) -> Facts:
    return [
        ("models", _tenant_models(tenant)),
        ("limits", limits(tenant.limits, tenant.max_tokens)),
        *([("state", "disabled")] if tenant.disabled else []),
    ]


def key_facts(key: Key, now: datetime) -> Facts:
    facts = [
        ("prefix", key.prefix),
        ("tenant", key.tenant.name),
        ("owner", key.owner),
        ("label", key.label),
        ("models", _key_models(key)),
        ("limits", limits(key.limits, key.max_tokens)),
        ("expires", "never" if key.expires_at is None else moment(key.expires_at)),
        ("state", key.state_at(now)),
    ]
    if key.revoked_at is not None:
        facts.append(("revoked" if key.revoked_at <= now else "good to", moment(key.revoked_at)))
    return [(name, value) for name, value in facts if value]


def tenants_table(found: Iterable[tuple[Tenant, int]]) -> str:
    rows = [
        (
            tenant.name,
            "disabled" if tenant.disabled else "active",
            str(keys),
            _tenant_models(tenant),
            limits(tenant.limits, tenant.max_tokens),
        )
        for tenant, keys in found
    ]
    return table(("TENANT", "STATE", "KEYS", "MODELS", "LIMITS"), rows)


def keys_table(found: Iterable[Key], now: datetime) -> str:
    rows = [
        (
            key.prefix,
            key.tenant.name,
            key.state_at(now),
            key.owner,
            key.label,
            _key_models(key),
            limits(key.limits, key.max_tokens),
            _day(key.created_at, "?"),
            _day(key.expires_at, "never"),
            "never" if key.last_used_at is None else f"{span(now - key.last_used_at)} ago",
        )
        for key in found
    ]
    headings = ("PREFIX", "TENANT", "STATE", "OWNER", "LABEL", "MODELS", "LIMITS", "CREATED", "EXPIRES", "LAST USED")
    return table(headings, rows)


def lines(facts: Facts) -> str:
    return "\n".join(f"  {name:<8} {value}" for name, value in facts)


def moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def span(span: timedelta) -> str:
    """About how long, in the largest unit that fits at least twice."""
    seconds = max(0.0, span / timedelta(seconds=1))
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size - size / 120:  # 47.99 hours, a moment after "48h" was asked for, are two days
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds)} seconds"


def _tenant_models(tenant: Tenant) -> str:
    return "all" if tenant.allow_all_models else ", ".join(sorted(tenant.models)) or "none"


def _key_models(key: Key) -> str:
    return "as its tenant" if key.models is None else ", ".join(sorted(key.models)) or "none"


def limits(limits: Limits, max_tokens: int | None = None) -> str:
    figures = {**asdict(limits), "max_tokens": max_tokens}
    return (
        ", ".join(f"{name.replace('_', '-')} {value}" for name, value in figures.items() if value is not None) or "none"
    )


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _day(moment: datetime | None, absent: str) -> str:
    return absent if moment is None else f"{moment:%Y-%m-%d}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()) -> str:
    """Columns that are empty everywhere are left out; those whose heading is in `numbers` are set to the right."""
    columns = [column for column in zip(headings, *rows, strict=True) if any(column[1:])]
    set_columns = []
    for column in columns:
        width, right = max(map(len, column)), column[0] in numbers
        set_columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*set_columns, strict=True))


def print_document(document: object) -> int:
    """All that a command says with --json; 0, the command's exit status."""
    print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"Note: {note}")
