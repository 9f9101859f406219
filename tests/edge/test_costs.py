"""What a request costs the stores: one round trip to decide and one to settle, none for a chunk, none to PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from policy.stores.redis import ADMIT, SETTLE
from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway


def test_one_round_trip_decides_and_one_settles_whatever_is_streamed(gateway: Gateway) -> None:
    client = gateway.client(None, "--rpm", "100", "--budget-day", "100000")
    client.chat("warm")
    with commands(gateway) as seen:
        answer = client.chat("x !tokens=80 !delay=2", stream=True)
    assert answer.text.count("\n") > 80
    mine = [command for command in seen if request_id(answer) in command]
    assert [command.split()[1] for command in mine if "EVALSHA" in command][:2] == [ADMIT.sha, SETTLE.sha]
    # Of what is left the one is Envoy's log of it. Nothing else is asked, for this request or for any other reason, but
    # by the ledger: those commands are no script of a request.
    scripts = [command.split()[1] for command in seen if command.startswith("EVALSHA")]
    assert scripts.count(ADMIT.sha) == scripts.count(SETTLE.sha) == 1
    assert len(mine) <= 3


@contextlib.contextmanager
def commands(gateway: Gateway) -> Iterator[list[str]]:
    """What clients ask of the counter store meanwhile."""
    store = gateway.redis()
    found: list[str] = []
    with store.monitor() as monitor:  # type: ignore[no-untyped-call]  # the library leaves it so

        def listen() -> None:
            while (command := monitor.next_command())["command"] != "ECHO that-was-all":
                if command["client_type"] != "lua":
                    found.append(command["command"])

        thread = threading.Thread(target=listen)
        thread.start()
        yield found
        store.echo("that-was-all")
        thread.join(20)
    store.close()


def test_a_warm_request_asks_postgresql_nothing(gateway: Gateway) -> None:
    """It is answered while PostgreSQL stands still, for as long as nobody has noticed."""
    client = gateway.client(None, "--rpm", "100", "--budget-day", "100000")
    client.chat("warm")
    body: dict[str, Any] = {"model": MODELS[0], "messages": [{"role": "user", "content": "x"}], "stream": False}
    backends = [row["pid"] for row in gateway.sql("SELECT pid FROM pg_stat_activity")]
    try:
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):  # the one that listed them has ended
                os.kill(pid, signal.SIGSTOP)
        assert client.http.post("/api/chat", json=body, timeout=2).status_code == 200
    finally:
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
