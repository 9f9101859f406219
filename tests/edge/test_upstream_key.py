"""An upstream that takes nobody without its key, behind TLS of a private CA: for lists and for chat."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from gateway import upstreams
from gateway.failure import Failure
from gateway.instance import Instance
from gateway.launch import Config
from gateway.supervisor import OnDeath
from policy.settings import PolicySettings
from tests import harness
from tests.certificates import Authority
from tests.edge.rig import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "up-5tream-zq8f"


class Doorkeeper:
    """Before the demo upstream: TLS, and 401 for whoever does not show the key. One request a connection."""

    def __init__(self, behind: int, tls: ssl.SSLContext) -> None:
        self.port = 0
        self.asked: list[tuple[str, str]] = []  # path and Authorization
        self._behind = behind
        self._tls = tls

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.closing(writer),
            contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError),
        ):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")[:-2]
            shown = [
                value for name, _, value in (line.partition(": ") for line in lines) if name.lower() == "authorization"
            ]
            self.asked.append((lines[0].split(" ")[1], ",".join(shown)))
            if shown != [f"Bearer {KEY}"]:
                writer.write(b"HTTP/1.1 401 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
                return
            kept = [line for line in lines if not line.lower().startswith(("authorization:", "connection:"))]
            inner, out = await asyncio.open_connection("127.0.0.1", self._behind)
            with contextlib.closing(out):
                out.write("\r\n".join([*kept, "connection: close", "", ""]).encode("latin-1"))
                sending = asyncio.ensure_future(_pass_on(reader, out))
                await _pass_on(inner, writer)
                sending.cancel()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[harness.Upstream]:
    with harness.Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def doorkeeper(upstream: harness.Upstream, authority: Authority) -> Iterator[Doorkeeper]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("localhost"))
    keeper, loop = Doorkeeper(upstream.port, tls), Loop()
    server = loop.run(keeper.listen())
    yield keeper

    async def close() -> None:
        server.close()

    loop.run(close())
    loop.close()


def test_lists_and_chat_carry_the_key(
    doorkeeper: Doorkeeper, upstream: harness.Upstream, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    settings = {
        "PADDOCK_UPSTREAM_KEY_FILE": str(file),
        "PADDOCK_UPSTREAM_CA_FILE": str(authority.certificate),
        "PADDOCK_DISCOVERY_INTERVAL_SECONDS": "1",
    }
    url = f"https://localhost:{doorkeeper.port}"
    data = tmp_path / "data"
    config = Config(
        data_dir=data, upstreams=(url,), port=0, announce=False, on_death=OnDeath.LEAVE, environment=settings
    )
    with Instance(config) as instance:
        gateway = harness.Gateway(instance, upstream, data)
        try:
            client = gateway.client()
            names = [one["name"] for one in client.http.get("/api/tags").json()["models"]]
            assert harness.MODELS[0] in names
            assert client.chat("hello there").json()["message"]["content"]
            assert client.http.post("/api/show", json={"model": harness.MODELS[0]}).status_code == 200
            assert "data: [DONE]" in client.chat("hello", path="/v1/chat/completions", stream=True).text
        finally:
            gateway.close()
        asked = {path for path, _ in doorkeeper.asked}
        assert asked >= {"/api/version", "/api/tags", "/api/chat", "/api/show", "/v1/chat/completions"}
        assert {shown for _, shown in doorkeeper.asked} == {f"Bearer {KEY}"}
        secret = data / "envoy" / "upstream-key.yaml"
        assert secret.stat().st_mode & 0o077 == 0
        for path in data.rglob("*"):
            if path.is_file() and path != secret and path.stat().st_size < 10_000_000:
                assert KEY.encode() not in path.read_bytes(), path


def test_without_the_key_or_the_authority_it_does_not_start(doorkeeper: Doorkeeper, authority: Authority) -> None:
    url = f"https://localhost:{doorkeeper.port}"
    for key, ca, said in (
        ("", authority.certificate, "answers with status 401"),
        ("another", authority.certificate, "answers with status 401"),
        (KEY, None, "CERTIFICATE_VERIFY_FAILED"),
    ):
        with pytest.raises(Failure) as failed:
            asyncio.run(upstreams.check([url], lambda _: None, key, ca))
        assert said in str(failed.value)
    asyncio.run(upstreams.check([url], lambda _: None, KEY, authority.certificate))


def test_a_key_that_is_no_word_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_UPSTREAM_KEY", "zqword\r\nx: y")
    with pytest.raises(ValueError, match="one word of printable ASCII") as refused:
        PolicySettings()
    assert "zqword" not in str(refused.value)
