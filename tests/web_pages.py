"""A page in a real browser, and what a reader sees of it."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def words(page: Path) -> str:
    """What a reader sees, without the drawings of the browser."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


@contextmanager
def opened(
    browser: "Browser", path: Path, width: int = 1200, theme: str = "light", charts: int = 0
) -> Iterator["Page"]:
    """The page with its charts drawn; fails if it says a word on the console or asks for anything but itself."""
    address = path.as_uri()
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(address)
    page.wait_for_function(f"document.querySelectorAll('.chart svg.marks').length == {charts}")
    yield page
    context.close()
    assert [word for word in heard if word != address and not word.startswith("data:")] == []


CONTRAST = """
selector => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = node => {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    return colour.length == 4 && colour[3] == 0 ? under(node.parentElement) : colour;
  };
  return [...document.querySelectorAll(selector)].map(node => {
    const style = getComputedStyle(node), ink = node.tagName == 'text' ? style.fill : style.color;
    const both = [luminance(rgb(ink)), luminance(under(node.closest('div, body > *, p')))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  });
}
"""
TEXT = "h1, h2, h3, p, th, td, dt, dd, li, main > details summary, .chart text"  # what of a page has to have it
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 23, 26)"}
