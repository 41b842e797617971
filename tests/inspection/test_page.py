"""The explorer's html as a text: whole, closed to the outside, and not to be broken by names."""

import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest

from perceiver.inspection.explorer.html import SCRIPTS, page_html
from perceiver.inspection.explorer.packing import unpacked
from tests.inspection.pages import EVIL, LACKING, LOOKS, planted, synthetic

MAX_LINES = 300


class Scripts(HTMLParser):
    """The scripts of a page as a browser parts them, and the addresses that its elements name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self.open: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = dict(attrs) if tag == "script" else None
        if self.open is not None:
            self.found.append((self.open, ""))
        self.addresses += [value for name, value in attrs if name in {"src", "href", "action", "data"} and value]

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.found[-1] = (self.open, self.found[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.open = None


@pytest.fixture(scope="module")
def html() -> str:
    return page_html(*synthetic())


@pytest.fixture(scope="module")
def scripts(html):
    return Scripts(html).found


def test_everything_stands_in_the_one_file(html, scripts):
    assert all("src" not in attributes for attributes, _ in scripts)
    assert '<link rel="icon" href="data:,">' in html
    assert all(address.startswith(("data:", "#")) for address in Scripts(html).addresses)
    assert not re.search(r"(url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b.*\bfrom\b|localStorage)", html)
    # The only address is the name of the SVG vocabulary, which nothing is fetched from.
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}


def test_the_page_itself_forbids_what_it_does_not_need(html):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert "default-src 'none'" in policy[1]


def test_the_numbers_come_back(scripts):
    page, maps = synthetic()
    blocks = {attributes.get("id"): text for attributes, text in scripts}
    assert json.loads(blocks["page"]) == page
    found = [(attributes, json.loads(text)) for attributes, text in scripts if attributes.get("class") == "maps"]
    assert [content for _, content in found] == maps
    for attributes, content in found:
        assert (attributes["data-explanation"], attributes["data-sample"]) == (
            str(content["explanation"]),
            str(content["sample"]),
        )


def test_maps_come_back_with_their_brightest_cell_and_mass(scripts):
    content = next(json.loads(text) for attributes, text in scripts if attributes.get("data-explanation") == "1")
    maps = unpacked(content["layers"][0]["maps"])
    image, sound = maps["image"], maps["sound"]
    np.testing.assert_allclose(image.sum(axis=(-1, -2)) + sound.sum(axis=(-1, -2)), 1, atol=1e-5)
    assert np.unravel_index(image[0, 3].argmax(), image.shape[-2:]) == planted("image", 3 + 1)


def test_a_name_cannot_leave_its_block(html, scripts):
    assert EVIL not in html
    # One script runs, the page and each look at each sample are data: nothing that a name holds has become a script.
    kinds = [attributes.get("type") for attributes, _ in scripts]
    assert kinds == ["application/json"] * (1 + 2 * LOOKS - 1) + ["module"]
    assert LACKING not in [(a.get("data-explanation"), a.get("data-sample")) for a, _ in scripts]


@pytest.mark.parametrize("name", ["<!--<script>", "/*SCRIPT*/", "<!--DATA-->", "\\u003c", "\u2028", "</SCRIPT >"])
def test_any_name_comes_back_as_it_was(name):
    page, maps = synthetic()
    page["samples"][0]["id"] = name
    found = Scripts(page_html(page, maps)).found
    assert json.loads(found[0][1])["samples"][0]["id"] == name
    assert found[-1][0] == {"type": "module"}


def test_what_is_no_number_is_null():
    page, maps = synthetic()
    page["runs"][0]["events"][0]["values"]["attention/stat/x"] = float("nan")
    page["runs"][0]["events"][1]["values"]["attention/stat/x"] = float("inf")
    read = json.loads(Scripts(page_html(page, maps)).found[0][1])
    assert [event["values"].get("attention/stat/x") for event in read["runs"][0]["events"][:2]] == [None, None]


def test_without_any_maps_there_is_still_a_page():
    page, _ = synthetic()
    assert "application/json" in page_html(page, [])


def test_its_files_are_small_and_all_of_them_are_used():
    folder = resources.files("perceiver.inspection.explorer")
    sources = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith((".js", ".css", ".html"))}
    assert {name for name in sources if name.endswith(".js")} == set(SCRIPTS)
    assert max(len(text.splitlines()) for text in sources.values()) < MAX_LINES
