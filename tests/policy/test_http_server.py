"""`policy/edge/http_server.py`: sockets, signals and addresses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop

from policy.edge import http_server
from tests.policy.house import Door, House, holder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from policy.edge.endpoints import Endpoints


@contextlib.asynccontextmanager
async def served(app: Endpoints, listen: str) -> AsyncIterator[int]:
    """Serve `app`; the port, where there is one."""
    started = asyncio.Event()
    bound = http_server.bind(listen)
    port = bound.getsockname()[1] if listen.startswith("127") else 0
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        serving = group.create_task(http_server.serve(app, bound, started=started))
        await started.wait()
        yield port
        serving.cancel()


def in_uvloop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    uvloop.run(scenario())


def test_it_serves_on_a_unix_socket_that_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"

    async def scenario() -> None:
        house = House(Door({"k": holder("acme", all_models=True)}))
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with (
            served(house.app(), f"unix:{path}"),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            answer = await client.get("/api/tags", headers={"authorization": "Bearer k"})
            assert len(answer.json()["models"]) == 3
            assert "server" not in answer.headers
            head = await client.head("/api/tags", headers={"authorization": "Bearer k"})
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == answer.headers["content-length"]
            assert (await client.get("/metrics")).status_code == 200  # whoever reaches the socket is on this machine

    in_uvloop(scenario)


def test_it_replaces_the_socket_of_a_process_that_died_but_no_other_file(tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))

    async def scenario() -> None:
        async with served(House().app(), f"unix:{dead}"):
            _, writer = await asyncio.open_unix_connection(str(dead))
            writer.close()

    in_uvloop(scenario)

    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(OSError, match="Address already in use"):
        http_server.bind(f"unix:{precious}")
    assert precious.read_text() == "mine"


def test_it_serves_on_tcp_and_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def scenario() -> None:
        async with served(House().app(), "127.0.0.1:0") as port, httpx.AsyncClient() as client:
            assert signal.getsignal(signal.SIGTERM) is before
            assert (await client.get(f"http://127.0.0.1:{port}/api/version")).json() == {"version": "0.1.0"}
            assert (await client.get(f"http://127.0.0.1:{port}/metrics")).status_code == 200

    in_uvloop(scenario)


@pytest.mark.parametrize("listen", ["", "8080", "localhost:", "localhost:http"])
def test_a_listen_address_of_another_form_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="write unix:/path or host:port"):
        http_server.bind(listen)
