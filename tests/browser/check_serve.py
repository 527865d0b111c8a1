"""`viditq serve` as a user has it: the command, its page in Chromium, a prompt, a click, two pictures."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.browser.window import DESKTOP, PHONE, Window
from viditq_jax.evaluate.psnr import psnr

ROOT = Path(__file__).parents[2]
_MOST_MS = 240_000  # to compile on a busy machine


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of the packaged model, with a recipe that needs no calibration; Ctrl+C then ends it in peace."""
    command = "import sys; from viditq_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", "--port", "0", "--recipes", "w8a8-dynamic"]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as server:
        assert server.stdout
        said = re.match(r"(http://127\.0\.0\.1:\d+) ", server.stdout.readline())
        assert said
        yield said[1]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_prompt_and_a_click_give_two_pictures(browser: Browser, url: str, size: tuple[int, int]) -> None:
    window = Window(browser, url, size)
    page = window.page
    page.get_by_label("Prompt").fill("blue heart")
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Paint").click()
    expect(page.locator("#pictures img")).to_have_count(2, timeout=_MOST_MS)
    assert window.widths() == [64, 64]
    assert [text.split(",")[0] for text in page.locator("figcaption").all_inner_texts()] == [
        "float", "w8a8-dynamic",
    ]  # fmt: skip
    left, right = (pixels(each) for each in page.locator("#pictures img").all())
    assert left.std() > 20  # a picture, and no plain colour
    assert page.locator("#says").inner_text() == f"{psnr(right, left):.1f} dB PSNR against float."
    boxes = [each.bounding_box() for each in page.locator("#pictures img").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # side by side
    assert not window.scrolls_sideways()
    assert {each for each in window.requests if not each.startswith("data:")} == {f"{url}/", f"{url}/paint"}
    assert window.messages == []
    window.close()


def pixels(picture) -> np.ndarray:
    data = picture.get_attribute("src").split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_enter_paints_and_another_seed_gives_another_picture(browser: Browser, url: str) -> None:
    window = Window(browser, url)
    page, pictures = window.page, window.page.locator("#pictures img")
    page.get_by_label("Prompt").press("Enter")
    expect(pictures).to_have_count(2, timeout=_MOST_MS)
    first = pictures.first.get_attribute("src")
    page.get_by_role("button", name="Another").click()
    expect(pictures.first).not_to_have_attribute("src", first, timeout=_MOST_MS)
    window.close()


def test_what_the_server_refuses_is_said_on_the_page(browser: Browser, url: str) -> None:
    window = Window(browser, url)
    window.page.get_by_label("Prompt").fill(" ")
    window.page.get_by_role("button", name="Paint").click()
    expect(window.page.locator("#says.error")).to_contain_text("the prompt is empty or no text")
    expect(window.page.get_by_role("button", name="Paint")).to_be_enabled()
    window.close()
