"""The web page in Chromium: people find, watch, judge and export moments with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mrmodel.library.adder import AddSettings
from mrmodel.library.library import Library
from mrmodel.predict.zero_shot import ZERO_SHOT_MODEL
from mrmodel.server.feedback import JOURNAL, Journal
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings
from tests.browser import PATIENCE_S, chromium, opened, serving
from tests.library.videos import write_videos

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.services

QUERIES = ["a ball rolls", "a green wall"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 8 and 24 s; answers without a model, which differ from window to window."""
    base = tmp_path_factory.mktemp("page")
    write_videos(base / "videos", {"long.mp4": 240, "short.mp4": 80})
    Library(base / "library", ZERO_SHOT_MODEL).add([base / "videos"], AddSettings(workers=1))
    return base / "library"


@pytest.fixture(scope="module")
def address(library: Path) -> Iterator[str]:
    with serving(Server(ServerSettings(library, ZERO_SHOT_MODEL))) as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page; nothing may be said on its console."""
    with opened(browser, address) as (found, said):
        yield found
        assert said == []


def open_video(page: Page, name: str) -> None:
    page.click(f".video[title='{name}']")
    require(page, "document.getElementById('video').readyState >= 1")


def search(page: Page, queries: list[str]) -> list[list[dict[str, Any]]]:
    """Search the open video; the moments of each query."""
    for number, query in enumerate(queries):
        if number:
            page.click("#add-query")
        page.locator(".query").nth(number).fill(query)
    with page.expect_response("**/search") as answer:
        page.click("#go")
    page.wait_for_selector(f".timeline >> nth={len(queries) - 1}")
    return [result["moments"] for result in answer.value.json()["results"]]


def require(page: Page, condition: str) -> None:
    """Wait until an expression is true; Playwright's own way needs eval, which the page forbids."""
    end = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def require_time(page: Page, seconds: float) -> None:
    """Wait until the player is at a time, as near as a frame."""
    require(page, f"Math.abs(document.getElementById('video').currentTime - {seconds}) < 0.01")


def test_clicks_and_keys_seek(page: Page) -> None:
    open_video(page, "long.mp4")
    first, second = search(page, QUERIES)
    blocks = page.locator(".timeline >> nth=0 >> .block")
    assert blocks.count() == len(first) > 1
    blocks.nth(1).click()
    require_time(page, first[1]["start_s"])
    assert blocks.nth(1).get_attribute("aria-pressed") == "true"

    by_time = sorted(first, key=lambda moment: moment["start_s"])
    page.keyboard.press("Home")
    require_time(page, by_time[0]["start_s"])
    page.keyboard.press("ArrowRight")
    require_time(page, by_time[1]["start_s"])
    page.keyboard.press("ArrowLeft")
    require_time(page, by_time[0]["start_s"])
    page.keyboard.press("ArrowDown")
    require_time(page, second[0]["start_s"])
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        f"{QUERIES[1]}: 0:"
    )
    page.evaluate("document.getElementById('video').currentTime = 1")
    require_time(page, 1)
    page.keyboard.press("Enter")
    require_time(page, second[0]["start_s"])

    page.locator(".go-to").nth(2).click()
    require_time(page, first[2]["start_s"])


def test_a_library_is_searched_by_pictures_and_sentence(page: Page) -> None:
    page.locator(".query").first.fill(QUERIES[0])
    with page.expect_response("**/v1/search") as answer:
        page.click("#go")
    hit = answer.value.json()["hits"][1]
    card = page.locator(".card").nth(1)
    card.locator("img").scroll_into_view_if_needed()
    require(page, "[...document.querySelectorAll('.card img')].every(one => one.naturalWidth)")
    assert hit["video"]["name"] in card.inner_text()
    card.click()
    require_time(page, hit["start_s"])
    assert page.locator("#video-name").inner_text() == hit["video"]["name"]
    page.wait_for_selector(".moment.picked")


def test_feedback_reaches_the_journal(page: Page, library: Path) -> None:
    journal = Journal(library / JOURNAL)
    open_video(page, "long.mp4")
    (moments,) = search(page, QUERIES[:1])
    rows = page.locator(".moment")
    rows.nth(0).locator(".accept").click()
    rows.nth(1).locator(".reject").click()
    rows.nth(2).locator(".correct").click()
    page.get_by_label("Start in seconds").fill("1.5")
    page.get_by_label("End in seconds").fill("1")
    page.click("text=Save")
    page.wait_for_selector("text=The end must be after the start.")
    page.get_by_label("End in seconds").fill("4.25")
    page.click("text=Save")
    page.wait_for_selector("text=corrected to 0:01.5 – 0:04.3")
    page.wait_for_selector("text=2 to deliver · 1 rejected, waiting")
    entries = list(journal.read().entries.values())
    found = [(entry.verdict, entry.start_s, entry.end_s) for entry in entries]
    verdicts = ["accept", "reject", "correct"]
    assert found == [
        (verdict, moment["start_s"], moment["end_s"])
        for verdict, moment in zip(verdicts, moments, strict=False)
    ]
    assert entries[2].window == (1.5, 4.25)
    assert {(entry.name, entry.query) for entry in entries} == {("long.mp4", QUERIES[0])}


def test_an_upload_can_be_searched_exported_and_deleted(page: Page, tmp_path: Path) -> None:
    write_videos(tmp_path, {"mine.mp4": 60})
    page.set_input_files("#file", tmp_path / "mine.mp4")
    page.wait_for_selector("#video-name:text('mine.mp4')")
    (moments,) = search(page, QUERIES[:1])
    page.select_option("[aria-label='Format of the export']", "json")
    with page.expect_download() as download:
        page.click("text=Export")
    rows = json.loads(download.value.path().read_text())["hits"]
    assert [row["start_s"] for row in rows] == [moment["start_s"] for moment in moments]
    page.click("#delete")
    page.click("#delete-dialog >> text=Delete >> nth=-1")
    page.wait_for_selector(".video[title='mine.mp4']", state="detached")


def test_highlights_need_no_query(page: Page) -> None:
    open_video(page, "long.mp4")
    page.click("#highlights")
    page.wait_for_selector(".timeline .block")
    assert page.locator(".moment .fits").first.inner_text()


def test_errors_are_shown(browser: Browser, address: str, tmp_path: Path) -> None:
    (tmp_path / "letter.mp4").write_text("Dear reader")
    with opened(browser, address) as (page, _):
        page.set_input_files("#file", tmp_path / "letter.mp4")
        page.wait_for_selector(".alert:has-text('letter.mp4: '):has-text('request ')")
        page.click("[aria-label='Close message']")
        page.wait_for_selector(".alert", state="detached")
        open_video(page, "short.mp4")
        page.locator(".query").first.fill(QUERIES[0])
        page.context.set_offline(True)
        page.click("#go")
        page.wait_for_selector(".alert:has-text('The server does not answer.')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Browser, address: str, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with opened(browser, address, **options) as (page, said):
        open_video(page, "short.mp4")
        search(page, QUERIES)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        shades = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (max(shades) < 64) == (scheme == "dark")
        assert said == []
