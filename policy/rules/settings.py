"""What both services read from the environment, and the form of an address. Values only: nothing here does I/O."""

from __future__ import annotations

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
    upstreams: str = Field(
        default="http://127.0.0.1:11434", description="Base URLs of the Ollama machines, separated by commas."
    )
    discovery_interval_seconds: float = Field(
        default=10.0, gt=0, description="How often each upstream is asked which models it has."
    )
    default_max_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Cap of one completion where neither the key nor its tenant has one.",
    )
    server_key_dir: str = Field(
        default="",
        description="Directory of the keys that encrypted requests are sealed to, shared by all processors; policy "
        "reads the public ones. Empty: encrypted requests are not taken (404).",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @property
    def grpc_message_bytes(self) -> int:
        """Largest gRPC message: a body and what stands around it. grpcio's own default (4 MiB) would be a 500; an
        answer that Envoy buffers for processor may have 16 MiB, whatever a request may have."""
        return max(16 * 1024 * 1024, self.max_request_body_bytes) + 1024 * 1024


def listen_address(listen: str) -> str:
    """`unix:/path` and `host:port`, checked; what grpc and our own listeners both take."""
    if listen.startswith("unix:/"):
        return listen
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"{listen!r} is no address: write host:port or unix:/absolute/path")
    return listen
