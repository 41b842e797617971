"""The explorer's page as text: self-contained, and safe against any name in its data."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from perceiver.inspection.explorer.html import page_html
from tests.inspection.pages import EVIL, planted_page


class Page(HTMLParser):
    """The scripts of a page as a browser separates them, and the addresses that its elements name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self.is_in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_in_script = tag == "script"
        if self.is_in_script:
            self.scripts.append((dict(attrs), ""))
        self.addresses += [value for name, value in attrs if name in {"src", "href", "action", "data"} and value]

    def handle_data(self, data: str) -> None:
        if self.is_in_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self.is_in_script = False


def test_the_page_is_self_contained():
    html = planted_page()
    page = Page(html)
    assert all("src" not in attributes for attributes, _ in page.scripts)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"(url\((?!#)|@import|\bfetch\(|XMLHttpRequest|\bimport\b.*\bfrom\b|localStorage)", html)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}, "a name, never requested"
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert EVIL not in html
    # One script runs; the page and each explanation of each sample are data.
    kinds = [attributes.get("type") for attributes, _ in page.scripts]
    assert kinds == ["application/json"] * (1 + 5) + ["module"]


@pytest.mark.parametrize("name", ["<!--<script>", "/*SCRIPT*/", "<!--DATA-->", "\\u003c", "\u2028", "</SCRIPT >", EVIL])
def test_the_data_are_read_back_as_they_were(name):
    page = {"title": name, "values": [0.5, 11, None]}
    maps = [{"explanation": 3, "sample": 5, "answers": [name]}, {"explanation": 7, "sample": 0, "answers": []}]
    first, *others, last = Page(page_html(page, maps)).scripts
    assert json.loads(first[1]) == page
    assert [json.loads(text) for _, text in others] == maps
    assert [(found["data-explanation"], found["data-sample"]) for found, _ in others] == [("3", "5"), ("7", "0")]
    assert last[0] == {"type": "module"}


def test_numbers_that_are_not_finite_become_null():
    values = {"a": float("nan"), "b": [float("inf"), (np.float64("-inf"), 0.5)]}
    assert json.loads(Page(page_html(values, [])).scripts[0][1]) == {"a": None, "b": [None, [None, 0.5]]}
