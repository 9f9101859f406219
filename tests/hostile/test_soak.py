"""A soak of some seconds: descriptors return to where they were, nothing stays reserved; `make hostile` is the day."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from tests import harness
from tests.hostile.soak import Soak

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(180)
def test_nothing_is_left_of_mixed_requests(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with harness.running(tmp_path / "data") as gateway:
        soak = Soak(gateway, seed, clients=6)
        soak.run(300, steps=2)
        faults = list(soak.faults())
        metrics = gateway.http().get("/metrics").text
    told = "\n".join([f"seed {seed}", json.dumps(soak.report(), indent=2), *faults])
    assert not faults, told
    assert "paddock_reservations_open 0.0" in metrics
    assert sum(soak.answers.values()) >= 300, told
