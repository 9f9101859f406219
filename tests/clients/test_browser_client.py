"""The session client by itself, in a real browser: against a server that does what the test says."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.clients.sites import CHAT, Site, allow, client

if TYPE_CHECKING:
    from tests.clients.chromium import Page
    from tests.harness import Gateway

CORS = {"content-type": "application/json"}
OPENED = (200, CORS, json.dumps({"token": "a.b.c", "sessionId": "ns_x", "expiresAt": (int(time.time()) + 1800) * 1000}))


def scripted(gateway: Gateway, site: Site, **options: Any) -> str:
    quick = {"abusePreventionOptions": {"retryDelay": 20, "requireUserInteraction": False}}
    return client(gateway, **(quick | {"proxyUrl": site.origin} | options))


def test_what_may_come_right_is_tried_again(gateway: Gateway, page: Page, site: Site) -> None:
    allow(gateway, gateway.url)  # the module is served where there are sessions
    page.goto(f"{site.origin}/")

    def error(status: int, kind: str, **headers: str) -> tuple[int, dict[str, str], str]:
        body = {"error": {"message": "no", "type": kind, "code": status}, "request_id": "r"}
        return status, {**CORS, **headers}, json.dumps(body)

    good = (200, CORS, '{"ok":true}')
    for answers, status, left in (
        ([error(503, "unavailable"), error(502, "bad_gateway"), good], 200, 0),
        ([error(429, "rate_limited", **{"retry-after": "0"}), good], 200, 0),
        ([error(503, "unavailable")] * 4 + [good], 503, 1),  # three retries
        ([error(429, "budget_exceeded", **{"retry-after": "1"}), good], 429, 1),
        ([error(429, "rate_limited", **{"retry-after": "3600"}), good], 429, 1),
        ([error(403, "forbidden"), good], 403, 1),
        ([error(400, "bad_request"), good], 400, 1),
        ([error(401, "unauthorized"), OPENED, good], 200, 0),
        ([error(401, "unauthorized"), OPENED, error(401, "unauthorized"), good], 401, 1),  # once, not for ever
    ):
        site.answers, site.asked = [OPENED, *answers], []
        script = (
            scripted(gateway, site, sessionOptions={"persist": False})
            + """
            const response = await chat("x");
            return [response.status, await response.json()];
        """
        )
        found = page.run(script)
        assert found[0] == status, answers
        assert found[1], "the body is still there to be read"
        assert len(site.answers) == left


def test_the_documented_interface(gateway: Gateway, page: Page, site: Site) -> None:
    """reference/perishable-client-api: options, methods, errors, and what goes over the wire."""
    allow(gateway, gateway.url)
    page.goto(f"{site.origin}/")
    site.answers = [OPENED, (200, CORS, "{}")]
    options = {
        "abusePreventionOptions": {"maxRetries": 3, "retryDelay": 10, "requestTimeout": 30000,
                                   "requireUserInteraction": True},
        "sessionOptions": {"expiryBuffer": 300000, "enableRequestSigning": True},
    }  # fmt: skip
    found = page.run(
        scripted(gateway, site, **options)
        + """
        const thrown = async (work) => { try { await work(); return ""; } catch (error) { return error.name; } };
        const token = await client.createSession();
        const response = await chat("hi");
        const direct = new PerishableClient({ proxyUrl: client.constructor ? location.origin : "", apiKey: "sk-x" });
        return {
          token, response: response instanceof Response,
          direct: await thrown(() => direct.makeRequest("/openai/models")),
          nothing: await thrown(async () => new PerishableClient({})),
          elsewhere: await thrown(() => client.makeRequest("https://evil.example/openai/models")),
          session: Object.keys(client.session).sort(),
        };
        """
    )
    assert found == {
        "token": "a.b.c",
        "response": True,
        "direct": "Error",
        "nothing": "TypeError",
        "elsewhere": "TypeError",
        "session": ["expiresAt", "fingerprint", "sessionId"],
    }
    (opened, first), (asked, second) = site.asked
    assert (opened, asked) == ("/session", CHAT)
    opening, body = json.loads(first), json.loads(second)
    assert set(opening) == {"fingerprint", "entropyData"}
    assert body["fingerprint"] == opening["fingerprint"]
    assert body["messages"] == [{"role": "user", "content": "hi"}]


def test_a_body_is_json_in_whatever_form_fetch_takes_it(gateway: Gateway, page: Page, site: Site) -> None:
    """And what is none is said at once: it would be wrong a second time too."""
    allow(gateway, gateway.url)
    page.goto(f"{site.origin}/")
    site.answers = [OPENED] + [(200, CORS, "{}")] * 5
    found = page.run(
        scripted(gateway, site)
        + f"""
        const text = '{{"n":1}}';
        const bodies = [text, {{ n: 1 }}, new TextEncoder().encode(text), new Blob([text]), new Response(text).body];
        for (const body of bodies) await client.makeRequest("{CHAT}", {{ method: "POST", body }});
        const wrong = [];
        for (const body of ["no JSON", "[1]", "7", "null", [1], new URLSearchParams("a=b")]) {{
          try {{
            await client.makeRequest("{CHAT}", {{ method: "POST", body }});
          }} catch (error) {{
            wrong.push(error.name);
          }}
        }}
        return wrong;
        """
    )
    assert found == ["SyntaxError", "TypeError", "TypeError", "TypeError", "TypeError", "SyntaxError"]
    assert [json.loads(body)["n"] for path, body in site.asked if path == CHAT] == [1] * 5


def test_events_are_read_however_they_are_cut(gateway: Gateway, page: Page, site: Site) -> None:
    """WHATWG's event stream, in every two pieces, with all three line ends, and in single bytes."""
    allow(gateway, gateway.url)
    page.goto(f"{site.origin}/")
    text = (
        ': hello\r\ndata: {"a":"é😀"}\r\n\r\nid: 7\nevent: x\ndata:one\ndata: two\n\n'
        "nothing\rdata\r\rdata: [DONE]\n\ndata: late\n\n"
    )
    found = page.run(
        client(gateway)
        + f"""
        const bytes = new TextEncoder().encode({json.dumps(text)});
        const read = async (cuts) => {{
          const body = new ReadableStream({{ start(controller) {{
            let at = 0;
            for (const cut of [...cuts, bytes.length]) {{ controller.enqueue(bytes.slice(at, cut)); at = cut; }}
            controller.close();
          }} }});
          const found = [];
          const reader = events(new Response(body)).getReader();
          for (let next = await reader.read(); !next.done; next = await reader.read()) found.push(next.value);
          return JSON.stringify(found);
        }};
        const seen = new Set();
        for (let cut = 0; cut <= bytes.length; cut += 1) seen.add(await read([cut]));
        seen.add(await read([...bytes.keys()]));
        return [...seen].map((one) => JSON.parse(one));
        """
    )
    assert found == [
        [
            {"event": "message", "data": '{"a":"é😀"}', "id": ""},
            {"event": "x", "data": "one\ntwo", "id": "7"},
            {"event": "message", "data": "", "id": "7"},
        ]
    ]


def test_the_types_name_what_the_client_has() -> None:
    """client.d.ts and client.js side by side: every public name of one is in the other."""
    pages = Path(__file__).parents[2] / "policy" / "pages"
    types, code = (pages / "client.d.ts").read_text(), (pages / "client.js").read_text()
    exported = set(re.findall(r"^export (?:class|function) (\w+)", code, re.MULTILINE))
    assert exported == set(re.findall(r"^export (?:class|function) (\w+)", types, re.MULTILINE))
    client = code[code.index("export class PerishableClient") : code.index("\n}\n", code.index("#watchTheUser() {"))]
    methods = set(re.findall(r"^  (?:async |get )?([a-z]\w*)\(", client, re.MULTILINE)) - {"constructor"}
    declared = types[types.index("export class PerishableClient") :]
    assert methods == set(re.findall(r"^  (?:readonly )?([a-z]\w*)[(:]", declared, re.MULTILINE)) - {"constructor"}
    defaults = code[code.index("const DEFAULTS") : code.index("};\n")]
    for option in re.findall(r"(\w+): (?:[\d\s*]+|true)", defaults):
        assert f"{option}?:" in types
