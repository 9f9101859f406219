"""Security tiers: which models are on which, which machines serve which, and that a change counts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import harness
from tests.harness import MODELS, Upstream, eventually, request_id
from tests.sealing import chat, refused, senders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Gateway
    from tests.sealing import Sender

TIERS = ("standard", "high", "maximum")


@pytest.fixture(scope="module")
def apart() -> Iterator[Upstream]:
    """The machine of the high tier."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def lone(apart: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("tiers") / "data"
    with harness.running(directory, PADDOCK_TIER_UPSTREAMS=f"high={apart.url}") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def one(lone: Gateway) -> Sender:
    return senders(lone)("--model", MODELS[0], "--model", MODELS[1])


@pytest.fixture(autouse=True)
def nothing_said(lone: Gateway) -> Iterator[None]:
    yield
    lone.paddock("set-tier", "--all", "--default")
    lone.paddock("set-tier", *MODELS, "--default")


def statuses(one: Sender, model: str = MODELS[0]) -> list[int]:
    return [one.send(chat("x", model=model), x_security_tier=tier).status_code for tier in TIERS]


def becomes(look: Callable[[], list[int]], wanted: list[int]) -> None:
    eventually(lambda: look() == wanted, patience=10)


def test_without_a_word_there_is_standard(lone: Gateway, one: Sender) -> None:
    becomes(lambda: statuses(one), [200, 403, 403])
    assert one.send(chat("x")).status_code == 200
    response = one.send(chat("x"), x_security_tier="high")
    other = one.send(chat("x", model="not-there"))
    assert {**refused(response, 403), "request_id": ""} == {**refused(other, 403), "request_id": ""}
    assert lone.audit(request_id(response))["reason"] == "tier_not_available"
    assert lone.audit(request_id(other))["reason"] == "model_not_available"
    assert lone.paddock("list-tiers") == {"models": {}, "others": ["standard"]}


def test_one_command_opens_all(lone: Gateway, one: Sender) -> None:
    lone.paddock("set-tier", "--all", *(word for tier in TIERS for word in ("--tier", tier)))
    becomes(lambda: statuses(one), [200, 200, 200])
    metadata = one.open(one.send(chat("x"), x_security_tier="maximum"))["_metadata"]
    assert metadata["security_tier"] == "maximum"


def test_a_model_of_its_own(lone: Gateway, one: Sender) -> None:
    lone.paddock("set-tier", "registry.ollama.ai/library/mistral:7b", "--tier", "maximum")
    becomes(lambda: statuses(one, MODELS[1]), [403, 403, 200])
    assert statuses(one) == [200, 403, 403]
    assert one.client.chat("x", model=MODELS[1]).status_code == 200  # tiers are about envelopes
    found = lone.paddock("set-tier", MODELS[1], "--none")
    assert found == {"models": {MODELS[1]: []}, "others": ["standard"]}
    becomes(lambda: statuses(one, MODELS[1]), [403, 403, 403])


def test_a_tier_has_its_own_machines(lone: Gateway, apart: Upstream, one: Sender) -> None:
    lone.paddock("set-tier", MODELS[0], "--tier", "standard", "--tier", "high")
    becomes(lambda: statuses(one), [200, 200, 403])
    for tier, upstream, other in (("standard", lone.upstream, apart), ("high", apart, lone.upstream)):
        response = one.send(chat("x"), x_security_tier=tier)
        assert one.open(response)["usage"]["total_tokens"] == 3
        (served,) = upstream.served(request_id(response))
        assert served["endpoint"] == "/v1/chat/completions"
        assert not {name for name in served["headers"] if name.startswith("x-p")}
        assert not other.served(request_id(response))
    streamed = one.send(chat("x", stream=True), x_security_tier="high", x_envelope_stream="1")
    assert streamed.status_code == 200
    assert apart.served(request_id(streamed))


def test_no_other_machine_takes_over(lone: Gateway, apart: Upstream, one: Sender) -> None:
    """What was to go to machines of a tier goes nowhere else, whatever happens to them."""
    lone.paddock("set-tier", "--all", "--tier", "standard", "--tier", "high")
    becomes(lambda: statuses(one), [200, 200, 403])
    apart.stop()
    try:
        for _ in range(5):
            refused(one.send(chat("x"), x_security_tier="high"), 502)
            assert one.send(chat("x"), x_security_tier="standard").status_code == 200
    finally:
        apart.start()
    eventually(lambda: one.send(chat("x"), x_security_tier="high").status_code == 200, patience=15)


def test_no_client_chooses_the_machine(lone: Gateway, apart: Upstream, one: Sender) -> None:
    response = one.client.http.post("/v1/chat/completions", json=chat("x"), headers={"x-paddock-tier": "high"})
    assert response.status_code == 200
    assert not apart.served(request_id(response))


@pytest.mark.parametrize(
    "words", [(), ("--tier", "high"), (MODELS[0],), (MODELS[0], "--all", "--tier", "high"), (MODELS[0], "--tier", "x")]
)
def test_commands_used_wrongly(lone: Gateway, words: tuple[str, ...]) -> None:
    lone.paddock("set-tier", *words, status=2)
