"""The session client and its page in a real browser: headless Chromium against the front door.

Scripts run in pages of real origins: the gateway's own, and those of two little servers beside it, of which an operator
allowed one. So it is the browser that sends origins and preflights, and that keeps answers from pages they are not for.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.clients import chromium
from tests.harness import MODELS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.chromium import Browser, Page
    from tests.harness import Gateway

CHAT = "/openai/chat/completions"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable, why = chromium.executable()
    if not executable:
        pytest.skip(f"NOTHING WAS TRIED IN A BROWSER: {why}")
    with chromium.running(executable) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.page() as page:
        yield page


class Site:
    """A web server of another origin than the gateway's. Every path is an empty page, or what `answers` says."""

    def __init__(self) -> None:
        site = self
        self.answers: list[tuple[int, dict[str, str], str]] = []  # for requests other than GET, one after the other
        self.asked: list[tuple[str, str]] = []
        self.pages: dict[str, str] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                text = site.pages.get(self.path, "<!doctype html><title>site</title>")
                self._say(200, {"content-type": "text/html"}, text)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                site.asked.append((self.path, body.decode()))
                self._say(*site.answers.pop(0))

            def _say(self, status: int, headers: dict[str, str], text: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def foreign() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def allow(gateway: Gateway, origin: str, *options: str) -> str:
    """A new tenant that allows `origin`, alone: what other tests allowed for it is taken back."""
    for policy in gateway.paddock("list-sessions")["policies"]:
        if origin in policy["origins"]:
            gateway.paddock("deny-sessions", policy["tenant"])
    tenant = gateway.tenant()
    gateway.paddock("allow-sessions", tenant, "--origin", origin, "--opened-per-minute", "1000", *options)

    def opened() -> bool:
        response = httpx.post(f"{gateway.url}/session", json={"fingerprint": "probe"}, headers={"origin": origin})
        return response.status_code == 200

    eventually(opened)
    return tenant


def client(gateway: Gateway, **options: Any) -> str:
    """Script: a client in `client`, and whatever the module has."""
    told = json.dumps({"proxyUrl": gateway.url, **options})
    return f"""
        const {{ PerishableClient, PerishableError, events }} = await import("{gateway.url}/session/client.js");
        const client = new PerishableClient({told});
        const chat = (text, more = {{}}) => client.makeRequest("{CHAT}", {{
          method: "POST",
          body: JSON.stringify({{ model: "{MODELS[0]}", messages: [{{ role: "user", content: text }}], ...more }}),
        }});
    """


# The page.


def test_the_page_chats_without_a_key(gateway: Gateway, page: Page) -> None:
    allow(gateway, gateway.url)
    page.goto(f"{gateway.url}/session/")
    page.until("!document.getElementById('send').disabled")
    page.run("""
        window.steps = [];
        new MutationObserver(() => steps.push(document.querySelector(".theirs .words")?.textContent ?? ""))
          .observe(document.getElementById("chat"), { subtree: true, childList: true, characterData: true });
        document.getElementById("text").value = "one two three four !delay=60";
        document.getElementById("form").requestSubmit();
    """)
    page.until("document.querySelector('.theirs .note')")
    assert page.run("return document.querySelector('.theirs .words').textContent") == "Echo: one two three four"
    steps = page.run("return [...new Set(steps)].filter(Boolean)")
    assert len(steps) >= 3, "it came word by word"
    assert "5 tokens" in page.run("return document.querySelector('.note').textContent")
    assert page.run("return document.getElementById('tokens').textContent") == "99,990", "what the answer used is off"
    sent = json.dumps(page.requests())
    assert "nz_" not in sent
    assert page.complaints() == []


def test_the_page_keeps_its_session_over_a_reload(gateway: Gateway, page: Page) -> None:
    allow(gateway, gateway.url)
    sessions = []
    for _ in range(3):
        page.goto(f"{gateway.url}/session/")
        page.until("!document.getElementById('send').disabled")
        sessions.append(page.run("return document.getElementById('session').title"))
        page.goto("about:blank")
    assert len(set(sessions)) == 1
    assert sessions[0].startswith("ns_")


def test_the_page_stops_an_answer(gateway: Gateway, page: Page) -> None:
    allow(gateway, gateway.url)
    page.goto(f"{gateway.url}/session/")
    page.until("!document.getElementById('send').disabled")
    mark = f"mark-{time.monotonic_ns()}"
    page.run(f"""
        document.getElementById("text").value = "{mark} !tokens=2000 !delay=20";
        document.getElementById("form").requestSubmit();
    """)
    page.until("document.querySelector('.theirs .words').textContent.length > 5")
    page.run("document.getElementById('send').click()")
    page.until("document.querySelector('.theirs .note')?.textContent === 'stopped'")
    ended = eventually(lambda: [one for one in gateway.upstream.served() if one["outcome"] == "aborted"])
    assert ended[-1]["completion_tokens"] < 1000


def test_the_page_says_that_its_budget_is_used_up(gateway: Gateway, page: Page) -> None:
    allow(gateway, gateway.url, "--budget-total", "90")
    page.goto(f"{gateway.url}/session/")
    page.until("!document.getElementById('send').disabled")
    said = ""
    for number in range(12):
        page.run("""
            document.getElementById("text").value = "one two three four five six seven";
            document.getElementById("form").requestSubmit();
        """)
        page.until(
            f"!document.body.classList.contains('busy') && document.querySelectorAll('.theirs').length > {number}"
        )
        said = page.run("return [...document.querySelectorAll('.theirs .words')].at(-1).textContent")
        if "used up" in said:
            break
    assert said == "This session has used up what it may spend."


def test_the_page_runs_nothing_but_its_own(gateway: Gateway, page: Page, foreign: Site) -> None:
    """An answer that is HTML stays text; an inline script is refused; no other page shows this one in a frame."""
    allow(gateway, gateway.url)
    page.goto(f"{gateway.url}/session/")
    page.until("!document.getElementById('send').disabled")
    page.run("""
        document.getElementById("text").value = "<img src=x onerror=alert(1)><b>bold</b>";
        document.getElementById("form").requestSubmit();
    """)
    page.until("document.querySelector('.theirs .note')")
    assert "<b>bold</b>" in page.run("return document.querySelector('.theirs .words').textContent")
    assert page.run("return document.querySelectorAll('.words *').length") == 0
    page.run("""
        window.ran = false;
        const script = document.createElement("script");
        try { script.textContent = "window.ran = true"; document.head.append(script); } catch { /* trusted types */ }
    """)
    assert page.run("return window.ran") is False
    assert any("Content Security Policy" in one or "Trusted" in one for one in page.complaints())
    page.goto(f"{foreign.origin}/frame")
    page.run(f"""
        const frame = document.createElement("iframe");
        frame.src = "{gateway.url}/session/";
        document.body.append(frame);
    """)
    eventually(lambda: [one for one in page.complaints() if "frame-ancestors" in one or "framing" in one.lower()])


# Other pages.


def test_a_page_of_an_allowed_origin(gateway: Gateway, page: Page, site: Site) -> None:
    """Everything across origins: the module, the preflights, the stream, and the headers that may be read."""
    allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    found = page.run(
        client(gateway)
        + """
        const token = await client.createSession();
        const response = await chat("one two", { stream: true });
        const headers = ["x-request-id", "x-ratelimit-remaining-requests", "x-budget-tokens-remaining"]
          .map((name) => response.headers.get(name));
        const seen = [];
        const reader = events(response).getReader();
        for (let next = await reader.read(); !next.done; next = await reader.read()) seen.push(next.value.data);
        const text = seen.map((data) => JSON.parse(data).choices[0]?.delta.content ?? "").join("");
        const stream = await client.stream("/openai/chat/completions", {
          method: "POST",
          body: { model: "llama3.1:8b", messages: [{ role: "user", content: "again" }], stream: true },
        });
        let again = "";
        const second = stream.getReader();
        for (let next = await second.read(); !next.done; next = await second.read()) {
          again += JSON.parse(next.value.data).choices[0]?.delta.content ?? "";
        }
        const models = (await (await client.makeRequest("/openai/models")).json()).data.length;
        return { token, same: token === await client.createSession(), headers, text, again, models,
                 session: client.session };
        """
    )
    assert found["token"].count(".") == 2
    assert found["same"]
    assert found["text"] == "Echo: one two"
    assert found["again"] == "Echo: again"
    assert found["models"] == len(MODELS)
    assert all(found["headers"])
    assert found["session"]["sessionId"].startswith("ns_")
    assert page.complaints() == []


def test_a_foreign_origin_is_stopped(gateway: Gateway, page: Page, site: Site, foreign: Site) -> None:
    """It can open no session, and with a stolen one it can do nothing, nor read what it is told."""
    tenant = allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    token = page.run(client(gateway) + "return client.createSession();")
    before = len(gateway.paddock("list-sessions", tenant)["sessions"])
    page.goto(f"{foreign.origin}/")
    found = page.run(
        client(gateway, abusePreventionOptions={"maxRetries": 0})
        + f"""
        const failed = async (work) => {{
          try {{ return `it got ${{(await work()).status}}`; }} catch (error) {{ return error.name; }}
        }};
        const options = {{
          method: "POST",
          headers: {{ authorization: "Bearer {token}", "content-type": "application/json" }},
          body: JSON.stringify({{ model: "{MODELS[0]}", messages: [{{ role: "user", content: "mine now" }}] }}),
        }};
        const simple = {{ method: "POST", mode: "no-cors", body: JSON.stringify({{ fingerprint: "x" }}) }};
        const opaque = await fetch("{gateway.url}/session", simple);
        return [
          await failed(() => client.createSession()),
          await failed(() => fetch("{gateway.url}{CHAT}", options)),
          await failed(() => fetch("{gateway.url}/session", {{ method: "POST", body: "{{}}" }})),
          opaque.status,
        ];
        """
    )
    assert found == ["TypeError", "TypeError", "TypeError", 0]
    assert len(gateway.paddock("list-sessions", tenant)["sessions"]) == before
    assert "mine now" not in json.dumps(gateway.upstream.requests())
    assert any("CORS" in one for one in page.complaints())


def test_a_replayed_signature_is_refused(gateway: Gateway, page: Page, site: Site) -> None:
    """WebCrypto's signature is ours; the very same request a second time is refused."""
    allow(gateway, site.origin, "--signature-policy", "hmac")
    page.goto(f"{site.origin}/")
    found = page.run(
        client(gateway)
        + """
        const really = fetch;
        let last;
        window.fetch = (url, options) => {
          last = [url, { ...options, signal: undefined }];
          return really(url, options);
        };
        const first = await chat("one");
        const second = await really(...last);
        const unsigned = { ...last[1], headers: new Headers(last[1].headers) };
        unsigned.headers.delete("x-request-signature");
        const third = await really(last[0], unsigned);
        const models = await client.makeRequest("/openai/models");
        return [first.status, second.status, (await second.json()).error.message, third.status, models.status];
        """
    )
    assert found == [200, 401, "the request was made before", 401, 200]


def test_a_page_with_a_wrong_clock_signs_all_the_same(gateway: Gateway, page: Page, site: Site) -> None:
    allow(gateway, site.origin, "--signature-policy", "hmac")
    page.goto(f"{site.origin}/")
    found = page.run(
        "const now = Date.now; Date.now = () => now() - 3 * 3600_000;"
        + client(gateway)
        + "return (await chat('x')).status;"
    )
    assert found == 200


def test_a_stolen_token_with_another_fingerprint(gateway: Gateway, browser: Browser, page: Page, site: Site) -> None:
    """Under `enforce` a token is of no use in another browser, though it comes from the right page."""
    allow(gateway, site.origin, "--fingerprint-policy", "enforce")
    page.goto(f"{site.origin}/")
    steal = (
        client(gateway)
        + """
        const mine = (await chat("mine")).status;
        return [mine, sessionStorage.getItem(Object.keys(sessionStorage)[0]), client.session.fingerprint];
    """
    )
    status, stored, fingerprint = page.run(steal)
    assert status == 200
    with browser.page() as thief:
        thief.goto(f"{site.origin}/")
        found = thief.run(
            client(gateway)
            + f"""
            const stolen = JSON.parse({json.dumps(stored)});
            const own = (await chat("warm up"), client.session.fingerprint);
            const use = (fingerprint) => fetch("{gateway.url}{CHAT}", {{
              method: "POST",
              headers: {{ authorization: `Bearer ${{stolen.token}}`, "content-type": "application/json" }},
              body: JSON.stringify({{
                model: "{MODELS[0]}", messages: [{{ role: "user", content: "theirs" }}], fingerprint,
              }}),
            }});
            const refused = await use(own);
            return [own, refused.status, (await refused.json()).error.message];
            """
        )
    assert found[0] != fingerprint
    assert found[1:] == [401, "the session belongs to another client"]


def test_a_session_ends_and_the_page_does_not_notice(gateway: Gateway, page: Page, site: Site) -> None:
    """Its own end after a minute, awaited; ahead of it for a client with a clock, after a 401 for one without."""
    allow(gateway, site.origin, "--lifetime", "1m")
    page.goto(f"{site.origin}/")
    page.run(
        client(gateway, sessionOptions={"persist": False})
        + """
        window.ahead = [client, chat];
        await chat("one");
        window.firstId = client.session.sessionId;
        """
    )
    page.run(
        client(gateway, sessionOptions={"persist": False, "expiryBuffer": 0})
        + """
        await chat("one");
        const now = Date.now;
        window.late = [client, chat, () => { Date.now = () => now() - 3600_000; }, () => { Date.now = now; }];
        window.lateId = client.session.sessionId;
        """
    )
    time.sleep(61)
    found = page.run("""
        const response = await ahead[1]("two");
        late[2]();
        const second = await late[1]("two");
        const renewed = late[0].session.sessionId !== lateId;
        late[3]();
        return [response.status, ahead[0].session.sessionId !== firstId, second.status, renewed];
    """)
    assert found == [200, True, 200, True]


def test_a_revoked_session_is_replaced(gateway: Gateway, page: Page, site: Site) -> None:
    tenant = allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    once = {"maxRetries": 0}
    script = "window.kept = [client, chat]; await chat('one'); return client.session.sessionId;"
    first = page.run(client(gateway, abusePreventionOptions=once) + script)
    gateway.paddock("revoke-session", first)
    again = page.run("return [(await kept[1]('two')).status, kept[0].session.sessionId];")
    assert again[0] == 200
    assert again[1] != first
    gateway.paddock("deny-sessions", tenant)
    ask = """
        try { return `it got ${(await kept[1]("three")).status}`; } catch (error) { return error.name; }
    """
    eventually(lambda: page.run(ask) == "TypeError")  # no origin of anybody's any more: not even the refusal is read


# The client by itself, against a server that does what the test says.


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


def test_a_time_out_aborts_and_is_not_paid_for_twice(gateway: Gateway, page: Page, site: Site) -> None:
    allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    mark = f"mark-{time.monotonic_ns()}"
    found = page.run(
        client(gateway, abusePreventionOptions={"requestTimeout": 400, "maxRetries": 3, "retryDelay": 10})
        + f"""
        try {{ return (await chat("{mark} !tokens=100 !delay=100")).status; }} catch (error) {{ return error.name; }}
        """
    )
    assert found == "AbortError"
    time.sleep(0.5)
    sent = [one for one in gateway.upstream.requests() if mark in json.dumps(one)]
    assert len(sent) == 1


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


# The documentation.


def test_the_page_of_the_how_to_works_as_written(gateway: Gateway, page: Page, site: Site) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "browser-sessions.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```html\n(.*?)```", text, re.DOTALL)
    site.pages["/"] = "<!doctype html><body>" + example.replace("https://gateway.example.com", gateway.url)
    allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    page.until("document.body.innerText.includes('Echo: Hello!')")
    assert page.complaints() == []


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
