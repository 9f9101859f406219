"""What the tier commands do: ask `policy.admission.admin`, then print what holds now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway.admin_output import table
from gateway.administration import act
from policy.rules.tiers import Tier

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from policy.rules.tiers import Tiers


def set_tier(args: argparse.Namespace) -> int:
    if bool(args.models) == args.all_models:
        args.wrong("say which models, or --all")
    tiers = None if args.default else frozenset(map(Tier, args.tier or ()))
    return _show(args, act(args, lambda admin: admin.set_tiers(args.models, tiers)))


def list_tiers(args: argparse.Namespace) -> int:
    return _show(args, act(args, lambda admin: admin.list_tiers()))


def _show(args: argparse.Namespace, tiers: Tiers) -> int:
    if args.json:
        of = {model: _words(on) for model, on in sorted(tiers.of.items())}
        print(json.dumps({"models": of, "others": _words(tiers.others)}, indent=2))
        return 0
    rows = [(model, ", ".join(_words(on)) or "none") for model, on in sorted(tiers.of.items())]
    rows.append(("all others" if rows else "all", ", ".join(_words(tiers.others)) or "none"))
    print(table(("MODEL", "TIERS"), rows))
    return 0


def _words(tiers: Iterable[Tier]) -> list[str]:
    return [tier.value for tier in Tier if tier in tiers]
