"""Chromium without a window (`make check-browser`). `make test` passes here without playwright."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--force-color-profile=srgb",  # pixels on the screen are those of the file
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """With an empty profile of its own."""
    from playwright.sync_api import sync_playwright

    place = shutil.which("chromium")
    assert place, "there is no chromium; `make check-browser` installs it, on Debian"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place, headless=True, args=list(_SWITCHES))
        yield browser
        browser.close()
