"""What the tenant and key commands do: ask `policy.admission.admin`, then print what became of it.

With --json every command prints one document; without, a few lines for a person. Errors are a `Failure` either way.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from gateway import admin_output as output
from gateway.admin import LIMITS
from gateway.database import ask
from gateway.failure import Failure
from gateway.key_prefix import checked_prefix, refuse_secret
from policy.admission.admin import Admin, Refusal
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant
from policy.stores.postgres import PATIENT_SECONDS, Postgres
from policy.stores.registry import Registries

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from policy.admission.admin import Change, Minted

T = TypeVar("T")


def create_tenant(args: argparse.Namespace) -> int:
    tenant = Tenant(
        id=0,
        name=_one(args, "name", "the tenant's name"),
        allow_all_models=args.allow_all_models,
        models=frozenset(args.model or ()),
        max_tokens=getattr(args, "max_tokens", None),
        limits=_limits(args),
    )
    return _changed(args, "created", _act(args, lambda admin: admin.create_tenant(tenant)))


def list_tenants(args: argparse.Namespace) -> int:
    found = _act(args, lambda admin: admin.list_tenants())
    if args.json:
        return _print([{**output.tenant(tenant), "keys": keys} for tenant, keys in found])
    if not found:
        print("There are no tenants yet: `paddock create-tenant NAME` makes one.")
        return 0
    print(output.tenants_table(found))
    return 0


def disable_tenant(args: argparse.Namespace) -> int:
    name = _one(args, "tenant", "the tenant's name")
    return _changed(args, "disabled", _act(args, lambda admin: admin.set_tenant_disabled(name, True)))


def enable_tenant(args: argparse.Namespace) -> int:
    name = _one(args, "tenant", "the tenant's name")
    return _changed(args, "enabled", _act(args, lambda admin: admin.set_tenant_disabled(name, False)))


def create_key(args: argparse.Namespace) -> int:
    name = _one(args, "tenant", "the tenant's name")
    key = Key(
        id=0,
        prefix="",
        hash="",
        tenant=Tenant(id=0, name=name),
        owner=args.owner,
        label=args.label,
        created_at=_now(),
        expires_at=args.expires,
        models=frozenset(args.model) if args.model else None,
        max_tokens=getattr(args, "max_tokens", None),
        limits=_limits(args),
    )
    minted = _act(args, lambda admin: admin.create_key(name, key, all_models=args.allow_all_models))
    return _minted(args, minted)


def list_keys(args: argparse.Namespace) -> int:
    name = _one(args, "tenant", "the tenant's name", needed=False)
    found = _act(args, lambda admin: admin.list_keys(name or None))
    if args.json:
        return _print([output.key(key, _now()) for key in found])
    if not found:
        print("There are no keys yet: `paddock create-key TENANT` makes one.")
        return 0
    print(output.keys_table(found, _now()))
    return 0


def disable_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "disabled", _act(args, lambda admin: admin.set_key_disabled(prefix, True, _now())))


def enable_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "enabled", _act(args, lambda admin: admin.set_key_disabled(prefix, False, _now())))


def revoke_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "revoked", _act(args, lambda admin: admin.revoke_key(prefix, _now())))


def rotate_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _minted(args, _act(args, lambda admin: admin.rotate_key(prefix, args.grace, _now())))


def allow_model(args: argparse.Namespace) -> int:
    tenant, prefix, models = _whom_and_models(args)
    if prefix:
        change = _act(args, lambda admin: admin.allow_for_key(prefix, models, all_models=args.all_models))
    else:
        change = _act(args, lambda admin: admin.allow_for_tenant(tenant, models, all_models=args.all_models))
    return _changed(args, "changed", change)


def deny_model(args: argparse.Namespace) -> int:
    tenant, prefix, models = _whom_and_models(args)
    if prefix:
        change = _act(args, lambda admin: admin.deny_for_key(prefix, models, all_models=args.all_models))
    else:
        change = _act(args, lambda admin: admin.deny_for_tenant(tenant, models, all_models=args.all_models))
    return _changed(args, "changed", change)


def set_limits(args: argparse.Namespace) -> int:
    limits = {name: getattr(args, name) for name in LIMITS if hasattr(args, name)}
    if not limits:
        args.wrong("say which limits: --rpm, --tpm, --concurrency, --budget-day, …")
    tenant, prefix = _whom(args, args.whom)
    if prefix:
        change = _act(args, lambda admin: admin.set_key_limits(prefix, limits))
    else:
        change = _act(args, lambda admin: admin.set_tenant_limits(tenant, limits))
    return _changed(args, "changed", change)


# Arguments that argparse cannot check by itself.


def _one(args: argparse.Namespace, name: str, what: str, *, needed: bool = True) -> str:
    """A value that may be given by position or by option, once."""
    given = {value for value in (getattr(args, name), getattr(args, f"{name}_option")) if value is not None}
    if len(given) > 1:
        args.wrong(f"{what} was given twice, and differently")
    if not given and needed:
        args.wrong(f"{what} is missing")
    value: str = given.pop() if given else ""
    if name == "tenant":
        refuse_secret(value)
    return value


def _prefix(args: argparse.Namespace) -> str:
    return checked_prefix(_one(args, "prefix", "the key's prefix"))


def _whom(args: argparse.Namespace, by_position: str | None) -> tuple[str, str]:
    """A tenant's name or a key's prefix, the other being empty; no tenant's name begins with nz_."""
    given = [value for value in (by_position, args.tenant_option, args.prefix_option) if value is not None]
    if len(given) != 1:
        args.wrong("say which tenant, or which key: one of them")
    if args.prefix_option is not None or (by_position or "").startswith("nz_"):
        return "", checked_prefix(given[0])
    refuse_secret(given[0])
    return given[0], ""


def _whom_and_models(args: argparse.Namespace) -> tuple[str, str, list[str]]:
    names = list(args.names)
    by_position = names.pop(0) if names and args.tenant_option is None and args.prefix_option is None else None
    tenant, prefix = _whom(args, by_position)
    models = [*names, *args.model]
    if bool(models) == args.all_models:
        args.wrong("say which models, or --all")
    return tenant, prefix, models


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(**{name: getattr(args, name) for name in LIMITS if name != "max_tokens" and hasattr(args, name)})


def _now() -> datetime:
    return datetime.now(UTC)


# Doing it, and saying so.


def _act(args: argparse.Namespace, act: Callable[[Admin], Awaitable[T]]) -> T:
    async def within(url: str) -> T:
        async with Postgres.open(url, connections=1, patience=PATIENT_SECONDS) as postgres:
            return await act(Admin(Registries(postgres).open))

    try:
        return ask(args, within)
    except Refusal as refusal:
        raise Failure(str(refusal)) from refusal


def _changed(args: argparse.Namespace, what: str, change: Change) -> int:
    if args.json:
        about = output.tenant(change.tenant) if change.key is None else output.key(change.key, _now())
        return _print({**about, "notes": list(change.notes)})
    if change.key is None:
        print(f"Tenant {change.tenant.name} {what}.")
        print(output.lines(output.tenant_facts(change.tenant)))
    else:
        print(f"Key {change.key.prefix} {what}.")
        print(output.lines(output.key_facts(change.key, _now())))
    _note(change.notes)
    return 0


def _minted(args: argparse.Namespace, minted: Minted) -> int:
    now, old = _now(), minted.old
    if args.json:
        document = {"key": minted.secret.reveal(), **output.key(minted.key, now), "notes": list(minted.notes)}
        if old is not None:
            document["rotated"] = output.key(old, now)
        return _print(document)
    print(minted.secret.reveal())
    print()
    print(output.lines(output.key_facts(minted.key, now)))
    print()
    print("This is the only time the key is shown: only a hash of it is kept.")
    if old is not None:
        end = min(moment for moment in (old.revoked_at, old.expires_at) if moment is not None)
        print(f"The old key {old.prefix} stays good until {output.moment(end)}, for {output.span(end - now)}.")
    _note(minted.notes)
    return 0


def _note(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"Note: {note}")


def _print(document: object) -> int:
    print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
