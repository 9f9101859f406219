"""What is wrong around a start is told in words, before anything runs."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from gateway import cli, probe, upstreams
from gateway.failure import Failure
from gateway.given import Given, lacking
from policy.rules import store_urls


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MAX_REQUEST_BODY_BYTES", "256k", "'256k' is not a whole number"),
        ("PADDOCK_MAX_REQUEST_BODY_BYTES", "1e6", "'1e6' is not a whole number"),
        ("PADDOCK_MAX_ENVELOPE_BYTES", "much", "'much' is not a whole number"),
        ("PADDOCK_TIER_UPSTREAMS", "junk", "'junk' is not TIER=URL"),
        ("PADDOCK_TIER_UPSTREAMS", "high=ftp://a", "ftp://a is no address of an Ollama"),
        ("PADDOCK_OTLP_ENDPOINT", "ftp://a", "PADDOCK_OTLP_ENDPOINT is host:port"),
        ("PADDOCK_UPSTREAM_CA_FILE", "/no/such/file", "/no/such/file: No such file or directory"),
    ],
)
def test_a_setting_that_is_wrong(name: str, value: str, why: str) -> None:
    with pytest.raises(Failure) as raised:
        Given({name: value}).check()
    assert name in str(raised.value)
    assert why in raised.value.what
    assert raised.value.do


def test_settings_that_are_right() -> None:
    given = Given({"MAX_REQUEST_BODY_BYTES": "2048", "PADDOCK_TIER_UPSTREAMS": "high=gpu-1;maximum=http://[::1]:1"})
    given.check()
    assert given.body_limit() == 2048
    assert given.tier_upstreams() == {"high": ("http://gpu-1:11434",), "maximum": ("http://[::1]:1",)}
    assert Given({}).body_limit() == 262144


def test_the_launcher_says_it_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAX_REQUEST_BODY_BYTES", "256k")
    assert cli.main(["demo", "--port", "0", "--data-dir", str(tmp_path)]) == 1
    assert "paddock: MAX_REQUEST_BODY_BYTES: '256k' is not a whole number\n  Correct it.\n" in capsys.readouterr().err


def test_a_check_with_such_a_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PADDOCK_MAX_REQUEST_BODY_BYTES", "256k")
    assert cli.main(["check"]) == 1
    (what, do) = capsys.readouterr().err.splitlines()
    assert what.startswith("paddock: a setting is wrong: ")
    assert "--max-request-body-bytes" in do


def test_a_list_of_upstreams_that_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PADDOCK_UPSTREAMS", " , ")
    assert cli.main(["up", "--port", "0", "--data-dir", str(tmp_path)]) == 1
    assert "PADDOCK_UPSTREAMS names no Ollama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("PADDOCK_DATABASE_URL", "db.example"),
        ("PADDOCK_REDIS_URL", "cache:6379"),
        ("PADDOCK_REDIS_URL", "junk"),
    ],
)
def test_a_store_that_is_no_url_is_not_looked_for_elsewhere(name: str, url: str) -> None:
    with pytest.raises(Failure, match=f"{name}: it does not begin with (postgresql|redis)://"):
        asyncio.run(upstreams.store_answers(name, url))


@pytest.mark.parametrize(
    "args", [("up", "--data-dir", ""), ("list-tenants", "--data-dir", ""), ("up", "--address-rate", "0")]
)
def test_words_that_would_mean_something_else(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 2
    assert f"argument {args[1]}: " in capsys.readouterr().err


def test_a_machine_that_lacks_something_is_told_so() -> None:
    full = lacking(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Path("/data"))
    assert str(full) == (
        "below /data: No space left on device\n  Make room there, or name another directory with --data-dir."
    )
    theirs = lacking(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/logs/x"), Path("/data"))
    assert str(theirs).startswith("/data/logs/x: Permission denied")
    assert lacking(OSError(errno.EPIPE, "Broken pipe"), Path("/data")) is None


def test_postgresql_below_a_directory_with_letters_of_any_kind(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_text("1\n/home/Jörg/postgres\n3\n0\n/run\n\n\nstarting\n", encoding="utf-8")

    async def is_ready() -> bool:
        return await probe.postgres_ready(pid_file, tmp_path / "socket")()

    assert asyncio.run(is_ready()) is False


@pytest.mark.parametrize(
    "args",
    [
        ("create-key", "acme", "--expires", "999999w"),
        ("create-key", "acme", "--expires", "9999-12-31T23:59-10:00"),
        ("rotate-key", "nz_000000000", "--grace", "999999w"),
    ],
)
def test_times_further_ahead_than_there_are_dates(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 2
    assert "is further ahead than there are dates" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1:1", "gate/way@127.0.0.1:1", "[::1", "a:70000"])
def test_a_store_whose_url_is_wrong_is_told_without_a_word_of_it(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", f"postgresql://ada:hush/{host}")
    monkeypatch.delenv("PADDOCK_DATA_DIR", raising=False)
    assert cli.main(["list-tenants"]) == 1
    assert cli.main(["doctor", "--url", "http://[::1"]) == 1
    out, err = capsys.readouterr()
    assert "hush" not in out + err
    assert "its port is no number; in a password / ? # @ are written %2F %3F %23 %40" in err
    assert "settings" in out


def test_an_address_of_the_gateway_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql://ada:hush@127.0.0.1:1/x")
    assert cli.main(["doctor", "--url", "http://[::1"]) == 1
    assert "http://[::1 is no address" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url",
    [
        "redis://:a%2Fb@[::1]:6379/0",
        "rediss://h",
        "unix:///run/x.sock?db=1",
        "redis+unix:///run/x.sock",
        "redis://h:1/0",
    ],
)
def test_urls_of_redis_that_are_right(url: str) -> None:
    assert store_urls.wrong_with(url, store_urls.REDIS) == ""


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@a:1,b:2/x", "postgres:///x?host=/run", "postgresql://u@[::1]/x", "postgresql://u:p%2F@h/x"],
)
def test_urls_of_postgresql_that_are_right(url: str) -> None:
    assert store_urls.wrong_with(url, store_urls.POSTGRESQL) == ""


def test_one_of_several_hosts_of_postgresql_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dead, alive = (f"127.0.0.1:{one.getsockname()[1]}" for one in (taken, server))
        for hosts in (f"{dead},{alive}", f"{alive},{dead}"):
            asyncio.run(upstreams.store_answers("PADDOCK_DATABASE_URL", f"postgresql://u:p@{hosts}/paddock"))
        with pytest.raises(Failure, match=f"nothing answers at {dead} or {dead} "):
            asyncio.run(upstreams.store_answers("PADDOCK_DATABASE_URL", f"postgresql://u:p@{dead},{dead}/paddock"))
