"""What the commands about the shape of requests do: ask `policy.admission.admin`, then print what holds now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway.admin_output import table
from gateway.administration import act
from gateway.key_prefix import refuse_secret
from policy.rules.bounds import DEFAULT, MEANINGS, USUAL, Bounds, read

if TYPE_CHECKING:
    import argparse

    from policy.rules.bounds import Value


def set_bounds(args: argparse.Namespace) -> int:
    refuse_secret(args.tenant)
    bounds = dict(_bound(args, text) for text in args.bounds)
    change = act(args, lambda admin: admin.set_tenant_bounds(args.tenant, bounds))
    return _show(args, change.tenant.name, change.tenant.bounds, only_differing=True)


def list_bounds(args: argparse.Namespace) -> int:
    if args.tenant is None:
        return _show(args, None, DEFAULT)
    refuse_secret(args.tenant)
    tenant = act(args, lambda admin: admin.tenant(args.tenant))
    return _show(args, tenant.name, tenant.bounds)


def _bound(args: argparse.Namespace, text: str) -> tuple[str, Value | None]:
    """NAME=VALUE; None where it is to be as usual."""
    written, equals, value = text.partition("=")
    name = written.replace("-", "_")
    if not equals or name not in USUAL:
        known = ", ".join(one.replace("_", "-") for one in USUAL)
        args.wrong(f"{text!r} is no NAME=VALUE with one of these names: {known}")
    try:
        return name, None if value == "usual" else read(name, value)
    except ValueError as error:
        args.wrong(f"{text!r}: {error}")
        raise  # for the type checker: `wrong` ends the program


def _show(args: argparse.Namespace, tenant: str | None, bounds: Bounds, *, only_differing: bool = False) -> int:
    differing = bounds.differing()
    if args.json:
        whole = {name: _plain(getattr(bounds, name)) for name in USUAL}
        print(json.dumps({"tenant": tenant, "bounds": whole, "differing": sorted(differing)}, indent=2))
        return 0
    if only_differing:
        print(f"Tenant {tenant} changed." if differing else f"Tenant {tenant} changed: its bounds are the usual ones.")
    rows = [
        (name.replace("_", "-"), _words(getattr(bounds, name)), _words(usual), MEANINGS[name].replace("`", ""))
        for name, usual in USUAL.items()
        if name in differing or not only_differing
    ]
    if tenant is None:  # there is nothing but the usual
        print(table(("BOUND", "AT MOST", "OF"), [(name, value, meaning) for name, value, _, meaning in rows]))
    elif rows:
        print(table(("BOUND", "AT MOST", "USUALLY", "OF"), rows))
    return 0


def _plain(value: Value) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _words(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else f"{value:.0f}"
