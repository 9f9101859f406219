"""`paddock audit`: what became of requests.

A program gets every field always; null is what is not known, or not yet. `reason` is why a request was refused, and
"allowed" where it was not, as in the metrics; how an allowed request's answer ended is its `outcome`. What was never
metered used 0 tokens. A row grows: the decision comes first, Envoy's log and the settlement follow within a second of
the answer's end, so one request is waited for until its row is whole.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from gateway.admin_output import iso, lines, table
from gateway.database import ask
from gateway.failure import Failure, redacted
from gateway.key_prefix import checked_holder, refuse_secret
from gateway.ledger_names import named_model, named_tenant
from policy.rules.endpoints import ENDPOINTS, Kind
from policy.stores.reports_postgres import Audited, Reports, Wanted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_METERED = frozenset(endpoint.path for endpoint in ENDPOINTS.values() if endpoint.metered)
_KEYED = frozenset(endpoint.path for endpoint in ENDPOINTS.values() if endpoint.kind is not Kind.VERSION)
_POLL_SECONDS = 0.1
_USUAL = timedelta(hours=24)
# Envoy makes UUIDs; a mesh may be told to keep other ids, and rows of many refusals have one with an address in it.
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=%@|-]{0,199}")
_NUMBERS = ("STATUS", "REQUESTS", "IN", "OUT", "MS")
_HEADINGS = (
    "TIME", "STATUS", "TENANT", "KEY", "MODEL", "ENDPOINT", "RESULT", "REQUESTS", "IN", "OUT", "MS", "ADDRESS", "FLAGS",
    "REQUEST ID",
)  # fmt: skip


def audit(args: argparse.Namespace) -> int:
    return _one(args) if args.request_id is not None else _many(args)


def _one(args: argparse.Namespace) -> int:
    request_id: str = args.request_id.strip()
    refuse_secret(request_id)
    if not _REQUEST_ID.fullmatch(request_id):
        raise Failure(f"{redacted(request_id)!r} is no request id", do="It is the X-Request-ID of a response.")
    rows = ask(args, lambda url: _whole(url, request_id, args.wait))
    if not rows:
        raise Failure(
            f"there is no request {request_id} in the audit log",
            do="Rows arrive within about a second of the answer (`paddock usage` says if the ledger is behind); "
            "past a rate, refusals share one row for each address and minute.",
        )
    if len(rows) > 1:
        print(f"Note: {len(rows)} rows have this id; this is the newest.", file=sys.stderr)
    if args.json:
        return _print(document(rows[0]))
    print(lines(_facts(document(rows[0]))))
    return 0


def _many(args: argparse.Namespace) -> int:
    if args.since and args.until and args.since >= args.until:
        args.wrong("--since must be before --until")
    rows = ask(args, lambda url: _newest(args, url))
    more, rows = len(rows) > args.limit, rows[: args.limit]
    if args.json:
        _print([document(row) for row in rows])
    elif rows:
        print(table(_HEADINGS, [_cells(row) for row in rows], numbers=_NUMBERS))
    else:
        print("No requests.")
    if more:
        print(f"Note: there are more; these are the newest {args.limit}. --limit shows more.", file=sys.stderr)
    return 0


async def _whole(url: str, request_id: str, patience: float) -> list[Audited]:
    """The rows of a request, once they are complete or the patience (seconds) is over."""
    deadline = time.monotonic() + patience
    async with Reports.open(url) as reports:
        while True:
            rows = await reports.request(request_id)
            if (rows and _complete(rows[0])) or time.monotonic() >= deadline:
                return rows
            await asyncio.sleep(_POLL_SECONDS)


async def _newest(args: argparse.Namespace, url: str) -> list[Audited]:
    until: datetime | None = args.until
    since: datetime = args.since or (until or datetime.now(UTC)) - _USUAL
    model = named_model(args)
    async with Reports.open(url) as reports:
        wanted = Wanted(
            since=since,
            until=until,
            tenant_id=await named_tenant(args, reports),
            key_prefix=None if args.key is None else checked_holder(args.key),  # one that never was is in it too
            model=model,
            status=args.status,
            reason=args.reason,
            limit=args.limit + 1,
        )
        return await reports.audit(wanted)


def _metered(row: Audited) -> bool:
    return row.decision == "allowed" and row.endpoint in _METERED


def _complete(row: Audited) -> bool:
    """Whether nothing more is to come: Envoy's log is in it, the admission, and the settlement where there is one."""
    if row.duration_us is None or (_metered(row) and row.settled_at is None):
        return False
    return row.decision == "denied" or bool(row.key_prefix) or row.endpoint not in _KEYED


def document(row: Audited) -> dict[str, object]:
    """One row as programs read it."""
    unused = row.settled_at is None and not _metered(row)  # there is nothing that could have used a token
    return {
        "request_id": row.request_id,
        "time": iso(row.started_at),
        "tenant": row.tenant,
        "key_prefix": row.key_prefix,
        "model": row.model,
        "method": row.method,
        "endpoint": redacted(row.endpoint),  # a path that somebody sent, perhaps with a key in it
        "status": row.status,
        "decision": row.decision,
        "reason": row.reason or "allowed",
        "outcome": row.outcome,
        "prompt_tokens": 0 if unused else row.prompt_tokens,
        "completion_tokens": 0 if unused else row.completion_tokens,
        "estimated": False if unused else row.estimated,
        "settled_at": iso(row.settled_at),
        "duration_ms": _ms(row.duration_us, 1e3),
        "upstream_ms": _ms(row.upstream_us or None, 1e3),
        "first_token_ms": _ms(row.ttft_us, 1e3),
        "load_ms": _ms(row.load_ns, 1e6),
        "prompt_ms": _ms(row.prompt_ns, 1e6),
        "eval_ms": _ms(row.eval_ns, 1e6),
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "address": row.address,
        "flags": [flag for flag in row.flags.split(",") if flag],
        "requests": row.requests,
    }


def _ms(time: int | None, parts: float) -> float | None:
    return None if time is None else round(time / parts, 3)


def _print(document: object) -> int:
    print(json.dumps(document, indent=2))  # ASCII: a path may hold what a terminal takes for a command
    return 0


def _facts(row: dict[str, object]) -> list[tuple[str, str]]:
    width = max(map(len, row))
    return [(name.ljust(width), _text(value)) for name, value in row.items() if value not in (None, "", [])]


def _cells(row: Audited) -> Sequence[str]:
    known = document(row)
    mark = "~" if row.estimated else ""
    tokens = [
        "" if known[name] is None or not _metered(row) else f"{mark}{known[name]:,}"
        for name in ("prompt_tokens", "completion_tokens")
    ]
    return [
        f"{row.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        _text(known["status"]),
        row.tenant,
        row.key_prefix,
        _text(row.model),
        _text(known["endpoint"]),
        row.reason or row.outcome or "allowed",
        "" if row.requests == 1 else f"{row.requests:,}",
        *tokens,
        "" if row.duration_us is None else f"{row.duration_us / 1e3:,.0f}",
        row.address,
        row.flags,
        row.request_id,
    ]


def _text(value: object) -> str:
    """For a person's terminal: what is not printable stands as its escape."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    text = "" if value is None else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]
