"""`policy/edge/readiness.py` and its page: each dependency named, asked rarely, and waited for a little."""

from __future__ import annotations

import asyncio

import pytest

from policy.edge.readiness import Readiness
from tests.policy.house import House, asked, ill, well


def test_readiness_names_what_is_missing() -> None:
    ready = asked("/readyz")
    checks = {"postgresql": "ok", "redis": "ok", "ollama": "ok"}
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": checks})
    answer = asked("/readyz", house=House(probes={"postgresql": well, "redis": ill, "ollama": well}))
    missing = {**checks, "redis": "unavailable"}
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable", "checks": missing})


@pytest.mark.parametrize(
    ("query", "status", "named"),
    [
        ("exclude=ollama", 200, {"postgresql", "redis"}),
        ("exclude=redis&exclude=ollama", 200, {"postgresql"}),
        ("exclude=redis", 503, {"postgresql", "ollama"}),
        ("exclude=all&exclude=&only=redis", 503, {"postgresql", "redis", "ollama"}),
        ("exclude=%6Fllama", 200, {"postgresql", "redis"}),
        ("\xff=%ff&" * 500 + "exclude=ollama", 503, {"postgresql", "redis", "ollama"}),
    ],
    ids=["one", "two", "another", "unknown", "escaped", "long"],
)
def test_readiness_but_for_some(query: str, status: int, named: set[str]) -> None:
    answer = asked(f"/readyz?{query}", house=House(probes={"postgresql": well, "redis": well, "ollama": ill}))
    assert (answer.status_code, set(answer.json()["checks"])) == (status, named)


def test_a_flood_of_readiness_questions_asks_each_dependency_once_until_it_is_old() -> None:
    count = 0
    now = 100.0

    async def probe() -> bool:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        return count < 2

    async def scenario() -> None:
        nonlocal now
        readiness = Readiness({"redis": probe}, clock=lambda: now)
        answers = await asyncio.gather(*(readiness.answer() for _ in range(200)))
        assert {status for status, _ in answers} == {200}
        assert count == 1
        now += 0.6
        assert (await readiness.answer())[0] == 503
        assert count == 2

    asyncio.run(scenario())


def test_a_dependency_that_hangs_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.edge.readiness.PROBE_TIMEOUT", 0.05)

    async def hang() -> None:
        await asyncio.Event().wait()

    answer = asked("/readyz", house=House(probes={"postgresql": hang, "redis": well}))
    assert answer.json()["checks"] == {"postgresql": "unavailable", "redis": "ok"}
