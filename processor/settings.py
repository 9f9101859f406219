"""Everything an operator can set for the processor service, read from the environment once at start."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations

from pydantic import Field, SecretStr

from policy.rules.settings import SharedSettings
from processor.envelope import MAX_PACKAGE_BYTES

_WHOLE_ANSWER = 16 * 1024 * 1024  # what Envoy holds of an answer that is wanted in one piece
_AROUND = 1024 * 1024  # what stands around a body in one gRPC message


class ProcessorSettings(SharedSettings):
    """The processor service."""

    processor_listen: str = Field(
        default="127.0.0.1:9003", description="Where ext_proc is answered: host:port or unix:/path."
    )
    processor_edge_listen: str = Field(
        default="127.0.0.1:9005",
        description="Where Envoy hands over what it metered by itself: host:port or unix:/path.",
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
    server_key_passphrase: SecretStr | None = Field(
        default=None, description="What the server's private keys are encrypted with at rest: this, or a file."
    )
    server_key_passphrase_file: Path | None = Field(
        default=None, description="The file with that passphrase. Never in the directory of the keys."
    )
    max_envelope_bytes: int = Field(
        default=MAX_PACKAGE_BYTES,
        ge=4096,
        le=MAX_PACKAGE_BYTES,
        description="Largest encrypted request. What is inside is three quarters of it, at most 10 MiB; "
        "MAX_REQUEST_BODY_BYTES is about plain requests. The same figure must stand in Envoy's configuration.",
    )
    envelope_threads: int = Field(
        default=2, ge=1, le=64, description="Threads of one processor that open and seal encrypted requests."
    )
    envelopes_waiting: int = Field(
        default=64, ge=1, description="Encrypted requests that may wait for those threads; more are refused (503)."
    )
    replay_window_seconds: int = Field(
        default=86_400,
        ge=60,
        le=30 * 86_400,
        description="How long an encrypted request that was answered is refused when it comes again.",
    )
    tier_upstreams: str = Field(
        default="",
        description="Security tiers with machines of their own: `high=http://a:11434,http://b:11434;maximum=…`. "
        "A tier that is not named here has those of PADDOCK_UPSTREAMS. Envoy needs a cluster for each that is.",
    )

    @property
    def grpc_message_bytes(self) -> int:
        """Likewise, where whole envelopes and whole answers come in one message."""
        return max(super().grpc_message_bytes, max(self.max_envelope_bytes, _WHOLE_ANSWER) + _AROUND)
