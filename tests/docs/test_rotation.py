"""What `docs/how-to/rotate-secrets.md` says of Redis: a second password, and the first one taken away."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING

import pytest

from policy.rules.faults import StoreDown
from policy.stores.multiplex import Multiplexed
from tests.docs.pages import DOCS

if TYPE_CHECKING:
    from tests.harness import Gateway

PAGE = (DOCS / "how-to" / "rotate-secrets.md").read_text(encoding="utf-8")


def test_a_second_password_and_the_first_one_gone(gateway: Gateway) -> None:
    steps = re.findall(r"redis-cli -u \"\$(?:OLD|NEW)_URL\" (ACL SETUSER) default '([<>])(OLD|NEW)'", PAGE)
    assert len(steps) == 2
    user = f"user{secrets.token_hex(4)}"
    words = {"OLD": secrets.token_hex(8), "NEW": secrets.token_hex(8)}
    url = gateway.instance.running.redis_url

    async def let_in(word: str) -> bool:
        there = url.replace("unix://", f"unix://{user}:{words[word]}@", 1)
        connection = Multiplexed(there)
        try:
            return bool(await connection.execute("PING") == b"PONG")
        except (ConnectionError, StoreDown):
            return False
        finally:
            await connection.close()

    with gateway.redis() as store:
        store.execute_command("ACL", "SETUSER", user, "on", f">{words['OLD']}", "~*", "&*", "+@all")
        seen = [(asyncio.run(let_in("OLD")), asyncio.run(let_in("NEW")))]
        for command, sign, word in steps:
            store.execute_command(*command.split(), user, f"{sign}{words[word]}")
            seen.append((asyncio.run(let_in("OLD")), asyncio.run(let_in("NEW"))))
        store.execute_command("ACL", "DELUSER", user)
    assert seen == [(True, False), (True, True), (False, True)]


@pytest.mark.parametrize("word", ["rotate-key", "rotate-session-key", "rotate-server-key", "revoke-key"])
def test_the_commands_that_the_table_names_exist(word: str) -> None:
    from gateway import cli

    assert word in PAGE
    with pytest.raises(SystemExit) as end:
        cli.main([word, "--help"])
    assert end.value.code == 0
