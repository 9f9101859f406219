"""What `docs/how-to/backup-and-restore.md` promises: a base backup of PostgreSQL alone brings back keys and budgets."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from gateway import embedded
from tests import harness

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.harness import Gateway


def test_a_base_backup_starts_with_keys_and_budgets_as_they_were(gateway: Gateway, tmp_path: Path) -> None:
    client = gateway.client(None, tenant_options=("--allow-all-models", "--budget-day", "1000"))
    used = sum(sum(tokens(client.chat("one two three"))) for _ in range(2))
    row = gateway.audit(client.chat("four").headers["x-request-id"])
    used += row["prompt_tokens"] + row["completion_tokens"]

    restored = tmp_path / "restored"
    restored.mkdir(mode=0o700)
    program = embedded._postgres_program("pg_basebackup")
    url = gateway.instance.running.database_url
    subprocess.run([program, f"--dbname={url}", f"--pgdata={restored / 'postgres'}", "--checkpoint=fast"], check=True)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "nobody", restored / "postgres"], check=True)

    with harness.running(restored) as again:
        assert not (restored / "postgres.unfinished").exists()
        answer = again.http(client.key).post(
            "/api/chat",
            json={"model": "llama3.1:8b", "messages": [{"role": "user", "content": "five"}], "stream": False},
        )
        assert answer.status_code == 200
        assert answer.headers["x-budget-tokens-remaining"] == str(1000 - used)
        report = again.paddock("usage", "--tenant", client.tenant)
        assert report["total"]["total_tokens"] in (used, used + sum(tokens(answer)))


def tokens(answer: httpx.Response) -> tuple[int, int]:
    said = answer.json()
    return said["prompt_eval_count"], said["eval_count"]
