"""`set-bounds` and `list-bounds`: what people read, and what is said of mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway import cli

if TYPE_CHECKING:
    from tests.harness import Gateway


@pytest.fixture(scope="module")
def tenant(gateway: Gateway) -> str:
    return gateway.tenant()


def said(gateway: Gateway, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*words, "--data-dir", str(gateway.data_dir)]) == 0
    return capsys.readouterr().out


def test_what_people_read(gateway: Gateway, tenant: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(gateway, capsys, "set-bounds", tenant, "tools=1_000", "template_logic=yes").splitlines()
    assert lines[0] == f"Tenant {tenant} changed."
    assert [line.split()[:3] for line in lines[2:]] == [["tools", "1000", "512"], ["template-logic", "yes", "no"]]
    lines = said(gateway, capsys, "set-bounds", tenant, "tools=usual", "keep-alive-seconds=1.5").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["template-logic", "keep-alive-seconds"], "the others stay"
    whole = said(gateway, capsys, "list-bounds", tenant).splitlines()
    usual = said(gateway, capsys, "list-bounds").splitlines()
    assert len(whole) == len(usual) > 20
    assert whole[0].split() == ["BOUND", "AT", "MOST", "USUALLY", "OF"]
    assert not [line for line in whole if line.startswith("tools ") and line.split()[1] != "512"]


def test_what_programs_read(gateway: Gateway) -> None:
    name = gateway.tenant()
    told = gateway.paddock("set-bounds", name, "operator-options=num_gpu,num_ctx")
    assert told["tenant"] == name
    assert told["differing"] == ["operator_options"]
    assert told["bounds"]["operator_options"] == ["num_ctx", "num_gpu"]
    assert gateway.paddock("list-bounds", name) == told
    assert gateway.paddock("list-bounds")["differing"] == []


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("tools",), 2, "is no NAME=VALUE with one of these names: depth,"),
        (("colours=7",), 2, "is no NAME=VALUE"),
        (("tools=many",), 2, "'tools=many': tools is a whole number"),
        (("depth=1000",), 2, "depth is from 1 to 256"),
        (("operator-options=num_predict",), 2, "operator_options are of "),
    ],
)
def test_mistakes_are_explained(gateway: Gateway, tenant: str, words: tuple[str, ...], status: int, told: str) -> None:
    assert told in gateway.paddock("set-bounds", tenant, *words, status=status)


def test_a_tenant_that_is_not_there(gateway: Gateway) -> None:
    for command in (("set-bounds", "nobody", "tools=1"), ("list-bounds", "nobody")):
        assert "there is no tenant nobody" in gateway.paddock(*command, status=1)
