"""Envelopes per second through the front door, beside the one operation that none can do without: RSA-4096 with the
server's private key, on the same core in the same run. What the pure code costs apart is `bench_envelope`."""

from __future__ import annotations

import itertools
import os
import statistics
import time
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import rsa

from processor.envelope import OAEP
from processor.server_keys import generate_key
from tests import sealing
from tests.bench import bench_envelope, load, subjects
from tests.bench.load import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.subjects import Subject
    from tests.harness import Gateway

CONNECTIONS = 8


def measure(gateway: Gateway, subject: Subject, seconds: float, rounds: int) -> dict[str, float]:
    """Medians over rounds; in each the bare operation and the front door take turns."""
    messages = sealed(subject.key, sealing.server_key(gateway))
    own = generate_key()
    load.run(subject.url, messages, connections=2, seconds=0.3)
    found = []
    for _ in range(rounds):
        bare = bare_operations(own, seconds / 2)
        before = subject.cpu()
        result = load.run(subject.url, messages, connections=CONNECTIONS, seconds=seconds)
        found.append(
            {
                "bare_rsa4096_per_second": bare,
                "per_second": result.answers / result.seconds,
                "ratio": result.answers / result.seconds / bare,
                "cpu_us": (subject.cpu() - before) / max(result.answers, 1) * 1e6,
                "p50_ms": percentile(result.latencies, 0.5) * 1e3,
                "p99_ms": percentile(result.latencies, 0.99) * 1e3,
                "errors": result.errors,
            }
        )
    core = bench_envelope.costs(seconds / 2, plaintext=2000, client_bits=4096)
    return {
        **{name: statistics.median(row[name] for row in found) for name in found[0]},
        "errors": sum(row["errors"] for row in found),
        "pure_code_per_second": 1 / statistics.median(core.whole),
        "pure_code_ratio": statistics.median(core.bare) / statistics.median(core.whole),
    }


def sealed(key: str, server: rsa.RSAPublicKey) -> Iterator[bytes]:
    """Requests without end, no two alike: each envelope is taken once."""
    client = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    public = quote(sealing.public_pem(client))
    for _ in itertools.count():
        package = sealing.seal(sealing.chat("Say hello in one short sentence", max_tokens=64), server).bytes_
        yield (
            f"POST {sealing.PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/octet-stream\r\nx-payload-id: {uuid.uuid4()}\r\nx-public-key: {public}\r\n"
            f"content-length: {len(package)}\r\n\r\n"
        ).encode() + package


def bare_operations(own: rsa.RSAPrivateKey, seconds: float) -> float:
    """Private operations a second on the gateway's core, which has nothing else to do."""
    wrapped = own.public_key().encrypt(bytes(32), OAEP)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {subjects.GATEWAY_CORE})
    try:
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            own.decrypt(wrapped, OAEP)
            count += 1
        return count / (time.perf_counter() - begun)
    finally:
        os.sched_setaffinity(0, cores)
