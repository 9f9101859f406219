"""Edits that a careful operator makes: none is a violation, and what is doubtful about one is a note."""

from __future__ import annotations

import re

import pytest

from tests.gateway.check.test_mistakes import SETTINGS, SHIPPED, findings

ENVOY = (SHIPPED / "envoy.yaml").read_text(encoding="utf-8")
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = '{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}'
TO_HTTPS = f"""  listeners:
    - name: plain
      address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/{MANAGER}
                stat_prefix: plain
                http_filters: [{ROUTER}]
                route_config:
                  virtual_hosts:
                    - name: plain
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, redirect: {{https_redirect: true}}}}]
"""
MANUAL = """                        - name: manual
                          match: {prefix: /manual/}
                          route: {cluster: manual}
                          typed_per_filter_config: *nobody_asked
                        - name: unknown
"""
MANUAL_HOST = """    - name: manual
      type: STRICT_DNS
      metadata: {filter_metadata: {paddock: {ollama: false}}}
      load_assignment:
        cluster_name: manual
        endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: manual, port_value: 80}}}}]}]
    - name: policy
"""


def edited(*edits: tuple[str, str]) -> str:
    text = ENVOY
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.mark.parametrize("option", ["tls", "mtls", "tracing"])
def test_each_option(option: str) -> None:
    assert findings({"envoy.yaml": re.sub(f"#{option}# ", "", ENVOY)}) == []


@pytest.mark.parametrize("option", ["https", "key"])
def test_each_option_of_the_hosts(option: str) -> None:
    text = (SHIPPED / "clusters.yaml").read_text(encoding="utf-8")
    assert findings({"clusters.yaml": re.sub(f"#{option}# ", "", text)}) == []


def test_a_listener_that_only_sends_to_https() -> None:
    assert findings({"envoy.yaml": edited(("  listeners:\n", TO_HTTPS))}) == []


def test_such_a_listener_with_one_route_that_leads_on_is_a_listener_like_any() -> None:
    text = edited(("  listeners:\n", TO_HTTPS.replace("redirect: {https_redirect: true}", "route: {cluster: ollama}")))
    assert {"filter-missing", "blocked-paths", "path-hygiene"} <= {one.rule for one in findings({"envoy.yaml": text})}


def test_a_route_to_something_that_is_no_ollama() -> None:
    text = edited(("                        - name: unknown\n", MANUAL), ("    - name: policy\n", MANUAL_HOST))
    assert findings({"envoy.yaml": text}) == []
    unsaid = text.replace("metadata: {filter_metadata: {paddock: {ollama: false}}}", "connect_timeout: 1s")
    found = {one.rule: one for one in findings({"envoy.yaml": unsaid})}
    assert set(found) == {"unguarded-route", "credentials"}
    assert "{filter_metadata: {paddock: {ollama: false}}}" in found["unguarded-route"].mend


@pytest.mark.parametrize(
    "lie",
    [
        ("address: manual, port_value: 80", "address: ollama, port_value: 11434"),
        ("type: STRICT_DNS", "type: EDS\n      eds_cluster_config: {eds_config: {path_config_source: {path: /x}}}"),
    ],
)
def test_what_is_said_to_be_no_ollama_is_asked_for_its_addresses(lie: tuple[str, str]) -> None:
    hosts = MANUAL_HOST.replace(*lie)
    if "EDS" in lie[1]:
        start = hosts.index("      load_assignment:")
        hosts = hosts[:start] + hosts[hosts.index("    - name: policy") :]
    text = edited(("                        - name: unknown\n", MANUAL), ("    - name: policy\n", hosts))
    (found,) = findings({"envoy.yaml": text})
    assert found.rule == "shared-address"
    assert "said to be no Ollama" in found.what


def test_ollama_itself_cannot_be_said_to_be_none() -> None:
    clusters = (SHIPPED / "clusters.yaml").read_text(encoding="utf-8")
    said = "    name: ollama\n    metadata: {filter_metadata: {paddock: {ollama: false}}}\n"
    clusters = clusters.replace("    name: ollama\n", said, 1)
    text = edited(("                        - name: unknown\n", MANUAL.replace("cluster: manual", "cluster: ollama")))
    found = findings({"envoy.yaml": text, "clusters.yaml": clusters})
    assert "unguarded-route" in {one.rule for one in found}


def test_hosts_are_compared_under_any_name() -> None:
    settings = type(SETTINGS)(262144, ("http://ollama:11434", "http://gpu-2:11434"))
    clusters = (SHIPPED / "clusters.yaml").read_text(encoding="utf-8").replace("name: ollama", "name: ollama-berlin")
    found = findings(
        {"envoy.yaml": ENVOY.replace("cluster: ollama", "cluster: ollama-berlin"), "clusters.yaml": clusters}, settings
    )
    assert [one.what for one in found] == ["gpu-2:11434 of PADDOCK_UPSTREAMS is no host of ollama-berlin"]


def test_metrics_for_one_more_host() -> None:
    place = "- direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}"
    assert (
        findings({"envoy.yaml": edited((place, place.replace("127.0.0.0, prefix_len: 8", "10.1.2.3, prefix_len: 32")))})
        == []
    )


def test_a_script_before_policy_is_a_note() -> None:
    script = """                  - name: envoy.filters.http.rbac
                    disabled: true
"""
    lua = """                  - name: site.lua
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
                      default_source_code: {inline_string: "function envoy_on_request(handle) end"}
"""
    (found,) = findings({"envoy.yaml": edited((script, lua + script))})
    assert found.note
    assert found.what == "what site.lua does is not read here"
