"""The Chromium of the system, headless: for benchmarks and for the tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparsight.errors import ConfigError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that is closed in the end. Needs the extra `serve-checks`.

    Raises
    ------
    ConfigError
        If the system has none.
    """
    from playwright.sync_api import sync_playwright

    place = next((found for name in NAMES if (found := shutil.which(name))), None)
    if place is None:
        raise ConfigError("Chromium is not installed; on Debian: apt-get install chromium")
    with sync_playwright() as driver:
        # Without its sandbox, which root cannot use; it sees no page but ours.
        browser = driver.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield browser
        browser.close()
