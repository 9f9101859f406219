"""What a child process does between fork and exec so that nothing outlives the supervisor.

Linux sends a process its "parent death signal" when the thread that forked it ends, whatever ended it: kill -9 of the
supervisor therefore reaches every part. The setting is lost when credentials change, so it is made last.

PostgreSQL refuses to run as root. A root supervisor hands such a part to an unprivileged account but lets it keep one
capability, CAP_DAC_OVERRIDE, in the ambient set, so that it can reach programs and data below directories that only
root may enter (a virtual environment under /root). No permission bit of any directory has to be widened for it, and
no account has to be created.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from typing import TYPE_CHECKING

from gateway.failure import Failure

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

# <linux/prctl.h>, <linux/capability.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityWord(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def unprivileged_account(data: Path) -> pwd.struct_passwd | None:
    """Who runs a part that refuses root: the owner of its data if that is not root, else `nobody`. None: as we are."""
    if os.geteuid() != 0:
        return None
    try:
        owner = data.stat().st_uid
        return pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except (FileNotFoundError, KeyError):
        try:
            return pwd.getpwnam("nobody")
        except KeyError as error:
            raise Failure(
                "PostgreSQL does not run as root, and this system has no account `nobody` to run it",
                do="Run paddock as an ordinary user, or set PADDOCK_DATABASE_URL to a PostgreSQL of your own.",
            ) from error


def prepare(orphan_signal: signal.Signals, account: pwd.struct_passwd | None) -> Callable[[], None]:
    """A function for `preexec_fn`. Everything it needs is looked up here, before the fork."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None:
        prctl, capset = libc.prctl, libc.capset  # resolved now: the linker's lock may be held by a thread at the fork
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    bit = 1 << _CAP_DAC_OVERRIDE
    words = (_CapabilityWord * 2)(_CapabilityWord(bit, bit, bit))

    def become_child() -> None:
        if account is not None:
            if libc is not None:
                _checked(prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
                # Not checked: a root without CAP_SETPCAP can still run programs that lie where anybody may look.
                prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            if libc is not None:
                _checked(capset(ctypes.byref(header), words), "capset")
                _checked(prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0), "PR_CAP_AMBIENT_RAISE")
        if libc is not None:
            _checked(prctl(_PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0), "PR_SET_PDEATHSIG")
            if os.getppid() != parent:  # the parent died before the setting was made
                os._exit(1)

    def explained() -> None:
        try:
            become_child()
        except OSError as error:
            # subprocess tells the parent only that "preexec_fn" failed; the reason goes to the part's log.
            os.write(2, f"cannot prepare the process: {error}\n".encode())
            raise

    return explained


def _checked(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
