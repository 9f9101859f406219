"""What envelopes of one process share: the line before the threads, keys that are not there yet, leaving nothing."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from policy.rules.bounds import Bounds
from policy.rules.decision import Deny, Reason
from policy.rules.grant import Duty, Grant
from policy.rules.subject import Subject
from policy.rules.tenants import Key, Tenant
from policy.rules.tiers import Tier
from processor import envelopes as module
from processor.background import in_background
from processor.envelope_refusal import Cause, Refusal
from processor.envelopes import Envelopes, Inside, Limits
from processor.memory import Protection
from processor.replays import Replays
from processor.server_key_files import ServerKeyError
from processor.server_keys import ServerKeys
from tests.sealing import chat, seal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROTECTION = Protection("linux", memory_locking=False, secure_zeroing=True, core_dump_prevention=True)


def granted(bounds: Bounds) -> Grant:
    """What policy hands on for a key of a tenant with these bounds."""
    tenant = Tenant(id=7, name="t", allow_all_models=True, bounds=bounds)
    subject = Subject.of(Key(id=3, prefix="nz_123456789", hash="", tenant=tenant), Tier.STANDARD, "192.0.2.1")
    grant = Grant(
        request_id="r", started_at=1, duty=Duty.ENVELOPE, endpoint="/e", model="", stream=False, tenant_id=7,
        tenant="t", key_id=3, key_prefix="nz_123456789", epoch="", prompt_tokens=0, cap=0, subject=subject,
    )  # fmt: skip
    return Grant.from_json(grant.to_json())


GRANT = granted(Bounds())


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


class Judge:
    async def judge(self, plan: Any, endpoint: Any, ask: Any) -> Deny:
        return Deny(Reason.MODEL)

    async def refuse(self, plan: Any, reason: Reason) -> Deny:
        return Deny(reason)


class Nobody:
    def enveloped(self, outcome: str) -> None: ...
    def opened(self, seconds: float) -> None: ...


class Nowhere:
    async def claim(self, what: str, name: str, owner: str, milliseconds: int) -> str:
        return "ok"


def made(directory: Path, generate: Callable[[], rsa.RSAPrivateKey], waiting: int = 4) -> Envelopes:
    async def looked() -> None: ...

    return Envelopes(
        ServerKeys(directory / "keys", b"a passphrase of some length", generate=generate),
        dict.fromkeys(Tier, Judge()),
        Replays(Nowhere(), window_seconds=60),
        PROTECTION,
        Nobody(),
        limits=Limits(package_bytes=100_000, threads=1, waiting=waiting),
        looked=looked,
    )


def test_the_first_key_is_made_in_the_background(key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    going = threading.Event()

    def generate() -> rsa.RSAPrivateKey:
        going.wait(20)
        return key

    async def run() -> None:
        envelopes = made(tmp_path, generate)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(envelopes.run())
            await asyncio.sleep(0.05)  # the loop goes on meanwhile
            assert not envelopes.ready
            going.set()
            while not envelopes.ready:  # noqa: ASYNC110  # a property has no event
                await asyncio.sleep(0.01)
            found = await envelopes.open(seal(chat("x"), key.public_key()).bytes_, GRANT)
            assert isinstance(found, Inside)
            assert found.ask.model == "llama3.1:8b"
            assert b"llama3.1:8b" in found.opened.plaintext
            found.opened.wipe()
            tight = await envelopes.open(seal(chat("x"), key.public_key()).bytes_, granted(Bounds(messages=0)))
            assert tight == Refusal(Cause.PLAINTEXT), "the bounds are the tenant's own"
            task.cancel()
        envelopes.close()

    asyncio.run(run())


def test_keys_that_cannot_be_read(key: rsa.RSAPrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    attempts = []

    def generate() -> rsa.RSAPrivateKey:
        attempts.append(1)
        if len(attempts) < 3:
            raise ServerKeyError("the disk is full")
        return key

    async def run() -> None:
        envelopes = made(tmp_path, generate)
        assert await envelopes.open(b"{}", GRANT) == Deny(Reason.SERVER_KEY)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(envelopes.run())
            while not envelopes.ready:  # noqa: ASYNC110  # a property has no event
                await asyncio.sleep(0.01)
            assert isinstance(await envelopes.open(b"{}", GRANT), Refusal)
            task.cancel()
        envelopes.close()

    asyncio.run(run())


def test_the_line_is_short_and_who_leaves_leaves_nothing(key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    package = seal(chat("a secret of theirs"), key.public_key()).bytes_
    going, entered = threading.Event(), threading.Event()
    opened: list[Inside] = []

    async def run() -> None:
        envelopes = made(tmp_path, lambda: key, waiting=2)
        await in_background(lambda: envelopes._keys.start(0))
        inner = envelopes._open

        def slow(package: bytes, bounds: Bounds) -> Inside | Refusal:
            entered.set()
            going.wait(20)
            found = inner(package, bounds)
            assert isinstance(found, Inside)
            opened.append(found)
            return found

        envelopes._open = slow  # type: ignore[method-assign]  # to hold it at a known place
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(envelopes.open(package, GRANT))
            staying = tasks.create_task(envelopes.open(package, GRANT))
            await asyncio.to_thread(entered.wait, 20)
            assert await envelopes.open(package, GRANT) == Deny(Reason.ENVELOPES_WAIT)
            leaving.cancel()
            await asyncio.sleep(0)
            going.set()
            found = await staying
        assert isinstance(found, Inside)
        assert b"a secret of theirs" in found.opened.plaintext
        gone = next(one for one in opened if one is not found)
        assert not any(gone.opened.plaintext)
        assert not any(gone.opened.request_key)
        assert await envelopes.open(b"x" * 100_001, GRANT) == Refusal(Cause.TOO_LARGE)
        envelopes.close()

    asyncio.run(run())


def test_background_work() -> None:
    async def run() -> None:
        assert await in_background(lambda: 7) == 7
        with pytest.raises(ServerKeyError):
            await in_background(fail)

    def fail() -> None:
        raise ServerKeyError("no")

    asyncio.run(run())
