"""Whom and what a report is about, from the names that an operator knows to the ones that the ledger has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.failure import Failure, redacted
from gateway.key_prefix import checked_prefix, refuse_secret
from policy.rules.models import canonical

if TYPE_CHECKING:
    import argparse

    from policy.stores.reports_postgres import Reports


async def named_tenant(args: argparse.Namespace, reports: Reports) -> int | None:
    """The id of --tenant; None where none is named."""
    if args.tenant is None:
        return None
    refuse_secret(args.tenant)
    found = await reports.tenant_id(args.tenant)
    if found is None:
        raise Failure(f"there is no tenant {redacted(args.tenant)}", do="`paddock list-tenants` shows all.")
    return found


async def named_key(args: argparse.Namespace, reports: Reports) -> int | None:
    """The id of --key; None where none is named."""
    if args.key is None:
        return None
    found = await reports.key_id(checked_prefix(args.key))
    if found is None:
        raise Failure(f"there is no key {args.key}", do="`paddock list-keys` shows all.")
    return found


def named_model(args: argparse.Namespace) -> str | None:
    """--model in the form that the ledger has; None where none is named."""
    if args.model is None:
        return None
    try:
        return canonical(args.model)
    except ValueError as error:
        raise Failure(f"{redacted(args.model)!r} is not the name of a model: {error}") from error
