from __future__ import annotations

import contextlib
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from policy.rules.endpoints import ENDPOINTS
from policy.rules.grant import Duty, Grant
from processor.edge import metrics as processor
from processor.edge.metrics import MODELS_MAX, Metrics

GRANT = Grant("id", 0, Duty.METER, "/v1/chat/completions", "llama3.1:8b", True, 1, "acme", 1, "nz_aaaaaaaaa", "", 0, 0)
WHAT = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "ollama", "gen_ai_request_model": "llama3.1:8b"}


class Scraped:
    """Metrics of their own registry, read back as Prometheus reads them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = Metrics(self._registry)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = generate_latest(self._registry).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def read(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, tuple(sorted(labels.items()))))


def test_a_streamed_exchange_under_the_names_of_the_semantic_conventions() -> None:
    scraped = Scraped()
    scraped.metrics.metered(GRANT, 6, 11, seconds=2.5, first_token=0.5)
    read = scraped.read
    assert read("gen_ai_client_token_usage_sum", **WHAT, gen_ai_token_type="input") == 6
    assert read("gen_ai_client_token_usage_bucket", **WHAT, gen_ai_token_type="output", le="16.0") == 1
    assert read("gen_ai_server_request_duration_seconds_sum", **WHAT) == 2.5
    assert read("gen_ai_server_time_to_first_token_seconds_sum", **WHAT) == 0.5
    assert read("gen_ai_server_time_per_output_token_seconds_sum", **WHAT) == 0.2
    assert read("paddock_output_tokens_per_second_sum", model="llama3.1:8b") == 5


@pytest.mark.parametrize(
    ("endpoint", "operation"),
    [
        ("/api/generate", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/api/chat", "chat"),
        ("/new", "other"),
        *(
            (
                endpoint.path,
                "embeddings"
                if endpoint.path.endswith("embeddings")
                else "chat"
                if endpoint.path.endswith("chat/completions")
                else "text_completion",
            )
            for endpoint in ENDPOINTS.values()
            if endpoint.session and endpoint.metered
        ),
    ],
)
def test_operations(endpoint: str, operation: str) -> None:
    scraped = Scraped()
    scraped.metrics.metered(replace(GRANT, endpoint=endpoint), 6, 0, seconds=0.1)
    assert (
        scraped.read("gen_ai_server_request_duration_seconds_count", **{**WHAT, "gen_ai_operation_name": operation})
        == 1
    )
    assert not [name for name, _ in scraped.samples() if "first_token" in name]  # none came


def test_one_token_has_no_time_per_token() -> None:
    scraped = Scraped()
    scraped.metrics.metered(GRANT, 6, 1, seconds=0.5, first_token=0.5)
    assert scraped.read("gen_ai_server_time_per_output_token_seconds_count", **WHAT) is None
    assert scraped.read("gen_ai_server_time_to_first_token_seconds_count", **WHAT) == 1


def test_models_are_bounded_and_sums_stay_right() -> None:
    scraped = Scraped()
    for number in range(2 * MODELS_MAX):
        scraped.metrics.metered(replace(GRANT, model=f"model-{number}:latest"), 1, 0, seconds=0.1)
    inputs = {
        labels: value
        for (name, labels), value in scraped.samples().items()
        if name == "gen_ai_client_token_usage_sum" and ("gen_ai_token_type", "input") in labels
    }
    assert sum(inputs.values()) == 2 * MODELS_MAX
    assert len({dict(labels)["gen_ai_request_model"] for labels in inputs}) == MODELS_MAX + 1


def test_settlements() -> None:
    scraped = Scraped()
    scraped.metrics.settled(0.002)
    scraped.metrics.settled(1.0, failed="store_down")
    assert scraped.read("paddock_settlement_duration_seconds_count") == 2
    assert scraped.read("paddock_settlement_failures_total", reason="store_down") == 1


def test_what_is_no_number_is_a_fault_that_fails_nobody() -> None:
    scraped = Scraped()
    scraped.metrics.metered(GRANT, 6, 0, seconds="soon")  # type: ignore[arg-type]  # the very point
    assert scraped.read("paddock_metric_faults_total", service="processor") == 1


def test_it_serves_its_own_figures_where_it_stands_alone() -> None:
    server, thread = processor.serve("127.0.0.1:0")
    try:
        with contextlib.closing(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics")) as answer:
            assert answer.status == 200
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("listen", ["", "9100", "unix:/tmp/m.sock"])
def test_an_address_of_another_form_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        processor.serve(listen)
