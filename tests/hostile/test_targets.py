"""Every target over its corpus, over what hypothesis makes of it, and under atheris for a moment; `make hostile` is the
long form. Work is counted, not timed: a parser that looks at its input again and again shows in the calls it makes."""

from __future__ import annotations

import gzip
import random
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from processor import sse
from processor.usage import meter_for
from tests.hostile import fuzz
from tests.hostile.inputs import CORPUS, corpus, inputs
from tests.hostile.targets import TARGETS, lua, streams

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = [pytest.param(target, name, id=f"{target}-{name}") for target in TARGETS for name in corpus(target)]
EXAMPLES = 60
# Their every input costs milliseconds of RSA.
SLOW = {"bent_packages_do_not_open": 12, "encrypted_streams_hold_every_piece": 30}


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize(("target", "name"), ENTRIES)
def test_the_corpus(target: str, name: str) -> None:
    TARGETS[target]((CORPUS / target / name).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_what_hypothesis_makes(target: str) -> None:
    check = TARGETS[target]

    @settings(
        max_examples=SLOW.get(target, EXAMPLES),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=inputs(target))
    def holds(data: bytes) -> None:
        check(data)

    holds()


def calls(target: str, data: bytes) -> int:
    """Calls of functions, Python's and C's, that checking this input takes."""
    count = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        TARGETS[target](data)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("target", sorted(set(TARGETS) - set(SLOW)))
def test_work_grows_no_faster_than_the_input(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice and twice as much of any entry costs at most so much more: a quadratic step would show as a factor."""
    for module in (lua, streams):
        monkeypatch.setattr(module, "chance", lambda _: random.Random(0))  # one cap, and not a low one
    for name, entry in corpus(target).items():
        if not 20 <= len(entry) <= 20_000:
            continue
        calls(target, entry * 16)  # what is computed once and kept is computed here
        small, large = calls(target, entry * 16), calls(target, entry * 64)
        assert large <= 6 * small + 2000, f"{name}: {small} calls for 16 of it, {large} for 64"


def test_many_members_of_a_gzip_are_unpacked_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is handed to zlib a few times, not once for every member that stands before it in its chunk."""
    handed = 0

    class Counting:
        def __init__(self, bits: int) -> None:
            self._stream = original(bits)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal handed
            handed += len(data)
            return self._stream.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    original = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    packed = gzip.compress(b"", mtime=0) * 10_000
    meter = meter_for("/api/chat", content_type="", content_encoding="gzip", hide_usage=False, cap=1)
    meter.feed(packed, True)
    assert meter.usage().readable
    assert len(packed) <= handed < 200 * len(packed)


def test_a_comment_that_comes_byte_by_byte_is_read_once() -> None:
    """Up to `scan` nothing was found before, so nothing is looked for there: the line ends here are a trap."""
    assert sse.boundary(b":" + b"\n" * 9, 0, 10, whole=True) == -1
    assert sse.boundary(b":" + b"." * 8 + b"\n", 0, 9, whole=True) == 10


@pytest.mark.timeout(120)
def test_coverage_guided(tmp_path: Path) -> None:
    """A moment of atheris on the parsers with the most states. What is found here is in the message, and worth a file
    in the corpus."""
    if not fuzz.installed():
        warnings.warn(fuzz.MISSING, pytest.PytestWarning, stacklevel=1)
        pytest.skip(fuzz.MISSING)
    for target in ("requests_keep_what_was_judged", "openai_completion_stream"):
        run = fuzz.fuzz(target, 2, tmp_path)
        found = "" if run.finding is None else repr(run.finding.read_bytes())
        assert run.finding is None, f"{target}: {found}\n{run.output[-3000:]}"
        assert run.inputs > 100, run.output[-3000:]


def test_a_finding_is_found(tmp_path: Path) -> None:
    """The fuzzer's own test: an unknown target is no success."""
    if not fuzz.installed():
        pytest.skip(fuzz.MISSING)
    with pytest.raises(RuntimeError, match="did not run"):
        fuzz.fuzz("no_such_target", 1, tmp_path)
