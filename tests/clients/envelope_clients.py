"""Published envelope clients as programs: one job on their standard input, one result for each request."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness import Client

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
NODE_CLIENT = Path(__file__).with_name("envelope_node.mjs")
CLASSES = {
    400: "InvalidRequestError",
    401: "AuthenticationError",
    403: "ForbiddenError",
    404: "APIError",
    429: "RateLimitError",
    502: "APIError",
    503: "ServiceUnavailableError",
}


def drive(program: Sequence[str], url: str, client: Client, *requests: dict[str, Any], **job: Any) -> list[Any]:
    """What became of each request, all of them with one key pair."""
    quiet = {"PATH": os.environ["PATH"], "NO_PROXY": "*"}
    work = {"base_url": url, "api_key": client.key, "key_bits": 2048, "requests": requests, **job}
    done = subprocess.run(program, input=json.dumps(work), capture_output=True, text=True, timeout=110, env=quiet)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODELS[0], "messages": [{"role": "user", "content": text}], **fields}


def failure(result: dict[str, Any]) -> tuple[str, int]:
    assert not result["ok"], result
    return result["error"], result["status"]
