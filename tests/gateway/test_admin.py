"""The tenant and key commands as an operator types them, over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from gateway import cli
from policy.admission.hashing import Hashing
from policy.rules import keys
from policy.stores.postgres import Postgres
from tests.postgresql import execute

if TYPE_CHECKING:
    from policy.rules.tenants import Key
    from tests.postgresql import PostgreSQL


@dataclass
class Paddock:
    """Runs commands against one database."""

    database: str
    capture: pytest.CaptureFixture[str]

    def __call__(self, *words: str, status: int = 0) -> str:
        """What a command prints: to standard output when it succeeds, to standard error when it does not."""
        try:
            ended = cli.main(list(words))
        except SystemExit as end:  # argparse
            ended = int(end.code or 0)
        printed = self.capture.readouterr()
        assert ended == status, printed
        assert (printed.out if status else printed.err) == ""
        return printed.err if status else printed.out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def stored(self, prefix: str) -> Key:
        async def load() -> Key:
            async with Postgres.open(self.database) as postgres:
                return (await postgres.load([prefix]))[prefix]

        return asyncio.run(load())


@pytest.fixture
def paddock(database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Paddock:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", database)
    monkeypatch.delenv("PADDOCK_DATA_DIR", raising=False)
    return Paddock(database, capsys)


def test_from_nothing_to_a_key(paddock: Paddock) -> None:
    assert "no tenants yet" in paddock("list-tenants")
    assert "no keys yet" in paddock("list-keys")
    assert paddock.json("list-tenants") == paddock.json("list-keys") == []
    said = paddock("create-tenant", "acme", "--model", "Llama3.1:8B", "--model", "mistral", "--rpm", "60")
    assert said.splitlines()[0] == "Tenant acme created."
    assert "llama3.1:8b, mistral:latest" in said
    assert "rpm 60" in said
    said = paddock("create-key", "acme", "--owner", "ada", "--label", "laptop")
    key = keys.parse(said.splitlines()[0])
    assert key is not None
    assert "only time the key is shown" in said
    stored = paddock.stored(key.prefix)
    assert (stored.tenant.name, stored.owner, stored.label, stored.models) == ("acme", "ada", "laptop", None)
    for command in ("list-keys", "list-tenants"):
        for shown in (paddock(command), paddock(command, "--json")):
            assert "acme" in shown
            assert key.reveal()[12:] not in shown


def test_the_stored_hash_is_of_the_key_that_was_shown(paddock: Paddock) -> None:
    paddock("create-tenant", "acme", "--allow-all-models")
    made = paddock.json("create-key", "acme")
    stored = paddock.stored(made["prefix"])

    async def verified() -> bool:
        with Hashing() as hashing:
            return await hashing.verify(stored.hash, made["key"].encode(), "known", ())

    assert asyncio.run(verified())


def test_json_has_every_field_whatever_is_set(paddock: Paddock) -> None:
    none = dict.fromkeys(("rpm", "tpm", "concurrency", "budget_day", "budget_month", "budget_total"))
    assert paddock.json("create-tenant", "acme", "--model", "phi4") == {
        "tenant": "acme",
        "id": 1,
        "state": "active",
        "allow_all_models": False,
        "models": ["phi4:latest"],
        "max_tokens": None,
        "limits": none,
        "notes": [],
    }
    made = paddock.json("create-key", "acme", "--budget-day", "1_000", "--max-tokens", "7", "--expires", "2999-01-01")
    assert made["key"].startswith(made["prefix"])
    created = made.pop("created_at")
    assert datetime.now(UTC) - datetime.fromisoformat(created) < timedelta(minutes=1)
    assert made == {
        "key": made["key"],
        "prefix": made["prefix"],
        "tenant": "acme",
        "id": 1,
        "owner": "",
        "label": "",
        "state": "active",
        "models": None,
        "max_tokens": 7,
        "limits": none | {"budget_day": 1000},
        "expires_at": "2999-01-01T00:00:00Z",
        "last_used_at": None,
        "revoked_at": None,
        "notes": [],
    }
    [listed] = paddock.json("list-keys")
    assert listed == {name: value for name, value in made.items() if name not in ("key", "notes")} | {
        "created_at": created
    }
    [tenant] = paddock.json("list-tenants")
    assert tenant["keys"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("create-key", "acme"),
        ("create-key", "--tenant", "acme"),
        ("create-key", "--json", "--tenant=acme"),
        ("create-key", "--json", "acme"),
    ],
)
def test_position_and_option_are_the_same(paddock: Paddock, words: tuple[str, ...]) -> None:
    paddock("create-tenant", "--name", "acme", "--allow-all-models")
    paddock(*words)
    assert [key["tenant"] for key in paddock.json("list-keys", "--tenant", "acme")] == ["acme"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("create-tenant",), "the tenant's name is missing"),
        (("create-tenant", "a", "--name", "b"), "given twice"),
        (("create-key",), "the tenant's name is missing"),
        (("disable-key",), "the key's prefix is missing"),
        (("create-tenant", "a", "--rpm", "-1"), "whole number"),
        (("create-tenant", "a", "--rpm", "none"), "whole number"),
        (("create-tenant", "a", "--budget-total", "9999999999999999"), "whole number"),
        (("create-tenant", "a", "--max-tokens", "0"), "whole number"),
        (("create-tenant", "a", "--model", "m", "--allow-all-models"), "not allowed with"),
        (("create-key", "a", "--expires", "2001-01-01"), "is past"),
        (("create-key", "a", "--expires", "soon"), "neither"),
        (("create-key", "a", "--label", "x\x1b[2J"), "plain text"),
        (("rotate-key", "nz_abcdefghi", "--grace", "later"), "not a time"),
        (("allow-model", "acme"), "say which models"),
        (("allow-model", "acme", "m", "--all"), "say which models"),
        (("allow-model", "--tenant", "acme", "--key", "nz_abcdefghi", "m"), "which tenant, or which key"),
        (("set-limits", "acme"), "say which limits"),
        (("set-limits", "--rpm", "5"), "which tenant, or which key"),
        (("no-such-command",), "invalid choice"),
    ],
)
def test_what_is_typed_wrongly_is_explained(paddock: Paddock, words: tuple[str, ...], complaint: str) -> None:
    assert complaint in paddock(*words, status=2)
    assert paddock.json("list-tenants") == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("create-key", "nobody"), "there is no tenant nobody (acme)"),
        (("list-keys", "nobody"), "`paddock create-tenant nobody` makes it"),
        (("disable-tenant", "nobody"), "there is no tenant nobody"),
        (("allow-model", "nobody", "m"), "there is no tenant nobody"),
        (("set-limits", "nobody", "--rpm", "1"), "there is no tenant nobody"),
        (("create-tenant", "acme"), "there is a tenant acme already"),
        (("create-tenant", "ACME"), "already"),
        (("create-tenant", "a b"), "cannot be a tenant's name"),
        (("create-tenant", "nz_abc"), "cannot be a tenant's name"),
        (("create-tenant", "x", "--model", "../etc"), "is not the name of a model"),
        (("disable-key", "nz_abcdefghi"), "there is no key nz_abcdefghi"),
        (("rotate-key", "nz_abcdefghi"), "there is no key nz_abcdefghi"),
        (("set-limits", "nz_abcdefghi", "--rpm", "1"), "there is no key nz_abcdefghi"),
        (("revoke-key", "abc"), "is not a key's prefix"),
    ],
)
def test_what_cannot_be_done_says_why_and_what_to_do(paddock: Paddock, words: tuple[str, ...], complaint: str) -> None:
    paddock("create-tenant", "acme")
    assert complaint in paddock(*words, status=1)
    assert [tenant["tenant"] for tenant in paddock.json("list-tenants")] == ["acme"]


@pytest.mark.parametrize(
    "words",
    [
        ("disable-key",),
        ("revoke-key", "--key"),
        ("rotate-key",),
        ("set-limits", "--rpm", "1", "--key"),
        ("set-limits", "--rpm", "1"),
        ("allow-model", "--model", "m", "--key"),
        ("list-keys",),
    ],
)
def test_a_whole_key_on_the_command_line_is_refused_and_not_repeated(paddock: Paddock, words: tuple[str, ...]) -> None:
    paddock("create-tenant", "acme")
    made = paddock.json("create-key", "acme")
    said = paddock(*words, made["key"], status=1)
    assert "Use the prefix" in said
    assert "list of processes" in said
    assert made["prefix"] in said
    assert made["key"][12:] not in said
    assert paddock.json("list-keys")[0]["state"] == "active"


def test_disable_enable_and_revoke(paddock: Paddock) -> None:
    paddock("create-tenant", "acme")
    prefix = paddock.json("create-key", "acme")["prefix"]
    assert paddock.json("disable-key", prefix)["state"] == "disabled"
    assert paddock.json("enable-key", prefix)["state"] == "active"
    assert "disabled" in paddock("disable-tenant", "acme")
    assert paddock.json("list-keys")[0]["state"] == "disabled"
    assert "paddock enable-tenant acme" in paddock("enable-key", prefix)
    assert paddock.json("enable-tenant", "acme")["state"] == "active"
    revoked = paddock.json("revoke-key", prefix)
    assert revoked["state"] == "revoked"
    assert paddock.json("revoke-key", prefix)["revoked_at"] == revoked["revoked_at"]
    assert "revoked, for good" in paddock("enable-key", prefix, status=1)
    assert "nothing to rotate" in paddock("rotate-key", prefix, status=1)


def test_rotation_leaves_both_keys_good_for_the_grace(paddock: Paddock) -> None:
    paddock("create-tenant", "acme", "--model", "phi4", "--model", "mistral")
    old = paddock.json(
        "create-key", "acme", "--owner", "ada", "--label", "ci", "--model", "phi4", "--rpm", "5", "--expires", "30d"
    )
    said = paddock("rotate-key", old["prefix"], "--grace", "48h")
    assert f"The old key {old['prefix']} stays good until" in said
    assert "for 2 days" in said
    before, after = (paddock.stored(prefix) for prefix in (old["prefix"], said[:12]))
    now = datetime.now(UTC)
    assert before.usable_at(now)
    assert after.usable_at(now)
    assert before.revoked_at is not None
    assert timedelta(hours=47, minutes=59) < before.revoked_at - now < timedelta(hours=48)
    assert not before.usable_at(now + timedelta(hours=48))
    same = ("tenant", "owner", "label", "models", "limits", "max_tokens", "expires_at")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    assert "rotating" in paddock("rotate-key", old["prefix"], status=1)
    [row] = asyncio.run(execute(paddock.database, "SELECT successor_id FROM api_key WHERE prefix = $1", old["prefix"]))
    assert row["successor_id"] == after.id
    assert (before.counted, after.counted) == (before.id, before.id)
    again = paddock.json("rotate-key", after.prefix, "--grace", "0s")
    assert again["rotated"]["prefix"] == after.prefix
    assert again["rotated"]["state"] == "revoked"
    assert paddock.stored(again["prefix"]).counted == before.id  # the first of them, however many came in between


@pytest.mark.parametrize(
    ("state", "statement"),
    [
        ("disabled", "UPDATE api_key SET disabled = true"),
        ("expired", "UPDATE api_key SET expires_at = now()"),
    ],
)
def test_only_a_key_in_use_is_rotated(paddock: Paddock, state: str, statement: str) -> None:
    paddock("create-tenant", "acme")
    prefix = paddock.json("create-key", "acme")["prefix"]
    asyncio.run(execute(paddock.database, statement))
    assert f"is {state}" in paddock("rotate-key", prefix, status=1)
    assert len(paddock.json("list-keys")) == 1


def test_a_key_never_reaches_more_than_its_tenant(paddock: Paddock) -> None:
    paddock("create-tenant", "acme", "--model", "phi4")
    made = paddock.json("create-key", "acme", "--model", "Mistral:7b", "--model", "phi4")
    assert made["models"] == ["mistral:7b", "phi4:latest"]
    assert made["notes"] == ["also allowed for tenant acme: mistral:7b"]
    assert paddock.json("list-tenants")[0]["models"] == ["mistral:7b", "phi4:latest"]
    paddock("deny-model", "acme", "phi4")
    stored = paddock.stored(made["prefix"])
    assert stored.may_use("mistral:7b")
    assert not stored.may_use("phi4:latest")


def test_all_models_opens_a_tenant_that_has_none_and_no_other(paddock: Paddock) -> None:
    paddock("create-tenant", "empty")
    assert "may not use any model yet" in paddock("create-key", "empty")
    assert "may now use all" in paddock("create-key", "empty", "--allow-all-models")
    paddock("create-tenant", "some", "--model", "phi4")
    assert "some may use: phi4:latest" in paddock("create-key", "some", "--allow-all-models")
    found = {tenant["tenant"]: tenant["allow_all_models"] for tenant in paddock.json("list-tenants")}
    assert found == {"empty": True, "some": False}


def test_models_are_given_and_taken(paddock: Paddock) -> None:
    paddock("create-tenant", "acme")

    def tenant_models() -> object:
        [tenant] = paddock.json("list-tenants")
        return "all" if tenant["allow_all_models"] else tenant["models"]

    for words, models in (
        (("allow-model", "acme", "phi4", "mistral"), ["mistral:latest", "phi4:latest"]),
        (("allow-model", "--tenant", "acme", "--model", "qwen3"), ["mistral:latest", "phi4:latest", "qwen3:latest"]),
        (("deny-model", "acme", "PHI4:latest", "absent"), ["mistral:latest", "qwen3:latest"]),
        (("allow-model", "acme", "--all"), "all"),
        (("deny-model", "acme", "--all"), []),
    ):
        paddock(*words)
        assert tenant_models() == models
    paddock("allow-model", "acme", "--all")
    assert "deny-model acme --all" in paddock("deny-model", "acme", "phi4", status=1)


def test_a_keys_own_list(paddock: Paddock) -> None:
    paddock("create-tenant", "acme", "--model", "phi4", "--model", "mistral")
    prefix = paddock.json("create-key", "acme")["prefix"]
    for words, models, notes in (
        # A key without a list would be narrowed by "allow", were it given one.
        (("allow-model", "--key", prefix, "qwen3"), None, 2),
        (("deny-model", "--key", prefix, "phi4"), ["mistral:latest", "qwen3:latest"], 1),
        (("deny-model", prefix, "qwen3"), ["mistral:latest"], 0),
        (("allow-model", "--key", prefix, "--model", "gemma3"), ["gemma3:latest", "mistral:latest"], 1),
        (("deny-model", "--key", prefix, "--all"), [], 0),
        (("allow-model", "--key", prefix, "--all"), None, 1),
    ):
        changed = paddock.json(*words)
        assert changed["models"] == models
        assert len(changed["notes"]) == notes, changed["notes"]
        assert paddock.json("list-keys")[0]["models"] == models


def test_limits_are_set_kept_and_removed(paddock: Paddock) -> None:
    paddock("create-tenant", "acme", "--rpm", "1", "--tpm", "2")
    prefix = paddock.json("create-key", "acme")["prefix"]
    changed = paddock.json("set-limits", "acme", "--rpm", "none", "--budget-month", "5", "--max-tokens", "9")
    assert (changed["limits"]["rpm"], changed["limits"]["tpm"], changed["limits"]["budget_month"]) == (None, 2, 5)
    assert changed["max_tokens"] == 9
    for words in (("--key", prefix), (prefix,)):
        assert paddock.json("set-limits", *words, "--concurrency", "3")["limits"]["concurrency"] == 3
    assert paddock.json("set-limits", "--tenant", "acme", "--max-tokens", "NONE")["max_tokens"] is None
    stored = paddock.stored(prefix)
    assert (stored.limits.concurrency, stored.tenant.limits.tpm) == (3, 2)


def test_a_command_may_be_the_first_to_see_a_database(
    postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql.new_database()
    monkeypatch.setenv("PADDOCK_DATABASE_URL", url)
    monkeypatch.delenv("PADDOCK_DATA_DIR", raising=False)
    assert Paddock(url, capsys).json("create-tenant", "acme")["id"] == 1


def test_without_a_database_it_says_so_without_a_password(paddock: Paddock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_DATABASE_URL", "postgresql://paddock:hunter2@127.0.0.1:1/paddock")
    said = paddock("list-keys", status=1)
    assert "PostgreSQL does not answer" in said
    assert "hunter2" not in said


def test_help_needs_neither_database_nor_cryptography() -> None:
    program = (
        "import sys\nfrom gateway import cli\n"
        "try: cli.main(['create-key', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'asyncpg', 'argon2', 'asyncio'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
