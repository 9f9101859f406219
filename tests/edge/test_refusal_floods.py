"""A flood of refusals does not fill the disk, and every one of them is counted once."""

from __future__ import annotations

import concurrent.futures
import functools
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests import harness
from tests.edge.visitors import allow, listed, new_origin, page
from tests.harness import eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Gateway

ROWS = 50
OPENINGS = 20  # refused ones, in a minute
REREAD_SECONDS = 7.0  # policy reads Envoy's file four seconds behind, a piece each second


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with harness.running(tmp_path_factory.mktemp("floods") / "data", PADDOCK_REFUSAL_ROWS=str(ROWS)) as gateway:
        yield gateway


def rows(gateway: Gateway) -> int:
    """Refusals with a row of their own. Preflights, with which a test waits for its origin, are none of them."""
    (found,) = gateway.sql("SELECT count(*) AS n FROM audit WHERE decision = 'denied' AND method = 'POST'")
    count: int = found["n"]
    return count


def so_far(gateway: Gateway) -> tuple[int, int]:
    """Refusals with a row of their own, and others. What came before, such as preflights that waited for an origin, is
    told of first."""
    while True:
        found = rows(gateway), gateway.refusals_past_rate()
        time.sleep(2)
        if found == (rows(gateway), gateway.refusals_past_rate()):
            return found


def send(ask: Callable[[], httpx.Response], status: int, count: int) -> None:
    for _ in range(count):
        assert ask().status_code == status


def told(gateway: Gateway, before: tuple[int, int], count: int) -> int:
    """Wait until `count` more refusals are told of, and until none will be told of again; those with rows."""
    eventually(lambda: rows(gateway) + gateway.refusals_past_rate() - sum(before) >= count, patience=30)
    time.sleep(REREAD_SECONDS)
    # While a minute's row is written it stands in the store as well.
    eventually(lambda: rows(gateway) + gateway.refusals_past_rate() - sum(before) == count, patience=5)
    return rows(gateway) - before[0]


def test_all_who_refuse_count_together(flooded: Gateway) -> None:
    """Policy without a tenant, Envoy by itself, a limit in a tenant's name, and sessions."""
    limited = flooded.client(None, "--rpm", "1")
    origin = new_origin()
    tenant = flooded.tenant()
    allow(flooded, tenant, origin, "--opened-per-minute", "1")
    visitor = page(flooded, origin)
    assert visitor.post("/session", json={"fingerprint": "first"}).status_code == 200
    assert limited.chat("x").status_code == 200
    http = flooded.http()
    before = so_far(flooded)
    send(lambda: http.post("/api/chat", content=b"{}"), 401, 2 * ROWS)
    send(lambda: http.post("/api/pull", content=b"{}"), 403, ROWS)
    send(lambda: limited.chat("x"), 429, ROWS + 20)
    send(lambda: visitor.post("/session", json={"fingerprint": "next"}), 429, OPENINGS + 30)
    found = told(flooded, before, 3 * ROWS + ROWS + 20 + OPENINGS + 30)
    assert found <= 2 * (2 * ROWS + OPENINGS)  # the minute may change meanwhile


def test_also_those_that_died_with_policy(flooded: Gateway) -> None:
    """The stream had told of some of them: the file tells of the others, and not of these again."""
    http = flooded.http()
    before = so_far(flooded)
    send(lambda: http.post("/api/pull", content=b"{}"), 403, 2 * ROWS)
    flooded.instance.kill("policy-0")
    send(lambda: http.post("/api/pull", content=b"{}"), 403, ROWS)
    flooded.instance.restart("policy-0")
    told(flooded, before, 3 * ROWS)


def test_also_those_told_in_grpc(flooded: Gateway) -> None:
    """Envoy gives them status 200, which is what it logs: they are refusals all the same."""
    http = flooded.http()
    http.headers["content-type"] = "application/grpc"
    before = so_far(flooded)
    send(lambda: http.post("/api/pull", content=b"{}"), 200, 2 * ROWS)
    send(lambda: http.post("/api/chat", content=b"{}"), 200, ROWS)
    assert told(flooded, before, 3 * ROWS) <= 2 * ROWS


def test_answers_for_anybody_do_not_fill_the_disk_either(flooded: Gateway) -> None:
    http = flooded.http()
    paths = ("/healthz", "/", "/api/version", "/readyz", "/pki/public_key")
    count_of = "SELECT count(*) AS n FROM audit WHERE endpoint = ANY($1)"
    before = flooded.sql(count_of, list(paths))[0]["n"] + flooded.answers_past_rate()
    for path in paths:
        send(functools.partial(http.get, path), 200, ROWS)
    time.sleep(REREAD_SECONDS)
    (found,) = flooded.sql(count_of, list(paths))
    assert found["n"] <= 2 * ROWS + before  # the minute may change meanwhile
    # Whoever waits for the gateway asks for its health, too.
    eventually(lambda: found["n"] + flooded.answers_past_rate() >= before + len(paths) * ROWS)
    assert found["n"] + flooded.answers_past_rate() <= before + len(paths) * ROWS + 20


def test_a_flood_of_openings_is_held(flooded: Gateway) -> None:
    """Five hundred from one address: ten sessions, no argon2, and hardly a write in PostgreSQL."""
    gateway, tenant, origin = flooded, flooded.tenant(), new_origin()
    allow(gateway, tenant, origin)
    http = page(gateway, origin)
    told_before = so_far(gateway)
    before = verifications(gateway)
    written = transactions(gateway)

    def one(number: int) -> httpx.Response:
        return http.post("/session", json={"fingerprint": f"visitor {number}"})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(500)))
    opened = [one for one in found if one.status_code == 200]
    held = [one for one in found if one.status_code == 429]
    assert len(opened) == 10
    assert len(held) == 490
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in held)
    assert verifications(gateway) == before
    assert transactions(gateway) - written < 250, "a write each would be five hundred; batches go with time"
    gateway.audit(request_id(opened[-1]))
    found_rows = told(gateway, told_before, 490)
    assert found_rows <= 2 * OPENINGS, "the flood has two minutes"
    assert len(listed(gateway, tenant)) == 10


def transactions(gateway: Gateway) -> int:
    """How many have written anything so far; reading takes no number."""
    (row,) = gateway.sql("SELECT pg_current_xact_id()::text::bigint AS number")
    found: int = row["number"]
    return found


def verifications(gateway: Gateway) -> float:
    metrics = httpx.get(f"{gateway.url}/metrics").text
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("paddock_key_verifications_total{")
    )
