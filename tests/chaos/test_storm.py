"""A short storm in every test run; `make chaos` is the long one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests import harness
from tests.chaos.storm import Books, Sent, Storm, check, report, settle_down

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(180)
def test_the_books_are_right_after_a_storm(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with harness.running(tmp_path / "data", restart=True, workers=2) as gateway:
        storm = Storm(gateway, seed, seconds=12, clients=10)
        storm.run()
        books = settle_down(gateway)
        wrong = list(check(storm, books))
    assert not wrong, f"{report(storm, books, wrong)}\n" + "\n".join(wrong[:20])
    assert storm.killed, "nothing was killed: the storm was none"
    assert any(sent.whole and sent.status == 200 for sent in storm.sent), report(storm, books, wrong)


@pytest.mark.parametrize(("counted", "status", "wrong"), [(2, 503, 0), (1, 503, 3), (2, 200, 2)])
def test_refusals_without_a_row_are_those_that_were_counted(counted: int, status: int, wrong: int) -> None:
    """Past the rate they share one; what was admitted never does."""
    nobody: Any = None  # the books are read already
    storm = Storm(nobody, seed=0, seconds=0, sent=[Sent("chat", 0.0, name, status) for name in ("a", "b")])
    books = Books({}, {}, daily=0, counter=0, open=0, waiting=0, counted=counted)
    assert len(list(check(storm, books))) == wrong
