"""The shipped files, and what fitting them to a machine changes: addresses and limits, everywhere at once, no more."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.envoy_config import METER, Address, Config, Rate, adapt, write
from tests.edge.rig import ENVOY, SHIPPED

Node = dict[str, Any]
MEBIBYTE = 1_048_576


def fitted(**changes: Any) -> Config:
    settings: Node = {
        "listen": Address("127.0.0.1", 8080),
        "admin": Address("127.0.0.1", 9901),
        "policy": [Address(path="/run/policy0.sock"), Address(path="/run/policy1.sock")],
        "policy_edge": [Address("127.0.0.1", 9004)],
        "policy_http": [Address("127.0.0.1", 9002)],
        "processor": [Address(path="/run/processor.sock")],
        "processor_edge": [Address(path="/run/processor-edge.sock")],
        "upstreams": ["http://127.0.0.1:11434"],
        "max_request_body_bytes": 262_144,
    }
    return adapt(SHIPPED / "envoy.yaml", SHIPPED / "clusters.yaml", **{**settings, **changes})


def manager(bootstrap: Node) -> Node:
    found: Node = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def filters(bootstrap: Node) -> dict[str, Node]:
    return {one["name"].rpartition(".")[2]: one for one in manager(bootstrap)["http_filters"]}


def routes(bootstrap: Node) -> list[Node]:
    found: list[Node] = manager(bootstrap)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def cluster(config: Config, name: str) -> Node:
    every = [*config.bootstrap["static_resources"]["clusters"], *config.clusters["resources"]]
    found: Node = next(one for one in every if one["name"] == name)
    return found


def endpoints(of: Node) -> list[Node]:
    return [one["endpoint"]["address"] for one in of["load_assignment"]["endpoints"][0]["lb_endpoints"]]


@pytest.fixture(scope="module")
def shipped() -> Node:
    loaded: Node = yaml.safe_load((SHIPPED / "envoy.yaml").read_text())
    return loaded


# What the shipped file promises.


def test_the_filters_are_in_order_and_fail_closed(shipped: Node) -> None:
    assert list(filters(shipped)) == [
        "header_mutation", "local_ratelimit", "rbac", "ext_authz", "body_size_limit", "envelope", "ext_proc", "lua",
        "router",
    ]  # fmt: skip
    for name in ("ext_authz", "ext_proc"):
        settings = filters(shipped)[name]["typed_config"]
        assert settings["failure_mode_allow"] is False
        assert settings["status_on_error"] == {"code": "ServiceUnavailable"}
        assert "disabled" not in filters(shipped)[name]


def test_blocked_paths_come_first_and_the_last_route_refuses_the_rest(shipped: Node) -> None:
    assert routes(shipped)[0]["name"] == "blocked"
    assert routes(shipped)[0]["direct_response"] == {"status": 403}
    assert routes(shipped)[-1]["match"] == {"prefix": "/"}
    assert routes(shipped)[-1]["direct_response"] == {"status": 403}


def test_no_route_to_ollama_goes_around_anything(shipped: Node) -> None:
    secrets = {"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "cookie", "accept-encoding"}
    forwarded = [one for one in routes(shipped) if one.get("route", {}).get("cluster") == "ollama"]
    assert [one["name"] for one in forwarded if not one["name"].startswith("session-")] == [
        "chat", "generate", "embed", "embeddings", "v1-chat", "v1-completions", "v1-embeddings", "show", "v1-model",
        "envelope",
    ]  # fmt: skip
    for route in forwarded:
        assert secrets <= set(route["request_headers_to_remove"]), route["name"]
        own = dict(route.get("typed_per_filter_config", {}))
        if route["name"] == "envelope":  # its bodies are larger, and held to a figure of their own
            assert own.pop("envoy.filters.http.body_size_limit")["disabled"] is True
        if METER in own:  # in the place of processor
            assert own.pop(METER)["config"]["@type"].endswith("LuaPerRoute")
            assert own.pop("envoy.filters.http.ext_proc")["disabled"] is True
        else:
            assert route["name"] in ("show", "v1-model", "envelope")
        assert "disabled" not in json.dumps(own), route["name"]
        assert [one for one in route["match"]["headers"] if one["name"] == ":method"], route["name"]


def test_every_other_route_leaves_processor_out(shipped: Node) -> None:
    lists, sessions = ("tags", "v1-models"), ("session-preflight", "session", "session-models")
    for route in routes(shipped):
        if route.get("route", {}).get("cluster") != "ollama":
            own = route["typed_per_filter_config"]
            assert own["envoy.filters.http.ext_proc"]["disabled"] is True, route["name"]
            asked = "disabled" not in own.get("envoy.filters.http.ext_authz", {})
            assert asked == (route["name"] in (*lists, *sessions)), route["name"]
            if route["name"] in sessions:  # policy answers those by its refusal: what it lets by is 403
                assert route["direct_response"] == {"status": 403}


def test_no_pings_to_the_services(shipped: Node) -> None:
    """grpcio closes a connection that pings while its streams are silent, as they are while a model loads."""
    assert "connection_keepalive" not in json.dumps(shipped["static_resources"])


def test_a_retry_has_all_the_time_a_first_try_has(shipped: Node) -> None:
    """Envoy takes `max_interval` for the timeout of each try, and ignores a retry policy inside `envoy_grpc`."""
    over_grpc = filters(fitted(grpc_checks=True).bootstrap)["ext_authz"]["typed_config"]["grpc_service"]
    processor = filters(shipped)["ext_proc"]["typed_config"]["grpc_service"]
    for service in (over_grpc, processor):
        assert list(service["envoy_grpc"]) == ["cluster_name"]
    for service in (over_grpc, processor, filters(shipped)["ext_authz"]["typed_config"]["http_service"]):
        assert service["retry_policy"]["retry_back_off"]["max_interval"] == "60s"


def test_checks_go_over_one_way(shipped: Node) -> None:
    both = {"http_service", "grpc_service"}
    assert both & filters(shipped)["ext_authz"]["typed_config"].keys() == {"http_service"}
    asked = filters(fitted(grpc_checks=True).bootstrap)["ext_authz"]["typed_config"]
    assert both & asked.keys() == {"grpc_service"}
    assert asked["grpc_service"]["timeout"] == "5s"


def test_admin_is_on_loopback(shipped: Node) -> None:
    assert shipped["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


# What fitting changes.


def test_addresses_move(tmp_path: Path) -> None:
    config = fitted(listen=Address("::1", 1234), admin=Address(path="/run/admin.sock"))
    front = config.bootstrap["static_resources"]["listeners"][0]
    assert front["address"] == {"socket_address": {"address": "::1", "port_value": 1234}}
    assert config.bootstrap["admin"]["address"] == {"pipe": {"path": "/run/admin.sock"}}
    assert endpoints(cluster(config, "policy")) == [
        {"pipe": {"path": "/run/policy0.sock"}},
        {"pipe": {"path": "/run/policy1.sock"}},
    ]
    assert cluster(config, "policy")["type"] == "STATIC"
    assert endpoints(cluster(config, "policy_http")) == [
        {"socket_address": {"address": "127.0.0.1", "port_value": 9002}}
    ]
    assert "type" not in cluster(config, "policy_http"), "a host name stays to be resolved"


@pytest.mark.parametrize("limit", [1000, 262_144, MEBIBYTE, 16 * MEBIBYTE, 64 * MEBIBYTE])
def test_the_body_limit_moves_every_place_that_must_agree(limit: int) -> None:
    bootstrap = fitted(max_request_body_bytes=limit).bootstrap
    assert filters(bootstrap)["body_size_limit"]["typed_config"]["max_request_bytes"] == limit
    assert filters(bootstrap)["ext_authz"]["typed_config"]["with_request_body"]["max_request_bytes"] == limit
    host = manager(bootstrap)["route_config"]["virtual_hosts"][0]
    assert host["request_body_buffer_limit"] > limit
    for route in host["routes"]:
        assert route.get("request_body_buffer_limit", host["request_body_buffer_limit"]) > limit
    assert len([one for one in host["routes"] if "request_body_buffer_limit" in one]) == 3
    assert filters(bootstrap)["envelope"]["typed_config"]["max_request_bytes"] == max(limit, 16 * MEBIBYTE)


@pytest.mark.parametrize("limit", [20_000, 1_000_000, 16 * MEBIBYTE])
def test_the_size_of_an_envelope_moves_by_itself(limit: int, shipped: Node) -> None:
    bootstrap = fitted(max_envelope_bytes=limit, max_request_body_bytes=10_000).bootstrap
    assert filters(bootstrap)["envelope"]["typed_config"]["max_request_bytes"] == limit
    assert filters(bootstrap)["body_size_limit"]["typed_config"]["max_request_bytes"] == 10_000
    (route,) = [one for one in routes(bootstrap) if one["name"] == "envelope"]
    assert route["request_body_buffer_limit"] == limit + 65_536


def test_a_tier_with_machines_of_its_own() -> None:
    tiers = {"high": ["http://10.0.0.1:1"], "maximum": ["https://gpu.example", "http://10.0.0.2:2"]}
    config = fitted(tier_upstreams=tiers)
    names = [one["name"] for one in routes(config.bootstrap)]
    for tier, urls in tiers.items():
        (route,) = [one for one in routes(config.bootstrap) if one["name"] == f"envelope-{tier}"]
        assert names.index(route["name"]) < names.index("v1-chat"), "the plain route would take it"
        assert route["match"]["path"] == "/v1/chat/completions"
        assert {"name": "x-paddock-tier", "string_match": {"exact": tier}} in route["match"]["headers"]
        assert route["route"]["cluster"] == f"ollama-{tier}"
        assert "x-paddock-tier" in route["request_headers_to_remove"]
        assert len(endpoints(cluster(config, f"ollama-{tier}"))) == len(urls)
    assert endpoints(cluster(config, "ollama")) == endpoints(cluster(fitted(), "ollama"))
    with pytest.raises(ValueError, match="Ollama"):
        fitted(tier_upstreams={"high": ["gpu:1"]})


def test_the_shipped_figures_are_those_of_the_default(shipped: Node) -> None:
    fit = fitted(max_request_body_bytes=262_144).bootstrap
    script = filters(shipped)["lua"]["typed_config"]["default_source_code"]
    assert filters(fit)["lua"]["typed_config"]["default_source_code"] == {"filename": str(SHIPPED / "meter.lua")}
    script["filename"] = str(SHIPPED / "meter.lua")
    assert filters(fit) == filters(shipped)
    assert routes(fit) == routes(shipped)
    assert manager(fit)["route_config"]["virtual_hosts"] == manager(shipped)["route_config"]["virtual_hosts"]


def test_processor_can_meter_everything(shipped: Node) -> None:
    for route in routes(fitted(metering="processor").bootstrap):
        own = route.get("typed_per_filter_config", {})
        assert METER not in own
        if route.get("route", {}).get("cluster") == "ollama":
            assert "envoy.filters.http.ext_proc" not in own, route["name"]


def test_the_rate_of_an_address_moves_only_when_asked(shipped: Node) -> None:
    def buckets(bootstrap: Node) -> list[Node]:
        settings = filters(bootstrap)["local_ratelimit"]["typed_config"]
        return [settings["token_bucket"], *(one["token_bucket"] for one in settings["descriptors"])]

    assert buckets(fitted().bootstrap) == buckets(shipped)
    moved = buckets(fitted(address_rate=Rate(per_second=7, burst=9)).bootstrap)
    assert moved == [{"max_tokens": 9, "tokens_per_fill": 7, "fill_interval": "1s"}] * 2


def test_upstreams_of_every_kind(tmp_path: Path) -> None:
    urls = ["http://127.0.0.1:11434", "https://gpu.example", "http://ollama", "http://[::1]:11434/"]
    ollama = cluster(fitted(upstreams=urls), "ollama")
    hosts = ollama["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [(one["endpoint"]["hostname"], one["endpoint"]["address"]["socket_address"]) for one in hosts] == [
        ("127.0.0.1", {"address": "127.0.0.1", "port_value": 11434}),
        ("gpu.example", {"address": "gpu.example", "port_value": 443}),
        ("ollama", {"address": "ollama", "port_value": 80}),
        ("::1", {"address": "::1", "port_value": 11434}),
    ]
    assert ["metadata" in one for one in hosts] == [False, True, False, False]
    assert [one["name"] for one in ollama["transport_socket_matches"]] == ["https", "http"]


@pytest.mark.parametrize(
    "url", ["ollama:11434", "ftp://ollama", "http://", "http://ollama/v1", "http://me@ollama", "http://ollama?x", ""]
)
def test_an_upstream_that_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Ollama"):
        fitted(upstreams=[url])


def test_something_has_to_be_there() -> None:
    for name in ("policy", "policy_edge", "policy_http", "processor", "upstreams"):
        with pytest.raises(ValueError, match=name.removesuffix("s")):
            fitted(**{name: []})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", Address(path="/run/a.sock")),
        ("127.0.0.1:9001", Address("127.0.0.1", 9001)),
        ("[::1]:9001", Address("::1", 9001)),
        ("policy:9001", Address("policy", 9001)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "policy", ":9001", "policy:", "policy:x", "/run/a.sock"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Address.parse(text)


# What is written, and what Envoy says of it.


def test_written_files_are_plain_and_belong_together(tmp_path: Path) -> None:
    path = write(fitted(), tmp_path / "new" / "envoy")
    assert path == tmp_path / "new" / "envoy" / "envoy.yaml"
    text = path.read_text()
    assert "&id" not in text, "written out in full: a reader should not have to follow aliases"
    bootstrap = yaml.safe_load(text)
    named = bootstrap["dynamic_resources"]["cds_config"]["path_config_source"]["path"]
    assert yaml.safe_load(Path(named).read_text())["resources"][0]["name"] == "ollama"
    assert sorted(one.name for one in path.parent.iterdir()) == ["clusters.yaml", "envoy.yaml"]
    before = Path(named).stat().st_ino
    write(fitted(), path.parent)
    assert Path(named).stat().st_ino != before, "moved into place: an edit in place goes unnoticed"


@pytest.mark.parametrize("upstreams", [["http://127.0.0.1:11434"], ["https://gpu.example", "http://[::1]:1"]])
def test_envoy_accepts_it_whole(tmp_path: Path, upstreams: list[str]) -> None:
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(fitted(upstreams=upstreams).folded()))
    command = [str(ENVOY), "--mode", "validate", "-c", str(whole), "--disable-hot-restart", "--log-level", "warn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warning]" not in done.stderr


def test_envoy_accepts_the_shipped_files_as_they_are(tmp_path: Path, shipped: Node) -> None:
    folded = Config(shipped, yaml.safe_load((SHIPPED / "clusters.yaml").read_text())).folded()
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(folded).replace("/etc/envoy/meter.lua", str(SHIPPED / "meter.lua")))
    command = [str(ENVOY), "--mode", "validate", "-c", str(whole), "--disable-hot-restart", "--log-level", "warn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warning]" not in done.stderr
