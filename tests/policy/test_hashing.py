"""argon2id off the event loop: the parameters, the bound, the order, and what happens to whoever leaves."""

from __future__ import annotations

import asyncio
import time

import argon2
import pytest

from policy.admission.hashing import PARAMETERS, Crowded, Hashing, nobodys_hash

ROOMS = {"unknown": 4, "known": 100}


def test_the_parameters_are_those_of_rfc_9106() -> None:
    assert PARAMETERS == argon2.profiles.RFC_9106_LOW_MEMORY
    assert argon2.extract_parameters(nobodys_hash()) == PARAMETERS


def test_a_hash_is_of_its_secret_alone() -> None:
    async def scenario() -> None:
        with Hashing() as hashing:
            one, two = await asyncio.gather(hashing.hash(b"secret"), hashing.hash(b"secret"))
            assert one.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
            assert one != two, "each has a salt of its own"
            assert await hashing.verify(one, b"secret", "known", ()) is True
            assert await hashing.verify(one, b"Secret", "known", ()) is False
            assert await hashing.verify(nobodys_hash(), b"secret", "known", ()) is False

    asyncio.run(scenario())


def test_a_hash_that_is_none_is_an_error_and_not_a_no() -> None:
    async def scenario() -> None:
        with Hashing() as hashing:
            with pytest.raises(argon2.exceptions.VerificationError):
                await hashing.verify("$argon2id$nonsense", b"secret", "known", ())
            assert await hashing.verify(nobodys_hash(), b"secret", "known", ()) is False

    asyncio.run(scenario())


def test_the_event_loop_goes_on_meanwhile() -> None:
    async def scenario() -> None:
        with Hashing() as hashing:
            work = asyncio.ensure_future(hashing.verify(nobodys_hash(), b"secret", "known", ()))
            turns = 0
            while not work.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns > 20

    asyncio.run(scenario())


def test_a_crowd_is_passed_by() -> None:
    async def scenario() -> list[str]:
        done: list[str] = []

        async def verify(name: str, lane: str, path: tuple[str, ...]) -> None:
            await hashing.verify(nobodys_hash(), b"x", lane, path)
            done.append(name)

        with Hashing(at_once=1) as hashing:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(verify("crowd", "unknown", ("192.0.2.1",)))
                await asyncio.sleep(0)
                tasks.create_task(verify("good", "known", ("nz_abcdefghi", "192.0.2.1")))
        return done

    # One of the crowd was under way already, and its lane was there first.
    assert asyncio.run(scenario()) == ["crowd", "crowd", "good", "crowd", "crowd"]


def test_beyond_the_room_the_answer_comes_at_once() -> None:
    async def scenario() -> None:
        with Hashing(at_once=1, rooms=ROOMS) as hashing:
            waiting = [
                asyncio.ensure_future(hashing.verify(nobodys_hash(), b"x", "unknown", ("192.0.2.1",))) for _ in range(5)
            ]
            await asyncio.sleep(0)
            with pytest.raises(Crowded):
                await hashing.verify(nobodys_hash(), b"x", "unknown", ("192.0.2.1",))
            assert not any(one.done() for one in waiting)
            other = asyncio.ensure_future(hashing.verify(nobodys_hash(), b"x", "unknown", ("192.0.2.2",)))
            outcomes = await asyncio.gather(*waiting, other, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [bool, bool, bool, bool, Crowded, bool]

    asyncio.run(scenario())


def test_whoever_leaves_costs_nothing_more() -> None:
    async def scenario() -> None:
        with Hashing(at_once=1) as hashing:
            leaving = [asyncio.ensure_future(hashing.verify(nobodys_hash(), b"x", "unknown", ())) for _ in range(30)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            began = time.monotonic()
            assert await hashing.verify(nobodys_hash(), b"x", "known", ()) is False
            alone = time.monotonic()
            assert await hashing.verify(nobodys_hash(), b"x", "known", ()) is False
            # The first waited for the one that ran already, not for thirty.
            assert alone - began < 15 * (time.monotonic() - alone)
            assert all(task.cancelled() for task in leaving)

    asyncio.run(scenario())


class Observed:
    """What an observer was told."""

    def __init__(self) -> None:
        self.verifications: list[tuple[str, float, float | None]] = []
        self.waiting: list[int] = []

    def verified(self, outcome: str, waited: float, took: float | None) -> None:
        self.verifications.append((outcome, waited, took))

    def verifications_waiting(self, waiting: int) -> None:
        self.waiting.append(waiting)


def test_an_observer_hears_of_every_verification() -> None:
    async def scenario() -> Observed:
        observed = Observed()
        with Hashing(at_once=1, rooms=ROOMS, observer=observed) as hashing:
            good = await hashing.hash(b"secret")
            await hashing.verify(good, b"secret", "known", ())
            await hashing.verify(good, b"other", "known", ())
            with pytest.raises(argon2.exceptions.VerificationError):
                await hashing.verify("$argon2id$nonsense", b"secret", "known", ())
            crowd = (hashing.verify(nobodys_hash(), b"x", "unknown", ("192.0.2.1",)) for _ in range(6))
            await asyncio.gather(*crowd, return_exceptions=True)
        return observed

    observed = asyncio.run(scenario())
    outcomes = [outcome for outcome, _, _ in observed.verifications]
    assert outcomes == ["match", "mismatch", "error", "crowded", *["mismatch"] * 5]
    assert max(observed.waiting) == 4
    assert observed.waiting[-1] == 0
    took = [took for outcome, _, took in observed.verifications if outcome != "crowded"]
    assert all(took)
    assert observed.verifications[3][2] is None
    last_of_the_crowd = observed.verifications[-1][1]
    assert last_of_the_crowd > 3 * min(time for time in took[4:] if time is not None)  # it waited for the four before
