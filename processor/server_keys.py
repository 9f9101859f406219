"""The server's private keys, in every processor that shares the directory (`server_key_files` knows its layout).

Keys rest as PKCS#8 under the passphrase: PBES2, that is PBKDF2-HMAC-SHA-256 and AES-256-CBC, chosen by the library's
BestAvailableEncryption. OpenSSL spends 2048 rounds on it, which protects a random passphrase and not a memorable one:
`openssl rand -base64 32`.

`in_force` notices a new key by itself, for the price of a directory listing, so that a key opens envelopes in every
processor from the moment anyone can be told of it. Call it where the decryption runs, in a worker thread, right
before each `open_package`; any number of threads may.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from processor import server_key_files as files
from processor.envelope import OAEP
from processor.server_key_files import KEY_BITS, Mark, PublicServerKey, ServerKeyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIN_PASSPHRASE_BYTES = 16
_PROBE = b"is this one key?"


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A key in force."""

    public: PublicServerKey
    private: rsa.RSAPrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What one look at the directory gave; replaced as a whole, never edited."""

    marks: tuple[Mark, ...] | None = None
    keys: tuple[ServerKey, ...] = ()
    privates: dict[Mark, rsa.RSAPrivateKey] = field(default_factory=dict)

    def serves(self, marks: tuple[Mark, ...], now: int) -> bool:
        ends = (key.public.ends_at for key in self.keys)
        return self.marks == marks and all(end is None or now < end for end in ends)


def generate_key() -> rsa.RSAPrivateKey:
    """A fresh key: a good part of a second of CPU."""
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def read_passphrase(value: str | None, file: Path | None) -> bytes:
    """The passphrase from a setting's value or from a file (one closing line end is not part of it); exactly one."""
    if value is not None and file is None:
        passphrase = value.encode()
    elif file is not None and value is None:
        try:
            passphrase = file.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise ServerKeyError(f"cannot read the server key passphrase file {file}: {error.strerror}") from error
    else:
        raise ServerKeyError("give the server key passphrase as a value or as a file: one of the two, not both")
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise ServerKeyError(
            f"the server key passphrase has fewer than {MIN_PASSPHRASE_BYTES} bytes: use `openssl rand -base64 32`"
        )
    return passphrase


class ServerKeys:
    """The key set of one directory. Time is an argument, in Unix seconds."""

    def __init__(
        self, directory: Path, passphrase: bytes, *, generate: Callable[[], rsa.RSAPrivateKey] = generate_key
    ) -> None:
        self._directory = directory
        self._passphrase = passphrase
        self._generate = generate
        self._loading = threading.Lock()
        self._loaded = _Loaded()

    def start(self, now: int) -> tuple[ServerKey, ...]:
        """The keys in force, after making the first one if there is none. For start-up: it may take seconds."""
        if not files.marks(self._directory):
            self._publish(1, now, previous_until=0)  # False is as good: somebody else has just made it
        return self.in_force(now)

    def in_force(self, now: int) -> tuple[ServerKey, ...]:
        """The keys that decrypt at `now`, current first. ServerKeyError fails closed: no key is used unseen."""
        marks = files.marks(self._directory)
        loaded = self._loaded
        if not loaded.serves(marks, now):
            with self._loading:
                loaded = self._loaded
                if not loaded.serves(marks := files.marks(self._directory), now):
                    self._loaded = loaded = self._load(marks, now)
        return loaded.keys

    def rotate(self, now: int, grace: int) -> PublicServerKey:
        """Make a new current key; every earlier one decrypts for `grace` more seconds, or until its own earlier end."""
        if grace < 0:
            raise ValueError("a grace period is not negative")
        while True:
            # Reading the current key first proves the passphrase: a key under another one would stop every processor.
            current = self.in_force(now)[0].public
            if self._publish(current.number + 1, now, previous_until=now + grace):
                return self.in_force(now)[0].public

    def prune(self, now: int) -> list[int]:
        """Remove the files of keys whose grace period is over; the numbers removed."""
        return files.prune(self._directory, now)

    def _publish(self, number: int, now: int, *, previous_until: int) -> bool:
        key = self._generate()
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self._passphrase))
        return files.publish(
            self._directory, number, created_at=now, previous_until=previous_until, pems=public + private
        )

    def _load(self, marks: tuple[Mark, ...], now: int) -> _Loaded:
        found = files.in_force(files.read_files(self._directory), now)
        if not found:
            raise ServerKeyError(f"no server key in {self._directory}: restore it, or restart a processor to make one")
        keys = tuple(ServerKey(files.describe(file, ends_at), self._private(file)) for file, ends_at in found)
        privates = {file.mark: key.private for (file, _), key in zip(found, keys, strict=True)}
        return _Loaded(marks, keys, privates)

    def _private(self, file: files.KeyFile) -> rsa.RSAPrivateKey:
        known = self._loaded.privates.get(file.mark)
        if known is not None:
            return known
        try:
            # The library's own validation tests the primes again, 0.3 s for a key that we made ourselves.
            key = load_pem_private_key(file.private_pem, self._passphrase, unsafe_skip_rsa_key_validation=True)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ServerKeyError(f"server key {file.mark[0]} does not open: is the passphrase another one?") from error
        if not isinstance(key, rsa.RSAPrivateKey) or not _belongs(key, file.public_pem):
            raise ServerKeyError(f"server key {file.mark[0]} and its public part do not belong together: restore it")
        return key


def _belongs(private: rsa.RSAPrivateKey, public_pem: bytes) -> bool:
    """Whether what is sealed to the public part opens.

    Encryption at rest is not authenticated: a damaged private part may still be read, and calculate wrongly. And who
    writes to the directory without the passphrase can put a public key of his own into the file.
    """
    public = load_pem_public_key(public_pem)
    try:
        return isinstance(public, rsa.RSAPublicKey) and private.decrypt(public.encrypt(_PROBE, OAEP), OAEP) == _PROBE
    except ValueError:
        return False
