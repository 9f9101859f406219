"""Policy's metrics, in Prometheus text.

One scrape sees every process of a machine: the launcher (or the container's entry point) creates an empty directory,
sets PROMETHEUS_MULTIPROC_DIR before Python starts, and starts its workers, policy's and processor's alike, with it.
prometheus-client then keeps each process's figures in a file of that directory, and whichever worker answers /metrics
adds the files up. A killed worker's counts stay, as counters must; so do its files, hence a fresh directory at each
start of the launcher. The directory belongs to one PID namespace (files are named by process id) and to local storage.
Without the variable a process shows itself alone: a container that runs one process needs nothing.

What that mode demands of the metrics here: no gauge that counts up and down (a dead worker's part would stay), so what
is a level is set by whoever measured it last (`mostrecent`), and load is shown by histograms.

An update costs one to two microseconds. None may raise: a failure is counted in `paddock_metric_faults_total`.
"""

from __future__ import annotations

import asyncio
import glob
import math
import os
import time
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from policy.rules.grant import Duty
from policy.rules.labels import Faults, fails_open, labelled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from policy.admission.discovery import UpstreamState
    from policy.rules.events import Charge
    from policy.rules.judgement import Figures
    from policy.rules.labels import Labels

TENANTS_MAX = 100
MODELS_MAX = 50
ENDPOINTS_MAX = 40  # the table of endpoints has fewer: what is not in it counts together
UPSTREAMS_MAX = 50
OPERATIONS_MAX = 30
OUTCOMES_MAX = 10
LAG_EVERY = 0.5  # seconds between two looks at the event loop
BUDGET_EVERY = 1.0  # seconds between two looks at one tenant's budgets

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds


class Metrics:
    """Every metric of policy. One a process, on prometheus-client's own registry but for tests."""

    def __init__(self, registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use
        self._registry = registry

        def counter(name: str, text: str, **most: int | None) -> Labels[Counter]:
            return labelled(Counter, name, text, most, registry=registry)

        def histogram(name: str, text: str, **most: int | None) -> Labels[Histogram]:
            return labelled(Histogram, name, text, most, registry=registry, buckets=_FAST)

        def gauge(name: str, text: str, **most: int | None) -> Labels[Gauge]:
            return labelled(Gauge, name, text, most, registry=registry, multiprocess_mode="mostrecent")

        faults = counter("paddock_metric_faults_total", "Metric updates that failed.", service=None)
        self.faults = Faults(faults("policy"))
        self._requests = counter(
            "paddock_requests_total", "Requests judged.", endpoint=ENDPOINTS_MAX, decision=None, reason=None
        )
        self._edge_refusals = counter(
            "paddock_edge_refusals_total", "Requests that Envoy refused by itself.", reason=OUTCOMES_MAX
        )
        self._signals = counter(
            "paddock_session_signals_total",
            "Admitted session requests with something odd about them, such as another fingerprint.",
            signal=OUTCOMES_MAX,
        )
        self._checks = histogram("paddock_check_duration_seconds", "Time to judge one request.", decision=None)
        self._loop_lag = histogram(
            "paddock_event_loop_lag_seconds", "How late a timer of the event loop ran.", service=None
        )("policy")

        self._verifications = counter(
            "paddock_key_verifications_total", "argon2id verifications.", outcome=OUTCOMES_MAX
        )
        self._verification_wait = histogram(
            "paddock_key_verification_wait_seconds", "Time that a key waited for argon2id."
        )
        self._verification_time = histogram("paddock_key_verification_duration_seconds", "Time that argon2id took.")
        self._verification_queue = gauge(
            "paddock_key_verification_queue", "Keys that wait for argon2id, in the process that said so last."
        )

        self._store_time = histogram(
            "paddock_store_duration_seconds", "Time of one call to a store.", store=None, operation=OPERATIONS_MAX
        )
        self._store_faults = counter(
            "paddock_store_faults_total", "Calls to a store that failed.", store=None, operation=OPERATIONS_MAX
        )
        self._ledger_lag = gauge(
            "paddock_ledger_lag_seconds", "Age of the oldest event not yet in PostgreSQL; 0 for none."
        )
        self._ledger_pending = gauge("paddock_ledger_pending_events", "Events not yet in PostgreSQL.")
        self._ledger_events = counter("paddock_ledger_events_total", "Events carried to PostgreSQL.", kind=OUTCOMES_MAX)
        # Counted where they come into the ledger: whoever settles, and however often, there it is once.
        self._tokens = counter(
            "paddock_tokens_total", "Tokens charged.", tenant=TENANTS_MAX, model=MODELS_MAX, direction=None
        )
        self._settlements = counter("paddock_settlements_total", "Settlements by how the tokens are known.", known=None)
        self._exchanges = counter(
            "paddock_exchanges_total", "Answers that cost tokens, by how they ended.", duty=None, outcome=OUTCOMES_MAX
        )
        self._reservations = gauge("paddock_reservations_open", "Reservations neither settled nor swept.")
        self._swept = counter(
            "paddock_reservations_swept_total", "Reservations settled as estimated, past their deadline."
        )
        self._budget_left = gauge(
            "paddock_budget_tokens_remaining",
            "Tokens left of a tenant's budget when it last asked, what is reserved taken off.",
            tenant=TENANTS_MAX,
            period=None,
        )
        self._budget_limit = gauge("paddock_budget_tokens_limit", "A tenant's budget.", tenant=TENANTS_MAX, period=None)
        self._budget_due: dict[str, float] = {}  # by tenant: before then its budgets are not set again
        self._budgets_shown: set[tuple[str, str]] = set()

        self._polls = counter(
            "paddock_discovery_polls_total", "Questions to upstreams.", upstream=UPSTREAMS_MAX, outcome=None
        )
        self._upstream_up = gauge("paddock_upstream_up", "1 where it answered when last asked.", upstream=UPSTREAMS_MAX)
        self._upstream_models = gauge("paddock_upstream_models", "Models that it has.", upstream=UPSTREAMS_MAX)

    @fails_open
    def decided(self, endpoint: str, reason: str, seconds: float) -> None:
        """One request was judged: `reason` is "allowed" or a Reason."""
        decision = "allow" if reason == "allowed" else "deny"
        self._requests(endpoint, decision, reason).inc()
        self._checks(decision).observe(seconds)

    @fails_open
    def refused_at_edge(self, reason: str) -> None:
        """Envoy refused a request without asking anybody: a blocked path, a body too large, an outage."""
        self._edge_refusals(reason).inc()

    @fails_open
    def signalled(self, signal: str) -> None:
        """Something was noticed about an admitted request, and not held against it."""
        self._signals(signal).inc()

    @fails_open
    def verified(self, outcome: str, waited: float, took: float | None) -> None:
        """One argon2id verification ended after `waited` seconds of queueing and `took` seconds of work, if any."""
        self._verifications(outcome).inc()
        self._verification_wait().observe(waited)
        if took is not None:
            self._verification_time().observe(took)

    @fails_open
    def verifications_waiting(self, waiting: int) -> None:
        self._verification_queue().set(waiting)

    @fails_open
    def store_called(self, store: str, operation: str, seconds: float, *, failed: bool = False) -> None:
        """One call to `store` (redis, postgresql) ended."""
        self._store_time(store, operation).observe(seconds)
        if failed:
            self._store_faults(store, operation).inc()

    @fails_open
    def ledger_at(self, lag_seconds: float, pending: int) -> None:
        """How far the ledger is behind."""
        self._ledger_lag().set(lag_seconds)
        self._ledger_pending().set(pending)

    @fails_open
    def ledger_carried(self, kind: str, events: int) -> None:
        self._ledger_events(kind).inc(events)

    @fails_open
    def charged(self, charge: Charge) -> None:
        """So many requests are settled and in the ledger."""
        self._exchanges(Duty.METER, charge.outcome).inc(charge.requests)
        self._settlements("exact" if charge.exact else "estimated").inc(charge.requests)
        self._tokens(charge.tenant, charge.model, "input").inc(charge.prompt_tokens)
        self._tokens(charge.tenant, charge.model, "output").inc(charge.completion_tokens)

    @fails_open
    def reservations_open(self, count: int) -> None:
        self._reservations().set(count)

    @fails_open
    def reservations_swept(self, count: int) -> None:
        self._swept().inc(count)

    @fails_open
    def tallied(self, tenant: str, figures: Figures) -> None:
        """How a tenant stood before a request. Budgets are set at most once a second and for the first TENANTS_MAX
        tenants that have any: a level of "all others" would mean nothing."""
        limits = figures.limits
        if limits.budget_day is None and limits.budget_month is None and limits.budget_total is None:
            if tenant not in self._budget_due:
                return
        elif tenant not in self._budget_due and len(self._budget_due) >= TENANTS_MAX:
            return
        now = time.monotonic()
        if now < self._budget_due.get(tenant, 0.0):
            return
        self._budget_due[tenant] = now + BUDGET_EVERY
        self._budget_at(tenant, "day", limits.budget_day, figures.day + figures.open)
        self._budget_at(tenant, "month", limits.budget_month, figures.month + figures.open)
        self._budget_at(tenant, "total", limits.budget_total, figures.total + figures.open)

    def _budget_at(self, tenant: str, period: str, limit: int | None, spent: int) -> None:
        if limit is not None:
            self._budgets_shown.add((tenant, period))
            self._budget_left(tenant, period).set(max(0, limit - spent))
            self._budget_limit(tenant, period).set(limit)
        elif (tenant, period) in self._budgets_shown:  # lifted: the library cannot take a series back here
            self._budgets_shown.discard((tenant, period))
            self._budget_left(tenant, period).set(math.nan)
            self._budget_limit(tenant, period).set(math.nan)

    @fails_open
    def upstream_polled(self, state: UpstreamState) -> None:
        """Discovery asked one upstream."""
        self._polls(state.id, state.fault.value).inc()
        self._upstream_up(state.id).set(1 if state.reachable else 0)
        self._upstream_models(state.id).set(state.models)

    @fails_open
    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    async def watch_loop(self) -> None:
        """Measure until cancelled how late the event loop runs what is due: the sign of work that blocks it."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self.loop_lagged(max(0.0, loop.time() - due))

    def exposition(self) -> bytes:
        """Everything in Prometheus text 0.0.4: of all processes where PROMETHEUS_MULTIPROC_DIR is set. Blocks."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            return prometheus_client.generate_latest(self._registry)
        registry = CollectorRegistry()
        registry.register(_AllProcesses(directory))
        return prometheus_client.generate_latest(registry)


class _AllProcesses(Collector):
    """prometheus-client's own sum over processes, save for files that a process has only just created: a worker killed
    in that moment leaves an empty one, and the library's reader would fail on it for ever after."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [name for name in glob.glob(os.path.join(self._directory, "*.db")) if os.path.getsize(name)]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]  # the library leaves it so
        return metrics
