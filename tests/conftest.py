"""Fixtures for every test: one shared gateway per worker process, started by the first test that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests import harness, sealing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long an example or its making takes says something of who else is on the machine, and nothing of the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Gateway]:
    """The shared gateway. A test makes a tenant of its own and kills nothing."""
    with harness.running(tmp_path_factory.mktemp("gateway") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def processor_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Gateway]:
    """Another, whose plain answers go through processor, as they do in a mesh."""
    with harness.running(tmp_path_factory.mktemp("processor") / "data", metering="processor") as running:
        yield running


@pytest.fixture(scope="module")
def sender(gateway: harness.Gateway) -> Callable[..., sealing.Sender]:
    """Makes envelope clients of the shared gateway: with a new key of a new tenant that has these options, or for a
    given client. All of a module have one key pair."""
    return sealing.senders(gateway)
