"""What both services read from the environment, and the form of an address.

Each setting may come from a file instead: PADDOCK_DATABASE_URL_FILE names one that holds PADDOCK_DATABASE_URL, so that
a password needs to stand in no environment. Nothing else here does I/O.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from policy.rules import store_urls

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PREFIX = "PADDOCK_"
FILE_SUFFIX = "_FILE"


class FileSettings(PydanticBaseSettingsSource):
    """PADDOCK_<NAME>_FILE: the setting is what that file holds, without the line end."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value or None, the field's name, and that it is plain text. ValueError on a file that cannot be read."""
        name = f"{PREFIX}{field_name.upper()}{FILE_SUFFIX}"
        path = os.environ.get(name)
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            raise ValueError(f"{name}: {path}: {error.strerror}") from error

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        plain = {name: field for name, field in fields.items() if f"{name}_file" not in fields}  # others read their own
        read = {_alias(field, name): self.get_field_value(field, name)[0] for name, field in plain.items()}
        return {name: value for name, value in read.items() if value is not None}


class TlsFiles(NamedTuple):
    """What a listener with mutual TLS needs."""

    cert: Path
    key: Path
    client_ca: Path


def _alias(field: FieldInfo, name: str) -> str:
    choices = field.validation_alias
    return str(choices.choices[0]) if isinstance(choices, AliasChoices) else name


def store_url(url: SecretStr, schemes: tuple[str, ...]) -> SecretStr:
    """The URL, if it has the form of one; ValueError without a word of it if not."""
    wrong = store_urls.wrong_with(url.get_secret_value(), schemes)
    if wrong:
        raise ValueError(wrong)
    return url


class SharedSettings(BaseSettings):
    """What both services read."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        hide_input_in_errors=True,  # a value that is wrong may be a secret all the same
    )

    @classmethod
    def settings_customise_sources(  # pydantic-settings' own hook
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSettings(settings_cls)

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
    upstream_key: SecretStr = Field(
        default=SecretStr(""),
        description="A key that the upstreams, or a proxy before them, demand: sent as `Authorization: Bearer …` where "
        "they are asked for their models. Envoy has its own word for it, the option `key` of clusters.yaml.",
    )
    upstream_ca_file: Path | None = Field(
        default=None,
        description="The CA (PEM) that certificates of https:// upstreams are of, instead of the system's.",
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
    secure_inference: bool = Field(
        default=True,
        description="Whether encrypted requests are taken where there is a directory of keys. Off: they are answered "
        "with 404, and the key is served all the same.",
    )
    otlp_endpoint: str = Field(
        default="",
        description="Where spans go: the OTLP/HTTP receiver of an OpenTelemetry collector, host:port (4318 as a rule) "
        "or https://host:port. Empty: no traces, and nothing is spent on them. Envoy has its own word for it.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="After SIGTERM: how long /readyz says `draining` while everything is still answered, so that load "
        "balancers look elsewhere. Kubernetes wants some seconds; Envoy beside the service none.",
    )
    grace_seconds: float = Field(
        default=25.0,
        ge=0,
        le=3600,
        description="After that: how long answers under way may take before they are cut. No new ones are taken.",
    )
    tls_cert_file: Path | None = Field(
        default=None,
        description="Certificate chain (PEM) of this service's listeners: with it they speak TLS, for an Envoy on "
        "another machine. A new file in its place is used for new connections. Not for Unix sockets.",
    )
    tls_key_file: Path | None = Field(default=None, description="The private key (PEM) of PADDOCK_TLS_CERT_FILE.")
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="The CA (PEM) whose certificates may call this service. Needed with PADDOCK_TLS_CERT_FILE: who can "
        "call policy can ask about keys.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Half of the TLS files is a mistake to be told at the start."""
        _ = self.tls
        if self.otlp_endpoint:
            otlp_url(self.otlp_endpoint)
        return self

    @field_validator("redis_url")
    @classmethod
    def _a_url_of_redis(cls, url: SecretStr) -> SecretStr:
        return store_url(url, store_urls.REDIS)

    @field_validator("upstream_key")
    @classmethod
    def _one_word(cls, key: SecretStr) -> SecretStr:
        """It goes into a header as it is."""
        if not all("!" <= letter <= "~" for letter in key.get_secret_value()):
            raise ValueError("PADDOCK_UPSTREAM_KEY is one word of printable ASCII")
        return key

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files; None where none is set, ValueError where only some are."""
        files = (self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)
        cert, key, client_ca = files
        if cert is None or key is None or client_ca is None:
            if any(files):
                raise ValueError("PADDOCK_TLS_CERT_FILE, _KEY_FILE and _CLIENT_CA_FILE are set together or not at all")
            return None
        return TlsFiles(cert, key, client_ca)

    @property
    def grpc_message_bytes(self) -> int:
        """Largest gRPC message: a body and what stands around it. grpcio's own default (4 MiB) would be a 500; an
        answer that Envoy buffers for processor may have 16 MiB, whatever a request may have."""
        return max(16 * 1024 * 1024, self.max_request_body_bytes) + 1024 * 1024


def otlp_url(endpoint: str) -> str:
    """`host:port` or a base URL, as the URL that takes traces. ValueError on another form."""
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("PADDOCK_OTLP_ENDPOINT is host:port, or https://host:port, of an OTLP/HTTP receiver")
    if parts.username is not None or parts.fragment:
        raise ValueError("PADDOCK_OTLP_ENDPOINT holds no user and no password")
    return f"{parts.scheme}://{parts.hostname if ':' not in parts.hostname else f'[{parts.hostname}]'}" + (
        f":{parts.port or 4318}/v1/traces"
    )


def listen_address(listen: str) -> str:
    """`unix:/path` and `host:port`, checked; what grpc and our own listeners both take."""
    if listen.startswith("unix:/"):
        return listen
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"{listen!r} is no address: write host:port or unix:/absolute/path")
    return listen
