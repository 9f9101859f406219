"""Everything an operator can set for the policy service, read from the environment once at start.

Each setting is documented by its description; `docs/reference/settings.md` is made from them.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic resolves annotations at run time

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class SharedSettings(BaseSettings):
    """What both services read."""

    model_config = SettingsConfigDict(env_prefix="PADDOCK_", extra="ignore")

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis or Valkey: redis://, rediss:// or unix:// ; a cluster is recognised by itself.",
    )
    max_request_body_bytes: int = Field(
        default=262_144,
        ge=1024,
        le=64 * 1024 * 1024,
        validation_alias=AliasChoices("PADDOCK_MAX_REQUEST_BODY_BYTES", "MAX_REQUEST_BODY_BYTES"),
        description="Largest request body. The same figure must stand in Envoy's configuration.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @property
    def grpc_message_bytes(self) -> int:
        """Largest gRPC message: a body and what stands around it. grpcio's own default (4 MiB) would be a 500."""
        return max(4 * 1024 * 1024, self.max_request_body_bytes + 1024 * 1024)


class PolicySettings(SharedSettings):
    """The policy service."""

    database_url: SecretStr = Field(
        default=SecretStr("postgresql://paddock@127.0.0.1:5432/paddock"), description="PostgreSQL 14 or later."
    )
    policy_listen: str = Field(
        default="127.0.0.1:9001",
        description="Where ext_authz and the access log are answered: host:port or unix:/path.",
    )
    policy_http_listen: str = Field(
        default="127.0.0.1:9002", description="Where health, models, version and metrics are answered."
    )
    upstreams: str = Field(
        default="http://127.0.0.1:11434", description="Base URLs of the Ollama machines, separated by commas."
    )
    default_max_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Cap of one completion where neither the key nor its tenant has one.",
    )
    discovery_interval_seconds: float = Field(
        default=10.0, gt=0, description="How often each upstream is asked which models it has."
    )
    pepper_file: Path | None = Field(
        default=None,
        description="File with the secret that verified keys are remembered by; without it each process draws its own.",
    )
    retention_days: int = Field(
        default=400, ge=1, description="Audit rows older than this are dropped, a month's partition at a time."
    )


def listen_address(listen: str) -> str:
    """`unix:/path` and `host:port`, checked; what grpc and our own listeners both take."""
    if listen.startswith("unix:/"):
        return listen
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"{listen!r} is no address: write host:port or unix:/absolute/path")
    return listen
