"""`make bench`: what Paddock costs, against the upstream itself and an Envoy that only proxies.

Everything under load is pinned to one core, the load and the upstream stub to another. The subjects take turns in each
round, so that a machine whose speed drifts slows all alike; figures are medians over rounds, and ratios are of one run.
Writes bench-results/report.md and report.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import envelopes, growth, load, subjects
from tests.bench.load import chat, percentile, request
from tests.bench.report import PARTS, errors, markdown, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.subjects import Subject

Row = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="ledger rows to grow to (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=100_000, help="keys to grow to (default: %(default)s)")
    parser.add_argument("--tenants", type=int, default=1000, help="tenants to grow to (default: %(default)s)")
    parser.add_argument("--skip-growth", action="store_true", help="leave out the grown database")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    args = parser.parse_args()
    os.sched_setaffinity(0, {subjects.LOAD_CORE})
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as directory:
        report = measured(args, Path(directory))
    report["machine"]["load_average_after"] = f"{os.getloadavg()[0]:.1f}"
    report["targets"] = [target.document() for target in targets(report)]
    args.output.mkdir(exist_ok=True)
    (args.output / "report.json").write_text(json.dumps(report, indent=2))
    text = markdown(report)
    (args.output / "report.md").write_text(text)
    print(text)
    if failed := errors(report):
        print(f"{failed} requests were not answered as they should be: the figures mean nothing", file=sys.stderr)
    return 1 if failed else 0


def measured(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """The whole run."""
    took: dict[str, float] = {}
    report: dict[str, Any] = {"machine": machine(), "took_seconds": took}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        say(name)
        begun = time.perf_counter()
        yield
        took[name] = time.perf_counter() - begun

    with part("cold start"):
        report["cold_start_seconds"] = cold_start(directory)
    with subjects.stub() as upstream:
        with contextlib.ExitStack() as stack:
            with part("starting what is compared"):
                bare = stack.enter_context(subjects.bare_envoy(upstream, directory))
                paddock, gateway = stack.enter_context(subjects.paddock(upstream, directory / "data"))
            everyone = (upstream, bare, paddock)
            for name, path, body in (("short chat", "/api/chat", chat()), ("/v1/models", "/v1/models", b"")):
                method = "POST" if body else "GET"
                measure = functools.partial(unary, method=method, path=path, body=body, seconds=args.seconds)
                with part(name):
                    report[name] = turns(everyone, args.rounds, measure)
            with part("slow streams"):
                report["slow streams"] = turns((bare, paddock), args.rounds, slow_streams)
            with part("fast streams"):
                report["fast streams"] = turns(everyone, args.rounds, fast_streams)
            report["resident"] = paddock.resident()
            with part("envelopes"):
                report["envelopes"] = envelopes.measure(gateway, paddock, args.seconds, args.rounds)
        if not args.skip_growth:
            with part("growth"):
                report["growth"] = growth.measure(
                    upstream, directory, args.seconds, args.rounds, args.keys, args.tenants, args.rows, say
                )
    return report


def say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def turns(everyone: tuple[Subject, ...], rounds: int, measure: Callable[[Subject], Row]) -> dict[str, Row]:
    """Measure each in turn, `rounds` times; the median of every figure, of errors the sum."""
    found: dict[str, list[Row]] = {subject.name: [] for subject in everyone}
    for _ in range(rounds):
        for subject in everyone:
            found[subject.name].append(measure(subject))
    return {
        name: {
            figure: (sum if figure == "errors" else statistics.median)([row[figure] for row in rows])
            for figure in rows[0]
        }
        for name, rows in found.items()
    }


def unary(subject: Subject, method: str, path: str, body: bytes, seconds: float) -> Row:
    message = request(method, path, body, subject.key)
    load.run(subject.url, message, connections=4, seconds=0.3)
    one = load.run(subject.url, message, connections=1, seconds=seconds / 2)
    before = subject.cpu_of_parts()
    many = load.run(subject.url, message, connections=16, seconds=seconds)
    parts = {name: spent - before[name] for name, spent in subject.cpu_of_parts().items()}
    used = sum(parts.values())
    return {
        "requests_per_second": many.answers / many.seconds,
        "requests_per_cpu_second": many.answers / used if used else float("nan"),
        "p50_at_1_ms": percentile(one.latencies, 0.5) * 1e3,
        "p99_at_1_ms": percentile(one.latencies, 0.99) * 1e3,
        "p50_at_16_ms": percentile(many.latencies, 0.5) * 1e3,
        "p99_at_16_ms": percentile(many.latencies, 0.99) * 1e3,
        "errors": one.errors + many.errors,
        **{f"{PARTS}{name}": spent / max(many.answers, 1) * 1e6 for name, spent in parts.items()},
    }


def slow_streams(subject: Subject) -> Row:
    message = request("POST", "/api/chat", chat("tokens=200 delay=20", stream=True), subject.key)
    before = subject.cpu()
    result = load.run(subject.url, message, connections=50, seconds=60, most=1, spread=2)
    used = subject.cpu() - before
    return {
        "first_token_p50_ms": percentile(result.first_token, 0.5) * 1e3,
        "inter_token_p99_ms": percentile(result.between_tokens, 0.99) * 1e3,
        "cpu_seconds_per_1000_tokens": used / max(result.tokens, 1) * 1000,
        "errors": result.errors,
    }


def fast_streams(subject: Subject) -> Row:
    message = request("POST", "/api/chat", chat("tokens=500 delay=0", stream=True), subject.key)
    before = subject.cpu()
    result = load.run(subject.url, message, connections=16, seconds=2)
    used = subject.cpu() - before
    return {
        "tokens_per_second": result.tokens / result.seconds,
        "tokens_per_cpu_second": result.tokens / used if used else float("nan"),
        "errors": result.errors,
    }


def cold_start(directory: Path) -> float:
    """`paddock up` on empty data until the first 200 through the whole path, on all cores."""
    times = []
    with subjects.stub() as upstream:
        for number in range(3):
            data = directory / f"cold-{number}"
            environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            command = [str(Path(sys.executable).parent / "paddock"), "up", "--port", "0", "--upstream", upstream.url]
            begun = time.perf_counter()
            process = subprocess.Popen(
                ["taskset", "-c", "0,1", *command, "--data-dir", str(data)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            )  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ready"):
                    times.append(time.perf_counter() - begun)
                    break
            process.terminate()
            process.communicate()
    return statistics.median(times)


def machine() -> dict[str, str]:
    return {
        "cpu": next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.startswith("model name")), platform.machine()),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "envoy": subjects.version(),
        "load_average_before": f"{os.getloadavg()[0]:.1f}",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
