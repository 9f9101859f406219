"""Events that no table takes, and hostile texts in them: set aside or cleaned, while the others go on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from policy.stores.redis import KEYS
from tests.postgresql import execute
from tests.stores.books import LOG, START, audit, books, carry, entry, served, usage

if TYPE_CHECKING:
    from tests.stores.cluster import Valkey

POISON = [
    {"k": "admit", "v": "ok", "e": "{"},
    {"k": "admit", "v": "ok", "e": "[]"},
    {"k": "nonsense"},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "12", "st": 10**12})},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "9" * 18})},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "not a time"})},
    {"k": "settle", "d": "1", "u": "1 1 0", "i": "{}", "e": "{}"},
    {"k": "settle", "d": str(10**10), "u": "1 1 0", "e": '{"id": "x"}', "i": json.dumps({
        "s": str(START), "t": 1, "tn": "", "k": 1, "kp": "", "model": "m", "ep": ""})},
    {"k": "settle", "d": "1", "u": "1 1", "e": '{"id": "x"}', "i": "{}"},
    {},
]  # fmt: skip
TEXTS = [b"a\x00b", b"\xff\xfe", "\ud800".encode("utf-8", "surrogatepass"), b"x" * 5000, "ünï".encode()]


def test_an_event_that_no_table_takes_is_set_aside_and_the_others_go_on(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            with valkey.client() as client:
                await served(store, 1)
                for poison in POISON:
                    client.xadd(KEYS[7].events, {"e": "nothing", **poison})
                await served(store, 2)
            await carry(ledger)
            assert [row["request_id"] for row in await audit(database)] == ["request-1", "request-2"]
            assert (await usage(database))[0][4:7] == (2, 20, 10)
            kept = await execute(database, "SELECT * FROM ledger_quarantine ORDER BY event")
            assert len(kept) == len(POISON)
            assert json.loads(kept[0]["fields"]) == POISON[0]
            assert await store.backlog() == [0] * 64

    asyncio.run(scenario())


@pytest.mark.parametrize("text", TEXTS, ids=["nul", "no-utf8", "surrogate", "long", "unicode"])
def test_a_hostile_text_is_cleaned_and_its_row_is_written(database: str, valkey: Valkey, text: bytes) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            event = json.dumps({**LOG, "id": "r", "s": str(START), "ep": "@"}).encode().replace(b"@", text)
            escaped = {**LOG, "id": "q", "s": str(START), "ep": text.decode("utf-8", "surrogateescape")}
            with valkey.client() as client:
                client.xadd(KEYS[7].events, {"k": "log", "e": event})
            await store.log(7, [entry(escaped)])
            await carry(ledger)
            rows = await audit(database)
            # A raw NUL is no JSON: that one is set aside. All others are rows.
            assert [row["request_id"] for row in rows] == (["q"] if b"\0" in text else ["q", "r"])
            assert all(0 < len(row["endpoint"]) <= 1000 for row in rows)

    asyncio.run(scenario())
