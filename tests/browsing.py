"""A real browser for tests of the page: Debian's Chromium (/usr/bin/chromium) or Playwright's own; tests are skipped
without either. conftest.py gives its fixtures to every test."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"narrow": (360, 740), "wide": (1440, 900)}


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        for path in ("/usr/bin/chromium", playwright.chromium.executable_path):
            if Path(path).exists():
                opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
                yield opened
                opened.close()
                return
        pytest.skip("needs a Chromium: apt-get install chromium, or playwright install chromium")


@pytest.fixture
def visit(browser):
    """Open an address: visit(url, size=..., look=...). Errors of the page fail the test at its end."""
    contexts, errors = [], []

    def opened(url: str, size: str = "wide", look: str = "light", tolerant: bool = False, **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=look, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        if not tolerant:
            page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.locator("main > *").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    # refusals that a test asks for; and a server may end while its page still loads something
    wanted = ("status of 4", "ERR_CONNECTION_REFUSED")
    assert not [error for error in errors if not any(words in error for words in wanted)], errors


def picture(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
