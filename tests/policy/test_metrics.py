from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from policy.admission.discovery import UpstreamState
from policy.admission.upstreams import Fault
from policy.edge.metrics import MODELS_MAX, TENANTS_MAX, Metrics
from policy.rules.decision import Reason
from policy.rules.events import Charge
from policy.rules.judgement import Figures
from policy.rules.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


FIGURES = ("requests", "tokens", "under_way", "day", "month", "total", "open")


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of an exposition, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def read(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.exposition()).get((name, tuple(sorted(labels.items()))))


def fresh() -> Metrics:
    return Metrics(CollectorRegistry())


def test_requests_are_counted_by_endpoint_and_reason_with_the_time_they_took() -> None:
    metrics = fresh()
    metrics.decided("/api/chat", "allowed", 0.0007)
    metrics.decided("/api/chat", "allowed", 0.02)
    metrics.decided("/api/chat", Reason.MODEL.value, 0.0001)
    chat = {"endpoint": "/api/chat"}
    assert read(metrics, "paddock_requests_total", **chat, decision="allow", reason="allowed") == 2
    assert read(metrics, "paddock_requests_total", **chat, decision="deny", reason="model_not_available") == 1
    assert read(metrics, "paddock_check_duration_seconds_bucket", decision="allow", le="0.001") == 1
    assert read(metrics, "paddock_check_duration_seconds_count", decision="allow") == 2


def test_labels_that_others_choose_are_bounded() -> None:
    metrics = fresh()
    for number in range(TENANTS_MAX + 50):
        metrics.decided(f"/v1/made-up/{number}", Reason.ENDPOINT.value, 0.001)
    blocked = {key: value for key, value in samples(metrics.exposition()).items() if key[0] == "paddock_requests_total"}
    assert len(blocked) < 50
    assert sum(blocked.values()) == TENANTS_MAX + 50


def test_what_is_charged_by_whom_and_how_it_is_known() -> None:
    metrics = fresh()
    metrics.charged(Charge("acme", "llama3.1:8b", "completed", True, 3, 18, 33))
    metrics.charged(Charge("acme", "llama3.1:8b", "aborted", False, 2, 5, 7))
    acme = {"tenant": "acme", "model": "llama3.1:8b"}
    assert read(metrics, "paddock_tokens_total", **acme, direction="input") == 23
    assert read(metrics, "paddock_tokens_total", **acme, direction="output") == 40
    assert read(metrics, "paddock_settlements_total", known="exact") == 3
    assert read(metrics, "paddock_settlements_total", known="estimated") == 2
    assert read(metrics, "paddock_exchanges_total", duty="meter", outcome="completed") == 3
    assert read(metrics, "paddock_exchanges_total", duty="meter", outcome="aborted") == 2


def test_tenants_and_models_are_bounded_and_sums_stay_right() -> None:
    metrics = fresh()
    for number in range(2 * TENANTS_MAX):
        metrics.charged(Charge(f"tenant-{number}", f"model-{number}:latest", "completed", True, 1, 1, 0))
    inputs = {
        labels: value
        for (name, labels), value in samples(metrics.exposition()).items()
        if name == "paddock_tokens_total" and ("direction", "input") in labels
    }
    assert sum(inputs.values()) == 2 * TENANTS_MAX
    assert len({dict(labels)["tenant"] for labels in inputs}) == TENANTS_MAX + 1
    assert len({dict(labels)["model"] for labels in inputs}) == MODELS_MAX + 1


def test_levels_and_outcomes() -> None:
    metrics = fresh()
    metrics.verified("wrong", waited=0.02, took=0.11)
    metrics.verifications_waiting(3)
    metrics.store_called("redis", "admit", 0.0002)
    metrics.store_called("redis", "admit", 1.0, failed=True)
    metrics.ledger_at(1.5, 40)
    metrics.ledger_carried("settle", 12)
    metrics.reservations_open(7)
    metrics.reservations_swept(2)
    metrics.upstream_polled(UpstreamState("gpu:11434", reachable=True, fault=Fault.NONE, models=3))
    metrics.upstream_polled(UpstreamState("cpu:11434", fault=Fault.TIMEOUT))
    assert read(metrics, "paddock_key_verifications_total", outcome="wrong") == 1
    assert read(metrics, "paddock_key_verification_wait_seconds_sum") == 0.02
    assert read(metrics, "paddock_key_verification_duration_seconds_count") == 1
    assert read(metrics, "paddock_key_verification_queue") == 3
    assert read(metrics, "paddock_store_duration_seconds_count", store="redis", operation="admit") == 2
    assert read(metrics, "paddock_store_faults_total", store="redis", operation="admit") == 1
    assert read(metrics, "paddock_ledger_lag_seconds") == 1.5
    assert read(metrics, "paddock_ledger_pending_events") == 40
    assert read(metrics, "paddock_ledger_events_total", kind="settle") == 12
    assert read(metrics, "paddock_reservations_open") == 7
    assert read(metrics, "paddock_reservations_swept_total") == 2
    assert read(metrics, "paddock_upstream_up", upstream="gpu:11434") == 1
    assert read(metrics, "paddock_upstream_models", upstream="gpu:11434") == 3
    assert read(metrics, "paddock_upstream_up", upstream="cpu:11434") == 0
    assert read(metrics, "paddock_discovery_polls_total", upstream="cpu:11434", outcome="timeout") == 1


def standing(limits: Limits, **figures: int) -> Figures:
    return Figures(limits, **{name: figures.get(name, 0) for name in FIGURES})


def test_what_is_left_of_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("policy.edge.metrics.time.monotonic", lambda: now)
    metrics = fresh()
    both = Limits(budget_day=1000, budget_total=50_000)

    def shown(name: str, period: str) -> float | None:
        return read(metrics, f"paddock_budget_tokens_{name}", tenant="acme", period=period)

    metrics.tallied("acme", standing(both, day=300, open=50, total=9000))
    assert (shown("remaining", "day"), shown("limit", "day")) == (650, 1000)
    assert (shown("remaining", "total"), shown("remaining", "month")) == (40_950, None)
    metrics.tallied("acme", standing(both, day=900))
    assert shown("remaining", "day") == 650  # less than a second ago
    now += 1.0
    metrics.tallied("acme", standing(both, day=1100))
    assert shown("remaining", "day") == 0
    now += 1.0
    metrics.tallied("acme", standing(Limits(), day=1100))  # an operator lifted them
    for name in ("remaining", "limit"):
        assert math.isnan(shown(name, "day") or 0)


def test_budgets_are_shown_for_so_many_tenants_and_only_where_there_are_any() -> None:
    metrics = fresh()
    metrics.tallied("unlimited", standing(Limits(rpm=5)))
    for number in range(TENANTS_MAX + 50):
        metrics.tallied(f"tenant-{number}", standing(Limits(budget_day=number)))
    tenants = {dict(labels)["tenant"] for name, labels in samples(metrics.exposition()) if "budget" in name}
    assert len(tenants) == TENANTS_MAX
    assert not {"other", "unlimited"} & tenants


def test_a_blocked_event_loop_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.edge.metrics.LAG_EVERY", 0.01)
    seen = asyncio.Event()

    class Watched(Metrics):
        def loop_lagged(self, seconds: float) -> None:
            super().loop_lagged(seconds)
            if seconds > 0.05:
                seen.set()

    metrics = Watched(CollectorRegistry())

    async def scenario() -> None:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            watching = group.create_task(metrics.watch_loop())
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251  # holds the loop, as work on it would: the very thing to see
            await seen.wait()
            watching.cancel()

    asyncio.run(scenario())
    assert (read(metrics, "paddock_event_loop_lag_seconds_sum", service="policy") or 0) > 0.05


def test_an_update_that_fails_is_counted_and_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    metrics = fresh()
    for _ in range(3):
        metrics.ledger_carried("settle", -1)  # prometheus-client refuses to count down
    assert read(metrics, "paddock_metric_faults_total", service="policy") == 3
    assert [record.message for record in caplog.records] == ["metric_fault"]


WORKER = """
import os, signal, sys
from policy.edge.metrics import Metrics
from policy.rules.grant import Duty, Grant
from processor.edge import metrics as processor
if sys.argv[1] == "policy":
    metrics = Metrics()
    metrics.decided("/api/chat", "allowed", 0.001)
    metrics.reservations_open(int(sys.argv[2]))
elif sys.argv[1] == "processor":
    grant = Grant("id", 0, Duty.METER, "/api/chat", "llama3.1:8b", True, 1, "acme", 1, "nz_aaaaaaaaa", "", 0, 0)
    processor.Metrics().metered(grant, 6, 7, seconds=1.0, first_token=0.4)
else:
    sys.stdout.buffer.write(Metrics().exposition())
    sys.exit()
os.kill(os.getpid(), signal.SIGKILL)
"""


def worker(directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    return subprocess.run([sys.executable, "-c", WORKER, *arguments], env=environment, capture_output=True, check=False)


def test_one_scrape_sees_every_worker_of_both_services_the_killed_ones_too(tmp_path: Path) -> None:
    (tmp_path / "counter_99999.db").touch()  # a worker killed in the moment when it created its file
    for arguments in (("policy", "5"), ("policy", "9"), ("processor",)):
        assert worker(tmp_path, *arguments).returncode == -signal.SIGKILL
    scraped = worker(tmp_path, "scrape")
    assert scraped.returncode == 0, scraped.stderr
    found = samples(scraped.stdout)
    allowed = (("decision", "allow"), ("endpoint", "/api/chat"), ("reason", "allowed"))
    assert found["paddock_requests_total", allowed] == 2
    assert found["paddock_reservations_open", ()] == 9  # a level is what was measured last, not a sum
    output = (
        ("gen_ai_operation_name", "chat"),
        ("gen_ai_provider_name", "ollama"),
        ("gen_ai_request_model", "llama3.1:8b"),
        ("gen_ai_token_type", "output"),
    )
    assert found["gen_ai_client_token_usage_sum", output] == 7
