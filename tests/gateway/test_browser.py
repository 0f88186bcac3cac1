"""The page in a real browser: searches by a sentence and by a picture, wide and narrow, by keyboard alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cnclip_client import Client
from cnclip_client.extraction import extract
from cnclip_client.report import Pictures
from cnclip_client.sources import image_source
from cnclip_gateway._search import Hit, open_searched
from PIL import Image

from tests.client.conftest import FakeTriton
from tests.gateway.conftest import Running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("faiss", reason="the extra search is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

WIDTHS = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 740}}
WORDS = {"en": ("Search", "24 found"), "zh": ("搜索", "找到 24 张")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Whoever is root, as in a container, has no sandbox.
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def searching(run: Callable[..., Running], triton: FakeTriton, tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(30):
        Image.new("RGB", (200, 100 + number), (number * 8, 80, 120)).save(photos / f"{number}.png")
    (photos / "no picture.png").write_bytes(b"BAD:is no image")
    with Client(triton.url, model="vit-b-16") as client:
        extract(client, image_source(photos), tmp_path / "photos.jsonl")
    with ExitStack() as stack:
        searched = open_searched(tmp_path / "photos.jsonl", stack)
        yield run(triton.url, searched=searched, pictures=Pictures(image_source(photos))), photos


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest, run: Callable[..., Running]) -> Iterator[Any]:
    """A tab that lets no error and no refused load pass; closed before the gateways that `run` has started."""
    width, language = getattr(request, "param", ("desktop", "en"))
    context = browser.new_context(
        viewport=WIDTHS[width],
        locale={"en": "en-GB", "zh": "zh-CN"}[language],
        has_touch=width == "phone",
        is_mobile=width == "phone",
    )
    tab = context.new_page()
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.troubles = troubles
    yield tab
    context.close()
    assert troubles == []


def status(page: Any, text: str) -> None:
    playwright.expect(page.get_by_role("status")).to_have_text(text, timeout=30_000)


def require_all_shown(page: Any, count: int) -> None:
    images = page.locator("#hits img")
    playwright.expect(images).to_have_count(count)
    for number in range(count):
        images.nth(number).scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('#hits img')].every((one) => one.naturalWidth > 0)")


@pytest.mark.parametrize(
    "page", [(width, language) for width in WIDTHS for language in WORDS], indirect=True, ids="-".join
)
def test_by_a_sentence_and_by_a_picture(page: Any, searching: tuple[Running, Path]) -> None:
    gateway, photos = searching
    page.goto(gateway.url)
    language = page.locator("html").get_attribute("lang")[:2]
    button, found = WORDS[language]
    page.get_by_role("searchbox").fill("游隼")
    page.get_by_role("button", name=button, exact=True).click()
    status(page, found)
    require_all_shown(page, 24)
    assert "q=" in page.url
    first = page.locator("#hits .id").first.text_content()
    page.locator("#file").set_input_files(str(photos / "17.png"))
    playwright.expect(page.locator("#hits .id").first).to_have_text("17.png")
    playwright.expect(page.locator("#hits .score").first).to_have_text("1.000")
    playwright.expect(page.locator("#asked img")).to_be_visible()
    status(page, found)
    # Nothing sticks out sideways.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.go_back()
    playwright.expect(page.locator("#hits .id").first).to_have_text(first)
    playwright.expect(page.locator("#asked")).to_be_hidden()


def test_by_keyboard_alone(page: Any, searching: tuple[Running, Path]) -> None:
    gateway, photos = searching
    page.goto(gateway.url)
    page.keyboard.type("hello")  # the field has the focus
    page.keyboard.press("Enter")
    status(page, "24 found")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Search"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(str(photos / "3.png"))
    playwright.expect(page.locator("#hits .id").first).to_have_text("3.png")


def test_behind_a_proxy_that_has_put_it_under_a_prefix(page: Any, searching: tuple[Running, Path]) -> None:
    gateway, photos = searching
    seen = f"{gateway.url}/clip/"
    page.route(
        f"{seen}**", lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/clip/", "/")))
    )
    page.goto(seen)
    page.get_by_role("searchbox").fill("hello")
    page.keyboard.press("Enter")
    status(page, "24 found")
    require_all_shown(page, 24)
    assert page.url == f"{seen}?q=hello"
    page.route(f"{seen}search**", lambda route: route.fulfill(status=413, content_type="text/html", body="<html>"))
    page.locator("#file").set_input_files(str(photos / "3.png"))
    status(page, "That did not work: HTTP 413")
    assert [trouble for trouble in page.troubles if "413" not in trouble] == []
    page.troubles.clear()


def test_a_picture_dropped_on_the_page(page: Any, searching: tuple[Running, Path]) -> None:
    gateway, photos = searching
    page.goto(gateway.url)
    drop = """([bytes, name, type]) => {
      const given = new DataTransfer();
      given.items.add(new File([new Uint8Array(bytes)], name, { type }));
      for (const kind of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, [list((photos / "9.png").read_bytes()), "9.png", "image/png"])
    playwright.expect(page.locator("#hits .id").first).to_have_text("9.png")
    page.evaluate(drop, [[1, 2], "notes.txt", "text/plain"])
    status(page, "What was dropped is no picture.")


def test_the_switch_keeps_the_search(page: Any, searching: tuple[Running, Path]) -> None:
    gateway, _ = searching
    page.goto(f"{gateway.url}/?q=hello")
    status(page, "24 found")
    page.get_by_role("link", name="中文").click()
    status(page, "找到 24 张")
    assert page.get_by_role("searchbox").input_value() == "hello"


def test_what_goes_wrong_is_said(page: Any, searching: tuple[Running, Path], triton: FakeTriton) -> None:
    gateway, photos = searching
    page.goto(gateway.url)
    page.locator("#file").set_input_files(str(photos / "no picture.png"))
    status(page, "That did not work: what was sent cannot be encoded: is no image; send another")
    gateway.stop()
    page.get_by_role("searchbox").fill("x")
    page.keyboard.press("Enter")
    status(page, "That did not work: the server cannot be reached")
    # The browser's own words of a refused request and of one that nobody answered.
    assert len(page.troubles) == 2
    page.troubles.clear()


def test_ids_are_text_and_not_markup(page: Any, run: Callable[..., Running], triton: FakeTriton) -> None:
    class Marked:
        origin = None

        def __len__(self) -> int:
            return 1

        def nearest(self, feature: Any, k: int) -> list[Hit]:
            return [Hit(0, "<img src=x onerror=alert(1)>", 0.5)]

        def id_of(self, row: int) -> str:
            return "x"

    page.goto(f"{run(triton.url, searched=Marked()).url}/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    status(page, "1 found")
    assert page.locator("#hits .id").text_content() == "<img src=x onerror=alert(1)>"
    assert page.locator("#hits img").count() == 0
    assert page.locator("#hits .none").text_content() == "no picture"
