"""The directory of server keys, without its secrets: which key is in force, and until when.

A key is one file that is never edited: `000001.pem`, then `000002.pem` for its successor. The highest number is the
current key. Each file states until when its predecessors still decrypt, so that a rotation is the appearance of one
file and no second place can disagree with it. A file appears whole, by link(2), which fails where the name is taken:
of two processors that start at once one wins, and the other finds the winner's key. (So the directory must be on a
file system with hard links.) As no file changes, names and inodes tell whether anything did.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

if TYPE_CHECKING:
    from pathlib import Path

KEY_BITS = 4096  # fixed by the protocol's algorithm name, hybrid-aes256-rsa4096
_MAX_FILE_BYTES = 65_536
_STALE_DRAFT_SECONDS = 3600  # a draft lives for milliseconds, unless its writer was killed
_NAME = re.compile(r"(\d{6})\.pem")
_DRAFT = ".draft-"
_CONTENT = re.compile(
    rb"Paddock server key\nCreated-At: (\d{1,12})\nPrevious-Until: (\d{1,12})\n"
    rb"(-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n)"
    rb"(-----BEGIN ENCRYPTED PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END ENCRYPTED PRIVATE KEY-----\n)"
)

Mark = tuple[str, int, int]  # name, inode, modification time in nanoseconds: a file's identity


class ServerKeyError(Exception):
    """The key set cannot be used. The message says why and what to do; it carries no secret."""


@dataclass(frozen=True, slots=True)
class PublicServerKey:
    """What anyone may know of a key."""

    number: int
    pem: bytes  # SubjectPublicKeyInfo, as `GET /pki/public_key` serves it
    fingerprint: str
    created_at: int  # Unix seconds
    ends_at: int | None  # Unix seconds from which it no longer decrypts; None: the current key


@dataclass(frozen=True, slots=True)
class KeyFile:
    """One file as read; `previous_until` is the end of the grace period of every key before it."""

    number: int
    created_at: int
    previous_until: int
    public_pem: bytes
    private_pem: bytes  # encrypted
    mark: Mark


def fingerprint(key: rsa.RSAPublicKey) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo in lower-case hex, as `openssl pkey -pubin -outform DER | sha256sum`."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_public(directory: Path, now: int) -> tuple[PublicServerKey, ...]:
    """The keys in force at `now`, current first, read without the passphrase; empty where none was made yet."""
    return tuple(describe(file, ends_at) for file, ends_at in in_force(read_files(directory), now))


def describe(file: KeyFile, ends_at: int | None) -> PublicServerKey:
    """The public part of a file, checked to be an RSA key of the protocol's size."""
    try:
        key = load_pem_public_key(file.public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ServerKeyError(f"server key {file.mark[0]} is damaged: restore it, or remove it and rotate") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != KEY_BITS:
        raise ServerKeyError(f"server key {file.mark[0]} is not an RSA key of {KEY_BITS} bits")
    return PublicServerKey(file.number, file.public_pem, fingerprint(key), file.created_at, ends_at)


def in_force(files: tuple[KeyFile, ...], now: int) -> list[tuple[KeyFile, int | None]]:
    """The files whose keys decrypt at `now`, each with its end; the current one is first and has none.

    A key's end is the earliest that any later file states: a rotation without grace ends every older key, and one
    with a long grace brings none back.
    """
    found: list[tuple[KeyFile, int | None]] = []
    ends_at: int | None = None
    for file in files:
        if ends_at is None or now < ends_at:
            found.append((file, ends_at))
        ends_at = file.previous_until if ends_at is None else min(ends_at, file.previous_until)
    return found


def marks(directory: Path) -> tuple[Mark, ...]:
    """What the directory holds, for the price of a listing: equal marks mean equal keys."""
    try:
        with os.scandir(directory) as entries:
            named = [entry for entry in entries if _NAME.fullmatch(entry.name)]
            stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in named]
        return tuple(sorted(((name, found.st_ino, found.st_mtime_ns) for name, found in stats), reverse=True))
    except FileNotFoundError:  # no directory yet, or a file pruned between the listing and its stat: then look again
        return marks(directory) if directory.exists() else ()
    except OSError as error:
        raise ServerKeyError(f"cannot read the server key directory {directory}: {error.strerror}") from error


def read_files(directory: Path) -> tuple[KeyFile, ...]:
    """Every key file, highest number first."""
    found = []
    for mark in marks(directory):
        try:
            found.append(_read_file(directory, mark))
        except FileNotFoundError:  # pruned since the listing: its key has ended
            continue
        except OSError as error:
            raise ServerKeyError(f"cannot read server key {directory / mark[0]}: {error.strerror}") from error
    return tuple(found)


def _read_file(directory: Path, mark: Mark) -> KeyFile:
    path = directory / mark[0]
    with open(path, "rb", opener=_no_links) as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ServerKeyError(f"server key {path} is not a regular file")
        if mode & 0o077:
            raise ServerKeyError(f"server key {path} is open to other users: chmod 600 it")
        content = stream.read(_MAX_FILE_BYTES)
    fields = _CONTENT.fullmatch(content)
    if fields is None:
        raise ServerKeyError(f"server key {path} is damaged: restore it, or remove it and rotate")
    return KeyFile(int(mark[0][:6]), int(fields[1]), int(fields[2]), fields[3], fields[4], mark)


def publish(directory: Path, number: int, *, created_at: int, previous_until: int, pems: bytes) -> bool:
    """Let key `number` appear, whole and durable; False if somebody else's appeared first."""
    content = b"Paddock server key\nCreated-At: %d\nPrevious-Until: %d\n" % (created_at, previous_until) + pems
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = directory / f"{_DRAFT}{secrets.token_hex(8)}"
        with open(draft, "xb", opener=_owner_only) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, directory / f"{number:06d}.pem")
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        _sync(directory)
    except OSError as error:
        raise ServerKeyError(f"cannot write a server key into {directory}: {error.strerror}") from error
    return True


def prune(directory: Path, now: int) -> list[int]:
    """Remove the files of keys that have ended, and drafts of writers that were killed. The numbers removed.

    A key that is gone can no longer open what somebody recorded; keeping it would only serve them.
    """
    files = read_files(directory)
    kept = {file.number for file, _ in in_force(files, now)}
    ended = [file for file in files if file.number not in kept]
    try:
        for file in ended:
            (directory / file.mark[0]).unlink(missing_ok=True)
        for draft in directory.glob(f"{_DRAFT}*"):
            if draft.lstat().st_mtime < now - _STALE_DRAFT_SECONDS:
                draft.unlink(missing_ok=True)
    except FileNotFoundError:  # another process prunes too
        return prune(directory, now)
    except OSError as error:
        raise ServerKeyError(f"cannot remove ended server keys from {directory}: {error.strerror}") from error
    return [file.number for file in ended]


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # nor does a pipe of that name make anyone wait


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
