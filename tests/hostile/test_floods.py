"""While a flood lasts, a well-behaved client is served; `make hostile` measures how quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.floods import KINDS, Phase, ask, flood

if TYPE_CHECKING:
    from tests.harness import Gateway


SHARE = 0.15  # tests share their machine with other tests


@pytest.mark.parametrize("kind", KINDS)
def test_a_well_behaved_client_is_served(gateway: Gateway, kind: str) -> None:
    client, phase = gateway.client(), Phase()
    assert client.chat("one").status_code == 200  # its key is proven: only a new one stands in line for argon2
    with flood(kind, gateway.url, phase, share=SHARE):
        ask(client, gateway.url, phase, seconds=1.0, least=30)
    assert phase.statuses == {200}
    assert phase.flooded >= 5, "the flood was none"
