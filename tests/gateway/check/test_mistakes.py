"""One small file a mistake: each is one edit of the shipped configuration, and the check must name the rule it breaks.

`replace` and `with` change the first such text (after the text `after`, where that is given); `before` and `add` put
lines before the first line with such text, as far indented. Half a shipped file is worth no test of its own copy.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gateway.check.document import Document, Unreadable, read
from gateway.check.proof import RULES, Settings, prove
from gateway.check.site import Finding

SHIPPED = Path(__file__).parents[3] / "envoy"
MISTAKES = sorted((Path(__file__).parent / "mistakes").glob("*.yaml"))
SETTINGS = Settings(max_request_body_bytes=262144)


@dataclass(frozen=True)
class Mistake:
    rule: str
    file: str
    text: str  # of the edited file
    line: int  # of the edit


def mistake(path: Path) -> Mistake:
    edit = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = edit.get("file", "envoy.yaml")
    text = (SHIPPED / name).read_text(encoding="utf-8")
    start = text.index(edit["after"]) if "after" in edit else 0
    if "replace" in edit:
        at = text.index(edit["replace"], start)
        text = text[:at] + edit["with"] + text[at + len(edit["replace"]) :]
    else:
        at = text.rindex("\n", 0, text.index(edit["before"], start)) + 1
        indent = re.match(" *", text[at:])
        assert indent is not None
        text = text[:at] + "".join(f"{indent[0]}{line}\n" for line in edit["add"].splitlines()) + text[at:]
    return Mistake(edit["rule"], name, text, text.count("\n", 0, at) + 1)


def findings(files: dict[str, str], settings: Settings = SETTINGS) -> list[Finding]:
    texts = {name: (SHIPPED / name).read_text(encoding="utf-8") for name in ("envoy.yaml", "clusters.yaml")} | files
    documents: list[Document] = []
    for name, text in texts.items():
        try:
            documents.append(read(name, text))
        except Unreadable as error:
            return [Finding(name, error.line, "unreadable", error.why)]
    return prove(documents[0], documents[1:], settings)


def test_the_shipped_files_hold() -> None:
    assert findings({}) == []


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_a_mistake_is_named_where_it_is(path: Path) -> None:
    made = mistake(path)
    found = [one for one in findings({made.file: made.text}) if one.rule == made.rule]
    assert found, f"{made.rule} was not found"
    nearest = min(found, key=lambda one: (one.file != made.file, abs(one.line - made.line)))
    if made.rule in PLACED_ELSEWHERE:
        return
    assert nearest.file == made.file
    assert abs(nearest.line - made.line) <= 12, nearest


# Where two places contradict each other, or something is missing, the line is not that of the edit.
PLACED_ELSEWHERE = {
    "unknown-cluster", "shared-address", "blocked-first", "credentials", "access-log", "filter-order", "filter-missing",
    "body-limit-missing", "check-stand-ins",
}  # fmt: skip


def test_each_rule_has_a_mistake() -> None:
    made = {mistake(path).rule for path in MISTAKES} | {"upstream-hosts"}
    assert {rule.name for rule in RULES} | {"unreadable"} == made


def test_a_finding_is_one_line_with_place_reason_and_mend() -> None:
    made = mistake(Path(__file__).parent / "mistakes" / "policy-fails-open.yaml")
    (found,) = findings({made.file: made.text})
    assert "\n" not in str(found)
    assert str(found) == (
        f"envoy.yaml:{made.line}: fail-open: ext_authz has failure_mode_allow: true; "
        "an outage of that service would let requests through unjudged or unmetered; set failure_mode_allow: false"
    )


def test_hosts_are_those_of_policy() -> None:
    both = Settings(262144, ("http://ollama:11434", "https://gpu-2"))
    assert [(one.rule, one.what) for one in findings({}, both)] == [
        ("upstream-hosts", "gpu-2:443 of PADDOCK_UPSTREAMS is no host of ollama")
    ]
    other = Settings(262144, ("http://gpu-1:11434",))
    assert {one.what for one in findings({}, other)} == {
        "gpu-1:11434 of PADDOCK_UPSTREAMS is no host of ollama",
        "ollama:11434 is not in PADDOCK_UPSTREAMS",
    }


def test_several_hosts_need_somebody_who_chooses() -> None:
    shipped = (SHIPPED / "clusters.yaml").read_text(encoding="utf-8")
    start = shipped.index("    load_balancing_policy:")
    end = shipped.index("    load_assignment:")
    host = shipped[shipped.index("            - endpoint:") : shipped.index("    # The name that is")]
    text = shipped[:start] + shipped[end:].replace(host, host + host.replace("address: ollama", "address: other"))
    assert "host-choice" in {one.rule for one in findings({"clusters.yaml": text})}


def test_the_services_own_limit_is_compared() -> None:
    found = findings({}, Settings(max_request_body_bytes=1_048_576))
    assert {one.rule for one in found} == {"body-limit", "body-buffer"}


def test_what_is_not_known_is_said_and_no_violation() -> None:
    text = (SHIPPED / "envoy.yaml").read_text(encoding="utf-8")
    (found,) = findings({"envoy.yaml": text.replace("codec_type: AUTO", "codec_type: AUTO\n                newer: 1")})
    assert found.note
    assert found.what == "field newer is not known to this check"


def with_script(tmp_path: Path, script: bytes | None) -> list[Finding]:
    if script is not None:
        (tmp_path / "meter.lua").write_bytes(script)
    return findings({}, Settings(262144, directory=tmp_path))


def test_the_shipped_meter_beside_the_configuration_holds(tmp_path: Path) -> None:
    assert with_script(tmp_path, (SHIPPED / "meter.lua").read_bytes()) == []


def test_a_meter_beside_the_configuration_that_is_not_the_shipped_one(tmp_path: Path) -> None:
    (found,) = with_script(tmp_path, (SHIPPED / "meter.lua").read_bytes() + b"\n")
    assert (found.rule, found.note) == ("meter-source", False)
    assert str(tmp_path / "meter.lua") in found.what


def test_a_meter_that_is_not_at_hand_is_said_and_no_violation(tmp_path: Path) -> None:
    (found,) = with_script(tmp_path, None)
    assert (found.rule, found.note) == ("meter-source", True)


def test_without_the_meter_nothing_of_it_is_needed() -> None:
    """As `paddock up --metering processor` has it: no route turns it on, and its cluster and its log may go."""
    text = (SHIPPED / "envoy.yaml").read_text(encoding="utf-8")
    whole = json.loads(json.dumps(yaml.safe_load(text)))  # no aliases
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["access_log_options"]
    for host in manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            said = route.get("typed_per_filter_config", {})
            if said.pop("envoy.filters.http.lua", None):
                del said["envoy.filters.http.ext_proc"]
    clusters = whole["static_resources"]["clusters"]
    whole["static_resources"]["clusters"] = [one for one in clusters if one["name"] != "processor_edge"]
    assert findings({"envoy.yaml": yaml.safe_dump(whole, sort_keys=False)}) == []
