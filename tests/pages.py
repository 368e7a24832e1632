"""Code blocks, commands and links of the README and of the pages in docs/."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^ *(`{3,}|:{3,})(\S*)[^\n]*\n(.*?)^ *\1 *$", re.DOTALL | re.MULTILINE)


def text_of(page):
    """Text of a page, by its path from the root of the repository."""
    return (ROOT / page).read_text("utf-8")


GENERATED = ("docs/_", "docs/api/", "docs/tutorials/")
"""Where the site is built and made of docstrings and tutorials."""


def pages():
    """Paths of the README and of all pages that are written by hand, from the root."""
    found = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *(page for page in found if not page.startswith(GENERATED))]


def blocks(page, language):
    """Fenced blocks of a page in one language."""
    return [code for _, own, code in _FENCE.findall(text_of(page)) if own == language]


def languages(page):
    """Languages of the fenced blocks of a page, but for what Sphinx itself reads."""
    return {own for fence, own, _ in _FENCE.findall(text_of(page)) if fence[0] == "`"} - {
        own for _, own, _ in _FENCE.findall(text_of(page)) if own.startswith("{")
    }


def commands(page):
    """Commands of the bash blocks of a page, each as a list of words, without variables."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            own = [[]]
            for word in shlex.split(line, comments=True):
                if word in ("&&", "|", ";"):
                    own.append([])
                elif own[-1] or not re.match(r"\w+=", word):
                    own[-1].append(word)
            found += filter(None, own)
    return found


def anchors(page):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def links(page):
    """Links of a page that lead to files of the repository, as (path, anchor)."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    cards = [
        target.replace(".html", ".md") if ".html" in target else f"{target}.md"
        for target in re.findall(r"^:link: (\S+)$", text, re.MULTILINE)
    ]
    found = []
    for target in [*re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)), *cards]:
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            found.append((path, anchor))
    return found
