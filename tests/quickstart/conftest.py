"""What a page would fetch or run, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest


class Loads(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.found.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href") and not (value or "").startswith("#"):
                self.found.append(f"{tag} {name}={value}")
            if name.startswith("on") or "url(http" in (value or ""):
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style" and ("@import" in data or "url(" in data):
            self.found.append("style")


@pytest.fixture(scope="session")
def loads_of() -> Callable[[str], list[str]]:
    """Gives what a page's text would load."""
    return lambda page: Loads(page).found
