"""Everything an operator can set for the processor service, read from the environment once at start."""

from __future__ import annotations

from pydantic import Field

from policy.rules.settings import SharedSettings


class ProcessorSettings(SharedSettings):
    """The processor service."""

    processor_listen: str = Field(
        default="127.0.0.1:9003", description="Where ext_proc is answered: host:port or unix:/path."
    )
    processor_metrics_listen: str = Field(
        default="",
        description="host:port of processor's own metrics; empty where policy's /metrics shows them too (see metrics).",
    )
    settle_patience_seconds: float = Field(
        default=5.0,
        gt=0,
        description="How long the last piece of an answer is held back for a counter store that does not answer.",
    )
