"""Debian's Chromium, driven by Playwright, and servers for it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn

from mrmodel.server.app import build_app
from mrmodel.server.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# It reaches nothing but the address that it is told.
_OPTIONS = (
    "--no-sandbox",  # Tests may run as root.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)
# A busy machine may take long; no test measures time.
PATIENCE_S = 300


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; fails the test where it is not installed."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("Debian's package chromium is missing: apt-get install chromium")
    from playwright.sync_api import sync_playwright  # An extra: test-services.

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_OPTIONS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **options: object) -> Iterator[tuple[Page, list[str]]]:
    """A page of its own at an address, and what its console says."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.set_default_timeout(1000 * PATIENCE_S)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    yield page, said
    context.close()


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Address of a server that runs in a thread."""
    config = uvicorn.Config(build_app(server), host="127.0.0.1", port=0, log_config=None)
    program = uvicorn.Server(config)
    thread = threading.Thread(target=program.run)
    thread.start()
    while not program.started and thread.is_alive():
        time.sleep(0.02)
    port = program.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        program.should_exit = True
        thread.join()
