"""Whether there are traces. What they need is imported only where there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.rules.settings import otlp_url

if TYPE_CHECKING:
    from policy.edge.tracing import Tracing


def tracing_to(endpoint: str, service: str) -> Tracing | None:
    """None without an endpoint; ValueError where the libraries are not installed."""
    if not endpoint:
        return None
    try:
        from policy.edge.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ValueError(
            f"PADDOCK_OTLP_ENDPOINT needs {error.name}, of the extra: pip install 'paddock[tracing]'"
        ) from error
    return Tracing.to(otlp_url(endpoint), service)
