"""The page about the check names every rule, and its CI step is YAML that runs commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from gateway import cli
from gateway.check.proof import RULES

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "check-in-ci.md").read_text(encoding="utf-8")


def test_every_rule_is_on_the_page() -> None:
    assert {rule.name for rule in RULES} | {"unreadable", "envoy"} == set(
        re.findall(r"`([a-z0-9-]+)`(?=[,| ].*\|)", _table())
    )


def _table() -> str:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return "\n".join(f"{row}|" for row in rows)


def test_the_step_runs_the_check() -> None:
    (block,) = re.findall(r"```yaml\n(name: .*?)```", PAGE, re.DOTALL)
    steps = yaml.safe_load(block)["jobs"]["check"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("paddock ")]
    args = cli._parser().parse_args(command.split()[1:])
    assert args.run == "gateway.check.command:check"
