"""Where the commands look for server keys: what is named, the environment, the running instance."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gateway import server_key
from gateway.failure import Failure
from gateway.server_key import Place


def arguments(server_key_dir: Path | None = None, data_dir: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(server_key_dir=server_key_dir, data_dir=data_dir)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No instance of this user's, and nothing set."""
    for name in (server_key.DIRECTORY, server_key.PASSPHRASE, server_key.PASSPHRASE_FILE, "PADDOCK_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql:///elsewhere")


def test_a_container_has_it_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy's knows the directory alone: enough to show the fingerprint, and to rotate nothing."""
    monkeypatch.setenv(server_key.DIRECTORY, "/keys")
    assert server_key.directory(arguments()) == Path("/keys")
    with pytest.raises(Failure, match="what opens"):
        server_key.find(arguments())
    monkeypatch.setenv(server_key.PASSPHRASE_FILE, "/run/secrets/passphrase")
    assert server_key.find(arguments()) == Place(Path("/keys"), None, Path("/run/secrets/passphrase"))
    assert server_key.directory(arguments(Path("/others"))) == Path("/others")


def test_nothing_is_known() -> None:
    with pytest.raises(Failure, match="not known where"):
        server_key.directory(arguments())


def test_an_instance_makes_its_own_once(tmp_path: Path) -> None:
    found = server_key.settings(tmp_path, {})
    secret = Path(found[server_key.PASSPHRASE_FILE])
    assert found[server_key.DIRECTORY] == str(tmp_path / "secrets" / "server-keys")
    assert (len(secret.read_text()), secret.stat().st_mode & 0o777) == (65, 0o600)
    before = secret.read_text()
    assert server_key.settings(tmp_path, {}) == found
    assert secret.read_text() == before
    assert server_key.settings(tmp_path, {server_key.DIRECTORY: ""}) == {}
    own = server_key.settings(tmp_path / "other", {server_key.PASSPHRASE: "x"})
    assert list(own) == [server_key.DIRECTORY]
