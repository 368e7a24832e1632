"""Check built pages: dead links and anchors, what did not render, and the weight of the first."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LARGEST_START_PAGE = 1_000_000
"""Bytes of the start page with all that it loads."""

LARGEST_PAGE = 5_000_000
"""Bytes of any other page with all that it loads, but formulas."""

LOADS = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}
SIGNS_OF_ERRORS = ("problematic", "system-message")
"""Classes that docutils gives to what it could not read."""


class Page(HTMLParser):
    """What matters of one page.

    Parameters
    ----------
    path : Path
        File of the page.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.errors: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep anchors, links and files of one element."""
        values = {name: value for name, value in attrs if value}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        is_file = tag != "link" or "stylesheet" in values.get("rel", "")
        if is_file and LOADS.get(tag) in values:
            self.loads.append(values[LOADS[tag]])
        classes = values.get("class", "").split()
        self.errors += [f"did not render: {sign}" for sign in SIGNS_OF_ERRORS if sign in classes]


def target_of(page: Path, link: str) -> tuple[Path, str] | None:
    """File and anchor that a link leads to, None if it leaves the site."""
    address, anchor = urldefrag(link)
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    if not parts.path:
        return page, unquote(anchor)
    return (page.parent / unquote(parts.path)).resolve(), unquote(anchor)


def dead_links(page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links of a page to files and anchors that do not exist."""
    dead = []
    for link in dict.fromkeys(page.links + page.loads):
        target = target_of(page.path, link)
        if target is None or link == "#":
            continue
        file, anchor = target
        if not file.is_file():
            dead.append(f"no such file: {link}")
        elif anchor and file in pages and anchor not in pages[file].anchors:
            dead.append(f"no such anchor: {link}")
    return dead


def weight(page: Page) -> int:
    """Bytes of a page and of what it loads."""
    files = {page.path}
    for link in page.loads:
        target = target_of(page.path, link)
        if target is not None and target[0].is_file() and "mathjax" not in target[0].parts:
            files.add(target[0])
    return sum(file.stat().st_size for file in files)


def faults(page: Page, pages: dict[Path, Page], start: Path) -> list[str]:
    """Faults of a page."""
    bytes_of_page = weight(page)
    limit = LARGEST_START_PAGE if page.path == start else LARGEST_PAGE
    heavy = [f"{bytes_of_page} bytes, more than {limit}"] if bytes_of_page > limit else []
    return dead_links(page, pages) + page.errors + heavy


def main(folder: Path) -> int:
    """Check all pages in a folder, and print what is wrong."""
    start = folder / "index.html"
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    count = 0
    for path, page in pages.items():
        for fault in faults(page, pages, start):
            print(f"{path.relative_to(folder)}: {fault}")
            count += 1
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, start page {weight(pages[start])} bytes")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
