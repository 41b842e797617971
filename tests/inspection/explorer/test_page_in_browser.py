"""The explorer in Chromium: pixels of its canvases, controls, keys, sound, and announcements."""

import base64
import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection import watch
from perceiver.inspection.drawing.colormap import colorize
from perceiver.inspection.evaluation.faithfulness import CENTER, FRACTIONS, RANDOM, FaithfulnessCurves
from perceiver.inspection.evaluation.verdicts import summarize
from perceiver.inspection.explorer import page as page_module
from perceiver.inspection.explorer.page import explorer_page
from tests.inspection import foreign, pages
from tests.inspection.dense import SIZE, dense_page, explained_places
from tests.inspection.drawn import bright_place
from tests.inspection.explanations import contents_of, unpacked
from tests.inspection.pages import KEPT, plane_shape, planted, planted_page
from tests.inspection.videos import COLUMNS, FRAMES, ROWS, explained, video_page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

PLAIN = {"peak": "false", "boxes": "false", "colormap": "gray"}
PANEL = '[data-modality="{}"] [data-panel="{}"] '
CONTENT = """() => {
  const all = (selector, read) => [...document.querySelectorAll(selector)].map(read).join();
  const image = canvas => canvas?.toDataURL();
  return {
    panels: all("#panels .panel canvas", image),
    tokens: all("#panels .token", token => token.getAttribute("style")),
    bars: all("#panels .bar", bar => bar.innerText + image(bar.querySelector("canvas"))),
    queries: all("#queries canvas", image),
    order: all("#queries [data-query]", option => option.dataset.query),
    curve: document.getElementById("curve").innerHTML,
    values: document.getElementById("values").innerText,
    faithfulness: document.getElementById("faithfulness-body").innerText,
    answers: document.getElementById("answers").innerText,
    knockouts: document.getElementById("knockouts").innerText,
  };
}"""


class Explorer:
    """The page in a browser, its errors and its requests."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.num_views = page, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-rendered]")

    def view(self, **state: Any) -> None:
        """The default state apart from the given one."""
        self.num_views += 1
        parts = "&".join(f"{name}={value}" for name, value in {"view": self.num_views, **state}.items())
        self.page.evaluate("document.activeElement?.blur()")
        self.after(lambda: self.page.evaluate("hash => { location.hash = hash }", parts))

    def after(self, act: Callable[[], Any]) -> None:
        """Act, and wait until the page is rendered."""
        rendered = self.page.evaluate("document.documentElement.dataset.rendered")
        act()
        self.page.wait_for_selector(f'html:not([data-rendered="{rendered}"])', state="attached")

    def set(self, control: str, value: Any) -> None:
        node = self.page.locator(f"#{control}")
        if isinstance(value, bool):
            self.after(lambda: node.set_checked(value))
        else:
            self.after(lambda: node.fill(value) if control == "opacity" else node.select_option(value))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.after(lambda key=key: self.page.keyboard.press(key))

    def click(self, selector: str) -> None:
        self.after(lambda: self.page.click(selector))

    def content(self) -> dict[str, str]:
        self.page.wait_for_selector('#queries:not([aria-busy="true"])', state="attached")
        return self.page.evaluate(CONTENT)

    def order(self) -> list[str]:
        """The queries in the order of the grid."""
        return self.content()["order"].split(",")[1:]

    def value(self, control: str) -> str:
        return self.page.evaluate("id => document.getElementById(id).value", control)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def attribute(self, selector: str, name: str) -> str | None:
        return self.page.get_attribute(selector, name)

    def announces(self, text: str) -> None:
        self.page.locator("#announcement", has_text=text).wait_for(state="attached")

    def hover(self, modality: str, row: float, column: float, panel: str = "map") -> None:
        """Move the pointer to a position, as fractions of the height and width of a panel."""
        stage = self.page.locator(PANEL.format(modality, panel) + ".stage")
        box = stage.bounding_box()
        stage.hover(position={"x": column * box["width"], "y": row * box["height"]})

    def canvas(self, selector: str) -> np.ndarray:
        """The pixels of a canvas [rows, columns, red/green/blue]."""
        url = self.page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)
        image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        return np.asarray(image.convert("RGB")).astype(int)

    def cell_colors(self, panel: str) -> np.ndarray:
        """The colors in the centers of the image's cells [rows, columns, red/green/blue]."""
        pixels = self.canvas(PANEL.format("image", panel) + "canvas")
        centers = [((np.arange(n) + 0.5) / n * size).astype(int) for n, size in zip((5, 7), pixels.shape, strict=False)]
        return pixels[np.ix_(*centers)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[[str], AbstractContextManager[Explorer]]


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory) -> Open:
    """Open a page, and check that it raises no error and makes no request."""

    @contextmanager
    def opened(html: str) -> Iterator[Explorer]:
        path = tmp_path_factory.mktemp("explorer") / "explorer.html"
        path.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        explorer = Explorer(page, path.as_uri())
        yield explorer
        page.close()
        assert explorer.errors == []
        assert {url for url in explorer.requests if not url.startswith(("data:", "blob:"))} == {path.as_uri()}

    return opened


@pytest.fixture(scope="module")
def html() -> str:
    return planted_page()


@pytest.fixture(scope="module")
def shared(open_page, html) -> Iterator[Explorer]:
    with open_page(html) as explorer:
        yield explorer


@pytest.fixture
def explorer(shared) -> Explorer:
    shared.view()
    return shared


@pytest.fixture(scope="module")
def layer(html) -> dict[str, Any]:
    """The first layer of the first sample at the event that is shown first."""
    return next(one for one in contents_of(html)[1] if (one["explanation"], one["sample"]) == (1, 0))["layers"][0]


def center(modality: str, index: int) -> tuple[float, ...]:
    """Center of a planted cell, as fractions. The last cells of the sound are cut off at its end."""
    factor = pages.POOLED[modality]
    starts = [token // factor * factor for token in planted(modality, index)]
    return tuple((s + min(s + factor, n)) / 2 / n for s, n in zip(starts, plane_shape(modality), strict=True))


def test_the_brightest_pixels_are_those_of_the_planted_cell(explorer):
    views = [({"method": "attention", "query": KEPT[i]}, i) for i in (0, 6, 8)]
    views += [({"method": "rollout", "answer": answer}, answer) for answer in (0, 1)]
    for view, index in views:
        explorer.view(**view, **PLAIN)
        for modality in ("image", "sound"):
            found = bright_place(explorer.canvas(PANEL.format(modality, "map") + "canvas"))
            assert found == pytest.approx(center(modality, index + 1), abs=0.01), (view, modality)


def test_colors_are_those_of_python(explorer, layer):
    explorer.view(method="attention", query=KEPT[0], peak="false", boxes="false")
    bar = explorer.canvas('[data-modality="image"] .bar canvas')
    assert np.abs(bar - colorize(np.linspace(0, 1, bar.shape[1])[None], 0.0, 1.0)).max() <= 1
    values = unpacked(layer["maps"])["image"][:, 0].mean(axis=0)
    expected = colorize(values, 0.0, values.max()).astype(int)
    assert np.abs(explorer.cell_colors("map") - expected).max() <= 2, "there are 257 steps"


@pytest.mark.parametrize(
    ("control", "value", "view", "parts"),
    [
        ("event", "0.1", {}, "panels queries curve values faithfulness"),
        ("event", "1.1", {}, "panels queries curve values"),
        ("compare", "0.1", {}, "panels bars"),
        ("method", "relevance", {"method": "rollout"}, "panels bars"),
        ("method", "attention", {}, "panels bars"),
        ("foil", "siren", {"method": "relevance"}, "panels bars"),
        ("evidence", "both", {"method": "relevance"}, "panels bars tokens"),
        ("layer", "1", {}, "panels queries"),
        ("head", "2", {}, "panels queries"),
        ("head", "0", {"sort": "entropy"}, "order"),
        ("query", "7", {}, "panels"),
        ("scale", "sqrt", {}, "panels queries bars"),
        ("scale", "log", {}, "panels queries bars"),
        ("range", "clipped", {}, "panels bars"),
        ("range", "shared", {"method": "attention"}, "panels queries bars"),
        ("range", "map", {}, "panels bars"),
        ("colormap", "cividis", {}, "panels queries bars tokens"),
        ("colormap", "magma", {}, "panels queries bars"),
        ("opacity", "0.2", {}, "panels tokens"),
        ("boxes", False, {}, "panels"),
        ("peak", False, {}, "panels"),
        ("quantity", "scores", {"method": "attention", "event": "0.3"}, "panels tokens bars"),
        ("sinks", True, {}, "panels queries tokens"),
        ("knockout", "heads", {}, "knockouts"),
        ("ranking", "samples", {}, "knockouts"),
        ("silent", "2", {}, "knockouts"),
        ("sort", "index", {}, "order"),
        ("sort", "share:sound", {}, "order"),
        ("statistic", "attention/stat/cross0/entropy", {}, "curve"),
    ],
)
def test_each_control_changes_its_parts(explorer, control, value, view, parts):
    if view:
        explorer.view(**view)
    before = explorer.content()
    explorer.set(control, value)
    after = explorer.content()
    assert [part for part in parts.split() if before[part] == after[part]] == []


def test_buttons_select_samples_and_answers(explorer):
    before = explorer.content()
    assert explorer.text("#sample-id") == pages.EVIL
    assert explorer.page.title().startswith(pages.TITLE)
    explorer.click("#samples [data-sample='1']")
    assert pages.CAPTION[3] in explorer.content()["answers"]
    assert not explorer.page.is_visible("#ground-truth-heading")
    explorer.click("#samples [data-sample='0']")
    assert explorer.content() == before
    explorer.click("#answers [data-answer='1']")
    assert explorer.content()["panels"] != before["panels"]
    assert explorer.attribute("#answers [data-answer='1']", "aria-pressed") == "true"
    explorer.announces("siren")


def test_queries_are_sorted_by_the_selected_key(explorer, layer):
    keys = {"rollout": layer["rollout"][0], "entropy": -np.array(layer["entropy"][-1]), "index": -np.array(KEPT)}
    for sort, values in keys.items():
        explorer.view(sort=sort)
        assert explorer.order() == [str(KEPT[i]) for i in np.argsort(-np.array(values), kind="stable")]
    assert "11 of 13 latents" in explorer.text("#queries-section")
    assert explorer.page.evaluate("explorer.redrawMilliseconds(2)")["queries"] == len(KEPT)


def test_an_answer_is_previewed_under_the_pointer_or_with_focus(explorer):
    explorer.view(sample=1, method="attention")
    before = explorer.content()["tokens"]
    explorer.page.hover("#answers [data-answer='2']")
    assert explorer.content()["tokens"] != before
    assert pages.CAPTION[2] in explorer.text("#map-title")
    explorer.page.hover("h1")
    assert explorer.content()["tokens"] == before
    explorer.page.focus("#answers [data-answer='3']")
    assert pages.CAPTION[3] in explorer.text("#map-title")


def test_tokens_are_colored_and_legible(explorer):
    explorer.view(sample=1, method="rollout", colormap="gray", peak="false")
    for theme, opacity in (("light", "1"), ("light", "0.5"), ("dark", "1"), ("dark", "0.5")):
        explorer.set("theme", theme)
        explorer.set("opacity", opacity)
        grays = explorer.page.evaluate(
            """() => [...document.querySelectorAll(".token")].map(token => {
              const style = getComputedStyle(token);
              return [style.backgroundColor, style.color].map(color => Number(color.match(/\\d+/)[0]));
            })"""
        )
        assert np.argmax(grays, axis=0)[0] == planted("text", 1)[1]
        luminances = (np.array(grays) / 255) ** 2.2 + 0.05  # WCAG asks for a ratio of 4.5, of a slightly other curve
        assert (luminances.max(axis=1) / luminances.min(axis=1) > 4.4).all()
        explorer.view(sample=1, method="rollout", colormap="gray", peak="false")
    assert explorer.page.locator(".token").all_inner_texts() == pages.SENTENCE


def test_hovering_reads_position_and_value(explorer, layer):
    explorer.view(method="attention", query=KEPT[0])
    row, column = planted("image", 1)
    explorer.hover("image", *center("image", 1))
    readout = explorer.text("#readout")
    position = f"y {row * 8}–{row * 8 + 8} px, x {column * 8}–{column * 8 + 8} px"
    assert position in readout
    assert position in explorer.text("#notes"), "it is the peak"
    value = unpacked(layer["maps"])["image"][:, 0, row, column].mean()
    assert float(re.search(r"weight ([\d.]+) \(.* % of the map", readout)[1]) == pytest.approx(value, rel=0.01)
    explorer.hover("sound", 0.02, 0.02)
    # Two of eleven cells of equal width in mel, from 4000 Hz down to 50 Hz.
    assert "frequency 2667–4000 Hz, time 0–0.2 s" in explorer.text("#readout")


def test_the_notes_compare_the_peak_with_the_boxes_of_the_answer(explorer):
    for view, expected in (
        ({"method": "rollout"}, "inside the box of “dog bark”"),
        ({"method": "relevance"}, "outside the box of “dog bark”"),
        ({"answer": 1}, "“siren” has no box here"),
    ):
        explorer.view(**({"event": "0.1", **view}))
        assert expected in explorer.text("#notes")


def below_the_peak() -> str:
    """The cell below that of the largest value, as the page writes it."""
    row, column = planted("image", 1)
    return f"y {row * 8 + 8}–{row * 8 + 16} px, x {column * 8}–{column * 8 + 8} px"


def test_keys_move_a_cell_cursor_from_the_peak(explorer):
    explorer.view(method="rollout")
    explorer.page.mouse.move(1, 1)  # away from where an earlier test has left it
    explorer.page.locator('[data-modality="image"] .stage').first.focus()
    for key in ("ArrowRight", "ArrowDown"):
        explorer.page.keyboard.press(key)
    assert below_the_peak() in explorer.text("#readout")
    explorer.announces(below_the_peak())


def test_a_pointer_that_leaves_another_map_keeps_the_cell_cursor(explorer):
    explorer.view(method="rollout")
    explorer.hover("sound", 0.5, 0.5)
    stage = explorer.page.locator('[data-modality="image"] .stage').first
    stage.evaluate("stage => stage.focus({ preventScroll: true })")
    for key in ("Escape", "ArrowRight"):
        explorer.page.keyboard.press(key)
    explorer.page.mouse.move(1, 1)
    explorer.page.keyboard.press("ArrowDown")
    assert below_the_peak() in explorer.text("#readout")


def test_a_new_width_keeps_the_cell_cursor_and_the_focus(explorer):
    explorer.view(method="rollout")
    explorer.page.mouse.move(1, 1)  # away from where an earlier test has left it
    explorer.page.locator('[data-modality="image"] .stage').first.focus()
    for key in ("Escape", "ArrowRight"):
        explorer.page.keyboard.press(key)
    size = explorer.page.viewport_size
    explorer.page.evaluate("for (const stage of document.querySelectorAll('#panels .stage')) stage.dataset.old = true")
    explorer.page.set_viewport_size({"width": size["width"] - 101, "height": size["height"]})
    explorer.page.wait_for_selector("#panels:not(:has(.stage[data-old]))")
    explorer.page.keyboard.press("ArrowDown")
    assert below_the_peak() in explorer.text("#readout")
    explorer.page.set_viewport_size(size)


def test_shortcuts_do_what_the_help_states(explorer):
    first, second = explorer.order()[:2]
    presses = {"ArrowRight": "query", "ArrowLeft": "query", "]": "layer", "[": "layer", ".": "head", ",": "head"}
    presses |= {"m": "method", "e": "event"}
    values = [first, second, first, "1", "0", "0", "mean", "relevance", "1.1"]
    for key, value in zip(["ArrowRight", *presses], values, strict=True):
        before = explorer.content()
        explorer.press(key)
        assert explorer.value(presses[key]) == value, key
        assert explorer.content() != before, key
    explorer.view(method="relevance")
    explorer.press("r", "v")
    assert (explorer.value("foil"), explorer.value("evidence")) == ("siren", "both")
    explorer.press("k")
    assert explorer.value("knockout") == "heads"
    explorer.view()
    buttons = {"n": "#samples [data-sample='1']", "p": "#samples [data-sample='0']", "a": "#answers [data-answer='1']"}
    for key, selector in buttons.items():
        explorer.press(key)
        assert explorer.attribute(selector, "aria-pressed") == "true"
    explorer.page.keyboard.press("?")
    assert explorer.page.locator("#help").is_visible()
    explorer.page.keyboard.press("Escape")
    assert not explorer.page.locator("#help").is_visible()


def test_the_grid_of_queries_is_one_tab_stop_with_arrow_keys(explorer):
    assert explorer.page.locator('#queries [tabindex="0"]').count() == 1
    order = explorer.order()
    explorer.page.focus('#queries [tabindex="0"]')
    explorer.press("ArrowRight", "ArrowRight")
    assert explorer.page.evaluate("document.activeElement.dataset.query") == order[1]
    assert explorer.attribute(f'#queries [data-query="{order[1]}"]', "aria-selected") == "true"
    explorer.press("End")
    assert explorer.value("query") == order[-1]
    explorer.announces(f"latent {order[-1]}, entropy")


def test_tab_reaches_all_controls_with_a_visible_focus(explorer):
    reached, kinds = set(), set()
    for _ in range(130):
        explorer.page.keyboard.press("Tab")
        identity, kind, ring = explorer.page.evaluate(
            """() => { const node = document.activeElement, style = getComputedStyle(node);
              const ring = getComputedStyle(node.querySelector(".target") ?? node);
              const width = Math.max(parseFloat(style.outlineWidth), parseFloat(ring.strokeWidth) || 0);
              return [node.id, `${node.closest("[id]")?.id}:${node.getAttribute("role") ?? node.tagName}`, width]; }"""
        )
        reached.add(identity)
        kinds.add(kind)
        assert ring >= 3 or kind in {"undefined:BODY", "panels:AUDIO"}
    controls = "theme help-button event compare method foil evidence layer head query quantity scale range colormap"
    assert {*controls.split(), "opacity", "boxes", "peak", "sinks", "sort", "statistic"} - reached == set()
    parts = "knockouts:BUTTON samples:BUTTON answers:BUTTON queries:option curve:button panels:group panels:AUDIO"
    assert {*parts.split(), "sinks-list:BUTTON"} <= kinds


def test_the_url_stores_the_whole_view(explorer):
    state = {
        "event": "0.1",
        "compare": "1.1",
        "foil": "siren",
        "evidence": "both",
        "method": "attention",
        "layer": "1",
        "head": "2",
        "query": "7",
    }
    state |= {"scale": "sqrt", "range": "shared", "colormap": "magma", "opacity": "0.3", "sort": "share:image"}
    state |= {"statistic": "attention/energy_in_box", "theme": "dark"}
    for control, value in state.items():
        explorer.set(control, value)
    explorer.set("boxes", False)
    before = explorer.content()
    explorer.page.wait_for_url(re.compile("boxes=false"))
    explorer.page.reload()
    explorer.page.wait_for_selector("html[data-rendered]")
    assert {control: explorer.value(control) for control in state} == state
    assert not explorer.page.is_checked("#boxes")
    assert explorer.content() == before


def test_an_invalid_url_is_ignored(explorer):
    before = explorer.content()
    explorer.view(sample="99", event="7.7", compare="x", method="magic", layer="-1", head="3x", query="4")
    assert explorer.content() == before
    explorer.view(scale="cubic", range="%", opacity="2", colormap="jet", sort="share:smell", statistic="none")
    assert explorer.content() == before


def test_the_theme_follows_the_control_or_the_system(explorer):
    cases = {("light", "auto"): False, ("light", "dark"): True, ("dark", "auto"): True, ("dark", "light"): False}
    for (scheme, theme), is_dark in cases.items():
        explorer.page.emulate_media(color_scheme=scheme)
        explorer.view(theme=theme)
        color = explorer.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", color)[0]) < 60) == is_dark
    explorer.page.emulate_media(color_scheme="light")


def test_the_time_cursor_follows_the_sound_and_seeks(explorer):
    page, audio = explorer.page, "document.querySelector('audio')"
    times = page.locator('[data-modality="sound"] .time')
    page.wait_for_selector("audio[src]")
    explorer.hover("sound", 0.1, 0.75, "overlay")
    page.mouse.down()
    page.mouse.up()
    for number in range(2):
        left = times.nth(number).evaluate("line => line.style.left").removesuffix("%")
        assert float(left) == pytest.approx(75, abs=2)
    assert page.evaluate(f"{audio}.currentTime") == pytest.approx(0.75 * pages.SECONDS, abs=0.05)
    page.evaluate(f"{audio}.currentTime = 0.23")
    page.wait_for_selector('.time[style*="10%"]', state="attached")
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press(" ")
    page.wait_for_selector('[data-modality="sound"] .time:not([style*=" 10%"])', state="attached")
    assert not page.evaluate(f"{audio}.paused")
    assert float(times.first.evaluate("line => line.style.left").removesuffix("%")) > 10
    page.keyboard.press(" ")
    assert page.evaluate(f"{audio}.paused")


def test_a_difference_is_neutral_orange_where_positive_and_blue_where_negative(explorer):
    explorer.view(method="relevance", foil="siren", evidence="both", boxes="false")
    sides = [explorer.cell_colors("map")[planted("image", 1 + shift)] for shift in (3, 5)]
    assert sides[0][0] > sides[0][2]
    assert sides[1][0] < sides[1][2]
    assert "“dog bark” rather than “siren”" in explorer.text("#map-title")
    assert f"{pages.BALANCE:.0%}".replace("%", " %") in explorer.text("#notes")
    explorer.click("#answers [data-answer='1']")
    assert explorer.value("foil") == "", "an answer is not contrasted with itself"
    explorer.view(method="rollout", compare="0.3", boxes="false")
    assert (explorer.cell_colors("difference") == 247).all()
    explorer.view(method="rollout", compare="0.1", boxes="false")
    colors = explorer.cell_colors("difference")
    more, less = (colors[planted("image", index)] for index in (1, 0))
    assert more[0] > more[2]
    assert less[0] < less[2]


def test_knock_outs_are_ranked_and_lead_to_their_maps(explorer):
    first = "#knockouts li:nth-child(1) button"
    assert explorer.attribute(first, "data-part") == "7"
    assert "0.9 → 0.3" in explorer.text(first)
    explorer.page.focus(first)
    explorer.press("Enter")
    assert (explorer.value("method"), explorer.value("query")) == ("attention", "7")
    explorer.view(answer=1, knockout="heads", head=1)
    explorer.click(first)
    assert (explorer.value("layer"), explorer.value("head"), explorer.value("query")) == ("0", "0", "mean")
    explorer.view(answer=1)
    signs = [
        explorer.page.locator(f"#knockouts li:nth-child({n}) .balance span").get_attribute("class") for n in (1, 2)
    ]
    assert signs == ["less", "more"]


def test_without_a_chosen_part_each_answer_changes(explorer):
    explorer.view(silent="7", ranking="samples")
    first = "#knockouts li:nth-child(1) button"
    answers = explorer.page.locator("#answers [data-answer]").count()
    assert explorer.page.locator("#knockouts li").count() == answers > 1
    assert not explorer.page.is_visible("#ranking")
    assert "0.9 → 0.3" in explorer.text("#knockouts [data-answer='0']")
    last = explorer.attribute(f"#knockouts li:nth-child({answers}) button", "data-answer")
    explorer.page.click(f"#knockouts li:nth-child({answers}) button")
    assert explorer.attribute(f"#answers [data-answer='{last}']", "aria-pressed") == "true"
    explorer.set("knockout", "heads")
    assert explorer.value("silent") == ""
    assert explorer.attribute(first, "data-part") is not None


def test_sinks_are_listed_and_hidden_tokens_are_blank_while_the_mass_of_the_map_stays(explorer, layer):
    explorer.view(method="attention", query=KEPT[0], peak="false", boxes="false")
    mark = "#sinks-list tbody tr:nth-child({}) button"
    assert "image: y 16–24 px, x 40–48 px" in explorer.text(mark.format(2))
    explorer.page.click(mark.format(2))
    row, column = pages.SINKS["image"]
    values = {name: maps[:, 0].mean(axis=0) for name, maps in unpacked(layer["maps"]).items()}
    mass = sum(of_modality.sum() for of_modality in values.values())
    hidden = sum(values[name][place] for name, place in pages.SINKS.items())
    explorer.press("h")
    assert "hidden: an attention sink" in explorer.text("#readout")
    assert f"{100 * hidden / mass:.0f} % of this map" in explorer.text("#notes")
    alpha = explorer.page.evaluate(
        """([row, column, selector]) => { const canvas = document.querySelector(selector);
          const [x, y] = [(column + 0.5) / 7 * canvas.width, (row + 0.5) / 5 * canvas.height];
          return canvas.getContext("2d").getImageData(x, y, 1, 1).data[3]; }""",
        [row, column, PANEL.format("image", "map") + "canvas"],
    )
    assert alpha == 0
    assert explorer.page.locator(".token.blank").all_inner_texts() == [pages.SENTENCE[pages.SINKS["text"][1]]]
    explorer.hover("image", 0.5 / 5, 0.5 / 7)
    shown = float(re.search(r"weight ([\d.]+)", explorer.text("#readout"))[1])
    assert shown == pytest.approx(values["image"][0, 0] * mass / (mass - hidden), rel=0.01)
    explorer.page.wait_for_url(re.compile("sinks=true"))
    explorer.view(event="0.1")
    assert not explorer.page.locator("#sinks-section").is_visible()
    assert explorer.page.is_disabled("#sinks")


def test_what_does_not_correspond_is_explained(explorer):
    explorer.view(method="attention", query=3, compare="1.1")
    assert "different runs do not correspond" in explorer.text("#notes")
    assert explorer.page.locator('[data-panel="difference"]').count() == len(pages.GRIDS)
    explorer.view(sample=1, compare="1.1")
    assert "has no maps of this sample" in explorer.text("#notes")
    assert explorer.page.locator('[data-panel="difference"]').count() == 0
    explorer.view(sample=1, event="1.1")
    assert "has no maps of this sample" in explorer.text("#panels")


def test_points_of_the_curve_select_their_event(explorer):
    points = explorer.page.locator("#curve [role=button]")
    assert points.count() == 3, "events with maps"
    explorer.after(lambda: points.first.press("Enter"))
    assert explorer.value("event") == "0.1"
    assert explorer.page.locator('#curve [aria-pressed="true"]').count() == 1
    assert explorer.page.locator("#curve .curve.chance").count() == 2
    assert "+0.1" in explorer.text("#values tr.selected")


def test_verdicts_and_intervals_are_those_of_the_test_of_faithfulness(explorer):
    maps = pages.faithfulness()["maps"]
    sentences = [f"{one['mark']} {one['sentence']}" for one in maps.values()]
    assert {one["mark"] for one in maps.values()} == {"✓", "≈", "✗"}
    assert explorer.page.locator("#verdicts li").all_inner_texts() == sentences
    briefs = [f"{one['mark']} {one['brief']}" for one in maps.values()]
    assert explorer.page.locator("#methods td:last-child").all_inner_texts() == briefs
    assert explorer.page.locator("#deletion .curve").count() == explorer.page.locator("#insertion .curve").count() == 5

    def interval(mean: float, low: float, high: float) -> str:
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]".replace("-0.00", "0.00").replace("-", "−")

    for row, one in enumerate(maps.values()):
        cells = explorer.page.locator("#methods tbody tr").nth(row).locator("td").all_inner_texts()
        expected = [interval(**one["scores"][score]) for score in ("deletion", "insertion")]
        assert [cell.replace("−0.00", "0.00") for cell in cells[:2]] == expected
        assert (cells[2] == "–") == ("randomization" not in one["scores"])
    assert explorer.page.locator("#randomization .curve").count() == 2
    differences = explorer.page.locator("#differences tbody tr").first.locator("td").all_inner_texts()
    assert len(differences) == 7
    for method, sentence in zip(maps, sentences, strict=True):
        explorer.view(method="attention" if method == "mean_map" else method)
        assert sentence in explorer.text("#verdict")
    cells = explorer.page.locator("#scores tbody td").all_inner_texts()
    assert cells == ["80 %", "60 %", "13 %", "–", "30 %", "8.0 %"], "relevance, rollout and chance, of both scores"
    assert "84 %" in explorer.text("#scores p")
    explorer.view(event="0.1")
    assert "inspect_attention.py run=" in explorer.text("#not-measured")
    assert "step 40" in explorer.text("#not-measured"), "where it was measured"
    assert "was not measured" in explorer.text("#verdict")


def test_the_page_fits_narrow_windows(explorer):
    for width in (360, 700, 1280):
        explorer.page.set_viewport_size({"width": width, "height": 800})
        for view in ({}, {"compare": "0.1"}, {"sample": 1}):
            explorer.view(**view)
            explorer.page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
            assert explorer.page.locator("#panels .panel").first.bounding_box()["width"] > 100


def test_the_page_works_in_a_sandboxed_frame(browser, html):
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    content = html.replace("&", "&amp;").replace('"', "&quot;")
    page.set_content(f'<iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{content}"></iframe>')
    frame = page.frame_locator("iframe")
    frame.locator("#map-title", has_text="Relevance").wait_for()
    frame.locator("#method").select_option("attention")
    frame.locator("#map-title", has_text="cross0").wait_for()
    frame.locator("#announcement", has_text="cross0").wait_for(state="attached")  # after the URL was to be written
    page.close()
    assert errors == []


def test_an_initial_comparison_stays_off_when_it_was_switched_off(open_page):
    events = pages.runs()
    first, second = events.values()
    with open_page(explorer_page(pages.TITLE, pages.samples(), events, opened=[first[1], second[1]])) as explorer:
        assert (explorer.value("event"), explorer.value("compare")) == ("0.1", "1.1")
        explorer.set("compare", "none")
        explorer.page.wait_for_url(re.compile("compare=none"))
        explorer.page.reload()
        explorer.page.wait_for_selector("html[data-rendered]")
        assert explorer.value("compare") == "none"


def test_queries_of_the_outputs_are_named_so_and_untestable_answers_differ_from_a_missing_test(open_page):
    none = dict.fromkeys((RANDOM, CENTER), torch.zeros(0, len(FRACTIONS)))
    empty = summarize(FaithfulnessCurves(none, none))
    events = [replace(event, faithfulness=empty) for event in pages.runs(kind="query")["outputs/audio_tagging/first"]]
    with open_page(explorer_page(pages.TITLE, pages.samples(), {"run": events})) as explorer:
        assert "No answer could be tested" in explorer.text("#not-testable")
        assert explorer.page.locator("#not-measured").count() == 0
        explorer.view(method="attention", query=3, compare="0.1")
        assert explorer.text("#queries-heading") == "Queries"
        assert explorer.text("#query-label") == "query"
        assert "query 3, mean over 3 heads" in explorer.text("#map-title")
        assert explorer.attribute('#queries [data-query="3"]', "aria-label").startswith("query 3")


def test_an_interval_without_an_end_is_left_out(open_page):
    event = pages.event(40, 0, 1)
    event.faithfulness["maps"]["rollout"]["scores"]["deletion"] |= {"low": 0.1, "high": None}
    with open_page(explorer_page(pages.TITLE, pages.samples(), {"run": [event]})) as explorer:
        cells = explorer.page.locator("#methods tbody tr").first.locator("td")
        assert "[" not in cells.nth(0).inner_text()
        assert "[" in cells.nth(1).inner_text()


def test_the_page_of_a_watched_model_has_rivals_randomization_and_knock_outs(open_page, tmp_path):
    torch.manual_seed(3)
    model = foreign.timm_vit().eval()
    for parameter in model.parameters():
        parameter.data *= 20 if parameter.ndim > 1 else 1  # else no token changes any answer
    images = foreign.images(24)
    with watch(model, inputs={"image": images}) as attention:
        model(images)
    explanation = attention.explain(top=2, foil="second")
    evaluation = attention.evaluate(explanation, num_orders=2, rivals=True, randomize=True)
    path = attention.write_page(
        tmp_path, explanation, evaluation=evaluation, knock_outs=attention.knock_out(explanation)
    )
    with open_page(path.read_text()) as explorer:
        looks = explorer.page.evaluate(
            """() => ["deletion", "insertion"].map(id => [...document.querySelectorAll(`#${id} .curve`)].map(curve => {
              const { stroke, strokeDasharray } = getComputedStyle(curve); return `${stroke} ${strokeDasharray}`; }))"""
        )
        assert [len(of_chart) for of_chart in looks] == [len({*of_chart}) for of_chart in looks] == [8, 8]
        assert (
            explorer.page.locator("#methods tbody tr").count()
            == explorer.page.locator("#randomization .curve").count()
            == 6
        )
        kinds = explorer.page.locator("#knockout option").all_inner_texts()
        assert {"heads", "layers", "modalities"} <= {*kinds}
        for kind in kinds:
            explorer.view(knockout=kind)
            parts = explorer.page.locator("#silent option").count() - 1
            assert explorer.page.locator("#knockouts li").count() == min(parts, 16) > 0
        explorer.view(knockout="heads", silent="encode0/1")
        assert explorer.page.locator("#knockouts [data-answer]").count() == 2
        for control, value in {
            "layer": "1",
            "head": "2",
            "query": "3",
            "quantity": "scores",
            "method": "rollout",
        }.items():
            before = explorer.content()["panels"]
            explorer.set(control, value)
            assert explorer.content()["panels"] != before, control
        explorer.view(method="relevance")
        explorer.press("v", "k", "a", "m", "]", ".", "w", "n")


def test_a_page_without_maps_has_the_statistics(open_page):
    runs = {name: [replace(one, maps={}, faithfulness=None) for one in events] for name, events in pages.runs().items()}
    with open_page(explorer_page(pages.TITLE, [], runs)) as explorer:
        assert len(explorer.text("#runs").splitlines()) == 2
        assert "no maps" in explorer.text("#panels")
        assert explorer.page.locator("#curve path").count() == 4
        assert "was not measured" in explorer.text("#not-measured")


def test_hovering_while_maps_are_unpacked_raises_no_error(open_page, html):
    with open_page(html) as explorer:
        explorer.page.evaluate(
            """() => {
              const event = document.getElementById("event");
              event.value = "0.1";
              event.dispatchEvent(new Event("change"));
              document.querySelector("#answers button").dispatchEvent(new Event("pointerenter"));
            }"""
        )
        explorer.page.locator("#values-caption", has_text="step 20").wait_for()


POSITIONS = {
    28 * 28: {(1, 3, 4): "y 33–44 px, time 1–1.5 s, x 52–65 px", (2, 0, 0): "y 0–11 px, time 1.5–2 s, x 0–13 px"},
    7 * 7: {  # cells of two by two, some of them across the edge of a frame, the last ones cut off
        (0, 3, 4): "y 22–44 px, time 0.5–1 s, x 52–78 px",
        (0, 4, 6): "y 44–55 px, time 0.5–1.5 s, x 0–91 px",
        (1, 0, 1): "y 0–22 px, time 1–1.5 s, x 13–39 px",
        (2, 0, 6): "y 0–22 px, time 1.5–2 s, x 78–91 px",
    },
}


@pytest.mark.parametrize("cells", POSITIONS)
def test_cells_of_a_strip_of_frames_are_read_by_time_and_position(open_page, monkeypatch, cells):
    monkeypatch.setattr(page_module, "CELLS", (cells,))
    with open_page(video_page(explained())) as explorer:
        for (frame, row, column), expected in POSITIONS[cells].items():
            explorer.hover("video", (row + 0.5) / ROWS, (frame * COLUMNS + column + 0.5) / (FRAMES * COLUMNS))
            assert f"video, {expected}" in explorer.text("#readout")


def test_a_slider_shows_one_frame_at_a_time(open_page):
    with open_page(video_page(explained())) as explorer:
        page, modality = explorer.page, '[data-modality="video"] '
        slider, viewport = page.locator(modality + ".frames input"), page.locator(modality + ".viewport").first
        assert explorer.text(modality + ".frames .clock") == f"{FRAMES} frames"
        explorer.after(lambda: slider.fill("1"))
        assert explorer.text(modality + ".frames .clock") == f"2 of {FRAMES}: time 1–1.5 s"
        stage = page.locator(modality + ".stage").first
        box, whole = viewport.bounding_box(), stage.bounding_box()
        assert whole["width"] == pytest.approx(FRAMES * box["width"], abs=2)
        assert box["x"] - whole["x"] == pytest.approx(box["width"], abs=2)
        page.mouse.move(box["x"] + 0.5 / COLUMNS * box["width"], box["y"] + 0.5 / ROWS * box["height"])
        assert "video, y 0–11 px, time 1–1.5 s, x 0–13 px" in explorer.text("#readout")
        page.wait_for_url(re.compile("frame=1"))
        explorer.after(lambda: page.locator(modality + ".frames button").click())
        assert viewport.bounding_box()["width"] == pytest.approx(stage.bounding_box()["width"], abs=2)


def test_a_click_on_a_place_shows_where_its_output_was_read_from(open_page):
    explanation = explained_places()
    with open_page(dense_page(explanation)) as explorer:
        names = explorer.page.locator("#layer option").all_inner_texts()
        explorer.view(method="attention", layer=names.index("logits/places"), query="mean")
        stage = explorer.page.locator(PANEL.format("image", "map") + ".stage")
        box = stage.bounding_box()
        for row, column in ((3, 5), (10, 0)):
            position = {"x": (column + 0.5) / SIZE[1] * box["width"], "y": (row + 0.5) / SIZE[0] * box["height"]}
            explorer.after(lambda position=position: stage.click(position=position))
            place = row * SIZE[1] + column
            assert explorer.value("query") == str(place)
            assert explorer.text("#map-title") == f"Rollout of logits/places: place {place}"


def saved(explorer: Explorer, act: Callable[[], Any]) -> tuple[str, bytes]:
    """The name and the content of the file that an action saves."""
    explorer.page.wait_for_timeout(120)  # milliseconds; Chromium drops all but ten downloads in a second
    with explorer.page.expect_download() as found:
        act()
    return found.value.suggested_filename, found.value.path().read_bytes()


def rows_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(content.decode().splitlines()))


def test_each_view_is_saved_as_image_drawing_and_table_by_button_and_by_key(open_page, html):
    with open_page(html) as explorer:
        explorer.view(method="attention", query=KEPT[0], head=1, colormap="gray")
        views = explorer.page.locator('[data-view]:not([data-panel="map"], #curve *, #insertion *)')  # of each kind one
        names = []
        for number in range(views.count()):
            buttons = views.nth(number).locator(".save button")
            by_button = {kind: saved(explorer, buttons.filter(has_text=kind).click) for kind in ("PNG", "SVG", "CSV")}
            buttons.last.focus()
            for key, (kind, found) in zip("gsc", by_button.items(), strict=True):
                assert saved(explorer, lambda key=key: explorer.page.keyboard.press(key)) == found
                assert found[0].endswith(f".{kind.lower()}")
                names.append(found[0])
            tree = ElementTree.fromstring(by_button["SVG"][1])
            size = Image.open(io.BytesIO(by_button["PNG"][1])).size
            assert size == tuple(2 * int(tree.get(side)) for side in ("width", "height"))
            assert len({len(row) for row in rows_of(by_button["CSV"][1])}) == 1
    assert len({*names}) == len(names)
    parts = "image-overlay sound-overlay text-overlay shares latents knockout-latents deletion randomization"
    assert {part: sum(f"_{part}" in f"_{name}" for name in names) for part in parts.split()} == dict.fromkeys(
        parts.split(), 3
    )
    told = ("clips-17", "cross0", "head-1", f"latent-{KEPT[0]}", "step-40")
    assert [part in names[0] for part in told] == len(told) * [True]


def test_saved_cells_are_those_of_the_map_and_scores_are_logarithms_of_its_weights(explorer, layer):
    explorer.view(method="attention", query=KEPT[0], head=1, colormap="gray", peak="false", boxes="false")
    view = explorer.page.locator(PANEL.format("image", "map").strip())
    weights = unpacked(layer["maps"])["image"][1, 0].ravel()
    rows = rows_of(saved(explorer, view.locator("button >> text=CSV").click)[1])[1:]
    assert rows[1][:3] == ["0", "1", "y 0–8 px, x 8–16 px"]
    np.testing.assert_allclose([float(row[3]) for row in rows], weights, rtol=1e-5)
    tree = ElementTree.fromstring(saved(explorer, view.locator("button >> text=SVG").click)[1])
    cells = tree.findall(".//{*}g/{*}rect")
    grays = [int(re.findall(r"\d+", cell.get("fill"))[0]) for cell in cells for _ in range(int(cell.get("width")))]
    np.testing.assert_allclose(grays, 255 * weights / weights.max(), atol=2)
    explorer.set("quantity", "scores")
    rows = rows_of(saved(explorer, view.locator("button >> text=CSV").click)[1])[1:]
    scores = np.log(weights) - layer["scores"]["log_weight"][1][0]
    np.testing.assert_allclose([float(row[3]) for row in rows], scores, atol=1e-4)
    explorer.set("head", "mean")
    assert "A mean has no scores" in explorer.text("#notes")


def table_of(explorer: Explorer, view: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a view as CSV."""
    head, *rows = rows_of(saved(explorer, explorer.page.locator(f"{view} > .save button >> text=CSV").click)[1])
    return head, rows


def test_the_saved_grid_has_the_values_of_all_queries_in_its_order(explorer, layer):
    explorer.view(method="attention", head=1, sort="entropy", colormap="gray")
    _, (mean, *rows) = table_of(explorer, "#queries-section")
    assert [mean[0], *(row[0] for row in rows)] == ["mean", *explorer.order()]
    weights = np.concatenate([maps[1].reshape(len(KEPT), -1) for maps in unpacked(layer["maps"]).values()], axis=1)
    values = np.array([[float(value) for value in row[1:]] for row in rows])
    places = [KEPT.index(int(row[0])) for row in rows]
    np.testing.assert_allclose(values[:, 2:], weights[places], rtol=1e-5)
    np.testing.assert_allclose(values[:, 0], np.array(layer["entropy"])[1, places], rtol=1e-5)
    tree = ElementTree.fromstring(
        saved(explorer, explorer.page.locator("#queries-section > .save button >> text=SVG").click)[1]
    )
    images = tree.findall("./{*}g")[:: len(pages.GRIDS)]
    peaks = [
        next((rect.get("x"), rect.get("y")) for rect in one if rect.get("fill") == "rgb(255,255,255)") for one in images
    ]
    places_of_peaks = [planted("image", 1 + place)[::-1] for place in places]
    assert peaks[1:] == [(str(x), str(y)) for x, y in places_of_peaks]
    explorer.set("quantity", "scores")
    _, rows = table_of(explorer, "#queries-section")
    scores = (np.log(weights) - np.array(layer["scores"]["log_weight"][1])[:, None])[:, : 5 * 7]  # one token per cell
    assert [row[0] for row in rows] == explorer.order(), "a mean has no scores"
    values = [[*map(float, row[3:])][: 5 * 7] for row in rows]
    np.testing.assert_allclose(values, scores[places], atol=1e-3)


def test_saved_changes_and_shares_are_those_shown(explorer, layer):
    explorer.view(method="attention", head=2, query=KEPT[3])
    head, rows = table_of(explorer, "#knockout-section")
    assert (head[0], len(rows)) == ("latent", pages.LATENTS), "those below the largest ones, too"
    assert [*map(float, rows[0][1:4])] == pytest.approx([0.9, 0.3, -0.6])
    assert rows[0][0] == "7"
    explorer.set("silent", "7")
    head, rows = table_of(explorer, "#knockout-section")
    assert (head[0], [row[0] for row in rows]) == ("answer", [*pages.CLASSES])
    head, (own, mean) = table_of(explorer, "#shares")
    masses = {name: maps[2, 3].sum() for name, maps in unpacked(layer["maps"]).items()}
    assert head[1:] == [*masses]
    assert [*map(float, own[1:])] == pytest.approx(np.array([*masses.values()]) / sum(masses.values()), rel=1e-4)
    assert sum(map(float, mean[1:])) == pytest.approx(1, abs=1e-5)


def test_scores_hide_sinks_in_the_map_and_in_the_thumbnails(explorer):
    explorer.view(
        method="attention", head=1, query=KEPT[0], quantity="scores", range="shared", peak="false", boxes="false"
    )
    alpha = """([row, column, query]) => document.querySelector(`#queries [data-query="${query}"] canvas`)
      .getContext("2d").getImageData(column, row, 1, 1).data[3]"""
    row, column = pages.SINKS["image"]
    weights = explorer.content()["queries"]
    places = [[row, column, query] for query in ("mean", KEPT[0], KEPT[-1])]
    assert [explorer.page.evaluate(alpha, place) for place in places] == [255] * 3
    explorer.set("sinks", True)
    assert explorer.content()["queries"] != weights
    assert [explorer.page.evaluate(alpha, place) for place in places] == [0] * 3
    _, rows = table_of(explorer, "#queries-section")
    columns = 3 + row * pages.plane_shape("image")[1] + column
    assert {row[columns] for row in rows} == {""}
    explorer.set("quantity", "weights")
    assert explorer.content()["queries"] != weights


def test_words_and_tokens_form_a_matrix_that_selects_words_and_can_be_saved(explorer):
    assert not explorer.page.locator("#matrix-section").is_visible()  # answers are classes
    explorer.view(sample=1, method="rollout", answer=0, colormap="gray")
    assert explorer.page.locator("[data-matrix]").count() == 2  # text and sound
    matrix = explorer.page.locator('[data-matrix="text"]')
    head, *rows = rows_of(saved(explorer, matrix.locator("button >> text=CSV").click)[1])
    assert head[1:] == pages.SENTENCE
    assert [row[0] for row in rows] == list(pages.CAPTION)
    peaks = [int(np.argmax([*map(float, values)])) for _, *values in rows]
    assert peaks in [[planted("text", number + shown)[1] for number in range(len(rows))] for shown in (0, 1)]
    tree = ElementTree.fromstring(saved(explorer, matrix.locator("button >> text=SVG").click)[1])
    texts = [node.text for node in tree.iterfind(".//{*}text")]
    assert {*pages.SENTENCE, *pages.CAPTION} <= {*texts}
    assert Image.open(io.BytesIO(saved(explorer, matrix.locator("button >> text=PNG").click)[1])).size[0] > 7 * 30
    canvas = explorer.page.locator('[data-matrix="text"] canvas').first
    box = canvas.bounding_box()
    explorer.after(lambda: canvas.click(position={"x": box["width"] - 20, "y": box["height"] - 20}))
    assert explorer.page.locator('#answers [aria-pressed="true"] .name').inner_text() == pages.CAPTION[-1]
