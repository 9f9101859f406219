"""A whole instance inside another program: the launcher on a thread of its own. The tests start gateways with it.

The parts are children of that thread: should the program die, the kernel ends them (`gateway.child`).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from gateway.launch import Launch
from gateway.supervisor import Stopped

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from gateway.launch import Config, Ready
    from gateway.running import Running


class Instance:
    """Start once, stop once. Parts are named postgres, valkey, policy-0, processor-0, demo-upstream, envoy."""

    def __init__(self, config: Config, say: Callable[[str], None] = lambda line: None) -> None:
        self._launch = Launch(config, say)
        self._started: Future[tuple[Ready, asyncio.AbstractEventLoop]] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="paddock-instance", daemon=True)

    def start(self) -> Self:
        """Return when the whole path answers. Failure if it does not come to that; nothing runs then."""
        self._thread.start()
        self._started.result()
        return self

    def stop(self) -> None:
        """Stop everything and return when it is gone. Raises what ended the instance before, if anything did."""
        if self._thread.is_alive():
            _, loop = self._started.result()
            loop.call_soon_threadsafe(self._launch.ask_to_stop)
        self._ended.result()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> Running:
        """Its addresses, as the command line finds them."""
        return self._ready.running

    @property
    def url(self) -> str:
        return self.running.url

    def pids(self) -> dict[str, int]:
        """Of the parts that run, by name."""
        return self._ready.supervisor.pids()

    def log(self, part: str) -> Path:
        return self._ready.supervisor.log(part)

    def kill(self, part: str) -> None:
        """SIGKILL; returns when it is gone. What follows is `Config.on_death`."""
        self._on_loop(self._ready.supervisor.kill(part))

    def signal(self, part: str, number: signal.Signals) -> None:
        """Send any signal, for example SIGSTOP and SIGCONT."""
        self._ready.supervisor.signal(part, number)

    def stop_part(self, part: str) -> None:
        """Stop one part in good order; it stays away until `restart`."""
        self._on_loop(self._ready.supervisor.stop(part))

    def restart(self, part: str) -> None:
        """Stop it if it runs, start it, and return when it answers."""
        self._on_loop(self._ready.supervisor.restart(part))

    @property
    def _ready(self) -> Ready:
        ready, _ = self._started.result()
        return ready

    def _on_loop(self, work: Coroutine[object, object, None]) -> None:
        _, loop = self._started.result()
        asyncio.run_coroutine_threadsafe(work, loop).result()

    def _run(self) -> None:
        async def when_ready(ready: Ready) -> None:
            self._started.set_result((ready, asyncio.get_running_loop()))

        try:
            asyncio.run(self._launch.run(when_ready))
        except Stopped:
            self._ended.set_result(None)
        except BaseException as error:  # handed to whoever waits on the other thread
            if not self._started.done():
                self._started.set_exception(error)
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)
