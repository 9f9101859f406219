"""The page that the gateway serves, in a real browser: it chats without a key, and runs nothing but its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.clients.sites import Site, allow
from tests.harness import eventually

if TYPE_CHECKING:
    from tests.clients.chromium import Page
    from tests.harness import Gateway


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
    earlier = gateway.upstream.served()
    page.run("""
        document.getElementById("text").value = "words !tokens=2000 !delay=20";
        document.getElementById("form").requestSubmit();
    """)
    page.until("document.querySelector('.theirs .words').textContent.length > 5")
    page.run("document.getElementById('send').click()")
    page.until("document.querySelector('.theirs .note')?.textContent === 'stopped'")
    (ended,) = eventually(lambda: gateway.upstream.after(earlier, "aborted"))
    assert ended["completion_tokens"] < 1000


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
