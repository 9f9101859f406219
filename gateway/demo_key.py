"""The demo's tenant, its key, and leave for the example page to open sessions.

A key can be shown only when it is made, so each start of the demo makes one and revokes those of the starts before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

from gateway.failure import Failure
from policy.admission.admin import Admin, Refusal
from policy.admission.session_admin import SessionAdmin, Terms
from policy.rules.faults import DatabaseDown
from policy.rules.tenants import Key, Tenant
from policy.stores.migrate import upgrade
from policy.stores.postgres import PATIENT_SECONDS, Postgres
from policy.stores.registry import Registries
from policy.stores.sessions_postgres import SessionRegistries

TENANT = "demo"
LABEL = "demo"


async def fresh_key(database_url: str, url: str) -> str:
    """A new key of the tenant `demo`, which may use every model; pages at `url`, and they alone, may open sessions of
    it. The only copy of the key. Failure if it cannot be made."""
    try:
        key = await _fresh_key(database_url)
        await _open_page(database_url, url)
        return key
    except (DatabaseDown, Refusal) as error:
        raise Failure(f"the demo's key cannot be made: {error}") from error


async def _fresh_key(database_url: str) -> str:
    await upgrade(database_url)  # policy does the same in its own time; whoever comes second finds it done
    async with Postgres.open(database_url, connections=1, patience=PATIENT_SECONDS) as postgres:
        admin = Admin(Registries(postgres).open)
        if all(tenant.name != TENANT for tenant, _ in await admin.list_tenants()):
            await admin.create_tenant(Tenant(id=0, name=TENANT, allow_all_models=True))
        now = datetime.now(UTC)
        for key in await admin.list_keys(TENANT):
            if key.label == LABEL and key.usable_at(now):
                await admin.revoke_key(key.prefix, now)
        minted = await admin.create_key(TENANT, Key(id=0, prefix="", hash="", tenant=_ANY, label=LABEL))
        return minted.secret.reveal()


async def _open_page(database_url: str, url: str) -> None:
    port = urlsplit(url).port
    here = (url, *((f"http://localhost:{port}",) if urlsplit(url).hostname in ("127.0.0.1", "::1") else ()))
    async with Postgres.open(database_url, connections=1, patience=PATIENT_SECONDS) as postgres:
        admin = SessionAdmin(SessionRegistries(postgres).open)
        allowed = await admin.allow(TENANT, Terms(origins=here, fields={"opened_per_minute": 60}))
        assert allowed.policy is not None  # noqa: S101  # it was just made
        earlier = allowed.policy.origins - {*here}
        if earlier:  # a start before was at another port
            await admin.deny(TENANT, earlier)


_ANY = Tenant(id=0, name=TENANT)  # create_key looks the tenant up by its name
