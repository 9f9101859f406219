"""The manifests: they fit together, fit the shipped files, and shut the gate where ours does.

Their own schemas are not at hand; what is checked is what an operator would be surprised by.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor

from gateway.check.routes import MUTATING, SECRETS
from policy.rules import requests
from policy.settings import PolicySettings
from processor.settings import ProcessorSettings
from tests.docs.pages import ROOT

SHIPPED = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "docs" / "manifests" / f"{name}.yaml").read_text(encoding="utf-8")))


def of(name: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents(name) if one["kind"] == kind}


@pytest.mark.parametrize("name", ["kubernetes", "envoy-gateway", "istio"])
def test_each_document_is_a_resource(name: str) -> None:
    seen = set()
    for one in documents(name):
        assert {"apiVersion", "kind", "metadata"} <= set(one)
        identity = (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        assert identity not in seen
        seen.add(identity)


# Kubernetes.


@pytest.mark.parametrize("name", ["policy", "processor", "envoy"])
def test_deployments_are_locked_and_stop_in_good_order(name: str) -> None:
    pod = of("kubernetes", "Deployment")[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    locked = container["securityContext"]
    assert (locked["allowPrivilegeEscalation"], locked["readOnlyRootFilesystem"]) == (False, True)
    assert locked["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    settings = of("kubernetes", "ConfigMap")["paddock"]["data"]
    needed = float(settings["PADDOCK_DRAIN_SECONDS"]) + float(settings["PADDOCK_GRACE_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > needed


def test_services_are_where_the_shipped_envoy_looks_for_them() -> None:
    services = of("kubernetes", "Service")
    for cluster in SHIPPED["static_resources"]["clusters"]:
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        service = services[address["address"]]["spec"]
        assert service["clusterIP"] == "None"
        assert address["port_value"] in [port["port"] for port in service["ports"]]


def test_envoy_may_call_what_it_calls() -> None:
    for cluster in SHIPPED["static_resources"]["clusters"]:
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        (pod,) = of("kubernetes", "Deployment")[address["address"]]["spec"]["template"]["spec"]["containers"]
        assert address["port_value"] in [port["containerPort"] for port in pod["ports"]]
        rule = of("kubernetes", "NetworkPolicy")[address["address"]]["spec"]["ingress"][0]
        assert {"port": address["port_value"]} in rule["ports"]


def test_no_pod_leaves_its_service_because_ollama_is_down() -> None:
    deployments = of("kubernetes", "Deployment")
    probed = {
        name: one["spec"]["template"]["spec"]["containers"][0]["readinessProbe"].get("httpGet", {}).get("path")
        for name, one in deployments.items()
    }
    assert probed == {"policy": "/readyz?exclude=ollama", "processor": None, "envoy": "/healthz"}


def test_the_config_map_has_every_file_of_envoys() -> None:
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text(encoding="utf-8")
    manifest = (ROOT / "docs" / "manifests" / "kubernetes.yaml").read_text(encoding="utf-8")
    for one in (ROOT / "envoy").iterdir():
        if one.is_file():
            assert f"--from-file envoy/{one.name}" in page
            assert f"--from-file envoy/{one.name}" in manifest


@pytest.mark.parametrize("name", ["envoy-gateway", "istio"])
def test_meshes_meter_by_processor(name: str) -> None:
    text = (ROOT / "docs" / "manifests" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "meter.lua" not in text
    assert "ext" in text and "9003" in text


def test_selectors_and_labels_fit() -> None:
    labels = {
        name: one["spec"]["template"]["metadata"]["labels"] for name, one in of("kubernetes", "Deployment").items()
    }
    for name, one in of("kubernetes", "Deployment").items():
        assert one["spec"]["selector"]["matchLabels"] == labels[name]
        assert one["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for kind, path in (("Service", ("selector",)), ("PodDisruptionBudget", ("selector", "matchLabels"))):
        for name, one in of("kubernetes", kind).items():
            selector = one["spec"]
            for step in path:
                selector = selector[step]
            assert selector == labels["envoy" if name == "gateway" else name]
    for name, one in of("kubernetes", "NetworkPolicy").items():
        assert one["spec"]["podSelector"]["matchLabels"] == labels[name]
        assert one["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels["envoy"]}}]
    for name, one in of("kubernetes", "HorizontalPodAutoscaler").items():
        assert one["spec"]["scaleTargetRef"]["name"] == name


def test_settings_exist() -> None:
    known = {f"PADDOCK_{name.upper()}" for name in (*PolicySettings.model_fields, *ProcessorSettings.model_fields)}
    used = set(of("kubernetes", "ConfigMap")["paddock"]["data"])
    for one in of("kubernetes", "Deployment").values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        used |= {variable["name"].removesuffix("_FILE") for variable in container.get("env", ())}
    assert used <= known


# The meshes.


def test_envoy_gateway_shuts_the_gate() -> None:
    (authz,) = (one["spec"]["extAuth"] for one in of("envoy-gateway", "SecurityPolicy").values())
    assert (authz["failOpen"], authz["statusOnError"]) == (False, 503)
    assert authz["bodyToExtAuth"]["maxRequestBytes"] == _limit()
    assert {"authorization", "x-api-key", "content-length", "x-request-id"} <= set(authz["headersToExtAuth"])
    (proc,) = next(iter(of("envoy-gateway", "EnvoyExtensionPolicy").values()))["spec"]["extProc"]
    assert proc["failOpen"] is False
    assert proc["processingMode"]["allowModeOverride"] is True
    assert "envoy.filters.http.ext_authz" in proc["metadata"]["accessibleNamespaces"]
    assert proc["metadata"]["writableNamespaces"] == ["paddock"]


def test_envoy_gateway_routes_only_what_policy_knows() -> None:
    for rule in of("envoy-gateway", "HTTPRoute")["ollama"]["spec"]["rules"]:
        assert set(SECRETS) <= set(rule["filters"][0]["requestHeaderModifier"]["remove"])
        for match in rule["matches"]:
            assert match["path"]["type"] == "Exact"
            assert requests.find(match["method"], match["path"]["value"]) is not None


def test_istio_shuts_the_gate() -> None:
    (provider,) = of("istio", "IstioOperator")["paddock"]["spec"]["meshConfig"]["extensionProviders"]
    authz = provider["envoyExtAuthzGrpc"]
    assert (authz["failOpen"], authz["statusOnError"]) == (False, "503")
    body = {"maxRequestBytes": _limit(), "allowPartialMessage": False, "packAsBytes": True}
    assert authz["includeRequestBodyInCheck"] == body
    policies = of("istio", "AuthorizationPolicy")
    assert policies["paddock"]["spec"]["action"] == "CUSTOM"
    (rule,) = policies["paddock-never"]["spec"]["rules"]
    assert {f"{path}*" for path in MUTATING} == set(rule["to"][0]["operation"]["paths"])


def test_istios_processor_is_the_shipped_one() -> None:
    patches = of("istio", "EnvoyFilter")["paddock-processor"]["spec"]["configPatches"]
    (ours,) = (one["patch"]["value"] for one in patches if one["applyTo"] == "HTTP_FILTER")
    manager = SHIPPED["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (shipped,) = (one for one in manager["http_filters"] if one["name"] == "envoy.filters.http.ext_proc")
    ExternalProcessor.from_dict({key: value for key, value in ours["typed_config"].items() if key != "@type"})
    for name in ("failure_mode_allow", "status_on_error", "processing_mode", "allow_mode_override", "forward_rules"):
        assert ours["typed_config"][name] == shipped["typed_config"][name], name
    namespaces = ours["typed_config"]["metadata_options"]
    assert "envoy.filters.http.ext_authz" in namespaces["forwarding_namespaces"]["untyped"]


def test_istio_routes_only_what_policy_knows() -> None:
    (ollama,) = (one for one in of("istio", "VirtualService")["models"]["spec"]["http"] if one["name"] == "ollama")
    assert set(SECRETS) <= set(ollama["headers"]["request"]["remove"])
    for match in ollama["match"]:
        assert requests.find(match["method"]["exact"], match["uri"]["exact"]) is not None


def _limit() -> int:
    limit: int = PolicySettings.model_fields["max_request_body_bytes"].default
    return limit
