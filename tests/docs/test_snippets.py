"""What the documentation tells its readers to run, run: page by page, block by block, against a whole gateway.

The blocks of one page are one shell session. It starts where a reader is: in the source tree, with a gateway at
127.0.0.1:8080 (another port here), `PADDOCK_KEY` exported, PostgreSQL's own programs and its URL at hand.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from gateway import embedded
from tests.docs.pages import ROOT, Block, Page, all_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway

PAGES = [page for page in all_pages() if any(block.runs for block in page.blocks)]
SHIPPED_ADDRESS = "127.0.0.1:8080"
BETWEEN = "\x1e"  # ASCII's record separator, printed after each block
SECONDS = 60


class Session:
    """A reader's shell beside a running gateway."""

    def __init__(self, gateway: Gateway, directory: Path, key: str) -> None:
        self.directory = directory
        self._address = urlsplit(gateway.url).netloc
        environment = Path(sys.prefix)
        postgresql = embedded._postgres_program("psql").parent
        self._environment = {
            "PATH": f"{environment / 'bin'}:{postgresql}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "PADDOCK_DATA_DIR": str(gateway.data_dir),
            "DATABASE_URL": gateway.instance.running.database_url,
            "PADDOCK_KEY": key,
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        }
        for entry in ROOT.iterdir():  # a source tree into which a page may write
            if entry.name not in (".git", ".paddock", ".venv"):
                (directory / entry.name).symlink_to(entry)
        (directory / ".venv").symlink_to(environment)

    def run(self, page: Page) -> Iterator[tuple[Block, str]]:
        """Each block that runs, and what it printed. AssertionError where one fails."""
        blocks = [block for block in page.blocks if block.runs]
        script = "exec 2>&1\nset -euo pipefail\n" + "".join(self._step(block) for block in blocks)
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.directory, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, timeout=SECONDS, check=False,
        )  # fmt: skip
        outputs = done.stdout.decode("utf-8", "replace").split(BETWEEN)
        if done.returncode != 0:
            block = blocks[len(outputs) - 1]
            pytest.fail(f"{page.name}:{block.line} ended with status {done.returncode}:\n{outputs[-1]}")
        yield from zip(blocks, outputs, strict=False)

    def here(self, text: str) -> str:
        return text.replace(SHIPPED_ADDRESS, self._address)

    def _step(self, block: Block) -> str:
        text = self.here(block.text)
        body = {
            "bash": text,
            "python": f"python - <<'END_OF_BLOCK'\n{text}\nEND_OF_BLOCK",
            "sql": f"psql -X -v ON_ERROR_STOP=1 \"$DATABASE_URL\" <<'END_OF_BLOCK'\n{text}\nEND_OF_BLOCK",
        }[block.language]
        return f"{body}\nprintf '\\036'\n"


@pytest.fixture
def session(gateway: Gateway, tmp_path: Path) -> Iterator[Session]:
    """A shell. The tenants that its page makes are gone afterwards, so that every page may call its own `acme`; and it
    finds one server key, whatever was rotated before."""
    if len(gateway.paddock("server-key")) > 1:
        gateway.paddock("rotate-server-key", "--grace", "0")
    (newest,) = gateway.sql("SELECT coalesce(max(id), 0) AS id FROM tenant")
    gateway.paddock("create-tenant", "demo", "--allow-all-models")
    key = gateway.paddock("create-key", "demo")["key"]
    yield Session(gateway, tmp_path, key)
    gateway.sql("UPDATE api_key SET successor_id = NULL WHERE tenant_id > $1", newest["id"])
    gateway.sql("DELETE FROM api_key WHERE tenant_id > $1", newest["id"])
    gateway.sql("DELETE FROM tenant WHERE id > $1", newest["id"])


def expected(text: str) -> re.Pattern[str]:
    """The pattern that an output block is: `…` is anything within a line, or, alone on a line, any lines."""
    pattern = ""
    for line in text.rstrip().split("\n"):
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*?".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"
    return re.compile(pattern)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_works(page: Page, session: Session) -> None:
    printed = dict(session.run(page))
    for before, block in itertools.pairwise(page.blocks):
        if block.is_output:
            assert before in printed, f"{page.name}:{block.line}: an output block follows the block that printed it"
            found = re.sub(r"[ \t]+\n", "\n", printed[before]).strip("\n") + "\n"
            assert expected(session.here(block.text)).fullmatch(found), (
                f"{page.name}:{block.line} says:\n{block.text}\n\nprinted was:\n{found}"
            )


def test_an_output_block_is_compared() -> None:
    assert expected("status …\n…\nend").fullmatch("status 200\na\nb\nend\n")
    assert not expected("status …\nend").fullmatch("status 200\na\nend\n")
    assert not expected("one …").fullmatch("two 1\n")
