"""Every relative link of the pages, recipes and notebooks points to a file that is there, and to a heading of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GITHUB = "https://github.com/SmallDoges/small-doge/blob/main/"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "evaluation/*.md", "recipes/**/*.md", "examples/*.ipynb")
    for page in ROOT.glob(pattern)
)


def text_of(page: Path) -> str:
    """The prose of a page, without its blocks of code; of a notebook, that of its markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets of the links that lead to a file of the repository."""
    found = re.findall(r"\]\(\s*<?([^)>\s]+)", text_of(page))
    return [link for link in found if link.startswith(GITHUB) or not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The names that headings get, as GitHub and MkDocs make them for plain titles."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_the_page_leads_somewhere(page):
    dead = []
    for link in links(page):
        path, _, anchor = link.removeprefix(GITHUB).partition("#")
        start = ROOT if link.startswith(GITHUB) else page.parent
        target = (start / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_site_shows_the_page_and_links_stay_inside_it(page):
    """What lies outside docs/ is not part of the site: pages link to it on GitHub."""
    assert f": {page.name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [link for link in links(page) if link.startswith("..")]


def test_the_promised_documents_are_there_and_linked_to():
    promised = {
        "docs/installation.md",
        "docs/models.md",
        "docs/webui.md",
        "docs/faq.md",
        "recipes/doge/README.md",
        "recipes/doge/README_zh.md",
        "evaluation/README.md",
        "README_zh.md",
        "examples/notebook.ipynb",
        "examples/notebook_zh.ipynb",
    }
    assert promised <= {str(page.relative_to(ROOT)) for page in PAGES}
