"""The counters of a real Valkey, one server and a cluster, beside the plain model: whatever is done, both agree."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from policy.rules.decision import Reason
from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.sessions import Scope as Further
from policy.rules.settlement import Known, Seed, Settlement
from policy.rules.tenants import Key, Tenant
from policy.stores.memory import MemoryStore, Scope, calendar
from policy.stores.redis import KEYS, RedisStore, connect, shard_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.stores.cluster import Cluster, Valkey

T = TypeVar("T")

TENANTS = (1, 65, 2)  # the first two share a shard
KEYS_OF = {1: (11, 12), 65: (13,), 2: (14,)}
# Just before a month ends, in a leap year and others; before a year ends; an ordinary noon.
STARTS = ("2028-02-28 23:59:30", "2028-02-29 23:59:55", "2027-02-28 23:59:50", "2026-12-31 23:59:00", "2026-04-30")

bounds = st.one_of(st.none(), st.sampled_from((0, 1, 2, 5)), st.integers(10, 2000))
limits = st.one_of(
    st.just(Limits()),
    st.builds(Limits, bounds, bounds, st.one_of(st.none(), st.integers(0, 4)), bounds, bounds, bounds),
    st.builds(Limits, tpm=st.integers(50, 3000), budget_day=st.integers(500, 9000)),
    st.builds(Limits, rpm=st.integers(1, 6)),
)
waits = st.one_of(st.integers(0, 300), st.integers(1, 61_000), st.sampled_from((14_999, 15_000, 60_000, 86_400_000)))


class Machine(RuleBasedStateMachine):
    """Every rule does the same to both and compares what they say."""

    url = ""
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.link = self.run(connect(self.url, seconds=30))
        self.run(self.flush())
        self.store = RedisStore(self.link, epoch="test")
        self.model = MemoryStore(0)
        self.limits: dict[tuple[str, int], Limits] = {}
        self.grants: dict[str, tuple[Grant, int]] = {}  # every grant ever, and the life of the model it was made in
        self.numbers = 0
        # What PostgreSQL would have: settlements (tenant, key, day, month, tokens), and what waits in each shard.
        self.ledger: list[tuple[int, int, int, int, int]] = []
        self.waiting: dict[int, list[tuple[str, tuple[int, int, int, int, int]]]] = {}
        self.position: dict[int, tuple[str, str]] = {}
        self.seen = 0
        self.further: dict[str, tuple[tuple[str, int], ...]] = {}
        self.slow = False  # the ledger is written while it is read

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def flush(self) -> None:
        client = self.link.client
        await (client.flushall() if self.url.startswith("unix") else client.flushall(target_nodes="primaries"))

    def teardown(self) -> None:
        self.agree()
        self.run(self.link.close())

    @initialize(start=st.sampled_from(STARTS))
    def begin(self, start: str) -> None:
        self.pass_to(round(datetime.fromisoformat(start).replace(tzinfo=UTC).timestamp() * 1000))

    def pass_to(self, now: int) -> None:
        self.model.now = now
        self.store.clock = str(now)

    @rule(slow=st.booleans())
    def read_slowly(self, slow: bool) -> None:
        self.slow = slow

    @rule(ms=waits)
    def wait(self, ms: int) -> None:
        self.pass_to(self.model.now + ms)

    @rule(tenant=st.sampled_from(TENANTS), of_key=st.integers(0, 2), limits=limits)
    def set_limits(self, tenant: int, of_key: int, limits: Limits) -> None:
        if tenant == 2:
            self.limits["further", of_key] = limits
        elif of_key < len(KEYS_OF[tenant]):
            self.limits["key", KEYS_OF[tenant][of_key]] = limits
        else:
            self.limits["tenant", tenant] = limits

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.integers(0, 1),
        mode=st.sampled_from((Mode.RESERVE, Mode.RESERVE, Mode.RESERVE, Mode.COUNT, Mode.DENY)),
        prompt_bytes=st.sampled_from((0, 10, 100, 700)),
        cap=st.sampled_from((0, 1, 20, 300)),
        explicit=st.booleans(),
        completions=st.sampled_from((1, 1, 3)),
        again=st.integers(0, 9),
        counted=st.sampled_from((False, False, False, True)),
        further=st.sampled_from(((), (), (("sf:a", 1),), (("sf:a", 1), ("sa:b", 1)), (("s:gone", 0), ("sa:b", 1)))),
    )
    def admit(
        self,
        tenant: int,
        key: int,
        mode: Mode,
        prompt_bytes: int,
        cap: int,
        explicit: bool,
        completions: int,
        again: int,
        counted: bool,
        further: tuple[tuple[str, int], ...],
    ) -> None:
        key_id = KEYS_OF[tenant][key % len(KEYS_OF[tenant])]
        if tenant == 65:  # it shares its shard, and in it the names of further scopes, with the first
            further = ()
        open_here = [id for id, held in self.model.reservations.items() if held.identity.key_id == key_id]
        if again == 0 and open_here:
            request_id = open_here[0]
            further = self.further[request_id]  # whatever else has changed meanwhile: it is the same request
        else:
            self.numbers += 1
            request_id = f"request-{self.numbers}"
            self.further[request_id] = further
        plan = Plan(
            request_id, 1_800_000_000_123_457 + self.numbers, mode, self.key(tenant, key_id), "/api/chat",
            model=f"model-{key}", address="192.0.2.1", prompt_bytes=prompt_bytes if mode is Mode.RESERVE else 0,
            cap=cap * completions if mode is Mode.RESERVE else 0, explicit=explicit, completions=completions,
            reason=Reason.MODEL if mode is Mode.DENY else None, counted=counted,
            scopes=tuple(
                Further(name, self.limits.get(("further", i), Limits()), keep * 10**7)
                for i, (name, keep) in enumerate(further)
            ),
        )  # fmt: skip
        tally = self.both_admit(plan)
        if tally.refused is not None and self.wait_is_true(plan, tally):
            now = self.model.now
            self.pass_to(now + tally.wait_ms - 1)
            assert self.both_admit(plan).refused is not None, "it need not have waited so long"
            self.pass_to(now + tally.wait_ms)
            assert self.both_admit(plan).refused is None, "it waited as long as it was told to"

    def wait_is_true(self, plan: Plan, tally: Tally) -> bool:
        """Whether the wait hangs on time alone: nothing is under way, and the request would ever fit."""
        need = tally.prompt_tokens + (plan.cap if plan.explicit else min(plan.cap, plan.completions))
        if tally.refused is Reason.SESSION_REVOKED:
            return False
        if any(figures.open or figures.under_way for figures in tally.scopes):
            return False
        for bounds in (figures.limits for figures in tally.scopes):
            if bounds.rpm == 0 or bounds.concurrency == 0:
                return False
            tokens = (bounds.tpm, bounds.budget_day, bounds.budget_month)
            if any(bound is not None and need > bound for bound in tokens):
                return False
        return tally.refused is not Reason.BUDGET_TOTAL and not any(
            figures.limits.budget_total is not None and figures.total + need > figures.limits.budget_total
            for figures in tally.scopes
        )

    def both_admit(self, plan: Plan) -> Tally:
        theirs, ours = self.run(self.store.admit(plan)), self.model.admit(plan)
        assert (theirs is None) == (ours is None), (theirs, ours)
        if theirs is None:
            tenant = plan.key.tenant.id
            shard = shard_of(tenant)
            in_ledger = self.known(tenant, plan.key.id, [])
            if self.slow and self.run(self.store.events(shard, 1)).entries:
                self.carry(shard, 1)
                assert self.run(self.store.admit(plan, in_ledger)) is None, "what was carried is in no sum of it"
                in_ledger = self.known(tenant, plan.key.id, [])
            theirs = self.run(self.store.admit(plan, in_ledger))
            waiting = [one for _, one in self.waiting.get(shard, [])]
            ours = self.model.admit(plan, self.known(tenant, plan.key.id, waiting))
        assert theirs is not None and ours is not None
        assert replace(theirs, epoch="", recorded=True) == replace(ours, epoch="")
        if ours.refused is None and plan.mode is Mode.RESERVE:
            key = plan.key
            self.grants[plan.request_id] = (
                Grant(
                    plan.request_id, plan.started_at, Duty.METER, plan.endpoint, plan.model, False, key.tenant.id,
                    key.tenant.name, key.id, key.prefix, theirs.epoch, theirs.prompt_tokens, theirs.cap,
                    scopes=tuple(scope.name for scope in plan.scopes),
                ),
                self.model.life,
            )  # fmt: skip
        return theirs

    def known(self, tenant: int, key: int, waiting: list[tuple[int, int, int, int, int]]) -> Known:
        day, month = calendar(self.model.now)

        def seed(mine: list[tuple[int, int, int, int, int]]) -> Seed:
            return Seed(
                day, sum(one[4] for one in mine if one[2] == day),
                month, sum(one[4] for one in mine if one[3] == month), sum(one[4] for one in mine),
            )  # fmt: skip

        everything = [one for one in self.ledger + waiting if one[0] == tenant]
        epoch, event = self.position.get(shard_of(tenant), ("", "0-0"))
        return Known(seed(everything), seed([one for one in everything if one[1] == key]), epoch, event)

    @precondition(lambda self: self.grants)
    @rule(
        which=st.integers(0, 1000),
        prompt=st.one_of(st.none(), st.integers(0, 500)),
        completion=st.sampled_from((0, 1, 20, 300, 2**33)),
        exact=st.booleans(),
    )
    def settle(self, which: int, prompt: int | None, completion: int, exact: bool) -> None:
        ids = list(self.model.reservations) if which % 4 and self.model.reservations else list(self.grants)
        grant, life = self.grants[ids[which % len(ids)]]
        settlement = Settlement(prompt, completion, exact=exact and prompt is not None)
        theirs = self.run(self.store.settle(grant, settlement))
        assert theirs == self.model.settle(replace(grant, epoch=str(life)), settlement)
        self.note()

    @rule()
    def sweep(self) -> None:
        theirs = [one for shard in {shard_of(id) for id in TENANTS} for one in self.run(self.store.expired(shard))]
        ours = self.model.expired()
        assert sorted(theirs, key=lambda one: one.request_id) == sorted(ours, key=lambda one: one.request_id)
        for one in ours:
            settlement = Settlement(None, one.completion_tokens, exact=False, event={"outcome": "lost"})
            assert self.run(self.store.settle_as(one.request_id, one.identity, settlement)) == "settled"
            assert self.model.sweep(one.request_id, settlement) == "settled"
            self.note()

    @precondition(lambda self: self.model.reservations)
    @rule(which=st.integers(0, 1000))
    def sweep_what_is_alive(self, which: int) -> None:
        ids = list(self.model.reservations)
        request_id = ids[which % len(ids)]
        held = self.model.reservations[request_id]
        if held.deadline > self.model.now:
            assert self.run(self.store.settle_as(request_id, held.identity, Settlement(0, 0, exact=False))) == "held"

    @precondition(lambda self: self.model.reservations)
    @rule(tokens=st.integers(0, 300), every=st.integers(1, 3))
    def renew(self, tokens: int, every: int) -> None:
        for shard in {shard_of(id) for id in TENANTS}:
            here = [id for id, held in self.model.reservations.items() if shard_of(held.identity.tenant_id) == shard]
            progress = [(request_id, tokens) for request_id in here[::every]]
            if progress:
                self.run(self.store.renew(shard, [*progress, ("nobody", 1)]))
                self.model.renew(progress)

    def note(self) -> None:
        """What the model settled now waits in the stream."""
        for event in self.model.events[self.seen :]:
            grant, _ = self.grants[event.request_id]
            settled = (grant.tenant_id, grant.key_id, event.day, event.month, event.prompt + event.completion)
            self.waiting.setdefault(shard_of(grant.tenant_id), []).append((event.request_id, settled))
        self.seen = len(self.model.events)

    @rule(shard=st.sampled_from((1, 2)), most=st.integers(1, 20))
    def carry(self, shard: int, most: int) -> None:
        """What the ledger writer does: the oldest events into rows, then out of the stream."""
        found = self.run(self.store.events(shard, most))
        settled = [fields for _, fields in found.entries if fields[b"k"] == b"settle"]
        ours = self.waiting.get(shard, [])
        assert [json.loads(fields[b"e"])["id"] for fields in settled] == [name for name, _ in ours[: len(settled)]]
        self.ledger += [one for _, one in ours[: len(settled)]]
        self.waiting[shard] = ours[len(settled) :]
        if found.entries:
            self.position[shard] = (found.epoch, found.last)
            self.run(self.store.forget(found))

    @rule()
    def lose(self) -> None:
        """FLUSHALL: counters, reservations and the events that were not yet carried are gone."""
        self.run(self.flush())
        self.model.lose()
        self.waiting.clear()

    def key(self, tenant: int, key: int) -> Key:
        owner = Tenant(tenant, f"tenant-{tenant}", limits=self.limits.get(("tenant", tenant), Limits()))
        return Key(key, f"nz_{key:09d}", "hash", owner, limits=self.limits.get(("key", key), Limits()))

    def agree(self) -> None:
        """The counters themselves, of every scope."""
        for tenant in TENANTS:
            shard = KEYS[shard_of(tenant)]
            self.same(shard.tenant(tenant), self.model.tenants.get(tenant))
            for key in KEYS_OF[tenant]:
                self.same(shard.key(key), self.model.keys.get(key))
            for name in ("sf:a", "sa:b", "s:gone"):
                if tenant != 65:
                    self.same(shard.scope(name), self.model.further.get((tenant, name)))

    def same(self, name: str, scope: Scope | None) -> None:
        found: dict[bytes, bytes] = self.run(self.link.run(lambda client: client.hgetall(name)))
        if scope is None:
            assert not found
            return
        figures = {field.decode(): int(value) for field, value in found.items() if field != b"q"}
        assert (figures["open"], figures["n"]) == (sum(scope.open.values()), len(scope.open))
        assert (figures["d"], figures["m"], figures["tot"]) == scope.used(figures["dd"], figures["mm"])


def play(url: str, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        machine = type("Counters", (Machine,), {"url": url, "runner": runner})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples, stateful_step_count=steps, deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )  # fmt: skip


def test_one_server_does_what_the_model_does(valkey: Valkey) -> None:
    play(valkey.url, examples=60, steps=40)


@pytest.mark.xdist_group("cluster")
def test_a_cluster_does_what_the_model_does(valkey_cluster: Cluster) -> None:
    play(valkey_cluster.url, examples=12, steps=30)
