"""A whole gateway whose Envoy asks policy over gRPC, as in a mesh, beside all the others that ask over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import harness

if TYPE_CHECKING:
    from pathlib import Path


def test_a_whole_gateway_over_grpc(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", grpc_checks=True) as gateway:
        client = gateway.client()
        answered = client.chat("hello")
        assert answered.status_code == 200
        row = gateway.audit(harness.request_id(answered))
        assert (row["decision"], row["key_prefix"], row["outcome"]) == ("allowed", client.prefix, "completed")
        refused = gateway.http("nz_wrong").get("/v1/models")
        assert refused.status_code == 401
        assert gateway.audit(harness.request_id(refused))["reason"] == "key_malformed"
        listed = client.http.get("/v1/models")
        assert listed.status_code == 200
        assert listed.headers["x-ratelimit-limit-requests"] == "unlimited"
