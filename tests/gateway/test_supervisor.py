"""The supervisor with real processes: small Python programs that say when they are ready and when they end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gateway.failure import Failure
from gateway.part import Part
from gateway.supervisor import OnDeath, Stopped, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

# Says "ready" and "end" in a common file; ends on SIGTERM.
OBEDIENT = """
import pathlib, signal, sys
name, where = sys.argv[1:]
def note(word):
    with open(where + "/journal", "a") as file:
        file.write(f"{name} {word}\\n")
def end(*_):
    note("ends")
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
note("starts")
pathlib.Path(where, name + ".ready").touch()
while True:
    signal.pause()
"""
STUBBORN = OBEDIENT.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def part(where: Path, name: str, program: str = OBEDIENT, *, stage: int = 0) -> Part:
    mark = where / f"{name}.ready"

    async def ready() -> bool:
        return mark.exists()

    return Part(
        name=name,
        argv=(sys.executable, "-S", "-c", program, name, str(where)),
        env={"PATH": os.environ["PATH"]},
        before=lambda: mark.unlink(missing_ok=True),
        ready=ready,
        stage=stage,
    )


def journal(where: Path) -> list[str]:
    return (where / "journal").read_text().splitlines()


def alive(pid: int) -> bool:
    """Zombies count as dead: whoever adopted them may be slow to reap."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


async def until_async(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  the other side is a process, which sets no event of ours
            await asyncio.sleep(0.01)


def run(where: Path, body: Callable[[Supervisor], Awaitable[None]], *, on_death: OnDeath = OnDeath.STOP) -> list[str]:
    """Run `body` under a supervisor to the end; what was said."""
    said: list[str] = []

    async def main() -> None:
        async with Supervisor(where, where, on_death=on_death, say=said.append) as supervisor:
            await body(supervisor)

    asyncio.run(main())
    return said


def test_parts_stop_from_the_highest_stage_down(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        for stage, name in enumerate(("store", "service", "edge")):
            await supervisor.start(part(tmp_path, name, stage=stage))

    run(tmp_path, body)
    assert journal(tmp_path) == [
        *("store starts", "service starts", "edge starts"),
        *("edge ends", "service ends", "store ends"),
    ]


def test_a_part_that_dies_at_start_is_named_with_its_last_words_and_without_secrets(tmp_path: Path) -> None:
    program = "import sys; sys.exit('no luck with nz_abcdefghiSECRETSECRET at postgres://me:hunter2@db/x')"

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(replace(part(tmp_path, "policy", program), advice="Look up."))

    with pytest.raises(Failure) as caught:
        run(tmp_path, body)
    text = str(caught.value)
    assert "policy ended by itself with status 1 while it was starting" in text
    assert "  | no luck with nz_abcdefghi… at postgres://me:…@db/x" in text
    assert f"Look up. Its log: {tmp_path}/policy.log" in text
    assert "SECRET" not in text and "hunter2" not in text


def test_a_part_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        sleepy = part(tmp_path, "sleepy", "import signal; signal.pause()")
        await supervisor.start(replace(sleepy, ready_seconds=0.2))

    with pytest.raises(Failure, match="sleepy did not get ready within"):
        run(tmp_path, body)


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(replace(part(tmp_path, "gone"), argv=(str(tmp_path / "nowhere"),)))

    with pytest.raises(Failure, match=r"gone cannot be started: .*No such file"):
        run(tmp_path, body)


def test_a_later_death_ends_the_body_and_stops_the_others(tmp_path: Path) -> None:
    pids: dict[str, int] = {}

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "store"))
        await supervisor.start(part(tmp_path, "service", stage=1))
        pids.update(supervisor.pids())
        supervisor.signal("service", signal.SIGKILL)
        await asyncio.sleep(60)

    with pytest.raises(Failure, match=r"service was ended by SIGKILL \(out of memory\?\)"):
        run(tmp_path, body)
    assert journal(tmp_path)[-1] == "store ends"
    assert not any(alive(pid) for pid in pids.values())


def test_a_defect_in_the_body_stops_everything_and_is_not_hidden(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "store"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, body)
    assert journal(tmp_path)[-1] == "store ends"


def test_asked_to_stop_while_a_part_is_still_starting(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "store"))
        asyncio.get_running_loop().call_soon(supervisor.ask_to_stop)
        await supervisor.start(part(tmp_path, "slow", "import signal; signal.pause()", stage=1))

    with pytest.raises(Stopped):
        run(tmp_path, body)
    assert journal(tmp_path)[-1] == "store ends"


def test_a_part_that_does_not_stop_in_time_is_ended(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(replace(part(tmp_path, "stubborn", STUBBORN), stop_seconds=0.1))

    run(tmp_path, body)
    assert journal(tmp_path) == ["stubborn starts"]


def test_asking_twice_does_not_wait_for_a_stubborn_part(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(replace(part(tmp_path, "stubborn", STUBBORN), stop_seconds=100))
        supervisor.ask_to_stop()
        asyncio.get_running_loop().call_later(0.1, supervisor.ask_to_stop)
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(Stopped):
        run(tmp_path, body)
    assert time.monotonic() - began < 30


def test_a_halted_part_can_be_stopped(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(replace(part(tmp_path, "store"), stop_seconds=60))
        supervisor.signal("store", signal.SIGSTOP)

    run(tmp_path, body)
    assert journal(tmp_path)[-1] == "store ends"


def test_restart_mode_brings_a_dead_part_back(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "service"))
        first = supervisor.pids()["service"]
        await supervisor.kill("service")
        await until_async(lambda: supervisor.pids().get("service", first) != first)
        await supervisor.ready("service")

    said = run(tmp_path, body, on_death=OnDeath.RESTART)
    assert len(said) == 1
    assert "service was ended by SIGKILL (out of memory?); it is started again in 0.25 s" in said[0]
    assert journal(tmp_path) == ["service starts", "service starts", "service ends"]


def test_leave_mode_waits_for_an_explicit_restart(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "service"))
        await supervisor.kill("service")
        await asyncio.sleep(0.5)
        assert supervisor.pids() == {}
        await supervisor.restart("service")
        assert "service" in supervisor.pids()

    run(tmp_path, body, on_death=OnDeath.LEAVE)
    assert journal(tmp_path) == ["service starts", "service starts", "service ends"]


def test_what_a_part_leaves_in_its_process_group_is_ended(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
pathlib.Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
pathlib.Path({str(tmp_path)!r}, "family.ready").touch()
signal.pause()
"""

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "family", program))

    run(tmp_path, body)
    until(lambda: not alive(int((tmp_path / "child").read_text())))


def test_killing_the_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import asyncio, importlib.util, os, pathlib, sys
        spec = importlib.util.spec_from_file_location("these_tests", {__file__!r})
        tests = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tests)
        async def body(supervisor):
            for name, program in (("one", tests.OBEDIENT), ("two", tests.STUBBORN)):
                await supervisor.start(tests.part(pathlib.Path({str(tmp_path)!r}), name, program))
            print(*supervisor.pids().values(), flush=True)
            await asyncio.sleep(60)
        tests.run(pathlib.Path({str(tmp_path)!r}), body)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        supervisor.kill()
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_part_waits_for_its_predecessor_to_be_gone(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "store.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)

    async def body(supervisor: Supervisor) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.start(part(tmp_path, "store")))
            await asyncio.sleep(0.3)
            assert supervisor.pids() == {}
            os.close(lock)

    run(tmp_path, body)
    assert journal(tmp_path) == ["store starts", "store ends"]


def test_a_part_holds_its_lock_while_it_lives(tmp_path: Path) -> None:
    def is_free() -> bool:
        with open(tmp_path / "store.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(part(tmp_path, "store"))
        assert not is_free()

    run(tmp_path, body)
    assert is_free()


def test_logs_of_earlier_starts_are_kept_and_not_for_ever(tmp_path: Path) -> None:
    for number in range(6):
        program = f"import pathlib; print({number}, flush=True); " + OBEDIENT.replace("\n", "\n", 1)

        async def body(supervisor: Supervisor, program: str = program) -> None:
            await supervisor.start(part(tmp_path, "talker", program))

        run(tmp_path, body)
    logs = {path.name: path.read_text() for path in tmp_path.glob("talker.log*")}
    assert logs == {"talker.log": "5\n", "talker.log.1": "4\n", "talker.log.2": "3\n", "talker.log.3": "2\n"}


def test_a_helper_runs_to_its_end(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.run(part(tmp_path, "good", "print('done')"))
        with pytest.raises(Failure, match="bad ended by itself with status 3"):
            await supervisor.run(part(tmp_path, "bad", "raise SystemExit(3)"))

    run(tmp_path, body)
    assert (tmp_path / "good.log").read_text() == "done\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a part to another account")
def test_a_part_that_refuses_root_runs_as_the_owner_of_its_data_and_reaches_closed_directories(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "secret").write_text("reached")
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    secret = str(closed / "secret")
    program = (
        f"import os; print(os.getuid(), os.getgid(), os.getgroups(), open({secret!r}).read(),"
        f" os.access({secret!r}, os.R_OK))"  # as initdb looks for its own programs
    )

    async def body(supervisor: Supervisor) -> None:
        await supervisor.run(replace(part(tmp_path, "shy", program), data=data))

    run(tmp_path, body)
    assert (tmp_path / "shy.log").read_text() == "65534 65534 [] reached True\n"
