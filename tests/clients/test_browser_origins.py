"""Pages of other origins in a real browser, with the session client against the front door.

Scripts run in pages of two little servers beside the gateway, of which an operator allowed one. So it is the browser
that sends origins and preflights, and that keeps answers from pages they are not for.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clients.sites import CHAT, Site, allow, client
from tests.harness import MODELS, eventually

if TYPE_CHECKING:
    from tests.clients.chromium import Browser, Page
    from tests.harness import Gateway


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


def test_the_page_of_the_how_to_works_as_written(gateway: Gateway, page: Page, site: Site) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "browser-sessions.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```html\n(.*?)```", text, re.DOTALL)
    site.pages["/"] = "<!doctype html><body>" + example.replace("https://gateway.example.com", gateway.url)
    allow(gateway, site.origin)
    page.goto(f"{site.origin}/")
    page.until("document.body.innerText.includes('Echo: Hello!')")
    assert page.complaints() == []
