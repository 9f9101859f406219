"""Coverage-guided fuzzing of the targets, by atheris.

`python -m tests.hostile.fuzz --seconds 60 [--target NAME …]` gives every target its share of the time, in a process of
its own. What it learned is kept in `.paddock/fuzz/`, so that the next run goes on from there. A finding is printed
with the file that holds its input: it belongs into `corpus/`, with the mend.

Atheris has wheels for Linux on x86-64 and the Pythons that `pyproject.toml` names. Elsewhere this says that nothing
was fuzzed, and ends with status 3: the targets then run over the corpus and over what hypothesis makes (pytest).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.inputs import CORPUS

LEARNED = Path(__file__).parents[2] / ".paddock" / "fuzz"
NOT_INSTALLED = 3
MISSING = (
    "NOT FUZZED: atheris is not installed, and has no wheel for this Python or machine. The targets ran over the "
    "corpus and hypothesis alone."
)
_ONE = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one target."""

    target: str
    inputs: int
    finding: Path | None
    output: str


def installed() -> bool:
    return importlib.util.find_spec("atheris") is not None


def fuzz(target: str, seconds: float, learned: Path, seed: int = 0) -> Run:
    """Fuzz one target; `seed` 0 is another one each time."""
    kept = learned / target
    kept.mkdir(parents=True, exist_ok=True)
    before = set(learned.glob(f"{target}-*"))
    options = [f"-max_total_time={max(1, round(seconds))}", f"-artifact_prefix={learned}/{target}-", f"-seed={seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz_one", target, *options, "-print_final_stats=1", "-timeout=60",
         "-rss_limit_mb=2000", "-max_len=4096", str(kept), str(CORPUS / target)],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    executed = _ONE.search(output)
    findings = sorted(set(learned.glob(f"{target}-*")) - before)
    if done.returncode and not findings:
        raise RuntimeError(f"{target} did not run:\n{output[-4000:]}")
    return Run(target, int(executed[1]) if executed else 0, findings[0] if findings else None, output)


def main() -> int:
    """Fuzz from the command line."""
    from tests.hostile.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300.0, help="for all targets together (default: %(default)s)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    args = parser.parse_args()
    if not installed():
        print(MISSING, file=sys.stderr)
        return NOT_INSTALLED
    targets = args.target or list(TARGETS)
    findings = 0
    for target in targets:
        run = fuzz(target, args.seconds / len(targets), LEARNED)
        print(
            f"{target:40} {run.inputs:9} inputs  {'FINDING ' + str(run.finding) if run.finding else 'ok'}", flush=True
        )
        if run.finding:
            findings += 1
            print(run.output[-3000:])
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
