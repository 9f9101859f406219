"""What the launcher itself reads of the settings that the services read too, before anything is started.

A service says of each of its settings what is wrong with it. These few shape Envoy's configuration besides, and what is
wrong with one of them has to be told as plainly.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway import upstreams
from gateway.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What an operator does about a machine that lacks something; any other error is a defect of ours.
_MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room there, or name another directory with --data-dir."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it yours, or name another one with --data-dir."),
    errno.EFBIG: "Raise the largest size of a file (`ulimit -f`).",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the number of open files (`ulimit -n`)."),
    errno.EAGAIN: "Raise the number of processes (`ulimit -u`).",
    errno.ENOMEM: "Give it more memory.",
}
_T = TypeVar("_T")


def lacking(error: OSError, data_dir: Path) -> Failure | None:
    """What the machine lacks, in words; None where that is not it."""
    if error.errno not in _MENDS:
        return None
    where = error.filename or f"below {data_dir}"
    return Failure(f"{where}: {error.strerror}", do=_MENDS[error.errno])


@dataclass(frozen=True, slots=True)
class Given:
    """Settings as the environment has them."""

    environment: Mapping[str, str]
    otlp_option: str = ""  # --otlp-endpoint, which counts before the setting

    def check(self) -> None:
        """Read everything once. Failure for a word in place of a number, or a file that is not there."""
        self.body_limit()
        self.envelope_limit()
        self.tier_upstreams()
        self.otlp_url()
        authority = self.upstream_ca()
        if authority is not None:
            try:
                authority.read_bytes()
            except OSError as error:
                raise Failure(f"PADDOCK_UPSTREAM_CA_FILE: {authority}: {error.strerror}", do="Correct it.") from error

    def body_limit(self) -> int:
        from policy.settings import PolicySettings

        for name in ("PADDOCK_MAX_REQUEST_BODY_BYTES", "MAX_REQUEST_BODY_BYTES"):
            given = self._parsed(name, _whole)
            if given is not None:
                return given
        default: int = PolicySettings.model_fields["max_request_body_bytes"].default
        return default

    def envelope_limit(self) -> int | None:
        return self._parsed("PADDOCK_MAX_ENVELOPE_BYTES", _whole)

    def tier_upstreams(self) -> dict[str, tuple[str, ...]]:
        from policy.rules.tiers import parse_upstreams

        def read(text: str) -> dict[str, tuple[str, ...]]:
            found = parse_upstreams(text)
            return {tier.value: tuple(upstreams.normal(url) for url in urls) for tier, urls in found.items()}

        return self._parsed("PADDOCK_TIER_UPSTREAMS", read) or {}

    @property
    def otlp_endpoint(self) -> str:
        return self.otlp_option or self.environment.get("PADDOCK_OTLP_ENDPOINT", "")

    def otlp_url(self) -> str:
        from policy.rules.settings import otlp_url

        try:
            return otlp_url(self.otlp_endpoint) if self.otlp_endpoint else ""
        except ValueError as error:
            raise Failure(str(error), do="Correct it.") from error

    def upstream_key(self) -> str:
        named = self.environment.get("PADDOCK_UPSTREAM_KEY_FILE", "")
        if not named:
            return self.environment.get("PADDOCK_UPSTREAM_KEY", "")
        try:
            return Path(named).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Failure(f"PADDOCK_UPSTREAM_KEY_FILE: {named}: {error.strerror}", do="Correct it.") from error

    def upstream_ca(self) -> Path | None:
        named = self.environment.get("PADDOCK_UPSTREAM_CA_FILE", "")
        return Path(named).absolute() if named else None

    def _parsed(self, name: str, parse: Callable[[str], _T]) -> _T | None:
        """A setting read; None where it is not set."""
        given = self.environment.get(name, "")
        try:
            return parse(given) if given else None
        except ValueError as error:
            raise Failure(f"{name}: {error}", do="Correct it.") from error


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None
