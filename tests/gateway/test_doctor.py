"""`paddock doctor` on a gateway that is well, and on some that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests import harness

if TYPE_CHECKING:
    import pytest

    from tests.harness import Gateway


def _examined(gateway: Gateway, *, status: int = 0) -> dict[str, list[dict[str, Any]]]:
    import contextlib
    import io
    import json

    from gateway import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["doctor", "--json", "--data-dir", str(gateway.data_dir)]) == status, out.getvalue()
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(out.getvalue())["results"]:
        found.setdefault(one["what"], []).append(one)
    return found


def test_a_gateway_that_is_well(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_KEY", gateway.client().key)
    found = _examined(gateway)
    assert {
        "postgresql", "postgresql clock", "schema", "redis", "redis clock", "gateway", "envoy clock", "policy: ollama",
        "refusals", "body limit", "key", "round trip",
    } <= set(found)  # fmt: skip
    assert "200 in" in found["round trip"][0]["found"]


def test_a_key_of_somebody_else(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_KEY", "nz_nobody")
    (bad,) = _examined(gateway, status=1)["key"]
    assert bad["found"] == "/api/tags 401: unauthorized"


def test_limits_out_of_step_are_named(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_MAX_REQUEST_BODY_BYTES", "300000")
    found = _examined(gateway, status=1)["body limit"]
    assert "PADDOCK_MAX_REQUEST_BODY_BYTES=300000" in found[0]["mend"]


def test_an_ollama_that_is_gone_and_a_store_that_is_gone(tmp_path_factory: pytest.TempPathFactory) -> None:
    with harness.running(tmp_path_factory.mktemp("doctor") / "data") as gateway:
        gateway.upstream.stop()
        gateway.instance.kill("valkey")
        harness.eventually(lambda: gateway.http().get("/readyz").json()["checks"]["ollama"] != "ok", patience=20)
        found = _examined(gateway, status=1)
        assert not found["redis"][0]["well"]
        assert "PADDOCK_UPSTREAMS" in found["policy: ollama"][0]["mend"]
        assert found["postgresql"][0]["well"]


def test_without_a_gateway_it_says_where_to_look(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway import cli

    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql://paddock:secret@127.0.0.1:1/paddock")
    assert cli.main(["doctor", "--url", "http://127.0.0.1:1"]) == 1
    out = capsys.readouterr().out
    assert "BAD  postgresql" in out
    assert "secret" not in out
    assert "Does Envoy run" in out
