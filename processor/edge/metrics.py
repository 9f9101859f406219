"""Processor's metrics, in Prometheus text. Where a semantic convention of OpenTelemetry for generative AI exists, its
name, labels and bucket bounds are used (semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md), written as its
Prometheus compatibility rules have it: dots become underscores, seconds are appended, the unit {token} is dropped.

Beside policy on one machine these figures show in policy's /metrics (see `policy.edge.metrics` for how); a processor
that stands alone serves them itself, where PADDOCK_PROCESSOR_METRICS_LISTEN says.

Updates happen once an exchange, after its last byte, and none may raise.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from policy.rules.labels import Faults, fails_open, labelled

if TYPE_CHECKING:
    import threading
    from wsgiref.simple_server import WSGIServer

    from policy.rules.grant import Grant
    from policy.rules.labels import Labels
    from policy.rules.settlement import Settlement
    from processor.exchange import Exchange

MODELS_MAX = 50
OUTCOMES_MAX = 20
OPERATIONS_MAX = 30
ENVELOPE_OUTCOMES_MAX = 60  # causes and reasons: both are closed sets

PROVIDER = "ollama"  # gen_ai.provider.name: "a custom value MAY be used" where none of the well-known ones applies

# Bounds that the conventions ask for.
_TOKENS = tuple(float(4**power) for power in range(14))  # 1 to 67,108,864
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Ours.
_SPEED = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 500.0)  # tokens per second
_SETTLING = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds

_OPERATIONS = {
    "/api/chat": "chat",
    "/v1/chat/completions": "chat",
    "/v1/chat/secure_completion": "chat",
    "/api/generate": "text_completion",
    "/v1/completions": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/v1/embeddings": "embeddings",
    "/openai/chat/completions": "chat",
    "/openai/completions": "text_completion",
    "/openai/embeddings": "embeddings",
}


class Metrics:
    """Every metric of processor. One a process, on prometheus-client's own registry but for tests."""

    def __init__(self, registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use

        def counter(name: str, text: str, **most: int | None) -> Labels[Counter]:
            return labelled(Counter, name, text, most, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], **most: int | None) -> Labels[Histogram]:
            return labelled(Histogram, name, text, most, registry=registry, buckets=buckets)

        def gen_ai(name: str, text: str, buckets: tuple[float, ...], **most: int | None) -> Labels[Histogram]:
            return histogram(
                name, text, buckets, gen_ai_operation_name=None, gen_ai_provider_name=None,
                gen_ai_request_model=MODELS_MAX, **most,
            )  # fmt: skip

        faults = counter("paddock_metric_faults_total", "Metric updates that failed.", service=None)
        self.faults = Faults(faults("processor"))
        self._settling = histogram("paddock_settlement_duration_seconds", "Time to settle one reservation.", _SETTLING)
        self._unsettled = counter(
            "paddock_settlement_failures_total", "Settlements the store did not take.", reason=OUTCOMES_MAX
        )
        # As policy has them, since one page may show both services.
        self._store_time = histogram(
            "paddock_store_duration_seconds",
            "Time of one call to a store.",
            _SETTLING,
            store=None,
            operation=OPERATIONS_MAX,
        )
        self._store_faults = counter(
            "paddock_store_faults_total", "Calls to a store that failed.", store=None, operation=OPERATIONS_MAX
        )
        self._envelopes = counter(
            "paddock_envelopes_total", "Encrypted requests by what became of them.", outcome=ENVELOPE_OUTCOMES_MAX
        )
        self._opening = histogram("paddock_envelope_open_seconds", "Time to open one encrypted request.", _SETTLING)
        self._speed = histogram(
            "paddock_output_tokens_per_second", "Speed of one answer after its first token.", _SPEED, model=MODELS_MAX
        )
        self._usage = gen_ai(
            "gen_ai_client_token_usage", "Number of tokens of one exchange.", _TOKENS, gen_ai_token_type=None
        )
        self._duration = gen_ai("gen_ai_server_request_duration_seconds", "Time to the last byte.", _DURATION)
        self._first_token = gen_ai(
            "gen_ai_server_time_to_first_token_seconds", "Time to the first token.", _FIRST_TOKEN
        )
        self._per_token = gen_ai(
            "gen_ai_server_time_per_output_token_seconds", "Time per output token after the first.", _PER_TOKEN
        )

    @fails_open
    def finished(self, exchange: Exchange, settlement: Settlement, seconds: float) -> None:
        """One exchange ended after `seconds`, and this is what it used."""
        grant = exchange.grant
        first = None if exchange.first_byte is None or not grant.stream else exchange.first_byte - exchange.begun
        prompt = grant.prompt_tokens if settlement.prompt_tokens is None else settlement.prompt_tokens
        self.metered(grant, prompt, settlement.completion_tokens, seconds=seconds, first_token=first)

    @fails_open
    def metered(
        self,
        grant: Grant,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        seconds: float,
        first_token: float | None = None,
    ) -> None:
        """What one metered exchange used: its tokens, its duration, and the time to its first token (both in seconds;
        None where no token came or the answer was not streamed). What is charged in all is counted by policy, which
        also hears of answers that no processor saw the end of."""
        model = grant.model
        what = (_OPERATIONS.get(grant.endpoint, "other"), PROVIDER, model)
        self._usage(*what, "input").observe(prompt_tokens)
        self._usage(*what, "output").observe(completion_tokens)
        self._duration(*what).observe(seconds)
        if first_token is None:
            return
        self._first_token(*what).observe(first_token)
        rest = seconds - first_token
        if completion_tokens > 1 and rest > 0:
            self._per_token(*what).observe(rest / (completion_tokens - 1))
            self._speed(model).observe((completion_tokens - 1) / rest)

    @fails_open
    def settled(self, seconds: float, *, failed: str = "") -> None:
        """One settlement took `seconds`; `failed` is the reason in a word where the store did not take it."""
        self._settling().observe(seconds)
        if failed:
            self._unsettled(failed).inc()

    @fails_open
    def enveloped(self, outcome: str) -> None:
        """One envelope ended: answered, as a stream, or the reason why not, in a word."""
        self._envelopes(outcome).inc()

    @fails_open
    def opened(self, seconds: float) -> None:
        """One envelope was opened, or could not be, after so long, the wait for a thread included."""
        self._opening().observe(seconds)

    @fails_open
    def store_called(self, store: str, operation: str, seconds: float, *, failed: bool = False) -> None:
        """One call to `store` ended."""
        self._store_time(store, operation).observe(seconds)
        if failed:
            self._store_faults(store, operation).inc()


def serve(listen: str) -> tuple[WSGIServer, threading.Thread]:
    """Answer GET on `host:port` in a thread of its own, with all processes' figures where PROMETHEUS_MULTIPROC_DIR is
    set; `shutdown()` on the server ends it. ValueError on another form, OSError if the address is taken."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"cannot serve metrics on {listen!r}: write host:port")
    registry = prometheus_client.REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves it so
    return prometheus_client.start_http_server(int(port), host.strip("[]"), registry)
