"""What the server key commands do. They work on the directory of the keys, which every processor watches by itself."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway import server_key as places
from gateway.admin_output import iso, moment, table
from gateway.failure import Failure
from processor.server_key_files import ServerKeyError, read_public
from processor.server_keys import ServerKeys, read_passphrase

if TYPE_CHECKING:
    import argparse

    from gateway.server_key import Place
    from processor.server_key_files import PublicServerKey


def server_key(args: argparse.Namespace) -> int:
    try:
        return _show(args, read_public(places.directory(args), _now()))
    except ServerKeyError as error:
        raise Failure(str(error)) from error


def rotate_server_key(args: argparse.Namespace) -> int:
    place = places.find(args)
    try:
        keys = ServerKeys(place.directory, _passphrase(place))
        if not read_public(place.directory, _now()):
            raise Failure(f"there is no key in {place.directory} yet", do="The first processor that starts makes one.")
        keys.rotate(_now(), int(args.grace.total_seconds()))
        keys.prune(_now())
        return _show(args, read_public(place.directory, _now()))
    except ServerKeyError as error:
        raise Failure(str(error)) from error


def _passphrase(place: Place) -> bytes:
    return read_passphrase(place.passphrase, place.passphrase_file)


def _show(args: argparse.Namespace, found: tuple[PublicServerKey, ...]) -> int:
    if args.json:
        print(json.dumps([_fields(key) for key in found], indent=2))
        return 0
    if not found:
        print("There is no server key yet: the first processor that starts makes one.")
        return 0
    rows = [
        (
            key.fingerprint,
            moment(_at(key.created_at)),
            "current" if key.ends_at is None else f"opens until {moment(_at(key.ends_at))}",
        )
        for key in found
    ]
    print(table(("SHA-256 FINGERPRINT", "MADE", "STATE"), rows))
    return 0


def _fields(key: PublicServerKey) -> dict[str, object]:
    return {
        "number": key.number,
        "fingerprint": key.fingerprint,
        "created_at": iso(_at(key.created_at)),
        "ends_at": None if key.ends_at is None else iso(_at(key.ends_at)),
        "pem": key.pem.decode("ascii"),
    }


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _now() -> int:
    return int(time.time())
