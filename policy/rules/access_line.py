"""A line of Envoy's own access log, read as what its log stream would have said.

The stream to policy has no acknowledgement: what it carried when policy died is gone, and so is what Envoy refused by
itself while no policy ran. Where the gateway can read the file too (`paddock up`), such requests are found there.
"""

from __future__ import annotations

import json
import re
from typing import Any

from policy.rules.events import OWN_PAGES, Finished, lacks_answer, local_reason, refusal_status, unjudged_id
from policy.rules.logs import redact_path

_TEXT_MAX = 200
_ID = re.compile(r"[0-9]{1,18}")


def parse(line: bytes) -> Finished | None:
    """The request that a line tells of; None for a line that is no entry (Envoy's own messages stand in between)."""
    if not line.startswith(b"{"):
        return None
    try:
        entry = json.loads(line)
        started_at = int(entry["started_us"])
        status = int(entry["status"])
        request_id = entry["request_id"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not isinstance(request_id, str) or not request_id:
        return None
    unjudged = not any(entry.get(name) for name in ("tenant", "reason", "recorded"))
    if unjudged:
        request_id = unjudged_id(request_id)
    reached = bool(entry.get("upstream")) and entry.get("route") not in OWN_PAGES
    admitted = bool(entry.get("tenant")) and not entry.get("reason")
    if not reached:
        status = refusal_status(status, _text(entry, "grpc_status"), limited="RL" in _text(entry, "flags").split(","))
    refused = status >= 400 and not reached and not admitted
    found = entry.get("tenant_id")
    tenant_id = int(found) if isinstance(found, str) and _ID.fullmatch(found) else None
    address = _text(entry, "client")
    # Where processor metered, it knows better than this line; where Envoy did, this is all that is left.
    grant = _text(entry, "grant", 4000) if entry.get("meter") and not entry.get("settled") else ""
    edge_reason = local_reason(status) if refused and not entry.get("reason") and not entry.get("upstream") else ""
    event: dict[str, Any] = {
        "id": request_id,
        "s": str(started_at),
        "t": tenant_id,
        "tn": _text(entry, "tenant"),
        "kp": _text(entry, "key_prefix"),
        "model": _text(entry, "model"),
        "ep": _text(entry, "endpoint") or redact_path(_text(entry, "path")),
        "method": _text(entry, "method"),
        "addr": address,
        "st": status,
        "reason": _text(entry, "reason") or (local_reason(status) if refused else ""),
        "nf": not reached and not admitted and lacks_answer(status),
        "flags": ",".join(filter(None, (_text(entry, "flags").replace("-", ""), _text(entry, "signals")))),
        "in": _number(entry, "bytes_received"),
        "out": _number(entry, "bytes_sent"),
        "us": _number(entry, "duration_ms") * 1000,
        "up_us": None,
    }
    return Finished(
        request_id, started_at, tenant_id, address, refused, bool(entry.get("recorded")),
        entry.get("recorded") == "0", grant, settled=not grant, reached_upstream=reached, response_bytes=0,
        event=json.dumps(event, separators=(",", ":")), edge_reason=edge_reason, status=status,
        microseconds=event["us"], metered=bool(grant), used=_text(entry, "used"),
        deltas=_number(entry, "deltas") if type(entry.get("deltas")) is int else None,
        open=unjudged and not refused and not reached,
    )  # fmt: skip


_NAMED = re.compile(rb'"request_id":"([^"\\]{1,200})"')
_STARTED = re.compile(rb'"started_us":"([0-9]{1,16})"')


def glance(line: bytes) -> tuple[str, int] | None:
    """A line's request id and start in µs, at a small part of what `parse` costs; None where that has to say. A quote
    within a JSON string is escaped, so no text of a client's can look like either."""
    name, started = _NAMED.search(line), _STARTED.search(line)
    return (name[1].decode("utf-8", "replace"), int(started[1])) if name and started else None


def _text(entry: dict[str, Any], name: str, most: int = _TEXT_MAX) -> str:
    value = entry.get(name)
    return value[:most] if isinstance(value, str) else ""


def _number(entry: dict[str, Any], name: str) -> int:
    value = entry.get(name)
    return value if isinstance(value, int) else 0
