"""One Envoy a module; each test finds its services as new. Where a whole gateway is shared, a tenant of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge import rig as rigs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway

pytest.register_assert_rewrite("tests.edge.visitors")  # so that its assertions say what they compared


@pytest.fixture(scope="module")
def module_rig() -> Iterator[rigs.Rig]:
    with rigs.running() as running:
        yield running


@pytest.fixture
def rig(module_rig: rigs.Rig) -> rigs.Rig:
    module_rig.reset()
    return module_rig


@pytest.fixture
def tenant(gateway: Gateway) -> str:
    return gateway.tenant()
