"""How a command changes tenants, keys and sessions: one administrator over the database, one piece of work, and a
refusal is a `Failure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gateway import command_line
from gateway.database import ask
from gateway.failure import Failure
from gateway.key_prefix import refuse_secret
from policy.admission.admin import Admin, Refusal
from policy.stores.postgres import PATIENT_SECONDS, Postgres
from policy.stores.registry import Registries

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

A = TypeVar("A")
T = TypeVar("T")


def tenant_name(args: argparse.Namespace, *, needed: bool = True) -> str:
    """The tenant that `command_line.add_tenant` asked for; Failure if a key was pasted there."""
    name = command_line.given(args, "tenant", "the tenant's name", needed=needed)
    refuse_secret(name)
    return name


def act(args: argparse.Namespace, work: Callable[[Admin], Awaitable[T]]) -> T:
    """What `work` makes of tenants, keys and tiers; Failure says why it was refused."""
    return act_as(lambda postgres: Admin(Registries(postgres).open), args, work)


def act_as(over: Callable[[Postgres], A], args: argparse.Namespace, work: Callable[[A], Awaitable[T]]) -> T:
    """The same with another administrator, which `over` makes."""

    async def within(url: str) -> T:
        async with Postgres.open(url, connections=1, patience=PATIENT_SECONDS) as postgres:
            return await work(over(postgres))

    try:
        return ask(args, within)
    except Refusal as refusal:
        raise Failure(str(refusal)) from refusal
