"""Opens pages in a headless Chromium that has no network."""

import shutil
from contextlib import contextmanager

import pytest

# Nothing of the browser's own may reach the network, or leave something on the screen.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium():
    """Gives a browser; skips, saying why, where there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Reader:
    """One who looks at a page, and notes what the browser complains of and asks for."""

    def __init__(self, browser, path, address="", width=1400, height=1000, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"file://{path}{address}")
        self.settle()

    def settle(self):
        """Waits until what the address names is drawn."""
        fragment = self.page.evaluate("location.hash || '#'")
        self.page.wait_for_selector(f"body[data-ready='{fragment}']", state="attached")
        self.page.wait_for_timeout(150)

    def texts(self, selector):
        return self.page.locator(selector).all_inner_texts()

    def column(self, view, name):
        """The cells in sight of one column, from the top."""
        headings = self.page.locator(f"#{view} .rows th")
        names = [headings.nth(n).get_attribute("data-column") for n in range(headings.count())]
        return self.texts(f"#{view} tr.row td:nth-child({names.index(name) + 1})")

    def close(self):
        self.context.close()
        assert self.complaints == []
        assert len(self.requests) == 1, self.requests
