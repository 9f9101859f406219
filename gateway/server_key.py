"""Where the keys that envelopes are sealed to are, and their passphrase: for the launcher and for the commands.

An instance started here keeps both below its data directory (`secrets/`), made on the first start. Settings in the
environment come first, for both alike; PADDOCK_SERVER_KEY_DIR set to nothing turns envelopes off.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import running
from gateway.failure import Failure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

DIRECTORY = "PADDOCK_SERVER_KEY_DIR"
PASSPHRASE = "PADDOCK_SERVER_KEY_PASSPHRASE"  # noqa: S105  # the name of a setting
PASSPHRASE_FILE = "PADDOCK_SERVER_KEY_PASSPHRASE_FILE"  # noqa: S105  # the name of a setting


@dataclass(frozen=True, slots=True)
class Place:
    """Where keys are, and what opens them: a passphrase, or the file that it is in."""

    directory: Path
    passphrase: str | None
    passphrase_file: Path | None


def settings(data_dir: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of an instance's services. Where the keys are its own, their passphrase is made if it is missing."""
    if DIRECTORY in environment:
        return {}
    found = {DIRECTORY: str(data_dir / "secrets" / "server-keys")}
    if PASSPHRASE not in environment and PASSPHRASE_FILE not in environment:
        found[PASSPHRASE_FILE] = str(made_secret(data_dir / "secrets" / "server-key-passphrase"))
    return found


def directory(args: argparse.Namespace) -> Path:
    """Where the keys are: as `args` or the environment say, else the running instance's. Failure if none is meant."""
    named = args.server_key_dir or (args.data_dir is None and os.environ.get(DIRECTORY)) or None
    if named:
        return Path(named)
    found = running.stores(args).running
    if found is None or not found.server_key_dir:
        raise Failure(
            "it is not known where the server keys are",
            do=f"Name their directory in {DIRECTORY} (or --server-key-dir), and their passphrase in {PASSPHRASE_FILE}.",
        )
    return Path(found.server_key_dir)


def find(args: argparse.Namespace) -> Place:
    """The place with what opens it: as the environment says, else the running instance's own passphrase."""
    keys = directory(args)
    value, file = os.environ.get(PASSPHRASE), os.environ.get(PASSPHRASE_FILE)
    if value or file:
        return Place(keys, value or None, Path(file) if file else None)
    found = running.stores(args).running
    if found is None:
        raise Failure("it is not known what opens the server keys", do=f"Name their passphrase in {PASSPHRASE_FILE}.")
    return Place(keys, None, Path(found.data_dir) / "secrets" / "server-key-passphrase")


def made_secret(path: Path) -> Path:
    """A file with 32 random bytes in hexadecimal, complete or absent: a crash never leaves half a secret."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            fresh = path.with_name(path.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
    except OSError as error:
        raise Failure(f"cannot make the secret {path}: {error.strerror}") from error
    return path
