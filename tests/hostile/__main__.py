"""The hostile suites in their long form: `make hostile`, or `python -m tests.hostile --only malformed --requests 9000`.

Each prints what it saw as JSON, and `WRONG` before whatever must not be. Status 0: nothing was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import harness
from tests.hostile import floods, fuzz, malformed
from tests.hostile.soak import DAY, Soak
from tests.hostile.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Gateway


@contextlib.contextmanager
def _gateway() -> Iterator[Gateway]:
    """A gateway in a directory that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="paddock-hostile-") as directory,
        harness.running(Path(directory) / "data") as gateway,
    ):
        yield gateway


def fuzzing(args: argparse.Namespace) -> Iterator[str]:
    """Coverage-guided fuzzing of every parser."""
    if not fuzz.installed():
        print(fuzz.MISSING, flush=True)
        return
    for target in TARGETS:
        run = fuzz.fuzz(target, args.fuzz / len(TARGETS), fuzz.LEARNED, args.seed)
        print(f"{target:40} {run.inputs:9} inputs", flush=True)
        if run.finding is not None:
            yield f"{target}: {run.finding}\n{run.output[-3000:]}"


def malformed_requests(args: argparse.Namespace) -> Iterator[str]:
    """Malformed requests through the front door."""
    with _gateway() as gateway:
        run = malformed.run(gateway, args.requests, args.seed)
        show(run.report())
        yield from run.faults


def flooding(args: argparse.Namespace) -> Iterator[str]:
    """Floods beside a well-behaved client."""
    with _gateway() as gateway:
        for kind in floods.KINDS:
            found = floods.measure(gateway, kind, args.rounds, seconds=4.0)
            show(found)
            yield from floods.faults(found)


def soaking(args: argparse.Namespace) -> Iterator[str]:
    """A day of mixed requests."""
    with _gateway() as gateway:
        soak = Soak(gateway, args.seed)
        soak.run(args.soak)
        show(soak.report())
        yield from soak.faults()


SUITES: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "fuzz": fuzzing,
    "malformed": malformed_requests,
    "floods": flooding,
    "soak": soaking,
}


def show(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def main() -> int:
    """Run the suites one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", choices=SUITES, help="this suite; may be repeated")
    parser.add_argument("--fuzz", type=float, default=360.0, help="seconds for all targets (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="malformed ones (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="calm and flood by turns (default: %(default)s)")
    parser.add_argument("--soak", type=int, default=DAY, help="requests (default: %(default)s, a day)")
    parser.add_argument("--seed", type=int, default=None, help="repeat what an earlier run drew")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1, 10**6)
    print(f"seed {args.seed}", flush=True)
    wrong = 0
    for name in args.only or SUITES:
        print(f"== {name}", flush=True)
        for line in SUITES[name](args):
            wrong += 1
            if wrong <= 50:
                print(f"WRONG: {line}", flush=True)
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
