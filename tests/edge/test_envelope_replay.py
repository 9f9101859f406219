"""The same envelope twice: refused where it was answered, served where it was not."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests import harness
from tests.harness import eventually, request_id
from tests.sealing import PATH, chat, refused, seal, senders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Gateway
    from tests.sealing import Sender


def test_an_answered_envelope_is_not_answered_again(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one, package = sender(), seal(chat("x"), sender().server).bytes_
    assert one.post(package, "first").status_code == 200
    refused(one.post(package, "first"))
    refused(one.post(seal(chat("y"), one.server).bytes_, "first"))  # a payload id names one request
    refused(one.post(package, "second"))  # and a package is one request, whatever it is called
    assert gateway.audit(request_id(one.post(package, "first")))["reason"] == "envelope_refused"
    assert one.send(chat("y"), "third").status_code == 200


def test_somebody_elses_package(sender: Callable[..., Sender]) -> None:
    """A recorded package with another API key and a public key of their own would give away its answer."""
    mallory, alice = sender(), sender()
    package = seal(chat("x"), alice.server).bytes_
    assert alice.post(package, "id").status_code == 200
    refused(mallory.post(package, "id"))
    refused(mallory.post(package, "other"))
    assert mallory.send(chat("x"), "id").status_code == 200  # payload ids of one key mean nothing for another


def test_an_attempt_that_failed_may_be_repeated(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender("--concurrency", "1")
    sealed = seal(chat("x"), one.server).bytes_
    earlier = gateway.upstream.served()
    blocker = threading.Thread(target=lambda: one.send(chat("y !first=3000")))
    blocker.start()
    eventually(lambda: gateway.upstream.after(earlier, "running"))
    again = gateway.http(one.client.key)

    def attempt() -> httpx.Response:
        return again.post(PATH, content=sealed, headers=one.headers("same"))

    refused(attempt(), 429)
    refused(attempt(), 429)
    blocker.join()
    assert attempt().status_code == 200
    refused(attempt())


def test_a_refused_package_leaves_its_id_free(sender: Callable[..., Sender]) -> None:
    one = sender()
    sealed = seal(chat("x"), one.server)
    refused(one.post(sealed.bytes_[:-2], "id"))
    refused(one.send(chat("x", stream=True), "id"))
    assert one.post(sealed.bytes_, "id").status_code == 200


def test_the_same_one_at_once(sender: Callable[..., Sender]) -> None:
    one, package = sender(), seal(chat("x !first=300"), sender().server).bytes_
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: one.post(package, "id").status_code, range(4)))
    assert sorted(found) == [200, 400, 400, 400]


def test_a_client_that_left_may_come_again(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    package = seal(chat("x !first=700"), one.server).bytes_
    with pytest.raises(httpx.ReadTimeout):
        one.client.http.post(PATH, content=package, headers=one.headers("id"), timeout=httpx.Timeout(5, read=0.4))
    assert one.post(package, "id").status_code == 200


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose parts these tests may kill."""
    with harness.running(tmp_path_factory.mktemp("replay") / "data") as gateway:
        yield gateway


def repeated(one: Sender, package: bytes, payload_id: str) -> httpx.Response:
    """As the published client does it: the same bytes under the same id, for as long as a status says to."""

    def attempt() -> httpx.Response | None:
        response = one.post(package, payload_id)
        return None if response.status_code in (429, 500, 502, 503, 504) else response

    return eventually(attempt, patience=20, every=0.5)


def failing(one: Sender, status: int) -> tuple[bytes, str]:
    """A package that was refused for what is down, and its id: outages take a moment to show."""

    def attempt() -> tuple[bytes, str] | None:
        package, payload_id = seal(chat("x"), one.server).bytes_, str(uuid.uuid4())
        response = one.post(package, payload_id)
        if response.status_code == 200:
            return None
        refused(response, status)
        return package, payload_id

    return eventually(attempt)


@pytest.mark.parametrize("part", ["processor-0", "policy-0", "valkey", "postgres"])
def test_after_an_outage(lone: Gateway, part: str) -> None:
    one = senders(lone)()
    assert one.send(chat("x")).status_code == 200
    lone.instance.kill(part)
    package, payload_id = failing(one, 503)
    lone.instance.restart(part)
    assert repeated(one, package, payload_id).status_code == 200
    refused(one.post(package, payload_id))


def test_after_an_outage_of_ollama(lone: Gateway) -> None:
    one = senders(lone)()
    lone.upstream.stop()
    package, payload_id = failing(one, 502)
    lone.upstream.start()
    assert repeated(one, package, payload_id).status_code == 200


def test_a_processor_that_dies_while_it_answers(lone: Gateway) -> None:
    """Nobody is left to free its claims: they run out by themselves."""
    one = senders(lone)()
    package = seal(chat("x !first=2000"), one.server).bytes_
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(
            httpx.post(f"{lone.url}{PATH}", content=package, headers={**one.headers("id"), **one.client.http.headers},
                       timeout=30, trust_env=False).status_code)
    )  # fmt: skip
    earlier = lone.upstream.served()
    thread.start()
    eventually(lambda: lone.upstream.after(earlier, "running"))
    lone.instance.kill("processor-0")
    thread.join()
    assert found[0] in (500, 502, 503)
    lone.instance.restart("processor-0")
    assert repeated(one, package, "id").status_code == 200
    refused(one.post(package, "id"))
