"""A real Chromium over the pages, with scripts off, and what it sees of them: sizes, contrast, labels, pictures.

Pictures go into the folder that STEPWEDGE_ARTEFACTS names, else into one of the test's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import require_tool
from playwright.sync_api import Browser, Locator, Page, sync_playwright

OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"wall": (1920, 1080), "phone": (390, 844)}
SCHEMES = ("light", "dark")

# Text whose contrast with what is behind it is below WCAG 2.1, level AA (1.4.3): 4.5, or 3 for large text.
_PALE = """
() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a));
  };
  const behind = element => {
    const colours = [];
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length && !(c.length > 3 && c[3] === 0)) { colours.push(c); if (c.length < 4 || c[3] === 1) break; }
    }
    return colours.reverse().reduce((below, c) => over(c, below), [255, 255, 255]);
  };
  const light = c => {
    const [r, g, b] = c.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.textContent.trim()) continue;
    const element = node.parentElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (style.visibility !== "visible" || box.width < 2 || box.height < 2) continue;
    const ground = behind(element), ink = over(parse(style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(node.textContent.trim().slice(0, 40) + ": " + ratio.toFixed(2));
  }
  return found;
}
"""
# What reaches beyond the right edge of the window, or of the box that it is in.
_CUT_OFF = """
() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const boxes = ".tile, .tile dd, .sheet, .banner, .chip, button, summary, pre";
  const wide = e.matches(boxes) && e.scrollWidth > e.clientWidth + 1;
  return box.width > 1 && box.height > 1 && (wide || box.right > document.documentElement.clientWidth + 0.5)
    && getComputedStyle(e).clipPath === "none" && !e.closest(".unseen, .skip");
}).map(e => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 40))
"""
_UNNAMED = """
() => [...document.querySelectorAll("input:not([type=hidden]), button, summary, a, select")].filter(e =>
  !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute("aria-label")
).map(e => e.outerHTML.slice(0, 80))
"""
_LANDMARKS = """
() => ({
  main: document.querySelectorAll("main").length,
  title: document.title.length > 5,
  language: document.documentElement.lang,
  headings: [...document.querySelectorAll("h1")].length,
  scripts: document.querySelectorAll("script").length,
})
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    program = require_tool("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, base: str, size: str = "wall", scheme: str = "light", **words: Any) -> Iterator[Page]:
    """An empty page of a browser that runs no scripts. What loads itself again does not do so while it is looked at."""
    width, height = SIZES[size]
    context = browser.new_context(
        base_url=base,
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        java_script_enabled=False,
        **words,
    )
    context.set_default_timeout(60_000)
    context.route("**/*?auto=1", lambda route: route.abort("aborted"))  # that way the page that is shown stays
    try:
        yield context.new_page()
    finally:
        context.close()


def press(page: Page, control: Locator, key: str = "") -> None:
    """Click a link or a button, or press a key in a field, and wait for the page that it leads to.

    A click comes back before the answer to it is there: what asks the page next would ask the old one, or one that is
    being replaced.
    """
    with page.expect_navigation():
        if key:
            control.press(key)
        else:
            control.click()


def faults(page: Page) -> list[str]:
    """What is wrong with the page that is shown, for eyes, keyboards and screen readers."""
    marks = page.evaluate(_LANDMARKS)
    wanted = {"main": 1, "title": True, "language": "en", "headings": 1, "scripts": 0}
    return [
        *(f"pale: {each}" for each in page.evaluate(_PALE)),
        *(f"cut off: {each}" for each in page.evaluate(_CUT_OFF)),
        *(f"without a name: {each}" for each in page.evaluate(_UNNAMED)),
        *(f"{name}: {marks[name]}" for name, value in wanted.items() if marks[name] != value),
    ]


def pictures(own: Path) -> Path:
    """The folder that pictures go to."""
    folder = Path(os.environ.get("STEPWEDGE_ARTEFACTS") or own)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
