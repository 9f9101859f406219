"""The key set: made once, rotated by the appearance of a file, read by everyone, useless without its passphrase."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from processor import server_key_files
from processor.envelope import OAEP
from processor.server_key_files import ServerKeyError, read_public
from processor.server_keys import ServerKeys, generate_key, read_passphrase

if TYPE_CHECKING:
    from pathlib import Path

PASSPHRASE = b"correct horse battery staple"
T = 1_732_260_000  # Unix seconds


@cache
def ready_made(number: int) -> rsa.RSAPrivateKey:
    """Keys are slow to make, so the tests of one process share a few."""
    return generate_key()


def keys(directory: Path, passphrase: bytes = PASSPHRASE, *, first: int = 0) -> ServerKeys:
    numbers = count(first)
    return ServerKeys(directory, passphrase, generate=lambda: ready_made(next(numbers) % 4))


def numbers(key_set: ServerKeys, now: int) -> list[int]:
    return [key.public.number for key in key_set.in_force(now)]


def test_the_first_start_makes_one_key(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there" / "yet"
    (key,) = keys(directory).start(T)
    assert key.private.key_size == 4096
    assert (key.public.number, key.public.created_at, key.public.ends_at) == (1, T, None)
    assert key.private.public_key() == load_pem_public_key(key.public.pem)
    assert key.public.pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert [path.name for path in directory.iterdir()] == ["000001.pem"]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "000001.pem").stat().st_mode & 0o777 == 0o600


def test_the_next_start_finds_it(tmp_path: Path) -> None:
    (made,) = keys(tmp_path).start(T)
    (found,) = keys(tmp_path, first=1).start(T + 1000)
    assert found.public == made.public


def test_a_mask_of_file_modes_opens_nothing(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; os.umask(0); from processor.server_keys import ServerKeys;"
        "d = pathlib.Path(sys.argv[1]); ServerKeys(d, b'x' * 16).start(0);"
        "print([oct(p.stat().st_mode & 0o777) for p in (d, d / '000001.pem')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "k")], capture_output=True, text=True, check=True)
    assert done.stdout == "['0o700', '0o600']\n"


def test_a_key_rests_encrypted_and_openssl_reads_it(tmp_path: Path) -> None:
    (key,) = keys(tmp_path).start(T)
    content = (tmp_path / "000001.pem").read_text()
    assert "-----BEGIN ENCRYPTED PRIVATE KEY-----" in content
    assert "-----BEGIN PRIVATE KEY-----" not in content
    read = ["openssl", "pkey", "-in", str(tmp_path / "000001.pem"), "-passin", f"pass:{PASSPHRASE.decode()}", "-pubout"]
    assert subprocess.run(read, capture_output=True, check=True).stdout == key.public.pem


def test_the_fingerprint_is_what_openssl_and_sha256sum_print(tmp_path: Path) -> None:
    (key,) = keys(tmp_path).start(T)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=key.public.pem, capture_output=True
    ).stdout
    assert (
        key.public.fingerprint
        == subprocess.run(["sha256sum"], input=der, capture_output=True).stdout.split()[0].decode()
    )


def test_processors_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from processor.server_keys import ServerKeys; print('ready', flush=True); input();"
        "print(ServerKeys(pathlib.Path(sys.argv[1]), b'x' * 16).start(0)[0].public.fingerprint)"
    )
    call = [sys.executable, "-c", code, str(tmp_path)]
    starting = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in starting:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in starting:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0] for process in starting}
    assert len(said) == 1
    assert said.pop().strip() == read_public(tmp_path, 0)[0].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["000001.pem"]


def test_rotation_is_seen_at_once_by_everyone_and_the_previous_key_ends_with_its_grace(tmp_path: Path) -> None:
    mine, theirs = keys(tmp_path), keys(tmp_path)
    (old,) = mine.start(T)
    theirs.start(T)
    new = keys(tmp_path, first=1).rotate(T + 100, grace=3600)
    assert (new.number, new.created_at, new.ends_at) == (2, T + 100, None)
    for key_set in (mine, theirs):
        current, previous = key_set.in_force(T + 100)
        assert current.public == new
        assert previous.private.private_numbers() == old.private.private_numbers()
        assert previous.public.ends_at == T + 3700
        assert numbers(key_set, T + 3699) == [2, 1]
        assert numbers(key_set, T + 3700) == [2]


def test_a_rotation_without_grace_ends_every_older_key(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    key_set.rotate(T, grace=3600)
    assert numbers(key_set, T) == [2, 1]
    key_set.rotate(T + 10, grace=0)
    assert numbers(key_set, T + 10) == [3]


def test_a_longer_grace_later_brings_nothing_back(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    key_set.rotate(T, grace=60)
    key_set.rotate(T + 30, grace=10_000)
    assert [(key.public.number, key.public.ends_at) for key in key_set.in_force(T + 59)] == [
        (3, None),
        (2, T + 10_030),
        (1, T + 60),
    ]
    assert numbers(key_set, T + 60) == [3, 2]


def test_rotations_at_once_all_happen(tmp_path: Path) -> None:
    keys(tmp_path).start(T)
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(keys(tmp_path, first=n).rotate(T, 60).number)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [key.number for key in read_public(tmp_path, T)] == [4, 3, 2, 1]
    assert max(made) == 4


def test_a_negative_grace_is_a_mistake(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    with pytest.raises(ValueError, match="negative"):
        key_set.rotate(T, grace=-1)


def test_pruning_removes_ended_keys_and_abandoned_drafts_alone(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    key_set.rotate(T, grace=60)
    for name, modified in (("old", T - 7200), ("new", T)):
        draft = tmp_path / f".draft-{name}"
        draft.write_bytes(b"x")
        os.utime(draft, (modified, modified))
    (tmp_path / "README").write_text("an operator's own")
    assert key_set.prune(T + 59) == []
    assert key_set.prune(T + 60) == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".draft-new", "000002.pem", "README"]
    assert numbers(key_set, T + 60) == [2]
    assert key_set.rotate(T + 61, grace=0).number == 3  # numbers are not used again


def test_an_unchanged_directory_is_not_read_again(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    assert key_set.in_force(T) is key_set.in_force(T + 1)


def test_a_key_set_that_was_replaced_under_the_same_names_is_noticed(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    (old,) = key_set.start(T)
    (tmp_path / "000001.pem").rename(tmp_path / "kept-so-that-its-inode-is-not-given-away")
    keys(tmp_path, first=1).start(T)
    assert key_set.in_force(T)[0].public.fingerprint != old.public.fingerprint


def test_the_public_part_needs_no_passphrase(tmp_path: Path) -> None:
    assert read_public(tmp_path / "none", T) == ()
    key_set = keys(tmp_path)
    key_set.start(T)
    key_set.rotate(T, grace=60)
    assert read_public(tmp_path, T + 59) == tuple(key.public for key in key_set.in_force(T + 59))
    assert [key.number for key in read_public(tmp_path, T + 60)] == [2]


def test_a_wrong_passphrase_opens_nothing_and_rotates_nothing(tmp_path: Path) -> None:
    keys(tmp_path).start(T)
    stranger = keys(tmp_path, b"another passphrase")
    for act in (lambda: stranger.start(T), lambda: stranger.rotate(T, grace=60)):
        with pytest.raises(ServerKeyError, match="passphrase") as caught:
            act()
        assert "another" not in str(caught.value).replace("another one", "")
    assert [path.name for path in tmp_path.iterdir()] == ["000001.pem"]


def test_nothing_secret_is_printed(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    printed = repr(key_set) + repr(key_set.start(T))
    assert PASSPHRASE.decode() not in printed
    assert "private" not in printed.lower()


def test_mistakes_in_the_directory_fail_closed_and_say_what_to_do(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    path = tmp_path / "000001.pem"
    good = path.read_bytes()

    def says(words: str) -> None:
        with pytest.raises(ServerKeyError, match=words):
            key_set.in_force(T)

    path.chmod(0o640)
    os.utime(path, ns=(1, 1))
    says("chmod 600")
    path.unlink()
    says("no server key in .* restore it")
    path.symlink_to("/etc/hostname")
    says("cannot read server key .*000001.pem")
    path.unlink()
    path.mkdir()
    says("not a regular file|cannot read")
    path.rmdir()
    for damaged in (b"", good[:-10], good.replace(b"Created-At: ", b"Created-At: x"), good + b"more", bytes(100_000)):
        path.write_bytes(damaged)
        path.chmod(0o600)
        says("damaged|does not open")
        path.unlink()


def test_a_public_key_slipped_into_the_file_is_noticed(tmp_path: Path) -> None:
    (key,) = keys(tmp_path).start(T)
    path = tmp_path / "000001.pem"
    evil = ready_made(1).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(path.read_bytes().replace(key.public.pem, evil))
    with pytest.raises(ServerKeyError, match="do not belong together"):
        keys(tmp_path).in_force(T)


def test_a_damaged_private_key_never_calculates_wrongly(tmp_path: Path) -> None:
    """CBC garbles a block and goes on. OpenSSL can do without some of the numbers, not without all of them."""
    (key,) = keys(tmp_path).start(T)
    path = tmp_path / "000001.pem"
    lines = path.read_bytes().split(b"\n")
    begin = lines.index(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    noticed, box = 0, key.private.public_key().encrypt(b"box", OAEP)
    for at in range(begin + 3, len(lines) - 2):
        damaged = list(lines)
        damaged[at] = (b"A" if lines[at][:1] != b"A" else b"B") + lines[at][1:]
        path.write_bytes(b"\n".join(damaged))
        try:
            assert keys(tmp_path).in_force(T)[0].private.decrypt(box, OAEP) == b"box"
        except ServerKeyError:
            noticed += 1
    assert noticed > 5


def test_a_smaller_key_is_not_the_protocols(tmp_path: Path) -> None:
    small = ServerKeys(
        tmp_path, PASSPHRASE, generate=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    with pytest.raises(ServerKeyError, match="4096 bits"):
        small.start(T)


def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerKeyError, match=r"cannot (read|write)"):
        keys(tmp_path / "file" / "keys").start(T)


def test_many_threads_may_ask(tmp_path: Path) -> None:
    key_set = keys(tmp_path)
    key_set.start(T)
    key_set.rotate(T, grace=60)
    fresh, seen = ServerKeys(tmp_path, PASSPHRASE), []
    threads = [threading.Thread(target=lambda: seen.append(fresh.in_force(T))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(found) for found in seen}) == 1  # loaded once, by one of them


def test_the_passphrase_comes_from_a_value_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    assert read_passphrase("x" * 16, None) == b"x" * 16
    for content in (b" pass phrase of a file ", b" pass phrase of a file \n", b" pass phrase of a file \r\n"):
        file.write_bytes(content)
        assert read_passphrase(None, file) == b" pass phrase of a file "
    file.write_bytes(b"short\n")
    for value, path, words in (
        (None, None, "one of the two"),
        ("x" * 16, file, "one of the two"),
        ("x" * 15, None, "openssl rand"),
        ("", None, "openssl rand"),
        (None, file, "openssl rand"),
        (None, tmp_path / "none", "cannot read .*none: No such file"),
    ):
        with pytest.raises(ServerKeyError, match=words):
            read_passphrase(value, path)


def test_a_listing_finds_key_files_alone(tmp_path: Path) -> None:
    for name in ("1.pem", "000001.pem.bak", "000001.key", ".000001.pem", "0000001.pem"):
        (tmp_path / name).write_bytes(b"x")
    assert server_key_files.marks(tmp_path) == ()
