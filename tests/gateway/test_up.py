"""`paddock up` and `paddock demo` as an operator meets them: processes, their words, their exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.harness import Gateway

PADDOCK = (sys.executable, "-P", "-m", "gateway.cli")
PATIENCE = 90.0  # seconds, for a start on a machine that does much else


@dataclass
class Session:
    """A launcher in the foreground of somebody's terminal."""

    process: subprocess.Popen[str]
    data: Path
    errors: Path
    out: str = ""

    @property
    def url(self) -> str:
        return self.found(r"^ready in .*?: (http://\S+)$")

    @property
    def key(self) -> str:
        return self.found(r"^export PADDOCK_KEY=(nz_[0-9A-Za-z]{41})$")

    def found(self, pattern: str) -> str:
        match = re.search(pattern, self.out, re.MULTILINE)
        assert match, f"{pattern} is not in:\n{self.out}\n{self.said()}"
        return match[1]

    def said(self) -> str:
        return self.errors.read_text()

    def pid_of(self, part: str) -> int:
        return next(pid for pid in left(self.data) if part in words(pid))

    def ended(self) -> int:
        """Its exit status, once every process of the instance is gone."""
        status = self.process.wait(PATIENCE)
        assert left(self.data) == set()
        return status


@contextlib.contextmanager
def started(home: Path, *args: str, settings: Mapping[str, str] | None = None) -> Iterator[Session]:
    """`paddock` with these arguments, its data below `home`; when the body runs, it has said that it is ready."""
    data, errors = home / "data", home / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [*PADDOCK, *args, "--port", "0", "--data-dir", data],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment(home, settings),
            start_new_session=True,
        ) as process,
    ):
        session = Session(process, data, errors)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                session.out += line
                if "Ctrl-C" in line:
                    break
            else:
                pytest.fail(f"it did not start:\n{session.said()}")
            yield session
        finally:
            process.kill()


def environment(home: Path, settings: Mapping[str, str] | None) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PADDOCK_", "XDG_"))}
    return {**own, "HOME": str(home), **(settings or {})}


def paddock(
    home: Path, *args: str | Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [*PADDOCK, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(home, settings),
    )


def left(data: Path) -> set[int]:
    """Processes that have to do with this data directory: by arguments, environment or working directory."""
    mark = os.fsencode(data)
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended, or it is not ours
            texts = (
                (entry / "cmdline").read_bytes(),
                (entry / "environ").read_bytes(),
                os.readlink(entry / "cwd").encode(),
            )
            if any(mark in text for text in texts):
                found.add(int(entry.name))
    return found


def words(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def chat(session: Session, key: str) -> httpx.Response:
    body = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "one two three"}]}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{session.url}/api/chat", json=body, headers=headers, timeout=PATIENCE, trust_env=False)


def page_answers(session: Session) -> str:
    """What the page whose address was printed is answered, asking as its script asks."""
    page = session.found(r"^  a web page  (http://\S+/session/) ")
    with httpx.Client(base_url=session.url, headers={"origin": session.url}, trust_env=False) as http:
        assert "<title>Paddock" in http.get(page).text
        assert http.get("/session/client.js").status_code == 200
        token = http.post("/session", json={"fingerprint": "f"}).json()["token"]
        http.headers["authorization"] = f"Bearer {token}"
        model = http.get("/openai/models").json()["data"][0]["id"]
        messages = [{"role": "user", "content": "hello from a page"}]
        body = {"model": model, "messages": messages, "fingerprint": "f"}
        answer = http.post("/openai/chat/completions", json=body, timeout=PATIENCE).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_demo_from_the_first_start_to_ctrl_c_and_again(tmp_path: Path) -> None:
    with started(tmp_path, "demo") as first:
        answer = chat(first, first.key)
        assert answer.status_code == 200
        frames = [json.loads(line) for line in answer.text.splitlines()]
        assert frames[-1]["done"] is True
        assert "".join(frame["message"]["content"] for frame in frames).endswith("one two three")
        assert f"curl -N {first.url}/api/chat" in first.out
        assert page_answers(first) == "Echo: hello from a page"

        # A command beside it finds it without being told anything.
        listed = paddock(tmp_path, "list-keys", "--json")
        assert listed.returncode == 0, listed.stderr
        assert first.key[:12] in listed.stdout and first.key not in listed.stdout

        # The same directory twice would be two masters of one database.
        second = paddock(tmp_path, "demo", "--port", "0", "--data-dir", first.data)
        assert second.returncode == 1
        assert f"is in use by another instance (process {first.process.pid})" in second.stderr
        assert chat(first, first.key).status_code == 200

        first.process.send_signal(signal.SIGINT)
        assert first.ended() == 0
        assert first.said().splitlines()[-2:] == ["stopping", "stopped; nothing is left running"]
        gone = paddock(tmp_path, "list-keys")
        assert gone.returncode == 1 and "no running instance was found" in gone.stderr

    with started(tmp_path, "demo") as again:
        assert chat(again, again.key).status_code == 200
        assert chat(again, first.key).status_code == 401, "the key of the session before is revoked"
        assert page_answers(again) == "Echo: hello from a page", "at its new address"
        tenants = json.loads(paddock(tmp_path, "list-tenants", "--json").stdout)
        assert [tenant["tenant"] for tenant in tenants] == ["demo"], "the data is used again"

        # A part that dies takes the others with it, and is named.
        os.kill(again.pid_of("-m processor"), signal.SIGKILL)
        assert again.ended() == 1
        assert "paddock: processor-0 was ended by SIGKILL" in again.said()
        assert f"Its log: {again.data}/logs/processor-0.log" in again.said()
        assert "Traceback" not in again.said()


def test_after_a_kill_of_the_launcher_nothing_is_left_and_the_next_start_recovers(tmp_path: Path) -> None:
    with started(tmp_path, "demo") as session:
        key = session.key
        session.process.kill()
        session.process.wait()
        until(lambda: left(session.data) == set())
    gone = paddock(tmp_path, "list-keys")
    assert gone.returncode == 1 and "no running instance was found" in gone.stderr
    with started(tmp_path, "demo") as session:
        assert chat(session, session.key).status_code == 200
        keys = json.loads(paddock(tmp_path, "list-keys", "--json").stdout)
        assert key[:12] in {one["prefix"] for one in keys}
        session.process.terminate()
        assert session.ended() == 0


def test_up_with_stores_of_ones_own_starts_none(tmp_path: Path, gateway: Gateway) -> None:
    stores = {
        "PADDOCK_DATABASE_URL": gateway.instance.running.database_url,
        "PADDOCK_REDIS_URL": gateway.instance.running.redis_url,
        "PADDOCK_UPSTREAMS": gateway.upstream.url,
    }
    with started(tmp_path, "up", settings=stores) as session:
        assert chat(session, gateway.client().key).status_code == 200
        assert not (session.data / "postgres").exists() and not (session.data / "valkey").exists()
        session.process.terminate()
        assert session.ended() == 0


@pytest.mark.parametrize("options", [0, socket.SO_REUSEPORT], ids=["plain", "shared as Envoy does"])
def test_a_port_that_is_taken(tmp_path: Path, options: int) -> None:
    with socket.socket() as taken:
        if options:
            taken.setsockopt(socket.SOL_SOCKET, options, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = paddock(tmp_path, "demo", "--port", str(port), "--data-dir", tmp_path / "data")
    assert result.returncode == 1
    assert f"paddock: port {port} on 127.0.0.1 is taken" in result.stderr and "--port" in result.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_an_ollama_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        result = paddock(tmp_path, "up", "--upstream", url, "--port", "0", "--data-dir", tmp_path / "data")
    assert result.returncode == 1
    assert "paddock: Ollama does not answer" in result.stderr
    assert f"  | {url} does not answer: Connection refused" in result.stderr
    assert "ollama serve" in result.stderr and "--upstream" in result.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_store_of_ones_own_that_does_not_answer_and_whose_password_stays_hidden(tmp_path: Path) -> None:
    settings = {"PADDOCK_REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0"}
    result = paddock(tmp_path, "demo", "--port", "0", "--data-dir", tmp_path / "data", settings=settings)
    assert result.returncode == 1
    assert "paddock: PADDOCK_REDIS_URL: nothing answers at 127.0.0.1:1" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_data_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = paddock(tmp_path, "demo", "--port", "0", "--data-dir", tmp_path / "file" / "data")
    assert result.returncode == 1
    assert "paddock: cannot use the data directory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "args",
    [["up", "--port", "x"], ["up", "--port", "65536"], ["demo", "--workers", "0"], ["serve"], [], ["up", "--nonsense"]],
)
def test_wrong_use_is_status_2_with_usage(tmp_path: Path, args: list[str]) -> None:
    result = paddock(tmp_path, *args)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: paddock")


def test_an_upstream_that_is_no_url(tmp_path: Path) -> None:
    result = paddock(tmp_path, "up", "--upstream", "ftp://x")
    assert (result.returncode, result.stdout) == (2, "")
    assert "ftp://x" in result.stderr
