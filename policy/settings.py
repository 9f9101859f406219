"""Everything an operator can set for the policy service, read from the environment once at start.

Each setting is documented by its description; `docs/reference/settings.md` is made from them.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations

from pydantic import Field, SecretStr, field_validator

from policy.rules import store_urls
from policy.rules.settings import SharedSettings, store_url


class PolicySettings(SharedSettings):
    """The policy service."""

    database_url: SecretStr = Field(
        default=SecretStr("postgresql://paddock@127.0.0.1:5432/paddock"), description="PostgreSQL 14 or later."
    )
    policy_listen: str = Field(
        default="127.0.0.1:9001",
        description="Where ext_authz and the access log are answered over gRPC: host:port or unix:/path.",
    )
    policy_edge_listen: str = Field(
        default="127.0.0.1:9004",
        description="Where ext_authz is answered over HTTP, as the shipped Envoy asks: host:port or unix:/path.",
    )
    policy_http_listen: str = Field(
        default="127.0.0.1:9002", description="Where health, models, version and metrics are answered."
    )
    metrics_from: str = Field(
        default="127.0.0.0/8,::1/128",
        description="Networks that may read /metrics from policy's own HTTP port, separated by commas. "
        "Through Envoy it is loopback alone, whatever stands here.",
    )
    access_log_file: Path | None = Field(
        default=None,
        description="Envoy's access log, where this process can read it: what the log's stream lost is found there.",
    )
    retention_days: int = Field(
        default=400, ge=1, description="Audit rows older than this are dropped, a month's partition at a time."
    )
    refusal_rows: int = Field(
        default=300,
        ge=1,
        description="Refusals of one client address and minute that have audit rows of their own, and as many answers "
        "that need no key; those beyond share a row, with their number.",
    )
    session_secret: SecretStr = Field(
        default=SecretStr(""),
        description="The secret that browser sessions are signed from, 32 bytes or more, the same for all policies. "
        "Without it there are no browser sessions.",
    )
    session_key_days: float = Field(
        default=30.0, ge=0, description="Age at which the signing key of sessions is replaced by itself; 0: never."
    )

    @field_validator("database_url")
    @classmethod
    def _a_url_of_postgresql(cls, url: SecretStr) -> SecretStr:
        return store_url(url, store_urls.POSTGRESQL)
