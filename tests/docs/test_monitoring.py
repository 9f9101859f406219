"""docs/how-to/monitoring.md says what `paddock audit --json` prints."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.audit import document
from policy.stores.reports_postgres import Audited

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "monitoring.md"


def test_every_field_of_an_audit_row_is_documented() -> None:
    known = {
        "decision": "denied", "reason": "endpoint_blocked", "outcome": "", "flags": "", "requests": 1,
        "started_at": datetime(2026, 11, 22, tzinfo=UTC),
        **dict.fromkeys(("request_id", "tenant", "key_prefix", "model", "endpoint", "method", "address"), ""),
    }  # fmt: skip
    values: dict[str, Any] = {field.name: known.get(field.name) for field in fields(Audited)}
    row = Audited(**values)
    table = PAGE.read_text(encoding="utf-8").partition("| Field | What it is |")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(document(row))
