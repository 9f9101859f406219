"""How commands find the instance they are meant for."""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING

import pytest

from gateway import running
from gateway.failure import Failure
from gateway.running import Running

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def one_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PADDOCK_DATA_DIR", "PADDOCK_DATABASE_URL", "PADDOCK_REDIS_URL", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def instance(data: Path, *, pid: int | None = None) -> Running:
    data.mkdir(parents=True, exist_ok=True)
    pid = pid or os.getpid()
    return Running(str(data), pid, running.start_time(pid) or "", "http://x", f"postgresql://{data.name}", "unix:///r")


def found(data_dir: Path | None = None) -> str:
    return running.stores(argparse.Namespace(data_dir=data_dir)).database_url


def test_nothing_runs() -> None:
    with pytest.raises(Failure, match=r"no running instance was found\n.*paddock up.*PADDOCK_DATABASE_URL"):
        found()


def test_the_one_that_runs(tmp_path: Path) -> None:
    with running.announced(instance(tmp_path / "one")):
        assert found() == "postgresql://one"
    with pytest.raises(Failure, match="no running instance"):
        found()
    assert not (tmp_path / "one" / running.RECORD).exists()


def test_several_run_and_one_of_them_below_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running.announced(instance(tmp_path / "a" / "one")), running.announced(instance(tmp_path / "b" / "two")):
        with pytest.raises(Failure, match=r"several instances run\n(.*one\n.*two|.*two\n.*one)\n.*--data-dir"):
            found()
        monkeypatch.chdir(tmp_path / "b")
        assert found() == "postgresql://two"
        assert found(tmp_path / "a" / "one") == "postgresql://one"
        monkeypatch.setenv("PADDOCK_DATA_DIR", str(tmp_path / "a" / "one"))
        assert found() == "postgresql://one"


def test_a_named_directory_in_which_nothing_runs_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql://other")
    with running.announced(instance(tmp_path / "one")), pytest.raises(Failure, match=r"no instance runs in .*two"):
        found(tmp_path / "two")


def test_stores_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql://mine")
    with running.announced(instance(tmp_path / "one")):
        assert found() == "postgresql://mine"
        assert running.stores(argparse.Namespace()).redis_url is None
        monkeypatch.setenv("PADDOCK_DATA_DIR", str(tmp_path / "nothing"))
        assert found() == "postgresql://mine"


def test_what_a_dead_process_left_is_ignored_and_dropped(tmp_path: Path) -> None:
    record = instance(tmp_path / "one")
    with running.announced(record):
        leftovers = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    for path, text in leftovers.items():
        path.write_text(text.replace(record.started, "1"))  # the number lives on, as another process
    with pytest.raises(Failure, match="no running instance"):
        found()
    assert list((tmp_path / "state").rglob("*.path")) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"pid": "x"}'])
def test_a_record_that_makes_no_sense_is_no_instance(tmp_path: Path, text: str) -> None:
    (tmp_path / running.RECORD).write_text(text)
    assert running.read(tmp_path) is None


def test_records_are_for_their_user_alone(tmp_path: Path) -> None:
    with running.announced(instance(tmp_path / "one")):
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert stat.S_IMODE((tmp_path / "state" / "paddock" / "running").stat().st_mode) == 0o700


def test_a_quiet_instance_is_found_by_its_directory_only(tmp_path: Path) -> None:
    with running.announced(instance(tmp_path / "one"), to_user=False):
        assert found(tmp_path / "one") == "postgresql://one"
        with pytest.raises(Failure, match="no running instance"):
            found()


def test_the_usual_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert running.default_data_dir() == tmp_path / ".local" / "share" / "paddock"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert running.default_data_dir() == tmp_path / "xdg" / "paddock"
    monkeypatch.setenv("PADDOCK_DATA_DIR", str(tmp_path / "named"))
    assert running.default_data_dir() == tmp_path / "named"
