"""Runs in `.venv-nomyo`: drives the published client as a program would. One JSON job on stdin, one JSON result out.

Job: {"base_url", "api_key", "key_bits": 2048 | 4096, "max_retries", "requests": [arguments of `create`, …]}.
Result: for each request {"ok": true, "response": …} or {"ok": false, "error": class, "status": …, "message": …}.
All requests use one client, hence one key pair.
"""

import asyncio
import json
import sys
import warnings

from nomyo import SecureChatCompletion  # type: ignore[import-not-found]  # it lives in .venv-nomyo alone

warnings.simplefilter("ignore", UserWarning)  # it warns of plain HTTP, which a test on the loopback means


async def main() -> None:
    job = json.load(sys.stdin)
    chat = SecureChatCompletion(
        base_url=job["base_url"], allow_http=True, api_key=job.get("api_key"), max_retries=job.get("max_retries", 0)
    )
    chat.client.key_size = job.get("key_bits", 4096)
    results = []
    for request in job["requests"]:
        try:
            results.append({"ok": True, "response": await chat.create(**request)})
        except Exception as error:  # whatever it raises is the result
            status = getattr(error, "status_code", None)
            results.append({"ok": False, "error": type(error).__name__, "status": status, "message": str(error)})
    json.dump(results, sys.stdout)


asyncio.run(main())
