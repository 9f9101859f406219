"""One JSON object a line for every event, for both services; the last gate before a secret could reach a log.

An event is a short constant name with fields beside it: `log.info("upstream_lost", extra={"upstream": "gpu-1:11434"})`
becomes {"time":…,"level":"info","service":"policy","logger":…,"event":"upstream_lost","upstream":"gpu-1:11434"}.

Callers do not log prompts or keys; should one slip into a message or a traceback all the same, what looks like a
credential is cut to its clear prefix here. A line has a bounded length and never holds a raw line break.

Nothing here writes: each `__main__` hands `config()` to `logging.config.dictConfig`.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from math import isfinite

VALUE_MAX = 2_000  # characters of one field
TRACEBACK_MAX = 8_000  # characters; the end is kept, where the cause is

# nz_ and nzp_ keys: the 12 clear characters stay, they name the key in tables and audit rows. After a scheme word of an
# Authorization header (RFC 9110, 11.4), and in a URL's userinfo (RFC 3986, 3.2.1), nothing stays.
_KEYS = re.compile(r"(nzp?_[0-9A-Za-z]{9})[0-9A-Za-z]+")
_SCHEMES = re.compile(r"(?i)\b(bearer|basic)(\s+)(?!nzp?_)[A-Za-z0-9._~+/=-]{8,}")
# A JSON Web Token stands where somebody put it: its header begins with {" in base64url.
_TOKENS = re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
# In a path nothing that we or Ollama know is so long without a break: it may be anybody's key.
_RUNS = re.compile(r"[0-9A-Za-z_]{24,}")
_USERINFO = re.compile(r"(://[^\s/:@\"]*:)[^\s/@\"]+@")

# What every LogRecord carries by itself; whatever else stands on one came through `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """`text` without what looks like an API key, a bearer token or a password in a URL."""
    text = _KEYS.sub(r"\1…", text)
    text = _SCHEMES.sub(r"\1\2…", text)
    text = _TOKENS.sub("eyJ…", text)
    return _USERINFO.sub(r"\1…@", text)


def redact_path(path: str) -> str:
    """A path as a client wrote it, without what may be a key of anybody's; Envoy's own log withholds such a path."""
    return _RUNS.sub("…", redact(path))


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": _clean(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _OWN and name not in line:
                line[name] = _clean(value)
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))[-TRACEBACK_MAX:]
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def config(service: str, level: str = "INFO") -> dict[str, object]:
    """The `logging.config.dictConfig` of a service: standard error, JSON lines, libraries at warning."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "policy.rules.logs.JsonLines", "service": service}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        # httpx logs each poll and uvicorn each start at info: said once by us, or not at all.
        "loggers": {name: {"level": "WARNING"} for name in ("httpx", "httpcore", "uvicorn", "asyncio", "alembic")},
    }


def _clean(value: object) -> object:
    """A JSON value of bounded length: numbers as they are, everything else as redacted text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return value
    text = value if isinstance(value, str) else str(value)
    # The first cut bounds the work; the cut that shows comes after redacting, so that it cannot go through a key.
    text = redact(text[: VALUE_MAX * 4])
    return text if len(text) <= VALUE_MAX else text[:VALUE_MAX] + "…"
