"""Discovery: which models are installed, and where, asked of every Ollama and never written down.

Each upstream is watched by its own task, so that a slow one delays nobody. What is known is one immutable Snapshot,
replaced after every poll; its `models` stay the very same object while nothing changed, so that what is derived from
them (`policy.edge.endpoints`) stays good. An upstream that fails keeps the models it had for `stale_after` seconds:
a restart or a full queue is no reason to refuse everybody. It is asked again at once, then with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from policy.admission import upstreams
from policy.admission.upstreams import Access, Fault, PollFailed, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from policy.rules.tags import Installed

RETRY_FIRST = 0.25  # seconds after the first failure; doubles up to the interval
REFRESH_EVERY = 1.0  # seconds: at most one refresh on demand in this time

OPEN = Access()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Discovered:
    """One model, wherever it is installed."""

    name: str  # as the first upstream that has it lists it
    details: Mapping[str, object]  # that upstream's entry of /api/tags
    upstreams: tuple[str, ...]  # ids of those that have it


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """What is known of one upstream."""

    id: str
    reachable: bool = False
    fault: Fault = Fault.CONNECT  # of the last poll; CONNECT before the first
    last_success: float | None = None  # seconds of the monotonic clock
    failing_since: float | None = None
    models: int = 0
    addresses: tuple[str, ...] = ()  # ip:port


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at one moment."""

    models: Mapping[str, Discovered] = field(default_factory=lambda: MappingProxyType({}))  # by canonical name
    upstreams: Mapping[str, UpstreamState] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def reachable(self) -> bool:
        """Whether any upstream answered when it was last asked."""
        return any(state.reachable for state in self.upstreams.values())


@dataclass(frozen=True, slots=True)
class _Known:
    """The last list of one upstream beside its state."""

    state: UpstreamState
    body: bytes | None = None
    installed: tuple[Installed, ...] = ()


def _unobserved(state: UpstreamState) -> None:
    pass


class Discovery:
    """Watches the upstreams while `run` runs."""

    def __init__(
        self,
        urls: tuple[str, ...],
        *,
        interval: float = 10.0,
        stale_after: float = 60.0,
        observe: Callable[[UpstreamState], None] = _unobserved,
        clock: Callable[[], float] = time.monotonic,
        access: Access = OPEN,
    ) -> None:
        """`urls`: base URLs (ValueError on a bad one, and on none, and on a CA that cannot be read); times in seconds;
        `observe` hears of every poll."""
        self._upstreams = tuple({upstream.id: upstream for upstream in map(Upstream.parse, urls)}.values())
        if not self._upstreams:
            raise ValueError("no upstream is configured")
        self._interval = interval
        self._stale_after = stale_after
        self._observe = observe
        self._clock = clock
        self._access = access
        self._trust = upstreams.trust(access, self._upstreams)
        self._known = {upstream.id: _Known(UpstreamState(upstream.id)) for upstream in self._upstreams}
        self._wake = {upstream.id: asyncio.Event() for upstream in self._upstreams}
        self._changed = asyncio.Event()
        self._refreshed_at = self._polled_at = -REFRESH_EVERY
        self._turn = itertools.count()
        self._choices: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.snapshot = Snapshot(upstreams=MappingProxyType({id: known.state for id, known in self._known.items()}))

    @property
    def models(self) -> Mapping[str, Discovered]:
        """What is installed now, by canonical name."""
        return self.snapshot.models

    @property
    def reachable(self) -> bool:
        """Whether any upstream answered when it was last asked: while none does, "no such model" would be a lie."""
        return self.snapshot.reachable

    async def run(self) -> None:
        """Poll until cancelled."""
        async with upstreams.new_client(self._access.key, self._trust) as client, asyncio.TaskGroup() as group:
            for upstream in self._upstreams:
                group.create_task(self._watch(client, upstream), name=f"discovery of {upstream.id}")

    def upstream_for(self, model: str) -> str:
        """ip:port of an upstream that has the canonical `model`, in turn; "" leaves the choice to Envoy.

        It is "" where there is one upstream only, and where no address is known. Upstreams that do not answer are
        chosen only while none that has the model does: Envoy's 502 is then the truth.
        """
        found = self.snapshot.models.get(model)
        if found is None or len(self._upstreams) == 1:
            return ""
        choices = self._choices.get(found.upstreams)
        if choices is None:
            choices = self._choices[found.upstreams] = self._addresses(found.upstreams)
        return choices[next(self._turn) % len(choices)] if choices else ""

    def refresh_soon(self) -> None:
        """Ask every upstream now, unless that was done within the last second: for a model that is not known.

        Call it for every unknown name alike, permitted or not; never wait for it, or the wait would tell them apart.
        """
        now = self._clock()
        if now - self._refreshed_at >= REFRESH_EVERY:
            self._refreshed_at = now
            for wake in self._wake.values():
                wake.set()

    async def changed(self) -> Snapshot:
        """The snapshot after the next poll of any upstream."""
        await self._changed.wait()
        return self.snapshot

    async def first(self) -> Snapshot:
        """The snapshot once every upstream has been asked once, whatever it said."""
        while any(state.last_success is None and state.failing_since is None for state in self._states()):
            await self.changed()
        return self.snapshot

    async def check(self) -> bool:
        """Whether an upstream answers, asked anew unless one was asked within the last second: for /readyz."""
        if self._clock() - self._polled_at > REFRESH_EVERY:
            self.refresh_soon()
            await self.changed()
        return self.snapshot.reachable

    async def _watch(self, client: httpx.AsyncClient, upstream: Upstream) -> None:
        retry = RETRY_FIRST
        wake = self._wake[upstream.id]
        while True:
            state = await self._poll(client, upstream)
            self._publish()
            self._observe(state)
            pause = self._interval if state.reachable else min(retry, self._interval)
            retry = RETRY_FIRST if state.reachable else min(retry * 2, self._interval)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()
            wake.clear()

    async def _poll(self, client: httpx.AsyncClient, upstream: Upstream) -> UpstreamState:
        """Ask once and remember the outcome."""
        known = self._known[upstream.id]
        try:
            body = await upstreams.fetch(client, upstream)
            installed = known.installed if body == known.body else upstreams.read(body)
            addresses = await upstreams.resolve(upstream) if len(self._upstreams) > 1 else ()
        except PollFailed as failed:
            self._failed(known, failed.fault)
        except Exception:  # whatever an upstream makes a library raise must not end discovery
            log.exception("discovery_fault", extra={"upstream": upstream.id})
            self._failed(known, Fault.MALFORMED)
        else:
            if not known.state.reachable:
                log.info("upstream_reachable", extra={"upstream": upstream.id, "models": len(installed)})
            state = UpstreamState(
                upstream.id,
                reachable=True,
                fault=Fault.NONE,
                last_success=self._clock(),
                models=len(installed),
                addresses=addresses or known.state.addresses,
            )
            self._known[upstream.id] = _Known(state, body, installed)
        self._polled_at = self._clock()
        return self._known[upstream.id].state

    def _failed(self, known: _Known, fault: Fault) -> None:
        now = self._clock()
        state = known.state
        since = now if state.failing_since is None else state.failing_since
        if state.failing_since is None or state.fault is not fault:
            log.warning("upstream_unreachable", extra={"upstream": state.id, "fault": fault.value})
        state = replace(state, reachable=False, fault=fault, failing_since=since)
        if now - since < self._stale_after:
            self._known[state.id] = replace(known, state=state)
        else:
            if known.installed:
                log.warning("upstream_dropped", extra={"upstream": state.id, "models": len(known.installed)})
            self._known[state.id] = _Known(replace(state, models=0))

    def _publish(self) -> None:
        found: dict[str, Discovered] = {}
        for upstream in self._upstreams:
            for model in self._known[upstream.id].installed:
                known = found.get(model.canonical)
                found[model.canonical] = (
                    Discovered(model.name, model.details, (upstream.id,))
                    if known is None
                    else replace(known, upstreams=(*known.upstreams, upstream.id))
                )
        # Order counts too: it is the order of the lists that clients see.
        same = found == self.snapshot.models and list(found) == list(self.snapshot.models)
        models = self.snapshot.models if same else MappingProxyType(found)
        self._choices = {}
        self.snapshot = Snapshot(models, MappingProxyType({state.id: state for state in self._states()}))
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()

    def _addresses(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        states = [self.snapshot.upstreams[id] for id in ids]
        live = [state for state in states if state.reachable] or states
        return tuple(address for state in live for address in state.addresses)

    def _states(self) -> tuple[UpstreamState, ...]:
        return tuple(self._known[upstream.id].state for upstream in self._upstreams)
