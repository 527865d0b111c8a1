"""The report of a run in Chromium: it is quiet, shows all pictures, fits a phone, and compares."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from tests import toy_runs
from tests.browser.window import DESKTOP, PHONE, Window, address
from viditq_jax.report import Run, read_run, write_report

RUNS: dict[str, Callable[[Path], Path]] = {
    "pictures": lambda run: run,
    "two models": toy_runs.two_models,
    "videos": toy_runs.videos,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of run."""
    made = {}
    for name, change in RUNS.items():
        run = change(toy_runs.plain(tmp_path_factory.mktemp("run")))
        made[name] = write_report(run, search=toy_runs.search(run))[1]
    return made


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_quiet_and_shows_every_picture_and_does_not_scroll_sideways(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    window = Window(browser, address(pages[name]), size)
    expect(window.page.locator("#compare")).to_be_visible()
    assert window.page.evaluate("innerWidth") == size[0]
    assert not window.scrolls_sideways()
    assert len(window.widths()) >= 6
    assert min(window.widths()) > 0
    assert [url for url in window.requests if not url.startswith("data:")] == [address(pages[name])]
    assert window.messages == []
    window.close()


def test_tables_that_are_wider_than_a_phone_scroll_by_themselves(
    browser: Browser, pages: dict[str, Path]
) -> None:
    window = Window(browser, address(pages["pictures"]), PHONE)
    box = window.page.locator(".wide").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.press("ArrowRight")
    box.evaluate(  # scrolling takes its time; wait_for_function needs eval, which the page forbids
        """box => new Promise((done, failed) => {
            const look = () => box.scrollLeft > 0 ? done() : requestAnimationFrame(look);
            setTimeout(failed, 10000);
            look();
        })"""
    )
    assert window.page.evaluate("scrollX") == 0
    window.close()


class Compared(Window):
    """The comparison of a page of pictures of 8 by 8 pixels."""

    def __init__(self, browser: Browser, page: Path):
        super().__init__(browser, address(page))
        self.run: Run = read_run(page.parent)
        expect(self.find("says")).not_to_be_empty()

    def find(self, name: str) -> Locator:
        return self.page.locator(f"#compare-{name}")

    def view(self, name: str) -> None:
        self.page.locator(f"[name=compare-view][value={name}]").check()

    def seen(self) -> np.ndarray:
        """The pixels that are on the screen, without the upper half, where names stand: [4, 8, 3]."""
        shot = np.asarray(Image.open(io.BytesIO(self.find("stage").screenshot())).convert("RGB"))
        cell = (shot.shape[0] - 2) / 8  # a border of 1 on each side
        centre = (1 + cell * (np.arange(8) + 0.5)).astype(int)
        return shot[centre[4:, None], centre]

    def shows(self, variant: str, i: int = 0) -> bool:
        return np.array_equal(self.seen(), self.run.pictures[variant][i][4:])

    def halves(self) -> np.ndarray:
        """What is seen where the slider stands in the middle."""
        left, right = (self.run.pictures[name][0][4:] for name in ("float", "w8a8"))
        return np.concatenate([left[:, :4], right[:, 4:]], 1)


@pytest.fixture
def compared(browser: Browser, pages: dict[str, Path]) -> Iterator[Compared]:
    window = Compared(browser, pages["pictures"])
    yield window
    assert window.messages == []
    window.close()


def test_the_slider_moves_from_one_variant_to_the_other_by_keys(compared: Compared) -> None:
    keyboard = compared.page.keyboard
    for _ in range(30):
        keyboard.press("Tab")
        if compared.page.evaluate("document.activeElement.id") == "compare-at":
            break
    keyboard.press("End")
    assert compared.shows("float")
    keyboard.press("Home")
    assert compared.shows("w8a8")
    for _ in range(50):
        keyboard.press("ArrowRight")
    np.testing.assert_array_equal(compared.seen(), compared.halves())


def test_the_slider_goes_where_the_picture_is_pressed(compared: Compared) -> None:
    compared.find("at").press("Home")
    compared.find("stage").click()  # in its middle
    np.testing.assert_array_equal(compared.seen(), compared.halves())
    assert compared.find("at").input_value() == "50"


def test_flicker_shows_one_and_then_the_other(compared: Compared) -> None:
    compared.view("flicker")
    for variant in ("right", "left", "right"):  # by itself
        compared.page.wait_for_selector(f"#compare[data-shown={variant}]")
    compared.find("swap").click()
    assert not compared.find("alone").is_checked()
    first = "float" if compared.shows("float") else "w8a8"
    for variant in ({"float", "w8a8"} - {first}, {first}):
        compared.find("swap").click()
        assert compared.shows(*variant)
        names = [compared.find(f"{side}-name") for side in ("left", "right")]
        assert {name.inner_text() for name in names if name.is_visible()} == variant


def test_the_difference_of_a_picture_from_itself_is_black(compared: Compared) -> None:
    compared.view("difference")
    assert compared.seen().max() > 0
    compared.find("right").select_option("float")
    expect(compared.find("says")).to_contain_text("equal in every pixel")
    assert compared.seen().max() == 0


def test_another_prompt_shows_its_pictures_and_how_far_apart_they_are(compared: Compared) -> None:
    compared.find("row").select_option(label="<script>")
    error = np.abs(np.subtract(*(compared.run.pictures[name][1].astype(int) for name in ("float", "w8a8"))))
    expect(compared.find("says")).to_contain_text(
        f"by {error.mean():.2f} of 255 levels on average, by {error.max()} at most"
    )
    compared.find("at").press("End")
    assert compared.shows("float", 1)


def test_a_model_with_one_variant_alone_is_left_out(browser: Browser, pages: dict[str, Path]) -> None:
    compared = Compared(browser, pages["two models"])
    rows = compared.find("row").locator("option").all_inner_texts()
    assert rows == ["red apple, default", "<script>, default", "pizza, default"]
    compared.close()


def test_of_videos_the_frames_in_the_middle_are_compared(browser: Browser, pages: dict[str, Path]) -> None:
    compared = Compared(browser, pages["videos"])
    compared.find("at").press("End")
    np.testing.assert_array_equal(compared.seen(), compared.run.still("float", 0)[4:])
    compared.close()
