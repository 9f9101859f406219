"""What `protect` claims is what the kernel says. Each check has a process of its own: nothing of it can be undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from processor.memory import wipe, wipe_bytes

linux = pytest.mark.skipif(sys.platform != "linux", reason="these measures are Linux's")


def run(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_buffer_is_overwritten_in_place() -> None:
    buffer = bytearray(b"secret")
    view = memoryview(buffer)
    wipe(buffer)
    assert bytes(view) == bytes(6)
    wipe(bytearray())


def test_bytes_that_nobody_else_holds_are_overwritten() -> None:
    secret = os.urandom(32)
    assert wipe_bytes(secret)
    assert secret == bytes(32)


def test_bytes_that_somebody_else_holds_are_left_alone() -> None:
    secret = os.urandom(32)
    kept, copy = [secret], bytes(bytearray(secret))
    assert not wipe_bytes(secret)
    assert kept[0] == copy
    assert not wipe_bytes(b"")
    assert not wipe_bytes(os.urandom(1))


@linux
def test_what_is_claimed_is_in_force() -> None:
    found = run(
        "import ctypes, json, re, resource, dataclasses\n"
        "from processor.memory import protect\n"
        "claimed = dataclasses.asdict(protect())\n"
        "status = open('/proc/self/status').read()\n"
        "claimed['dumpable'] = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "claimed['limit'] = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "claimed['locked'] = int(re.search(r'VmLck:\\s*(\\d+)', status)[1])\n"
        "print(json.dumps(claimed))"
    )
    assert (found["core_dump_prevention"], found["dumpable"], found["limit"]) == (True, 0, [0, 0])
    assert found["memory_locking"] == (found["locked"] > 0)
    assert found["memory_locking"] != any("memory lock" in note for note in found["missing"])
    assert (found["platform"], found["secure_zeroing"]) == ("linux", True)


@linux
def test_memory_that_comes_later_is_locked_too_and_costs_nothing_before_it_is_touched() -> None:
    found = run(
        "import json, mmap, re\n"
        "from processor.memory import protect\n"
        "claimed = protect().memory_locking\n"
        "read = lambda name: int(re.search(name + r':\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "locked, resident = read('VmLck'), read('VmRSS')\n"
        "room = mmap.mmap(-1, 64 << 20)\n"
        "print(json.dumps([claimed, read('VmLck') - locked, read('VmRSS') - resident]))"
    )
    claimed, locked, resident = found
    assert locked >= 65_000 if claimed else locked == 0  # kB
    assert resident < 8_000


@linux
def test_a_limited_lock_is_not_taken_and_not_claimed() -> None:
    """Under a finite limit and without the capability a lock would make later allocations fail."""
    found = run(
        "import json, os, resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "from processor.memory import protect\n"
        "os.getuid() or os.setuid(65534)\n"  # leaving root drops every capability
        "found = protect()\n"
        "room = bytearray(64 << 20)\n"
        "print(json.dumps([found.memory_locking, found.core_dump_prevention, found.missing]))"
    )
    assert found == [
        False,
        True,
        ["memory lock: needs CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK (ulimit -l unlimited)"],
    ]


@linux
@pytest.mark.parametrize("protected", [False, True])
def test_a_crash_leaves_no_core(tmp_path: Any, protected: bool) -> None:
    code = (
        "import os, resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "from processor.memory import protect\n"
        f"{protected} and protect()\n"
        "os.abort()"
    )
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"], os.environ
    )
    _, status = os.waitpid(child, 0)
    if protected:
        assert os.WIFSIGNALED(status)
        assert not os.WCOREDUMP(status)
        assert list(tmp_path.iterdir()) == []
    elif not os.WCOREDUMP(status):
        pytest.skip("this machine writes no core files at all, so the other half of this test shows little")
