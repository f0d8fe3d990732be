"""A headless Chromium with its own profile; nothing of it leaves the machine."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver"
)
WAIT_S = 45
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1400",
)


@contextlib.contextmanager
def chromium(profile: Path, logs: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Start Chromium under its driver.

    Args:
        profile: A fresh folder for its profile.
        logs: What `get_log` shall have, e.g. {"performance": "ALL"}.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if logs is not None:
        options.set_capability("goog:loggingPrefs", dict(logs))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def find(browser: Any, css: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_S).until(lambda b: b.find_elements("css selector", css), f"no {css}")
    return browser.find_elements("css selector", css)[0]


def click(browser: Any, css: str) -> None:
    """Click a link of MLflow's own tables (ours, in the notes, carry a query); in this tab even where it asks for another."""
    script = "const [a] = arguments; a.removeAttribute('target'); a.scrollIntoView({block: 'center'}); a.click()"
    browser.execute_script(script, find(browser, css))


def see(browser: Any, *texts: str) -> None:
    """Wait until the page says all of this."""
    deadline = time.monotonic() + WAIT_S
    while True:
        body = browser.execute_script("return document.body.innerText").replace("\N{NO-BREAK SPACE}", " ")
        missing = [text for text in texts if text not in body]
        if not missing:
            return
        assert time.monotonic() < deadline, f"{browser.current_url} does not say {missing}:\n{body}"
        time.sleep(0.1)
