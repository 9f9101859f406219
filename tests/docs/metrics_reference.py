"""Makes docs/reference/metrics.md from the code: `.venv/bin/python -m tests.docs.metrics_reference` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from policy.admission.upstreams import Fault
from policy.edge import metrics as policy
from policy.rules.events import local_reason
from policy.rules.grant import Duty
from policy.rules.labels import OTHER
from processor.edge import metrics as processor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
COMMAND = ".venv/bin/python -m tests.docs.metrics_reference"
_EDGE = sorted({local_reason(status) for status in range(400, 600)})


class Described:
    """One metric of a registry. prometheus-client has no public way to ask an unused one for its labels."""

    def __init__(self, collector: object) -> None:
        self.kind: str = vars(collector).get("_type") or type(collector)._type  # type: ignore[attr-defined]  # see above
        self.text: str = vars(collector)["_documentation"]
        self.labels: tuple[str, ...] = vars(collector)["_labelnames"]
        name: str = vars(collector)["_name"]
        self.name = f"{name}_total" if self.kind == "counter" else name
        self.buckets: tuple[float, ...] = tuple(vars(collector).get("_kwargs", {}).get("buckets", ()))

    def series(self) -> set[str]:
        """The names that a scrape shows."""
        if self.kind == "histogram":
            return {f"{self.name}_{part}" for part in ("bucket", "sum", "count")}
        return {self.name}


def described() -> dict[str, list[Described]]:
    """All metrics by service."""
    found = {}
    for service, make in (("policy", policy.Metrics), ("processor", processor.Metrics)):
        registry = CollectorRegistry()
        make(registry)
        collectors = registry._collector_to_names  # the library has no public way
        found[service] = sorted((Described(each) for each in collectors), key=lambda each: each.name)
    return found


def render() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "Made from the code; a test fails where the two differ, and this writes it anew:"
    yield f"`{COMMAND}`."
    yield "How to scrape, draw and watch what is here: [monitoring](../how-to/monitoring.md)."
    yield ""
    yield "All are in Prometheus text format on `GET /metrics`, which shows every process of both services on one"
    yield "machine. A histogram has the series `_bucket`, `_sum` and `_count`. Times are seconds. Names that begin with"
    yield "`gen_ai_` are those of OpenTelemetry's semantic conventions for generative AI, as Prometheus writes them."
    for service, metrics in described().items():
        yield ""
        yield f"## {service.capitalize()}"
        yield ""
        yield "| Name | Type | Labels | Meaning |"
        yield "|---|---|---|---|"
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
            yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |"
    yield ""
    yield "## Labels"
    yield ""
    yield "Label sets are bounded: of an open label so many values are told apart, first come first served for the life"
    yield f"of a process, and all others share the value `{OTHER}`, so that sums stay right."
    yield ""
    yield "| Label | Values |"
    yield "|---|---|"
    for label, values in _labels():
        yield f"| {label} | {values} |"


def _labels() -> Iterator[tuple[str, str]]:
    yield "`decision`", "`allow`, `deny`"
    yield "`direction`, `gen_ai_token_type`", "`input` (the prompt), `output` (the completion)"
    yield "`duty`", f"{_listed([Duty.METER])}: only answers that cost tokens are counted"
    yield "`endpoint`", f"the path as in the table of endpoints; {policy.ENDPOINTS_MAX} values"
    yield "`gen_ai_operation_name`", _listed({*processor._OPERATIONS.values(), OTHER})
    yield "`gen_ai_provider_name`", f"`{processor.PROVIDER}`"
    yield "`kind`", "`admission`, `log`, `settlement`: as policy, as Envoy and as processor tell it"
    yield "`known`", "`exact` (the upstream said so), `estimated`"
    yield "`model`, `gen_ai_request_model`", f"the canonical name; {processor.MODELS_MAX} values"
    yield "`operation`", "one call of a store, by name"
    yield "`outcome` of `paddock_discovery_polls_total`", f"{_listed(Fault)}: what was wrong with the answer"
    yield "`outcome` of `paddock_envelopes_total`", "how it was answered, or in a word why it was not"
    yield (
        "`outcome` of `paddock_exchanges_total`",
        "[outcomes](audit-log.md#outcomes) of the audit log",
    )
    yield (
        "`outcome` of `paddock_key_verifications_total`",
        "`match`, `mismatch`, `error`, `crowded` (turned away unread: too many waited)",
    )
    yield "`period`", "`day`, `month`, `total`"
    yield "`reason` of `paddock_edge_refusals_total`", _listed(_EDGE)
    yield "`reason` of `paddock_requests_total`", "`allowed`, or why it was refused, as in the audit log"
    yield "`reason` of `paddock_settlement_failures_total`", "`store_down`: it is tried again until it is taken"
    yield "`service`", "`policy`, `processor`"
    yield "`signal`", "what was odd about an admitted session request, in a word"
    yield "`store`", "`redis`, `postgresql`"
    yield (
        "`tenant`",
        f"its name; {policy.TENANTS_MAX} values (budgets: the first {policy.TENANTS_MAX} that have any)",
    )
    yield "`upstream`", f"host and port; {policy.UPSTREAMS_MAX} values"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in sorted(values))


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
