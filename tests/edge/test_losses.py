"""What dies in between: the store's data, the processor, Envoy, a client. Tokens are charged once all the same."""

from __future__ import annotations

import socket
import threading
import time
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from policy.stores.redis import KEYS
from tests import harness
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Client, Gateway


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to be mistreated; every test leaves it whole."""
    with harness.running(tmp_path_factory.mktemp("losses") / "data") as gateway:
        yield gateway


class Stream:
    """A streamed chat that is read in the background until it ends, in whichever way."""

    def __init__(self, client: Client, text: str, cap: int = 5000) -> None:
        self.request_id = ""
        self.begun = threading.Event()
        message = {"role": "user", "content": text}
        self._body = {"model": MODELS[0], "messages": [message], "options": {"num_predict": cap}}
        self._client = client
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self.begun.wait(20)

    def _read(self) -> None:
        http = self._client.http
        try:
            with httpx.stream(
                "POST", f"{http.base_url}/api/chat", json=self._body, headers=http.headers, timeout=60, trust_env=False
            ) as response:
                assert response.status_code == 200
                self.request_id = request_id(response)
                for _ in response.iter_raw():
                    self.begun.set()
        except httpx.HTTPError:
            pass  # cut off, as some are here
        finally:
            self.begun.set()

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def leases_run_out(gateway: Gateway) -> None:
    """As if their fifteen seconds were over."""
    store = gateway.redis()
    for keys in KEYS:
        for name in store.hkeys(keys.reservations):
            store.zadd(keys.leases, {str(name, "ascii") if isinstance(name, bytes) else name: 0})
    store.close()


def open_reservations(gateway: Gateway) -> int:
    store = gateway.redis()
    found = sum(store.zcard(keys.leases) for keys in KEYS)
    store.close()
    return found


def settled(gateway: Gateway, wanted: str) -> dict[str, Any]:
    """The row of a request once it is settled, whether or not Envoy lived to log it."""

    def row() -> dict[str, Any] | None:
        found = gateway.sql("SELECT * FROM audit WHERE request_id = $1 AND settled_at IS NOT NULL", wanted)
        return found[0] if found else None

    return eventually(row, patience=30)


def left(client: Client) -> int:
    return int(client.http.get("/api/tags").headers["x-budget-tokens-remaining"])


def test_a_store_that_loses_everything_while_answers_are_on_their_way(own: Gateway) -> None:
    """What was used is rebuilt from the ledger, and what ends later is added."""
    client = own.client(tenant_options=("--budget-total", "5000"))
    done = client.chat("one two three !tokens=20", options={"num_predict": 20})
    own.audit(request_id(done))
    streams = [Stream(client, f"one two !tokens={20 + n} !delay=40", cap=50) for n in range(4)]
    store = own.redis()
    store.flushall()
    store.close()
    for stream in streams:
        stream.end()
    used = 0
    for name in (request_id(done), *(stream.request_id for stream in streams)):
        row = settled(own, name)
        (served,) = own.upstream.served(name)
        assert row["prompt_tokens"] + row["completion_tokens"] == served["prompt_tokens"] + served["completion_tokens"]
        used += served["prompt_tokens"] + served["completion_tokens"]
    assert left(client) == 5000 - used
    assert open_reservations(own) == 0


def test_requests_go_on_while_the_store_loses_everything(own: Gateway) -> None:
    """None is answered from a budget that starts at nothing: refused for a moment at most, never more generous."""
    client = own.client(tenant_options=("--budget-total", "100000"))
    least = 100_000
    last = client.chat("one two !tokens=30")
    for number in range(30):
        if number % 6 == 5:
            own.audit(request_id(last))  # what the store alone knows is lost with it
            store = own.redis()
            store.flushall()
            store.close()
        last = client.chat("one two !tokens=30")
        if last.status_code == 200:
            remaining = int(last.headers["x-budget-tokens-remaining"])
            assert remaining <= least
            least = remaining
        else:
            assert last.status_code == 503
    assert least < 100_000 - 20 * 30


def test_a_processor_that_is_killed_is_charged_for_what_it_let_pass(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", metering="processor") as own:
        killed_in_a_stream(own)


def killed_in_a_stream(own: Gateway) -> None:
    client = own.client()
    stream = Stream(client, "x !tokens=200 !delay=20")
    own.instance.kill("processor-0")
    stream.end()
    own.instance.restart("processor-0")
    row = settled(own, stream.request_id)
    (served,) = own.upstream.served(stream.request_id)
    assert row["estimated"]
    assert row["outcome"] == "lost"
    assert 0 < row["completion_tokens"] <= served["completion_tokens"] * 2 + 5
    eventually(lambda: client.chat("x").status_code == 200)


def test_when_envoy_and_processor_die_the_sweeper_settles(own: Gateway) -> None:
    client = own.client()
    own.instance.kill("policy-0")  # which forgets how fast the model was for others
    own.instance.restart("policy-0")
    eventually(lambda: client.http.get("/api/tags").status_code == 200)
    stream = Stream(client, "one two three !tokens=2000 !delay=20")
    time.sleep(4.5)  # until its progress was noted: Envoy tells every second
    own.instance.kill("processor-0")
    own.instance.kill("envoy")
    try:
        stream.end()
        assert open_reservations(own) == 1
        leases_run_out(own)
        row = settled(own, stream.request_id)
        assert open_reservations(own) == 0
        assert (row["outcome"], row["estimated"], row["status"]) == ("lost", True, None)
        (served,) = own.upstream.served(stream.request_id)
        assert served["completion_tokens"] * 0.6 < row["completion_tokens"] < served["completion_tokens"] * 1.5
    finally:
        own.instance.restart("processor-0")
        own.instance.restart("envoy")
    eventually(lambda: client.chat("x").status_code == 200)


def test_without_a_processor_nothing_is_forwarded_and_nothing_charged(own: Gateway) -> None:
    client = own.client(tenant_options=("--budget-total", "1000"))
    client.chat("x")
    before = left(client)
    own.instance.stop_part("processor-0")
    time.sleep(0.15)  # what Envoy heard of it in the last tenth of a second is over
    refused = client.chat("x")
    own.instance.restart("processor-0")
    assert refused.status_code == 503
    row = settled(own, request_id(refused))
    assert (row["prompt_tokens"], row["completion_tokens"], row["outcome"]) == (0, 0, "not_forwarded")
    assert not own.upstream.served(request_id(refused))
    eventually(lambda: left(client) == before)
    eventually(lambda: client.chat("x").status_code == 200)


def test_a_client_that_leaves_while_policy_decides_pays_nothing(own: Gateway) -> None:
    """The store takes its time, the client does not wait: the admission that comes of it is nobody's."""
    client = own.client(tenant_options=("--budget-total", "1000"))
    client.chat("x")
    before = left(client)
    url = urlsplit(own.url)
    body = b'{"model":"llama3.1:8b","messages":[{"role":"user","content":"impatient"}]}'
    head = ["POST /api/chat HTTP/1.1", "host: x", f"authorization: Bearer {client.key}", f"content-length: {len(body)}"]
    own.instance.signal("valkey", SIGSTOP)
    try:
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            time.sleep(0.3)  # until the question is on its way to the store
    finally:
        own.instance.signal("valkey", SIGCONT)
    eventually(lambda: open_reservations(own) == 1)
    asked = eventually(
        lambda: own.sql(
            "SELECT request_id FROM audit WHERE key_prefix = $1 AND duration_us IS NOT NULL AND status = 0",
            client.prefix,
        )
    )
    leases_run_out(own)
    row = settled(own, asked[0]["request_id"])
    assert (row["prompt_tokens"], row["completion_tokens"], row["outcome"]) == (0, 0, "not_forwarded")
    assert open_reservations(own) == 0
    assert left(client) == before
