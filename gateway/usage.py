"""`paddock usage`: what was used, as a table, as CSV or as one JSON document."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from gateway import running
from gateway.admin_output import table
from gateway.database import ask
from gateway.ledger_names import named_key, named_model, named_tenant
from policy.rules.faults import StoreDown
from policy.stores import redis
from policy.stores.reports_postgres import Reports, Used

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_FIGURES = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "estimated_requests",
    "load_seconds",
    "prompt_seconds",
    "eval_seconds",
)
_HEADINGS = ("REQUESTS", "PROMPT", "COMPLETION", "TOTAL", "ESTIMATED", "LOAD s", "PROMPT s", "EVAL s")
_COLUMNS = {"key": "key_prefix"}  # a dimension's name in CSV and JSON, where it is not its own


def usage(args: argparse.Namespace) -> int:
    by = list(dict.fromkeys(args.by or ("tenant", "model")))
    if args.json and args.format not in (None, "json"):
        args.wrong(f"--json and --format {args.format} are two things")
    since, until = _days(args)
    rows = ask(args, lambda url: _read(args, url, by, since, until))
    pending = _pending(args)
    names = [_COLUMNS.get(name, name) for name in by]
    match "json" if args.json else args.format:
        case "json":
            _print_json(names, rows, since, until, pending)
        case "csv":
            _print_csv(names, rows)
            _warn(pending)
        case _:
            print(f"Used from {since} to {until} (UTC days)")
            print()
            print(_table(by, rows) if rows else "Nothing.")
            _warn(pending)
    return 0


def _days(args: argparse.Namespace) -> tuple[date, date]:
    until: date = args.until.date() if args.until else datetime.now(UTC).date()
    since: date = args.since.date() if args.since else until.replace(day=1)
    if since > until:
        args.wrong(f"--since {since} is after --until {until}")
    return since, until


async def _read(args: argparse.Namespace, url: str, by: Sequence[str], since: date, until: date) -> list[Used]:
    model = named_model(args)
    async with Reports.open(url) as reports:
        tenant_id, key_id = await named_tenant(args, reports), await named_key(args, reports)
        return await reports.usage(by, since, until, tenant_id=tenant_id, key_id=key_id, model=model)


def _pending(args: argparse.Namespace) -> int | None:
    """Events that are not in the ledger yet; None where that cannot be asked."""
    url = running.stores(args).redis_url
    if url is None:
        return None

    async def waiting() -> int:
        store = redis.RedisStore(await redis.connect(url), epoch="")
        try:
            return sum(await store.backlog())
        finally:
            await store.close()

    try:
        return asyncio.run(waiting())
    except StoreDown:  # the report is no less true for it
        return None


def _warn(pending: int | None) -> None:
    if pending:
        print(
            f"Note: {pending} events of requests are not in the ledger yet, which usually takes them a second.",
            file=sys.stderr,
        )


def _figures(used: Used) -> tuple[int | float, ...]:
    return (
        used.requests,
        used.prompt_tokens,
        used.completion_tokens,
        used.prompt_tokens + used.completion_tokens,
        used.estimated_requests,
        round(used.load_ns / 1e9, 3),
        round(used.prompt_ns / 1e9, 3),
        round(used.eval_ns / 1e9, 3),
    )


def _total(rows: Sequence[Used]) -> Used:
    return Used(
        ("total",),
        sum(row.requests for row in rows),
        sum(row.prompt_tokens for row in rows),
        sum(row.completion_tokens for row in rows),
        sum(row.estimated_requests for row in rows),
        sum(row.load_ns for row in rows),
        sum(row.prompt_ns for row in rows),
        sum(row.eval_ns for row in rows),
    )


def _print_json(names: Sequence[str], rows: Sequence[Used], since: date, until: date, pending: int | None) -> None:
    document = {
        "since": since.isoformat(),
        "until": until.isoformat(),
        "by": list(names),
        "rows": [dict(zip((*names, *_FIGURES), (*map(str, row.group), *_figures(row)), strict=True)) for row in rows],
        "total": dict(zip(_FIGURES, _figures(_total(rows)), strict=True)),
        "pending_events": pending,
    }
    print(json.dumps(document, indent=2))


def _print_csv(names: Sequence[str], rows: Sequence[Used]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*names, *_FIGURES))
    writer.writerows((*row.group, *_figures(row)) for row in rows)


def _table(by: Sequence[str], rows: Sequence[Used]) -> str:
    blank = ("",) * (len(by) - 1)
    lines = [(*map(str, row.group), *_cells(row)) for row in rows]
    lines.append(("total", *blank, *_cells(_total(rows))))
    return table((*(name.upper() for name in by), *_HEADINGS), lines, numbers=_HEADINGS)


def _cells(used: Used) -> tuple[str, ...]:
    return tuple(f"{figure:,.1f}" if isinstance(figure, float) else f"{figure:,}" for figure in _figures(used))
