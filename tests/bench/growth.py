"""Whether a full house is slower than an empty one: keys and ledger rows by the million, then the same load again."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from tests.bench import load
from tests.bench.load import chat, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.subjects import Subject
    from tests.harness import Gateway

_KEYS = """
WITH tenants AS (
    INSERT INTO tenant (name, allow_all_models)
    SELECT 'grown-' || n, true FROM generate_series(1, $1::int) n RETURNING id
), numbered AS (SELECT id, row_number() OVER () AS n FROM tenants)
INSERT INTO api_key (prefix, hash, tenant_id)
SELECT 'nz_' || lpad(k::text, 9, '0'), (SELECT hash FROM api_key LIMIT 1), numbered.id
FROM generate_series(1, $2::int) k JOIN numbered ON numbered.n = 1 + k % $1::int
"""
_ROWS = """
INSERT INTO audit (request_id, started_at, tenant_id, tenant, key_id, key_prefix, model, endpoint, decision, status,
                   prompt_tokens, completion_tokens, estimated, settled_at)
SELECT 'grown-' || n, now() - n * interval '0.2 seconds', 1 + n % 1000, 'grown-' || n % 1000, n % 100000, 'nz_grown',
       'llama3.1:8b', '/api/chat', 'allowed', 200, 6, 7, false, now()
FROM generate_series($1::int, $2::int) n
"""


def measure(
    gateway: Gateway, subject: Subject, seconds: float, rounds: int, keys: int, rows: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Requests per CPU second before and after the database has grown."""
    message = request("POST", "/api/chat", chat(), subject.key)

    def speed() -> float:
        found = []
        for _ in range(rounds):
            before = subject.cpu()
            result = load.run(subject.url, message, connections=16, seconds=seconds)
            found.append(result.answers / (subject.cpu() - before))
        return statistics.median(found)

    empty = speed()
    say(f"growing to {keys:,} keys of 1,000 tenants")
    gateway.sql(_KEYS, min(1000, keys), keys)
    many_keys = speed()
    step = 1_000_000
    for first in range(1, rows + 1, step):
        say(f"growing to {rows:,} ledger rows: {first - 1:,}")
        gateway.sql(_ROWS, first, min(first + step - 1, rows))
    gateway.sql("ANALYZE audit")
    full = speed()
    return {
        "what": f"{keys:,} keys and {rows:,} ledger rows against an empty store",
        "requests_per_cpu_second": {"empty": empty, "keys": many_keys, "keys and rows": full},
        "slower_percent": (empty / full - 1) * 100,
    }
