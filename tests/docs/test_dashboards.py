"""docs/dashboards: what the dashboard and the alerts ask for exists in the code, under these labels.

Where promtool is (Debian's package `prometheus` has it) it also checks the rules, runs their tests and parses every
query; PROMTOOL names one that is not on the PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from policy.rules.decision import Reason
from tests.docs.metrics_reference import described

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "dashboards" / "paddock.json"
ALERTS = ROOT / "docs" / "dashboards" / "alerts.yaml"
GUIDE = ROOT / "docs" / "how-to" / "monitoring.md"
OF_THE_SCRAPE = {"job", "instance", "le"}
WIDTH = 24  # columns of Grafana's grid

LABELS = {
    name: set(metric.labels) for metrics in described().values() for metric in metrics for name in metric.series()
}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the dashboard, by panel."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


EXPRESSIONS = [*queries(), *((rule["alert"], rule["expr"]) for rule in rules())]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_what_is_asked_for_exists(where: str, expression: str) -> None:
    found = re.findall(r"\b((?:paddock|gen_ai)_\w+)(?:\{([^}]*)\})?", re.sub(r"\bby \([^)]*\)", "", expression))
    asked = [(name, matchers) for name, matchers in found if not name.startswith("gen_ai_request")]
    assert asked
    having = set(OF_THE_SCRAPE)
    for name, matchers in asked:
        assert name in LABELS, f"{where}: there is no {name}"
        having |= LABELS[name]
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            assert label in LABELS[name] | OF_THE_SCRAPE, f"{where}: {name} has no {label}"
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in group.split(","):
            assert label.strip() in having, f"{where}: no label {label.strip()}"


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_values_that_are_asked_for_can_occur(where: str, expression: str) -> None:
    """A misspelt value would be a line that is never drawn."""
    known = re.compile(r"`([a-z_]+)`")
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    values = set(known.findall(page)) | set(Reason)
    for value in re.findall(r'(?:=~|=)"([^"$]+)"', expression):
        assert set(value.split("|")) <= values, f"{where}: {value}"


def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            letters = [target["refId"] for target in panel["targets"]]
            assert len(letters) == len(set(letters)), panel["title"]


def test_the_dashboard_is_for_any_data_source_and_any_job() -> None:
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert variables == {"datasource", "job", "tenant", "model"}
    text = DASHBOARD.read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{?([a-z]\w*)", text)) <= variables
    for title, expression in queries():
        assert 'job=~"$job"' in expression, title
    sources = {json.dumps(panel["datasource"]) for panel in panels() if "datasource" in panel}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}


def test_what_a_legend_names_is_a_label_of_its_query() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in grouped, f"{panel['title']}: {label}"


def test_every_alert_is_explained() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in guide, rule["alert"]


# With promtool.


@pytest.fixture
def promtool() -> str:
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool (apt install prometheus, or PROMTOOL=…): the alert rules are not run")
    return found


def succeeds(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules(promtool: str) -> None:
    succeeds(promtool, "check", "rules", ALERTS)


def test_alerts_fire_when_they_must(promtool: str) -> None:
    succeeds(promtool, "test", "rules", Path(__file__).parent / "alerts_test.yaml")


def test_every_query_of_the_dashboard_parses(promtool: str, tmp_path: Path) -> None:
    as_rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__\w+", "5m", expression).replace("$", "")}
        for number, (_, expression) in enumerate(queries())
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": as_rules}]}), encoding="utf-8")
    succeeds(promtool, "check", "rules", path)
