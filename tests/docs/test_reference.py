"""The reference that is written by hand, held against the code, the configuration and a running database."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from policy.rules.endpoints import ENDPOINTS, Kind
from policy.rules.events import local_reason
from tests.docs.pages import DOCS, ROOT, Page

if TYPE_CHECKING:
    from tests.harness import Gateway

API = Page.read(DOCS / "reference" / "http-api.md")
LEDGER = Page.read(DOCS / "reference" / "audit-log.md")
ERRORS = Page.read(DOCS / "reference" / "errors.md")


def pairs(rows: list[list[str]]) -> dict[tuple[str, str], list[str]]:
    """A table's rows by method and path; a row may name several methods."""
    return {(method, row[1].strip("`")): row for row in rows for method in row[0].split(", ")}


def own_answers() -> dict[tuple[str, str], list[str]]:
    _, _, after = API.text.partition("without a key:\n")
    return pairs([line.strip("| ").split(" | ") for line in after.split("\n\n")[1].split("\n")[2:]])


def test_every_endpoint_is_in_the_table() -> None:
    documented = pairs(API.table("Endpoints"))
    assert documented.keys() == ENDPOINTS.keys()
    for pair, endpoint in ENDPOINTS.items():
        _, _, key, streams, charged = documented[pair]
        assert key == ("no" if endpoint.kind is Kind.VERSION else "session" if endpoint.session else "yes"), pair
        if endpoint.kind is not Kind.ENVELOPE:  # judged again when it is open
            assert ("tokens" in charged) == endpoint.metered, pair
            assert streams.startswith("NDJSON") == endpoint.streams_by_default, pair
            assert (streams != "no") == endpoint.generates, pair


def test_what_the_gateway_answers_itself(gateway: Gateway) -> None:
    for method, path in own_answers():
        assert httpx.request(method, gateway.url + path).status_code == 200, (method, path)


def test_every_closed_path_is_in_the_table() -> None:
    envoy = (ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    blocked = re.search(r'name: blocked\n.*regex: "\(\?i\)/\+api/\+\(([a-z|]+)\)', envoy)
    assert blocked is not None
    _, _, after = API.prose.partition("there is no switch:")
    documented = re.findall(r"`/api/([a-z]+)`", after.split("\n## ")[0])
    assert sorted(documented) == sorted(blocked[1].split("|"))


def test_an_endpoint_that_is_not_in_the_table_is_refused(gateway: Gateway) -> None:
    key = gateway.client()
    for method, path in (
        ("PUT", "/api/chat"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("HEAD", "/v1/models"),
    ):
        assert (method, path) not in ENDPOINTS
        assert key.http.request(method, path).status_code == 403


def test_the_response_headers_are_those_of_the_table(gateway: Gateway) -> None:
    documented = {row[0].strip("`").lower() for row in API.table("Response headers")}
    client = gateway.client(None, "--rpm", "2")
    seen = set(client.chat("one two").headers) | set(client.chat("three", model="not-there").headers)
    seen |= set(client.chat("four").headers) | set(httpx.get(f"{gateway.url}/api/tags").headers)
    ours = {name for name in seen if name.startswith("x-")} | {"retry-after", "www-authenticate"} & seen
    assert ours == documented


@pytest.mark.parametrize("table", ["audit", "usage_daily"])
def test_the_columns_are_those_of_the_database(gateway: Gateway, table: str) -> None:
    found = gateway.sql(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = $1 ORDER BY ordinal_position",
        table,
    )
    short = {"timestamp with time zone": "timestamptz"}
    in_database = [(row["column_name"], short.get(row["data_type"], row["data_type"])) for row in found]
    assert [(row[0].strip("`"), row[1]) for row in LEDGER.table(table)] == in_database


def test_the_outcomes_are_those_that_the_code_writes() -> None:
    written: set[str] = set()
    for path in (ROOT / "processor" / "exchange.py", *(ROOT / "policy" / "admission").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '"outcome"' in text:  # an event's field; elsewhere the word means other things
            for said in re.findall(r'\boutcome"?\]? ?[:=] (.*)', text):
                written |= set(re.findall(r'"([a-z_]+)"', said))
    assert {row[0].strip("`") for row in LEDGER.table("Outcomes")} == written


def test_the_reasons_of_envoy_are_those_of_the_code() -> None:
    documented: dict[int, str] = {}
    _, _, after = ERRORS.prose.partition("their reason follows from the status:\n")
    for status, reason in re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|$", after, re.MULTILINE):
        documented |= {int(each): reason for each in status.split(",")}
    for status in range(400, 600):
        assert local_reason(status) == documented.get(status, "edge"), status


def test_figures_of_envoy_that_pages_quote() -> None:
    envoy = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    listener = envoy["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    filters = {each["name"]: each["typed_config"] for each in manager["http_filters"]}
    tune = Page.read(DOCS / "how-to" / "tune-envoy.md").text
    bucket = filters["envoy.filters.http.local_ratelimit"]["descriptors"][0]["token_bucket"]
    (quoted,) = re.findall(r"^token_bucket: (\{.*\})$", tune, re.MULTILINE)
    assert yaml.safe_load(quoted) == bucket
    monitors = {
        each["name"].rpartition(".")[2]: each["typed_config"] for each in envoy["overload_manager"]["resource_monitors"]
    }
    assert monitors["fixed_heap"]["max_heap_size_bytes"] == 1 << 30
    assert monitors["global_downstream_max_connections"]["max_active_downstream_connections"] == 10_000
    assert (manager["stream_idle_timeout"], manager["request_timeout"]) == ("3600s", "300s")
    assert manager["common_http_protocol_options"]["idle_timeout"] == "300s"
    assert manager["common_http_protocol_options"]["max_headers_count"] == 100
    assert manager["max_request_headers_kb"] == 32
    assert filters["envoy.filters.http.ext_authz"]["http_service"]["server_uri"]["timeout"] == "5s"
