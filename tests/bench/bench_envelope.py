"""Envelopes per second on one core, against the bare RSA-4096 private operation of the same library in the same run.

    python -m tests.bench.bench_envelope [--seconds 5] [--plaintext 2000] [--client-bits 4096] [--goal 0.8]
    python -m tests.bench.bench_envelope --beside 20      # what plain requests notice of 20 envelopes a second

One envelope is everything that the pure core does for a request: the client's key from its header, opening, answering
metadata, sealing. One of each is measured in turn, so that a busy machine disturbs both alike, in CPU time of one
thread. Judged is the best tenth, which other processes disturbed least (they cost caches, and Python more than RSA);
the median is printed beside it. Exits 1 below the goal.

`--beside` starts a whole gateway and times plain chats, one after the other, in turns with and without envelopes that
arrive at that rate whatever becomes of those before, from a process of its own that gives way. Figures are medians over
the turns, and the ratio is of one run. Client and upstream take of the same cores what they take: so on a small machine
plain chats notice more than those of a gateway that has its cores for itself.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from processor.client_key import parse_client_key
from processor.envelope import OAEP, Opened, open_package, seal
from processor.envelope_metadata import add_metadata, response_metadata
from processor.envelope_refusal import Refusal
from processor.memory import Protection
from processor.server_keys import generate_key
from tests import harness
from tests.bench.load import percentile
from tests.sealing import Sender, chat, server_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event

    from tests.harness import Client

TURNS = 5  # of either kind
PROTECTION = Protection("linux", memory_locking=True, secure_zeroing=True, core_dump_prevention=True)


def package(plaintext: bytes, public: rsa.RSAPublicKey) -> bytes:
    secret, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(secret).encrypt(nonce, plaintext, None)
    text = {name: base64.b64encode(value).decode() for name, value in {
        "ciphertext": sealed[:-16], "nonce": nonce, "tag": sealed[-16:], "key": public.encrypt(secret, OAEP),
    }.items()}  # fmt: skip  # one table
    key = text.pop("key")
    return json.dumps(
        {"version": "1.0", "algorithm": "hybrid-aes256-rsa4096", "encrypted_payload": text, "encrypted_aes_key": key}
    ).encode()


def seconds(operation: Callable[[], object]) -> float:
    begun = time.thread_time()
    operation()
    return time.thread_time() - begun


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--plaintext", type=int, default=2000, help="bytes of request and of answer")
    options.add_argument("--client-bits", type=int, default=4096)
    options.add_argument("--goal", type=float, default=0.8)
    options.add_argument("--beside", type=float, metavar="RATE", help="envelopes a second beside plain chats")
    given = options.parse_args()
    return ratio_of_costs(given) if given.beside is None else beside(given.beside, given.seconds)


def beside(rate: float, length: float) -> int:
    """Latencies of plain chats alone, and while `rate` envelopes a second arrive; turns of `length` seconds."""
    alone: list[list[float]] = []
    together: list[list[float]] = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory, harness.running(Path(directory) / "data") as gateway:
        client, sender = gateway.client(), gateway.client()
        server = server_key(gateway).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        going, over, answers = spawn.Event(), spawn.Event(), spawn.Queue()
        process = spawn.Process(target=envelopes, args=(gateway.url, sender.key, server, rate, going, over, answers))
        process.start()
        answers.get()  # it is ready
        for _ in range(TURNS):
            alone.append(chats(client, length))
            going.set()
            together.append(chats(client, length))
            going.clear()
        over.set()
        statuses = answers.get()
        process.join()
    assert set(statuses) == {200}, "an envelope was refused"
    print(f"{len(statuses)} envelopes, {len(statuses) / (len(together) * length):.1f} a second")
    for name, share in (("median", 0.5), ("99th percentile", 0.99)):
        without, among = (median(percentile(turn, share) for turn in turns) for turns in (alone, together))
        told = f"plain alone {without * 1e3:6.2f} ms   beside envelopes {among * 1e3:6.2f} ms"
        print(f"{name:16} {told}   ratio {among / without:.2f}")
    return 0


def envelopes(url: str, key: str, server: bytes, rate: float, going: Event, over: Event, answers: Queue[Any]) -> None:
    """While `going` is set, send envelopes; at last tell what became of them."""
    os.nice(10)
    public = load_pem_public_key(server)
    assert isinstance(public, rsa.RSAPublicKey)
    http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    sender = Sender(harness.Client(key, key[:12], "", http), public, private)
    answers.put("ready")
    under_way: list[Future[int]] = []
    with ThreadPoolExecutor(16) as pool:
        while not over.is_set():
            if not going.wait(0.1):
                continue
            due = time.monotonic()
            while going.is_set():
                under_way.append(pool.submit(lambda: sender.send(chat("hi")).status_code))
                due += 1 / rate
                time.sleep(max(0.0, due - time.monotonic()))
    answers.put([work.result() for work in under_way])


def chats(client: Client, length: float) -> list[float]:
    found = []
    end = time.monotonic() + length
    while time.monotonic() < end:
        begun = time.perf_counter()
        assert client.chat("hi").status_code == 200
        found.append(time.perf_counter() - begun)
    return found


@dataclass
class Costs:
    """CPU seconds of one thread, one for each time."""

    bare: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def costs(length: float, *, plaintext: int, client_bits: int) -> Costs:
    """The bare operation and whole envelopes in turn, for so many seconds."""
    server = generate_key()
    client = rsa.generate_private_key(public_exponent=65537, key_size=client_bits)
    header = quote(client.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
    content = json.dumps({"content": "x" * plaintext}).encode()
    sent = package(content, server.public_key())
    wrapped = server.public_key().encrypt(os.urandom(32), OAEP)

    def envelope() -> None:
        key = parse_client_key(header)
        opened = open_package(sent, [server], random=os.urandom)
        assert not isinstance(key, Refusal)
        assert isinstance(opened, Opened)
        with opened:
            metadata = response_metadata(payload_id="p", processed_at=0, security_tier="high", protection=PROTECTION)
            seal(add_metadata(content, metadata), key, random=os.urandom, processed_at=0)

    found = Costs()
    end = time.monotonic() + length
    while time.monotonic() < end or len(found.whole) < 10:
        found.bare.append(seconds(lambda: server.decrypt(wrapped, OAEP)))
        found.whole.append(seconds(envelope))
    return found


def ratio_of_costs(given: argparse.Namespace) -> int:
    found = costs(given.seconds, plaintext=given.plaintext, client_bits=given.client_bits)
    ratio = 0.0
    for name, share in (("median", 2), ("best tenth", 10)):
        floor, cost = (sorted(one)[len(one) // share] for one in (found.bare, found.whole))
        ratio = floor / cost
        print(f"{name:10}  bare RSA-4096 {1 / floor:5.0f}/s {floor * 1e6:6.0f} us", end="   ")
        print(f"whole envelope {1 / cost:5.0f}/s {cost * 1e6:6.0f} us   ratio {ratio:.1%}")
    print(f"goal {given.goal:.0%}: {'met' if ratio >= given.goal else 'missed'}")
    return 0 if ratio >= given.goal else 1


if __name__ == "__main__":
    raise SystemExit(main())
