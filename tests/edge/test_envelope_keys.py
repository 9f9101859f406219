"""Server keys: made at the first start, rotated beside running processors, absent where envelopes are turned off."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests import harness
from tests.harness import eventually
from tests.sealing import PATH, chat, refused, senders, server_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Gateway


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with harness.running(tmp_path_factory.mktemp("keys") / "data", workers=2) as gateway:
        yield gateway


def test_the_first_start_makes_one_key(lone: Gateway) -> None:
    key = server_key(lone)
    assert key.key_size == 4096
    (shown,) = lone.paddock("server-key")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert shown["fingerprint"] == hashlib.sha256(der).hexdigest()
    assert shown["ends_at"] is None
    secrets = lone.data_dir / "secrets"
    files = [secrets / "server-key-passphrase", *(secrets / "server-keys").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (secrets, secrets / "server-keys")} == {0o700}
    assert b"ENCRYPTED PRIVATE KEY" in files[1].read_bytes()
    response = lone.http().head("/pki/public_key")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/plain; charset=utf-8")


def test_rotation(lone: Gateway) -> None:
    """With two processors: neither is told, and both know at once."""
    old = senders(lone)()
    new = lone.paddock("rotate-server-key", "--grace", "1h")
    assert [key["ends_at"] is None for key in new] == [True, False]
    assert lone.paddock("server-key") == new
    fresh = replace(old, server=server_key(lone))
    assert fresh.server != old.server
    for one in (fresh, old) * 4:
        assert one.send(chat("x")).status_code == 200
    (only,) = lone.paddock("rotate-server-key", "--grace", "0")
    assert only["number"] == 3
    newest = replace(old, server=server_key(lone))
    for _ in range(4):
        refused(old.send(chat("x")))
        refused(fresh.send(chat("x")))
        assert newest.send(chat("x")).status_code == 200


def test_a_damaged_key_is_an_outage_of_envelopes_alone(lone: Gateway) -> None:
    one = senders(lone)()
    directory = lone.data_dir / "secrets" / "server-keys"
    lone.paddock("rotate-server-key", "--grace", "0")
    (path,) = directory.glob("*.pem")
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    try:
        response = one.send(chat("x"))
        assert "retry-after" in response.headers
        refused(response, 503)
        refused(lone.http().get("/pki/public_key"), 503)
        assert one.client.chat("x").status_code == 200
    finally:
        path.write_bytes(content)
    again = replace(one, server=server_key(lone))
    assert again.send(chat("x")).status_code == 200


def test_several_names_for_the_same(lone: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = lone.data_dir / "secrets" / "server-keys"
    assert lone.paddock("server-key", "--server-key-dir", str(directory)) == lone.paddock("server-key")
    lone.paddock("rotate-server-key", "--grace", "-1", status=2)
    monkeypatch.setenv("PADDOCK_SERVER_KEY_PASSPHRASE", "another passphrase that is long enough")
    assert "passphrase" in lone.paddock("rotate-server-key", status=1)


def test_turned_off(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", PADDOCK_SERVER_KEY_DIR="") as gateway:
        assert refused(gateway.http().get("/pki/public_key"), 404)["detail"] == "secure inference is not enabled"
        refused(gateway.http().post(PATH, content=b"x"), 401)
        client = gateway.client()
        response = client.http.post(PATH, content=b"x")
        assert refused(response, 404)["detail"] == "secure inference is not enabled"
        assert gateway.audit(response.headers["x-request-id"])["reason"] == "envelopes_disabled"
        assert client.chat("x").status_code == 200
        assert "not known" in gateway.paddock("server-key", status=1)
        assert not (tmp_path / "data" / "secrets" / "server-keys").exists()


def test_a_smaller_envelope(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", PADDOCK_MAX_ENVELOPE_BYTES="20000") as gateway:
        one = senders(gateway)()
        assert one.send(chat("x" * 10_000)).status_code == 200
        refused(one.send(chat("x" * 20_000)))
        assert eventually(lambda: one.client.chat("x" * 100_000).status_code == 200)
