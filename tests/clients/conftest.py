"""A real browser, headless Chromium, and sites for it to visit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients import chromium
from tests.clients.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.chromium import Browser, Page


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
