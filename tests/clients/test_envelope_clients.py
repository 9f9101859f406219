"""The published envelope clients against the front door: `nomyo` unmodified, and a Node script of WebCrypto alone that
keeps to what the published JavaScript client documents."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests import harness
from tests.clients.envelope_clients import CLASSES, NODE_CLIENT, TOOLS, ask, drive, failure
from tests.clients.nomyo_environment import DRIVER, nomyo_python
from tests.harness import MODELS, eventually
from tests.sealing import server_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Gateway

Program = list[str]
TIERS = ("standard", "high", "maximum")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not on this machine: JavaScript clients are NOT checked")


@pytest.fixture(scope="module", params=["nomyo", pytest.param("node", marks=needs_node)])
def program(request: pytest.FixtureRequest) -> Program:
    return [str(nomyo_python()), str(DRIVER)] if request.param == "nomyo" else [str(NODE), str(NODE_CLIENT)]


@pytest.fixture(scope="module")
def open_tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of these tests' own, since tiers are the same for all tenants."""
    with harness.running(tmp_path_factory.mktemp("clients") / "data") as gateway:
        server_key(gateway)
        gateway.paddock("set-tier", "--all", *(word for tier in TIERS for word in ("--tier", tier)))
        yield gateway


@pytest.mark.parametrize("bits", [2048, 4096])
def test_chats(open_tiers: Gateway, program: Program, bits: int) -> None:
    client = open_tiers.client()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wie geht's? 東京 🦙"},
        {"role": "assistant", "content": "Gut."},
        {"role": "user", "content": "one two"},
    ]
    results = drive(
        program,
        open_tiers.url,
        client,
        *({"model": MODELS[0], "messages": messages, "security_tier": tier} for tier in TIERS),
        ask("no tier"),
        ask("use the tool", tools=TOOLS, tool_choice="auto", temperature=0.5, top_p=0.9, user="someone"),
        ask("word " * 50_000),
        key_bits=bits,
    )
    answers = [result["response"] if result["ok"] else pytest.fail(str(result)) for result in results]
    for tier, answer in zip((*TIERS, "standard"), answers, strict=False):
        assert answer["_metadata"]["security_tier"] == tier
        assert answer["_metadata"]["is_encrypted"] is True
        assert answer["_metadata"]["payload_id"]
        assert answer["_metadata"]["memory_protection"]["core_dump_prevention"] is True
    assert answers[0]["choices"][0]["message"]["content"] == "Echo: one two"
    assert answers[4]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert answers[5]["usage"]["prompt_tokens"] == 50_000
    rows = eventually(lambda: full(open_tiers, client.tenant, 6))
    assert sum(row["prompt_tokens"] for row in rows) == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert sum(row["completion_tokens"] for row in rows) == sum(a["usage"]["completion_tokens"] for a in answers)
    assert not any(row["estimated"] for row in rows)


def full(gateway: Gateway, tenant: str, count: int) -> list[dict[str, Any]] | None:
    rows = gateway.sql("SELECT * FROM audit WHERE tenant = $1 AND settled_at IS NOT NULL", tenant)
    return rows if len(rows) == count else None


def test_errors_are_the_clients_own_classes(open_tiers: Gateway, program: Program) -> None:
    client = open_tiers.client(open_tiers.tenant("--model", MODELS[0], "--max-tokens", "10"))
    limited = open_tiers.client(open_tiers.tenant("--rpm", "0"))
    results = drive(
        program,
        open_tiers.url,
        client,
        ask("x", max_tokens=11),
        ask("x", api_key="nz_wrong"),
        ask("x", model=MODELS[1]),
        ask("x", api_key=limited.key),
        ask("x !error-before=500"),
        ask("x !error-before=503"),
    )
    statuses = (400, 401, 403, 429, 502, 503)
    assert [failure(result) for result in results] == [(CLASSES[status], status) for status in statuses]
    details = ("could not be accepted", "unauthorized", "forbidden", "requests per minute", "upstream", "temporarily")
    for result, detail in zip(results, details, strict=True):
        assert detail in result["message"]


def test_404(program: Program, tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", PADDOCK_SECURE_INFERENCE="false") as gateway:
        server_key(gateway)
        (result,) = drive(program, gateway.url, gateway.client(), ask("x"))
    assert failure(result) == (CLASSES[404], 404)
    assert "not enabled" in result["message"]


def test_it_repeats_what_failed(open_tiers: Gateway, program: Program) -> None:
    """With the same payload id, as it does by itself after 429 and 503."""
    client = open_tiers.client(open_tiers.tenant("--concurrency", "1"))
    assert client.chat("x").status_code == 200
    earlier = open_tiers.upstream.served()
    blocker = threading.Thread(target=client.chat, args=("y !first=6000",))
    blocker.start()
    eventually(lambda: open_tiers.upstream.after(earlier, "running"))
    (result,) = drive(program, open_tiers.url, client, ask("x"), max_retries=4)
    blocker.join()
    assert result["ok"], result
    query = "SELECT count(*)::int AS n FROM audit WHERE tenant = $1 AND reason = 'concurrency'"
    (found,) = eventually(lambda: open_tiers.sql(query, client.tenant))
    assert found["n"] >= 1


EXAMPLES = NODE_CLIENT.parents[2] / "docs" / "how-to" / "encrypted-clients"


@pytest.mark.parametrize("name", ["stream_client.py", pytest.param("stream_client.mjs", marks=needs_node)])
def test_the_examples_of_the_documentation(open_tiers: Gateway, name: str) -> None:
    client = open_tiers.client()
    (key,) = open_tiers.paddock("server-key")
    interpreter = sys.executable if name.endswith(".py") else str(NODE)
    call = [interpreter, str(EXAMPLES / name), open_tiers.url, client.key, MODELS[0], "Grüß Gott", key["fingerprint"]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert done.stdout == "Echo: Grüß Gott\n", done.stderr
    pinned = subprocess.run([*call[:-1], "0" * 64], capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert pinned.returncode != 0
    assert "not the pinned one" in pinned.stderr
