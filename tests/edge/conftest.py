"""One Envoy a module; each test finds its services as new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge import rig as rigs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def module_rig() -> Iterator[rigs.Rig]:
    with rigs.running() as running:
        yield running


@pytest.fixture
def rig(module_rig: rigs.Rig) -> rigs.Rig:
    module_rig.reset()
    return module_rig
