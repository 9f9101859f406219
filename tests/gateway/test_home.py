"""The data directory: one instance at a time, private, and never somebody else's."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from gateway.failure import Failure
from gateway.home import Home

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_in_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home.path, *home.path.iterdir())}
    assert set(modes.values()) == {0o700}, modes


def test_one_instance_at_a_time_even_in_one_process(tmp_path: Path) -> None:
    first, second = Home.open(tmp_path / "data"), Home.open(tmp_path / "data")
    with (
        first.claimed(),
        pytest.raises(Failure, match=f"in use by another instance \\(process {os.getpid()}\\)"),
        second.claimed(),
    ):
        pytest.fail("claimed twice")
    with second.claimed():
        pass


def test_a_short_socket_directory_is_gone_when_the_instance_is(tmp_path: Path) -> None:
    home = Home.open(tmp_path / ("deep" * 25))
    assert home.path not in home.run.parents and len(str(home.socket("policy-http-63"))) < 108
    with home.claimed():
        home.socket("policy-0").touch()
    assert not home.run.exists()
    with pytest.raises(ZeroDivisionError), home.claimed():
        assert home.run.is_dir(), "made again for the next run"
        raise ZeroDivisionError
    assert not home.run.exists()


def test_a_socket_directory_that_somebody_laid_out_for_us_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = tmp_path / ("deep" * 25)
    trap = Home.open(data).run
    trap.rmdir()
    (tmp_path / "elsewhere").mkdir()
    trap.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="belongs to someone else"):
        Home.open(data)
    trap.unlink()
    trap.mkdir(mode=0o777)
    monkeypatch.setattr("gateway.home.os.geteuid", lambda: os.getuid() + 1)
    trap.rename(tmp_path / f"paddock-{os.getuid() + 1}-{trap.name.rpartition('-')[2]}")
    with pytest.raises(Failure, match="belongs to someone else"):
        Home.open(data)


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=r"cannot use the data directory .*(Not a directory|File exists)\n.*--data-dir"):
        Home.open(tmp_path / "file")
