"""Sessions while parts die: never an answer meanwhile; and taken back everywhere, heard of or not."""

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests import harness
from tests.edge.visitors import becomes, refused, visit
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose parts these tests may kill: two workers of each service."""
    with harness.running(tmp_path_factory.mktemp("sessions") / "data", workers=2) as gateway:
        yield gateway


def test_without_a_policy_nothing_is_there(lone: Gateway) -> None:
    """Runs first: nobody has allowed anything yet. It is the very 403 of what never existed."""
    with lone.http() as http:
        unknown = http.get("/nothing").json()["error"]
        for method, path in (
            ("POST", "/session"),
            ("OPTIONS", "/session"),
            ("POST", "/openai/chat/completions"),
            ("GET", "/openai/models"),
            ("GET", "/session/"),
            ("GET", "/session"),
            ("GET", "/session/client.js"),
        ):
            response = http.request(method, path, headers={"origin": "https://a.example"}, json={"fingerprint": "x"})
            refused(response, 403)
            assert response.json()["error"] == unknown


def test_taken_back_in_every_worker(lone: Gateway) -> None:
    visitor = visit(lone, lone.tenant(), "--rpm", "none", "--address-rpm", "none", "--fingerprint-rpm", "none")

    def ask(_: int) -> int:
        with httpx.Client(trust_env=False) as http:  # a connection of its own, so that any worker may be asked
            headers = {"authorization": f"Bearer {visitor.token}", "origin": visitor.origin}
            return http.get(f"{lone.url}/openai/models", headers=headers).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {200}
        lone.sql("INSERT INTO session_revocation VALUES ($1, now(), now() + interval '1 hour')", visitor.id)
        time.sleep(1)
        assert set(pool.map(ask, range(40))) == {401}


def test_a_notice_that_never_comes(lone: Gateway) -> None:
    """With the triggers gone, what is written is found all the same, within thirty seconds."""
    visitor = visit(lone, lone.tenant(), "--rpm", "none", "--address-rpm", "none", "--fingerprint-rpm", "none")
    lone.sql("ALTER TABLE session_revocation DISABLE TRIGGER changed")
    try:
        lone.sql("INSERT INTO session_revocation VALUES ($1, now(), now() + interval '1 hour')", visitor.id)
        began = time.monotonic()
        refused(becomes(401, visitor.ask, patience=60), 401, lone, "session_revoked")
        assert time.monotonic() - began < 60  # half of that; the machine may be busy
    finally:
        lone.sql("ALTER TABLE session_revocation ENABLE TRIGGER changed")


@pytest.mark.parametrize("part", ["postgres", "valkey"])
def test_killed(lone: Gateway, part: str) -> None:
    visitor = visit(lone, lone.tenant(), "--rpm", "none", "--address-rpm", "none", "--fingerprint-rpm", "none")
    lone.instance.kill(part)
    response = becomes(503, visitor.ask, patience=10)
    refused(response, 503)
    assert "retry-after" in response.headers
    if part == "valkey":  # whose page it is, is still known
        assert response.headers["access-control-allow-origin"] == visitor.origin
    for _ in range(5):
        refused(visitor.ask(), 503)
    refused(visitor.http.post("/session", json={"fingerprint": "x"}), 503)
    lone.instance.restart(part)
    assert eventually(lambda: visitor.ask().status_code == 200, patience=20), "the same session goes on"


def test_a_new_secret_ends_every_session(lone: Gateway) -> None:
    visitor = visit(lone, lone.tenant())
    secret = lone.data_dir / "secrets" / "session"
    assert secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_text()
    secret.write_text("x" * 64)
    try:
        for worker in ("policy-0", "policy-1"):
            lone.instance.restart(worker)
        refused(becomes(401, visitor.ask, patience=15), 401, lone, "session_invalid")
        visit(lone, visitor.tenant, origin=visitor.origin)
    finally:
        secret.write_text(before)
        for worker in ("policy-0", "policy-1"):
            lone.instance.restart(worker)
    assert eventually(lambda: visitor.ask().status_code == 200, patience=15)


def test_a_key_that_grew_old_is_replaced(lone: Gateway) -> None:
    visitor = visit(lone, lone.tenant())
    lone.sql("UPDATE session_key SET created_at = now() - interval '31 days'")
    lone.instance.restart("policy-0")  # it looks when it starts, and every ten minutes
    eventually(lambda: len(lone.sql("SELECT kid FROM session_key")) == 2)
    assert visitor.ask().status_code == 200
    assert visit(lone, visitor.tenant, origin=visitor.origin).ask().status_code == 200


def test_a_processor_killed_in_a_stream_gives_back_in_every_scope(lone: Gateway) -> None:
    visitor = visit(lone, lone.tenant(), "--concurrency", "1", "--fingerprint-concurrency", "1")
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "x !tokens=400 !delay=20"}], "stream": True}
    headers = {"authorization": f"Bearer {visitor.token}"}
    with visitor.http.stream("POST", "/openai/chat/completions", json=body, headers=headers) as response:
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)
        for worker in ("processor-0", "processor-1"):
            lone.instance.kill(worker)
        *_, last = filter(None, lines)
    assert last == "data: [DONE]"
    for worker in ("processor-0", "processor-1"):
        lone.instance.restart(worker)
    assert eventually(lambda: visitor.ask().status_code == 200, patience=30), "no scope holds what nobody uses"
    row = lone.audit(request_id(response), patience=30)
    assert (row["completion_tokens"], row["estimated"]) == (400, False)
    (one,) = lone.paddock("list-sessions", visitor.tenant)["sessions"]
    assert eventually(lambda: lone.paddock("list-sessions", visitor.tenant)["sessions"][0]["reserved_tokens"] == 0)
    assert one["tokens"] > 0


def test_what_all_sessions_spent_outlives_the_counters(lone: Gateway) -> None:
    """A store that lost everything: sessions are over, and their budget together is what it was."""
    visitor = visit(lone, lone.tenant(), "--all-budget-day", "100000", "--budget-total", "none", "--rpm", "none")
    for _ in range(4):
        lone.audit(request_id(visitor.ask("one two three")))
    store = lone.redis()
    store.flushall()
    refused(becomes(401, visitor.ask), 401, lone, "session_revoked")
    again = visit(lone, visitor.tenant, origin=visitor.origin)
    response = becomes(200, again.ask)
    assert response.headers["x-budget-tokens-remaining"] == str(100_000 - 4 * 7)
