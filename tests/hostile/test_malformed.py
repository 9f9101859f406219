"""Some thousand malformed requests; `make hostile` sends a hundred thousand."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from tests import harness
from tests.hostile import malformed

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = 26


@pytest.mark.timeout(180)
def test_three_thousand_malformed_requests(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with harness.running(tmp_path / "data") as gateway:
        run = malformed.run(gateway, 3000, seed)
        told = "\n".join([f"seed {seed}", json.dumps(run.report(), indent=2), *run.faults[:20]])
        assert not run.faults, told
        assert len(run.sent) == CLASSES, told
        assert {"400", "401", "403"} <= set(run.statuses), told
        assert gateway.client().chat("one two").status_code == 200
