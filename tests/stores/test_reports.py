"""`policy/stores/reports_postgres.py`: what the ledger's tables say, by what they hold."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from policy.rules.faults import DatabaseDown
from policy.stores.reports_postgres import Audited, Reports, Used, Wanted
from tests.postgresql import execute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DAY = date(2026, 11, 21)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def asked(database: str, question: Callable[[Reports], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        async with Reports.open(database) as reports:
            return await question(reports)

    return asyncio.run(within())


def fill(database: str, statement: str, *rows: tuple[object, ...]) -> None:
    async def within() -> None:
        for row in rows:
            await execute(database, statement, *row)

    asyncio.run(within())


@pytest.fixture
def used(database: str) -> str:
    """Two tenants, three keys, three days."""
    fill(database, "INSERT INTO tenant (name) VALUES ($1)", ("Acme",), ("Beta",))
    fill(
        database,
        "INSERT INTO api_key (prefix, hash, tenant_id) SELECT $1, '$argon2id$x', id FROM tenant WHERE name = $2",
        ("nz_aaaaaaaaa", "Acme"), ("nz_bbbbbbbbb", "Acme"), ("nz_ccccccccc", "Beta"),
    )  # fmt: skip
    fill(
        database,
        """INSERT INTO usage_daily SELECT $1, tenant_id, id, $3, $4, $5, $6, $7, 1000, 2000, 3000
        FROM api_key WHERE prefix = $2""",
        (DAY, "nz_aaaaaaaaa", "llama3.1:8b", 2, 10, 20, 1),
        (DAY, "nz_aaaaaaaaa", "mistral:7b", 1, 1, 2, 0),
        (DAY - timedelta(1), "nz_aaaaaaaaa", "llama3.1:8b", 1, 5, 5, 0),
        (DAY, "nz_bbbbbbbbb", "llama3.1:8b", 1, 3, 4, 0),
        (DAY, "nz_ccccccccc", "llama3.1:8b", 7, 70, 700, 7),
        (DAY - timedelta(40), "nz_ccccccccc", "llama3.1:8b", 1, 1, 1, 0),
    )
    return database


def test_usage_is_summed_by_what_was_asked_for(used: str) -> None:
    rows = asked(used, lambda reports: reports.usage(("tenant", "model"), DAY - timedelta(1), DAY))
    assert rows == [
        Used(("Acme", "llama3.1:8b"), 4, 18, 29, 1, 3000, 6000, 9000),
        Used(("Acme", "mistral:7b"), 1, 1, 2, 0, 1000, 2000, 3000),
        Used(("Beta", "llama3.1:8b"), 7, 70, 700, 7, 1000, 2000, 3000),
    ]
    by_day = asked(used, lambda reports: reports.usage(("day", "key"), DAY - timedelta(1), DAY))
    assert [row.group for row in by_day] == [
        (DAY - timedelta(1), "nz_aaaaaaaaa"), (DAY, "nz_aaaaaaaaa"), (DAY, "nz_bbbbbbbbb"), (DAY, "nz_ccccccccc"),
    ]  # fmt: skip


def test_both_days_count_and_no_other(used: str) -> None:
    def requests(since: date, until: date) -> int:
        rows: list[Used] = asked(used, lambda reports: reports.usage(("day",), since, until))
        return sum(row.requests for row in rows)

    assert requests(DAY, DAY) == 11
    assert requests(DAY - timedelta(1), DAY - timedelta(1)) == 1
    assert requests(DAY - timedelta(40), DAY) == 13
    assert requests(DAY + timedelta(1), DAY + timedelta(9)) == 0


def test_usage_of_one_tenant_key_or_model(used: str) -> None:
    async def requests(reports: Reports) -> list[int]:
        tenant, key = await reports.tenant_id("acme"), await reports.key_id("nz_bbbbbbbbb")
        assert tenant is not None and key is not None
        return [
            sum(row.requests for row in rows)
            for rows in (
                await reports.usage(("tenant",), DAY, DAY, tenant_id=tenant),
                await reports.usage(("tenant",), DAY, DAY, key_id=key),
                await reports.usage(("tenant",), DAY, DAY, model="mistral:7b"),
                await reports.usage(("tenant",), DAY, DAY, tenant_id=tenant, model="llama3.1:8b"),
            )
        ]

    assert asked(used, requests) == [4, 1, 1, 3]


def test_names_that_are_not_there(used: str) -> None:
    async def ids(reports: Reports) -> list[int | None]:
        return [await reports.tenant_id("nobody"), await reports.key_id("nz_000000000")]

    assert asked(used, ids) == [None, None]


def test_what_belongs_to_nobody_any_more_keeps_its_number(database: str) -> None:
    fill(database, "INSERT INTO usage_daily VALUES ($1, 77, 88, 'm:1', 1, 1, 1, 0, 0, 0, 0)", (DAY,))
    rows = asked(database, lambda reports: reports.usage(("tenant", "key"), DAY, DAY))
    assert rows[0].group == ("#77", "#88")


@pytest.fixture
def audited(database: str) -> str:
    fill(
        database,
        """INSERT INTO audit (request_id, started_at, tenant_id, tenant, key_prefix, model, endpoint, decision, reason,
        outcome, status) VALUES ($1, $2, $3, $4, $5, $6, '/api/chat', $7, $8, $9, $10)""",
        ("id-1", NOON, 1, "Acme", "nz_aaaaaaaaa", "llama3.1:8b", "allowed", "", "completed", 200),
        ("id-2", NOON + timedelta(seconds=1), 1, "Acme", "nz_aaaaaaaaa", "llama3.1:8b", "allowed", "", "aborted", 200),
        ("id-3", NOON + timedelta(seconds=2), 1, "Acme", "nz_bbbbbbbbb", "mistral:7b", "denied", "budget_day", "", 429),
        ("id-4", NOON + timedelta(hours=2), None, "", "nz_zzzzzzzzz", "", "denied", "key_unknown", "", 401),
    )
    return database


def found(database: str, **wanted: Any) -> list[str]:
    question = Wanted(**{"since": NOON, **wanted})
    rows: list[Audited] = asked(database, lambda reports: reports.audit(question))
    return [row.request_id for row in rows]


def test_audit_rows_come_newest_first(audited: str) -> None:
    assert found(audited) == ["id-4", "id-3", "id-2", "id-1"]
    assert found(audited, limit=2) == ["id-4", "id-3"]
    assert found(audited, since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=2)) == ["id-2"]


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({"tenant_id": 1}, ["id-3", "id-2", "id-1"]),
        ({"key_prefix": "nz_bbbbbbbbb"}, ["id-3"]),
        ({"key_prefix": "nz_zzzzzzzzz"}, ["id-4"]),
        ({"model": "mistral:7b"}, ["id-3"]),
        ({"status": 200}, ["id-2", "id-1"]),
        ({"reason": "budget_day"}, ["id-3"]),
        ({"reason": "aborted"}, ["id-2"]),
        ({"reason": "allowed"}, ["id-2", "id-1"]),
        ({"reason": "' OR true --"}, []),
    ],
)
def test_audit_rows_by_what_they_hold(audited: str, wanted: dict[str, object], ids: list[str]) -> None:
    assert sorted(found(audited, **wanted)) == sorted(ids)


def test_one_request(audited: str) -> None:
    (row,) = asked(audited, lambda reports: reports.request("id-3"))
    assert (row.request_id, row.started_at, row.tenant, row.key_prefix) == (
        "id-3", NOON + timedelta(seconds=2), "Acme", "nz_bbbbbbbbb",
    )  # fmt: skip
    assert (row.decision, row.reason, row.status, row.prompt_tokens, row.requests) == (
        "denied", "budget_day", 429, None, 1,
    )  # fmt: skip
    assert asked(audited, lambda reports: reports.request("id-9")) == []


def test_nothing_can_be_changed_through_a_report(database: str) -> None:
    async def write(reports: Reports) -> None:
        await reports._connection.execute("DELETE FROM audit")

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        asked(database, write)


def test_a_database_that_is_not_there(database: str) -> None:
    with pytest.raises(DatabaseDown):
        asked(database.replace("host=", "host=/nowhere"), lambda reports: reports.request("id"))
