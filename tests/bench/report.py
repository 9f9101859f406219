"""The report of a run: tables in Markdown, and each target beside what was measured, met or missed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.subjects import CEILING

PARTS = "cpu_us "  # before a part's name: µs of CPU for each request
TABLES = ("short chat", "/v1/models", "slow streams", "fast streams")
_NOTES = {
    "short chat": f"`{CEILING}` is the load straight on the upstream's stub: what load and stub could do at most.",
    "slow streams": "50 streams of 200 tokens, 20 ms apart. They begin over two seconds, evenly: if all began at once, "
    "the time to first token would be that of 50 checks in a row.",
    "fast streams": "16 streams of 500 tokens without delay.",
}


@dataclass(frozen=True)
class Target:
    """One measure with its two targets. Not measured (nan) is not met."""

    measure: str
    value: float
    unit: str
    first: float
    then: float
    digits: int = 1
    more_is_better: bool = False

    def met(self, bound: float) -> bool:
        return self.value >= bound if self.more_is_better else self.value <= bound

    def row(self) -> str:
        cells = [self.measure, f"{self.value:,.{self.digits}f} {self.unit}".rstrip()]
        for bound in (self.first, self.then):
            wanted = f"{bound:,g} {self.unit}".rstrip()
            cells.append(f"{wanted}: {'met' if self.met(bound) else '**missed**'}")
        return line(*cells)

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "first_met": self.met(self.first), "then_met": self.met(self.then)}


def targets(report: dict[str, Any]) -> list[Target]:
    """What the project set itself; what was left out of the run is left out."""
    short, slow = report["short chat"], report["slow streams"]
    ours, bare = short["Paddock"], short["bare Envoy"]
    services = sum(
        size for name, size in report["resident"].items() if name.startswith(("envoy", "policy", "processor"))
    )
    cpu = ratio(slow["Paddock"], slow["bare Envoy"], "cpu_seconds_per_1000_tokens")
    found = [
        Target("short chat, requests per second per core", ours["requests_per_second"], "", 1500, 4000, 0, True),
        Target("added latency over bare Envoy at 1, p50", ours["p50_at_1_ms"] - bare["p50_at_1_ms"], "ms", 2, 1, 2),
        Target("added latency over bare Envoy at 1, p99", ours["p99_at_1_ms"] - bare["p99_at_1_ms"], "ms", 6, 3, 2),
        Target("CPU per 1000 streamed tokens, of bare Envoy's", cpu, "×", 2.5, 1.3, 2),
        Target("added time to first token, p50", added(slow, "first_token_p50_ms"), "ms", 3, 2, 2),
        Target("added inter-token time, p99", added(slow, "inter_token_p99_ms"), "ms", 1, 0.3, 2),
        Target("resident, Envoy and both services", services / 1e6, "MB", 300, 200, 0),
        Target("`paddock up` to the first 200", report["cold_start_seconds"], "s", 5, 2.5),
    ]
    if "growth" in report:
        grown = report["growth"]
        found.append(Target(f"slower with {grown['what']}", grown["slower_percent"], "%", 10, 3))
    return found


def errors(report: dict[str, Any]) -> int:
    """Answers other than 200 and connections that broke, in all parts. A figure over such is worth nothing."""
    rows = [row for name in TABLES for row in report[name].values()]
    rows += [report.get("envelopes", {}), *report.get("growth", {}).get("steps", ())]
    return int(sum(row.get("errors", 0) for row in rows))


def added(table: dict[str, dict[str, float]], figure: str) -> float:
    return table["Paddock"][figure] - table["bare Envoy"][figure]


def ratio(one: dict[str, float], other: dict[str, float], figure: str) -> float:
    return one[figure] / other[figure] if other[figure] else float("nan")


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = ["# Benchmark", "", *(f"- {name}: {value}" for name, value in report["machine"].items()), ""]
    lines += [
        "Everything under load, with its stores, is on one core; the load and the upstream's stub are on another.",
        "",
    ]
    lines += ["## Against the targets", "", *table("measure", "measured", "first target", "then")]
    lines += [target.row() for target in targets(report)]
    for name in TABLES:
        lines += ["", f"## {name}", "", *([_NOTES[name], ""] if name in _NOTES else []), *_subjects(report[name])]
    lines += ["", *_parts(report), "", *_resident(report["resident"])]
    if "envelopes" in report:
        lines += ["", *_envelopes(report["envelopes"])]
    if "growth" in report:
        lines += ["", *_growth(report["growth"])]
    lines += ["", "## What each part of this run took", "", *table("part", "seconds")]
    lines += [line(name, f"{took:.0f}") for name, took in report["took_seconds"].items()]
    lines.append(line("all", f"{sum(report['took_seconds'].values()):.0f}"))
    return "\n".join(lines) + "\n"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(*names: str) -> list[str]:
    return [line(*names), f"|{'---|' * len(names)}"]


def _subjects(rows: dict[str, dict[str, float]]) -> list[str]:
    figures = [name for name in next(iter(rows.values())) if not name.startswith(PARTS)]
    lines = table("", *(name.replace("_", " ") for name in figures))
    return lines + [line(name, *(f"{row[figure]:,.3f}" for figure in figures)) for name, row in rows.items()]


def _parts(report: dict[str, Any]) -> list[str]:
    """Where the time of a request goes, by what the kernel says of each process while 16 were under way."""
    columns = {name: report[name]["Paddock"] for name in ("short chat", "/v1/models")}
    lines = [
        "## Where the time goes",
        "",
        "CPU µs per request of each part, at 16 at once.",
        "",
        *table("part", *columns),
    ]
    parts = [figure for figure in columns["short chat"] if figure.startswith(PARTS)]
    lines += [
        line(part.removeprefix(PARTS), *(f"{row.get(part, 0):,.0f}" for row in columns.values())) for part in parts
    ]
    lines.append(line("together", *(f"{sum(row.get(part, 0) for part in parts):,.0f}" for row in columns.values())))
    bare = [
        sum(value for figure, value in report[name]["bare Envoy"].items() if figure.startswith(PARTS))
        for name in columns
    ]
    return [*lines, line("a bare Envoy", *(f"{value:,.0f}" for value in bare))]


def _resident(sizes: dict[str, int]) -> list[str]:
    lines = ["## Resident memory", "", "Proportional set size after the load; pages that processes share count once."]
    return [*lines, "", *table("part", "MB"), *(line(name, f"{size / 1e6:.0f}") for name, size in sizes.items())]


def _envelopes(found: dict[str, float]) -> list[str]:
    def of_bare(ratio: float) -> str:
        return f"{ratio:.0%}"

    return [
        "## Envelopes",
        "",
        "Opened, judged, sent on, answered, settled and sealed, 8 at once, client keys of 4096 bits; beside the",
        "private operation of RSA-4096 alone, on the same core in turns. The pure code is an envelope's without",
        "a gateway.",
        "",
        *table("", "per second", "of the bare operation"),
        line("bare RSA-4096 operation", f"{found['bare_rsa4096_per_second']:,.0f}", ""),
        line("pure code, one thread", f"{found['pure_code_per_second']:,.0f}", of_bare(found["pure_code_ratio"])),
        line("through the front door", f"{found['per_second']:,.0f}", of_bare(found["ratio"])),
        "",
        f"CPU {found['cpu_us']:,.0f} µs each; p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms; "
        f"errors {found['errors']:.0f}.",
    ]


def _growth(grown: dict[str, Any]) -> list[str]:
    names = (
        "store",
        "CPU µs a request, empty",
        "grown",
        "ratio",
        "p50 ms, empty",
        "grown",
        "ratio",
        "p99 ratio",
        "errors",
    )
    lines = [
        "## Growth",
        "",
        "Short chats at a gateway whose store grows, in turns with one whose store stays empty. In the first row",
        "both are empty: what it says is noise.",
        "",
        *table(*names),
    ]
    for step in grown["steps"]:
        cpu = (f"{step['empty_cpu_us']:,.0f}", f"{step['grown_cpu_us']:,.0f}", f"{step['cpu_us_ratio']:.3f}")
        p50 = (f"{step['empty_p50_ms']:.2f}", f"{step['grown_p50_ms']:.2f}", f"{step['p50_ms_ratio']:.3f}")
        lines.append(line(step["what"], *cpu, *p50, f"{step['p99_ms_ratio']:.3f}", f"{step['errors']:.0f}"))
    return lines
