"""The journal: every entry of the access log written, and what nobody settled settled by what Envoy saw."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from policy.admission import journal
from policy.admission.journal import Journal
from policy.rules.events import Finished, Progress
from policy.rules.faults import StoreDown
from policy.rules.grant import Duty, Grant
from policy.rules.speeds import Speeds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.events import Entry
    from policy.rules.settlement import Settlement

GRANT = Grant("r", 1, Duty.METER, "/api/chat", "m", True, 7, "acme", 9, "nz_abcdefghi", "epoch", 12, 100)


class Store:
    """Takes down what it is told, and is down as often as it is told to be."""

    def __init__(self) -> None:
        self.down = 0
        self.logged: dict[int, list[tuple[str, bool, str]]] = {}
        self.again: list[bool] = []
        self.renewed: dict[int, list[tuple[str, int]]] = {}
        self.settled: list[tuple[Grant, Settlement]] = []

    def shard_of(self, tenant_id: int | None, address: str) -> int:
        return -1 if tenant_id is None else tenant_id

    async def log(self, shard: int, entries: Iterable[Entry], *, again: bool = False) -> list[int]:
        self._answer()
        entries = list(entries)
        self.logged.setdefault(shard, []).extend((entry.address, entry.refused, entry.event) for entry in entries)
        self.again.append(again)
        return list(range(len(entries)))

    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None:
        self._answer()
        self.renewed.setdefault(tenant_shard, []).extend(progress)

    async def settle(self, grant: Grant, settlement: Settlement) -> str:
        self._answer()
        self.settled.append((grant, settlement))
        return "settled"

    def _answer(self) -> None:
        if self.down:
            self.down -= 1
            raise StoreDown("down")


def finished(**fields: Any) -> Finished:
    return Finished(
        **{
            "request_id": "r", "started_at": 1, "tenant_id": 7, "address": "192.0.2.1", "refused": False,
            "recorded": False, "counted": False, "grant": "", "settled": False, "reached_upstream": True,
            "response_bytes": 0, "event": "{}", **fields,
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(journal, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(journal, "STORE_SECONDS", 0.01)


def settled_by(*entries: Finished, down: int = 0) -> list[tuple[Grant, Settlement]]:
    """What comes of these entries, once all of them are settled that will be."""
    store = Store()

    async def scenario() -> None:
        book = Journal(store)
        await book.write(entries)
        store.down = down
        running = asyncio.ensure_future(book.run())
        async with asyncio.timeout(10):
            while book.waiting:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(scenario())
    return store.settled


def test_entries_go_to_their_shards_and_refusals_are_told_apart() -> None:
    store = Store()
    asyncio.run(
        Journal(store).write(
            [
                finished(event="a"),
                finished(event="b", tenant_id=None, refused=True),
                finished(event="c", refused=True, recorded=True),
                finished(event="d", refused=True, recorded=True, counted=True),
            ]
        )
    )
    assert store.logged == {
        7: [("192.0.2.1", False, "a"), ("192.0.2.1", False, "c")],
        -1: [("192.0.2.1", True, "b")],
    }


def test_a_store_that_is_down_is_waited_for() -> None:
    store = Store()
    store.down = 3
    asyncio.run(Journal(store).write([finished(event="a")]))
    assert store.logged == {7: [("192.0.2.1", False, "a")]}


def test_what_never_reached_an_upstream_costs_nothing() -> None:
    ((grant, settlement),) = settled_by(finished(grant=GRANT.to_json(), reached_upstream=False))
    assert grant == GRANT
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (0, 0, True)
    assert settlement.event == {"outcome": "not_forwarded"}


@pytest.mark.parametrize(("response_bytes", "tokens"), [(0, 0), (1100, 10), (10**9, 100)])
def test_what_did_is_estimated_by_its_bytes_and_never_above_its_cap(response_bytes: int, tokens: int) -> None:
    ((_, settlement),) = settled_by(finished(grant=GRANT.to_json(), response_bytes=response_bytes))
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (None, tokens, False)


def test_what_its_processor_settled_is_left_alone() -> None:
    assert settled_by(finished(grant=GRANT.to_json(), settled=True)) == []


def test_a_grant_without_a_reservation_has_nothing_to_settle() -> None:
    shown = Grant("r", 1, Duty.SHOW, "/api/show", "m", False, 7, "acme", 9, "nz_abcdefghi", "", 0, 0)
    assert settled_by(finished(grant=shown.to_json())) == []


def test_a_grant_that_cannot_be_read_does_not_stop_the_others() -> None:
    assert len(settled_by(finished(grant='{"from": "another version"}'), finished(grant=GRANT.to_json()))) == 1


def test_while_the_store_is_down_the_processor_goes_first_again() -> None:
    assert len(settled_by(finished(grant=GRANT.to_json()), down=2)) == 1


# What Envoy metered by itself.

READ = '{"st":200,"p":11,"c":22,"x":true,"outcome":"completed","eval":1000000000}'


def metered(*entries: Finished, down: int = 0, speeds: Speeds | None = None) -> tuple[Store, list[Settlement]]:
    """The store after these entries were written, and how they were settled by then."""
    store = Store()
    store.down = down
    book = Journal(store, speeds)
    asyncio.run(book.write(entries))
    assert book.waiting == 0, "no processor will settle it: there is nothing to wait for"
    return store, [settlement for _, settlement in store.settled]


def by_envoy(**fields: Any) -> Finished:
    return finished(**{"grant": GRANT.to_json(), "metered": True, "status": 200, **fields})


def test_a_reading_that_no_processor_took_is_settled_as_it_is() -> None:
    store, (settlement,) = metered(by_envoy(used=READ, deltas=20))
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (11, 22, True)
    assert settlement.event["outcome"] == "completed"
    assert store.logged == {7: [("192.0.2.1", False, "{}")]}


def test_it_is_settled_before_its_entry_is_written() -> None:
    class Ordered(Store):
        async def log(self, shard: int, entries: Iterable[Entry], *, again: bool = False) -> list[int]:
            assert self.settled, "an entry says that its request is settled"
            return await super().log(shard, entries, again=again)

    asyncio.run(Journal(Ordered()).write([by_envoy(used=READ)]))


def test_a_store_that_is_down_is_waited_for_before_either() -> None:
    store, (settlement,) = metered(by_envoy(used=READ), down=3)
    assert settlement.completion_tokens == 22
    assert store.logged


def test_what_was_settled_is_not_settled_again_and_teaches_the_models_speed() -> None:
    speeds = Speeds()
    _, settlements = metered(by_envoy(used=READ, settled=True), speeds=speeds)
    assert settlements == []
    assert speeds.produced("m", 1.0, 1000) == 22


@pytest.mark.parametrize(
    ("fields", "prompt", "completion", "exact", "outcome"),
    [
        pytest.param({"reached_upstream": False}, 0, 0, True, "not_forwarded", id="never sent on"),
        pytest.param({"deltas": 41}, None, 41, False, "aborted", id="the client left in a stream"),
        pytest.param({"deltas": 0}, None, 0, False, "aborted", id="before the stream's first piece"),
        pytest.param({"deltas": 10**6}, None, 100, False, "aborted", id="never above the cap"),
        pytest.param({"status": 502}, 0, 0, True, "upstream_error", id="the upstream failed"),
        pytest.param({"microseconds": 2_000_000}, None, 40, False, "aborted", id="nothing seen: by its time"),
        pytest.param({"microseconds": 10**9}, None, 100, False, "aborted", id="by its time, up to the cap"),
        pytest.param({"used": "{}", "deltas": 41}, None, 41, False, "aborted", id="a reading that is none"),
        pytest.param({"used": READ[:-9], "deltas": 41}, None, 41, False, "aborted", id="half a reading"),
    ],
)
def test_without_a_reading_what_was_seen_counts(
    fields: dict[str, Any], prompt: int | None, completion: int, exact: bool, outcome: str
) -> None:
    _, (settlement,) = metered(by_envoy(**fields))
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (prompt, completion, exact)
    assert settlement.event["outcome"] == outcome


def test_a_document_of_which_nothing_was_seen_is_charged_by_its_time() -> None:
    document = replace(GRANT, stream=False)
    _, (settlement,) = metered(by_envoy(grant=document.to_json(), deltas=0, microseconds=2_000_000))
    assert settlement.completion_tokens == 40


@pytest.mark.parametrize("grant", ['{"from": "another version"}', replace(GRANT, epoch="").to_json()])
def test_without_a_grant_or_a_reservation_the_entry_is_written_all_the_same(grant: str) -> None:
    store, settlements = metered(by_envoy(grant=grant, used=READ), by_envoy(used=READ))
    assert len(settlements) == 1
    assert len(store.logged[7]) == 2


def test_leases_are_renewed_shard_by_shard() -> None:
    store = Store()
    asyncio.run(Journal(store).renew([Progress("a", 7, 1), Progress("b", 8, 0), Progress("c", 7, 3)]))
    assert store.renewed == {7: [("a", 1), ("c", 3)], 8: [("b", 0)]}


def test_a_renewal_that_a_store_misses_holds_nothing_up() -> None:
    store = Store()
    store.down = 1
    asyncio.run(Journal(store).renew([Progress("a", 7, 1), Progress("b", 8, 2)]))
    assert store.renewed == {8: [("b", 2)]}
