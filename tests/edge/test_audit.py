"""Every response that carries an X-Request-ID has exactly one audit row, whoever made it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.edge.visitors import visit
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Gateway


def test_one_row_each(gateway: Gateway) -> None:
    client = gateway.client(None, "--rpm", "6")
    http = gateway.http()
    expected = {
        request_id(response): (response.status_code, reason)
        for response, reason in (
            (client.chat("one two"), ""),
            (client.http.get("/api/tags"), ""),
            (client.http.post("/api/show", json={"model": MODELS[0]}), ""),
            (client.chat("x", model="not-there"), "model_not_available"),
            (client.chat("x", stream="yes"), "bad_request"),
            (client.chat("x" * 300_000), "too_large"),
            (http.post("/api/chat", json={}), "key_missing"),
            (http.post("/api/chat", json={}, headers={"authorization": "Bearer nz_x"}), "key_malformed"),
            (http.post("/api/pull", json={}), "endpoint_blocked"),
            (http.get("/nowhere"), "endpoint_blocked"),
            (http.get("/healthz"), ""),
            (http.get("/api/version"), ""),
        )
    }
    for one, (status, reason) in expected.items():
        row = gateway.audit(one)
        assert (row["status"], row["reason"]) == (status, reason), row
        assert row["decision"] == ("denied" if reason else "allowed")
        assert row["address"] == "127.0.0.1"
        assert row["duration_us"] > 0
    rows = gateway.sql("SELECT count(*) AS n FROM audit WHERE request_id = ANY ($1)", list(expected))
    assert rows[0]["n"] == len(expected)


def test_what_the_gateway_answers_itself_lacks_nothing(gateway: Gateway, tenant: str) -> None:
    """A list for a session and a page of Envoy's own are answered, by nobody's upstream: that is no outcome."""
    visitor = visit(gateway, tenant)
    answers = [
        visitor.http.get("/openai/models", headers={"authorization": f"Bearer {visitor.token}"}),
        visitor.http.post("/session", json={"fingerprint": "another"}),
        gateway.http().get("/healthz"),
    ]
    for answer in answers:
        row = gateway.audit(request_id(answer))
        assert (answer.status_code, row["decision"], row["outcome"]) == (200, "allowed", ""), row["endpoint"]


def test_nothing_secret_is_written(gateway: Gateway) -> None:
    """Neither in the rows, nor in any log, nor in the store: not a key, not a word of a prompt or an answer."""
    word, secret = "zanzibar", "nz_secretsecretsecretsecretsecretsecretsecre"
    client = gateway.client()
    answers = [
        client.chat(f"say {word}"),
        client.chat(f"say {word}", stream=True),
        client.chat(f"say {word}", model=word),
        client.http.post("/api/chat", content=f'{{"model":"{word}'.encode()),
        client.http.post(f"/api/chat?{word}", json={}),
        gateway.http().get("/api/tags", headers={"authorization": f"Bearer {secret}", "cookie": word}),
    ]
    for answer in answers:
        gateway.audit(request_id(answer))
    rows = gateway.sql(
        "SELECT a::text AS text FROM audit a WHERE request_id = ANY ($1)", [request_id(a) for a in answers]
    )
    eventually(lambda: request_id(answers[-1]) in access_log(gateway))
    logs = written(gateway)
    store = gateway.redis()
    kept = b"".join(store.dump(name) or b"" for name in store.keys("pd:*"))
    store.close()
    metrics = gateway.http().get("/metrics").text
    named = [row for row in rows if word in row["text"]]
    assert len(named) <= 1, "a model that does not exist may be named by the caller, and nothing else"
    for place in (logs, kept.decode("latin-1"), metrics):
        assert client.key[12:] not in place
        assert secret not in place
    assert f"say {word}" not in logs + kept.decode("latin-1") + metrics


def access_log(gateway: Gateway) -> str:
    return (gateway.data_dir / "logs" / "access.log").read_text()


def written(gateway: Gateway) -> str:
    """All logs of the instance."""
    return "".join(path.read_text(errors="replace") for path in (gateway.data_dir / "logs").iterdir())


def test_a_key_in_a_path_is_cut_to_its_prefix(gateway: Gateway) -> None:
    client = gateway.client()
    row = gateway.audit(request_id(client.http.get(f"/v1/{client.key}")))
    assert client.prefix in row["endpoint"]
    assert client.key[12:] not in row["endpoint"]


def test_a_key_where_a_model_belongs_is_cut_to_its_prefix(gateway: Gateway) -> None:
    client = gateway.client()
    answers = [
        client.http.get(f"/v1/models/{client.key}"),
        client.chat("x", model=client.key),
        client.http.post("/api/show", json={"model": client.key}),
    ]
    for answer in answers:
        row = gateway.audit(request_id(answer))
        assert row["reason"] == "model_not_available"
        assert row["model"] == f"{client.prefix.lower()}…:latest", "names are compared in lower case"
    eventually(lambda: all(request_id(answer) in access_log(gateway) for answer in answers))
    assert client.key[12:] not in written(gateway)
    assert client.key[12:].lower() not in written(gateway).lower()


HOSTILE = (
    b"/caf\xc3\xa9",
    b"/\xff\xfe\x80",
    b"/%00%ff%c0%80",
    b"/a\x01b",
    b"/a\x00b",
    b"/" + b"x" * 3000,
    b"/api/chat?" + b"\xf0\x9f" * 20,
    b"http://other/\xed\xa0\x80",
    b"/\xe2\x80\xae'; DROP TABLE audit; --",
)


def test_no_path_keeps_its_neighbours_out_of_the_log(gateway: Gateway) -> None:
    """Envoy logs requests in batches: one that could not be read must not take the others with it."""
    url = urlsplit(gateway.url)
    expected = []
    for target in HOSTILE:
        with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
            connection.sendall(
                b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nuser-agent: \xff\r\nconnection: close\r\n\r\n"
            )
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        found = re.search(rb"x-request-id: ([0-9a-f-]{36})", answer)
        assert found, answer
        expected += [found[1].decode(), request_id(gateway.http().get("/healthz"))]
    for one in expected:
        row = gateway.audit(one)
        assert row["status"] in (200, 400, 403)
        assert "\0" not in row["endpoint"]
    assert gateway.sql("SELECT * FROM ledger_quarantine") == []
