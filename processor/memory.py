"""What keeps decrypted prompts and private keys out of core dumps and swap, and how much of it is really in force.

Three measures, each weaker than it sounds; `docs/reference/envelope-protocol.md` says plainly what they leave open:
- no core dumps: RLIMIT_CORE 0, and PR_SET_DUMPABLE 0, because a `core_pattern` that is a pipe ignores the limit
  (core(5)); the second also keeps other processes of the same user from attaching or reading /proc/PID/mem;
- mlockall(2), with MCL_ONFAULT so that what is reserved but never touched (thread stacks) costs no memory;
- overwriting the buffers that are ours: Python copies freely, and only what is named here is overwritten.

`protect` is called once in every process that decrypts, before it reads its first key: locks are not inherited.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h: x86, arm64, riscv
_CAP_IPC_LOCK = 14  # linux/capability.h
_BYTES_HEADER = bytes.__basicsize__ - 1  # CPython keeps the content behind the header, which counts its closing NUL


@dataclass(frozen=True, slots=True)
class Protection:
    """What is in force in this process, as read back from the kernel; `missing` says what is not, and why."""

    platform: str
    memory_locking: bool
    secure_zeroing: bool
    core_dump_prevention: bool
    missing: tuple[str, ...] = ()

    def as_metadata(self) -> dict[str, str | bool]:
        """The `memory_protection` object of the envelope protocol."""
        return {
            "platform": self.platform,
            "memory_locking": self.memory_locking,
            "secure_zeroing": self.secure_zeroing,
            "core_dump_prevention": self.core_dump_prevention,
        }


def protect() -> Protection:
    """Put into force what the system permits. It never fails: what could not be had is reported instead."""
    libc = ctypes.CDLL(None, use_errno=True)
    missing = [note for note in (_stop_core_dumps(libc), _lock(libc)) if note]
    zeroing = _zeroing_works()
    if not zeroing:
        missing.append("zeroing: this Python does not let a bytes object be overwritten")
    return Protection(
        platform=sys.platform,
        memory_locking=_is_locked(),
        secure_zeroing=zeroing,
        core_dump_prevention=_cores_are_off(libc),
        missing=tuple(missing),
    )


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer of ours. Assigning the same length is done in place: nothing is reallocated."""
    buffer[:] = bytes(len(buffer))


def wipe_bytes(secret: bytes) -> bool:
    """Overwrite a bytes object that only the caller's one variable holds; False, and untouched, if it may be shared.

    For the few secrets that a library hands over as `bytes` only. CPython alone; the empty and one-byte objects are
    shared by the whole interpreter.
    """
    # The caller's variable, the parameter here, the argument of getrefcount: anyone else makes a fourth.
    if sys.implementation.name != "cpython" or len(secret) < 2 or sys.getrefcount(secret) > 3:
        return False
    ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))
    return True


def _zeroing_works() -> bool:
    buffer, secret = bytearray(b"probe"), os.urandom(32)
    wipe(buffer)
    return not any(buffer) and wipe_bytes(secret) and not any(secret)


def _stop_core_dumps(libc: ctypes.CDLL) -> str:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # lowering one's own limit is always permitted
    if sys.platform == "linux" and libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return f"core dumps: prctl: {os.strerror(ctypes.get_errno())}"
    return ""


def _cores_are_off(libc: ctypes.CDLL) -> bool:
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        return False
    return sys.platform != "linux" or int(libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)) == 0


def _lock(libc: ctypes.CDLL) -> str:
    if sys.platform != "linux":
        return f"memory lock: not attempted on {sys.platform}"
    if not _may_lock_everything():
        # Under a finite limit mlockall may succeed now, and a later allocation then fails: a lost process, not a
        # protected one.
        return "memory lock: needs CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK (ulimit -l unlimited)"
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"memory lock: mlockall: {os.strerror(ctypes.get_errno())}"
    return ""


def _may_lock_everything() -> bool:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return True
    capabilities = _status("CapEff", base=16) or 0
    # A capability counts for locking only in the first user namespace, the one that maps every id.
    everyone = _proc("uid_map").split()[-1:] == [str(2**32 - 1)]
    return bool(capabilities >> _CAP_IPC_LOCK & 1) and everyone


def _is_locked() -> bool:
    """Whether at least as much is locked as there is anonymous memory resident, where every secret lives."""
    if sys.platform != "linux":
        return False
    locked, resident = _status("VmLck"), _status("RssAnon")
    return locked is not None and resident is not None and locked >= resident > 0


def _status(field: str, *, base: int = 10) -> int | None:
    found = re.search(rf"^{field}:\s*([0-9a-f]+)", _proc("status"), re.MULTILINE)
    return int(found[1], base) if found else None


def _proc(name: str) -> str:
    try:
        return Path("/proc/self", name).read_text(encoding="utf-8")
    except OSError:  # no /proc here: nothing can be shown to be in force, so nothing is claimed
        return ""
