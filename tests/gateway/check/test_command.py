"""`paddock check` as an operator and a CI job meet it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway import cli

if TYPE_CHECKING:
    from collections.abc import Callable

SHIPPED = Path(__file__).parents[3] / "envoy"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a shipped file with one text replaced, and the script beside it."""
    shutil.copy(SHIPPED / "meter.lua", tmp_path)

    def copied(name: str, old: str = "", new: str = "") -> Path:
        text = (SHIPPED / name).read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / name
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return copied


def test_the_shipped_files_hold_for_envoy_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "what must hold, holds" in err


def test_a_violation_is_a_line_and_status_1(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("envoy.yaml", "normalize_path: true", "normalize_path: false")
    assert cli.main(["check", str(path)]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{path}:")
    assert "path-hygiene: normalize_path is not true;" in line
    assert err == "1 violation\n"


def test_json(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("clusters.yaml", "name: ollama", "name: olama")
    assert cli.main(["check", "--json", str(path)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert {one["rule"] for one in document["findings"]} == {"unknown-cluster"}


def test_envoys_own_word_is_passed_on(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("envoy.yaml", "inline_string: Ollama is running", "filename: /no/such/file")
    assert cli.main(["check", str(path)]) == 1
    assert "/no/such/file" in capsys.readouterr().out


def test_a_script_beside_the_file_is_compared(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("envoy.yaml")
    script = copy("meter.lua", "WHOLE = 65536", "WHOLE = 65537")
    assert cli.main(["check", str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert f"meter-source: {script} is not the shipped one" in line


def test_a_script_that_is_not_at_hand_is_a_note(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("envoy.yaml")
    (path.parent / "meter.lua").unlink()
    assert cli.main(["check", str(path)]) == 0
    assert "note: meter-source: /etc/envoy/meter.lua cannot be read here" in capsys.readouterr().out


def test_without_envoy_it_says_so(
    copy: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("PADDOCK_ENVOY", raising=False)
    assert cli.main(["check", str(copy("envoy.yaml"))]) == 0
    assert "`envoy --mode validate` did not run" in capsys.readouterr().out


def test_the_services_limit_is_read_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDOCK_MAX_REQUEST_BODY_BYTES", "1048576")
    assert cli.main(["check"]) == 1
    assert "body-limit" in capsys.readouterr().out


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "/no/such/envoy.yaml"]) == 1
    assert capsys.readouterr().out == "/no/such/envoy.yaml:1: unreadable: No such file or directory\n"


def test_two_bootstraps_are_two_commands(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(copy("envoy.yaml"))
    assert cli.main(["check", path, path]) == 1
    assert "one bootstrap at a time" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "option"), [("envoy.yaml", "tls"), ("envoy.yaml", "mtls"), ("clusters.yaml", "key")])
def test_certificates_and_keys_need_not_lie_on_this_machine(copy: Callable[..., Path], name: str, option: str) -> None:
    path = copy(name)
    path.write_text(path.read_text(encoding="utf-8").replace(f"#{option}# ", ""), encoding="utf-8")
    assert cli.main(["check", str(path)]) == 0


def test_envoys_word_is_words(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = copy("envoy.yaml", "inline_string: Ollama is running", "filename: /no/such/file")
    assert cli.main(["check", str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}:1: envoy: Envoy does not take it: error initializing configuration '{path}': ")
    assert '"event"' not in line
