"""What the tenant and key commands do: ask `policy.admission.admin`, then print what became of it.

With --json every command prints one document; without, a few lines for a person. Errors are a `Failure` either way.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway import admin_output as output
from gateway.admin import LIMITS
from gateway.administration import act, tenant_name
from gateway.command_line import given
from gateway.key_prefix import checked_prefix, refuse_secret
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant

if TYPE_CHECKING:
    import argparse

    from policy.admission.admin import Change, Minted


def create_tenant(args: argparse.Namespace) -> int:
    tenant = Tenant(
        id=0,
        name=given(args, "name", "the tenant's name"),
        allow_all_models=args.allow_all_models,
        models=frozenset(args.model or ()),
        max_tokens=getattr(args, "max_tokens", None),
        limits=_limits(args),
    )
    return _changed(args, "created", act(args, lambda admin: admin.create_tenant(tenant)))


def list_tenants(args: argparse.Namespace) -> int:
    found = act(args, lambda admin: admin.list_tenants())
    if args.json:
        return output.print_document([{**output.tenant(tenant), "keys": keys} for tenant, keys in found])
    if not found:
        print("There are no tenants yet: `paddock create-tenant NAME` makes one.")
        return 0
    print(output.tenants_table(found))
    return 0


def disable_tenant(args: argparse.Namespace) -> int:
    name = tenant_name(args)
    return _changed(args, "disabled", act(args, lambda admin: admin.set_tenant_disabled(name, True)))


def enable_tenant(args: argparse.Namespace) -> int:
    name = tenant_name(args)
    return _changed(args, "enabled", act(args, lambda admin: admin.set_tenant_disabled(name, False)))


def create_key(args: argparse.Namespace) -> int:
    name = tenant_name(args)
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
    minted = act(args, lambda admin: admin.create_key(name, key, all_models=args.allow_all_models))
    return _minted(args, minted)


def list_keys(args: argparse.Namespace) -> int:
    name = tenant_name(args, needed=False)
    found = act(args, lambda admin: admin.list_keys(name or None))
    if args.json:
        return output.print_document([output.key(key, _now()) for key in found])
    if not found:
        print("There are no keys yet: `paddock create-key TENANT` makes one.")
        return 0
    print(output.keys_table(found, _now()))
    return 0


def disable_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "disabled", act(args, lambda admin: admin.set_key_disabled(prefix, True, _now())))


def enable_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "enabled", act(args, lambda admin: admin.set_key_disabled(prefix, False, _now())))


def revoke_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _changed(args, "revoked", act(args, lambda admin: admin.revoke_key(prefix, _now())))


def rotate_key(args: argparse.Namespace) -> int:
    prefix = _prefix(args)
    return _minted(args, act(args, lambda admin: admin.rotate_key(prefix, args.grace, _now())))


def allow_model(args: argparse.Namespace) -> int:
    tenant, prefix, models = _whom_and_models(args)
    if prefix:
        change = act(args, lambda admin: admin.allow_for_key(prefix, models, all_models=args.all_models))
    else:
        change = act(args, lambda admin: admin.allow_for_tenant(tenant, models, all_models=args.all_models))
    return _changed(args, "changed", change)


def deny_model(args: argparse.Namespace) -> int:
    tenant, prefix, models = _whom_and_models(args)
    if prefix:
        change = act(args, lambda admin: admin.deny_for_key(prefix, models, all_models=args.all_models))
    else:
        change = act(args, lambda admin: admin.deny_for_tenant(tenant, models, all_models=args.all_models))
    return _changed(args, "changed", change)


def set_limits(args: argparse.Namespace) -> int:
    limits = {name: getattr(args, name) for name in LIMITS if hasattr(args, name)}
    if not limits:
        args.wrong("say which limits: --rpm, --tpm, --concurrency, --budget-day, …")
    tenant, prefix = _whom(args, args.whom)
    if prefix:
        change = act(args, lambda admin: admin.set_key_limits(prefix, limits))
    else:
        change = act(args, lambda admin: admin.set_tenant_limits(tenant, limits))
    return _changed(args, "changed", change)


# Arguments that argparse cannot check by itself.


def _prefix(args: argparse.Namespace) -> str:
    return checked_prefix(given(args, "prefix", "the key's prefix"))


def _whom(args: argparse.Namespace, by_position: str | None) -> tuple[str, str]:
    """A tenant's name or a key's prefix, the other being empty; no tenant's name begins with nz_."""
    named = [value for value in (by_position, args.tenant_option, args.prefix_option) if value is not None]
    if len(named) != 1:
        args.wrong("say which tenant, or which key: one of them")
    if args.prefix_option is not None or (by_position or "").startswith("nz_"):
        return "", checked_prefix(named[0])
    refuse_secret(named[0])
    return named[0], ""


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


# Saying what became of it.


def _changed(args: argparse.Namespace, what: str, change: Change) -> int:
    if args.json:
        about = output.tenant(change.tenant) if change.key is None else output.key(change.key, _now())
        return output.print_document({**about, "notes": list(change.notes)})
    if change.key is None:
        print(f"Tenant {change.tenant.name} {what}.")
        print(output.lines(output.tenant_facts(change.tenant)))
    else:
        print(f"Key {change.key.prefix} {what}.")
        print(output.lines(output.key_facts(change.key, _now())))
    output.print_notes(change.notes)
    return 0


def _minted(args: argparse.Namespace, minted: Minted) -> int:
    now, old = _now(), minted.old
    if args.json:
        document = {"key": minted.secret.reveal(), **output.key(minted.key, now), "notes": list(minted.notes)}
        if old is not None:
            document["rotated"] = output.key(old, now)
        return output.print_document(document)
    print(minted.secret.reveal())
    print()
    print(output.lines(output.key_facts(minted.key, now)))
    print()
    print("This is the only time the key is shown: only a hash of it is kept.")
    if old is not None:
        end = min(moment for moment in (old.revoked_at, old.expires_at) if moment is not None)
        print(f"The old key {old.prefix} stays good until {output.moment(end)}, for {output.span(end - now)}.")
    output.print_notes(minted.notes)
    return 0
