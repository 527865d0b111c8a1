"""A page in a real Chromium, at the size of a desktop or of a phone."""

from pathlib import Path

from playwright.sync_api import Browser, Page

DESKTOP, PHONE = (1100, 900), (360, 740)


class Window:
    """A window of a size, and all that its console and its network did."""

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = DESKTOP):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, is_mobile=width < 500, has_touch=width < 500
        )
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def close(self) -> None:
        self.page.context.close()

    def scrolls_sideways(self) -> bool:
        root = "document.documentElement"
        return self.page.evaluate(f"{root}.scrollWidth > {root}.clientWidth")

    def widths(self) -> list[int]:
        """Of all pictures, in their own pixels, once they are decoded."""
        return self.page.evaluate(
            "Promise.all([...document.images].map(each => each.decode().then(() => each.naturalWidth)))"
        )


def address(file: Path) -> str:
    """Of a page in a file."""
    return file.resolve().as_uri()
