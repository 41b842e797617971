"""The explorer as it is seen and used: pixels of its canvases, keys, sound, and what is read out."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceiver.inspection.colormap import colorize
from perceiver.inspection.explorer import page as explorer_module
from perceiver.inspection.explorer.html import page_html
from perceiver.inspection.explorer.packing import unpacked
from perceiver.inspection.report import belief
from tests.inspection.drawn import BRIGHTEST as YELLOW
from tests.inspection.pages import CAPTION, EVIL, IMAGE, KEPT, SECONDS, SENTENCE, SOUND, deletion, planted, synthetic
from tests.inspection.videos import COLUMNS, FRAMES, ROWS, looked, page_with

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

CHOICES = ("event", "compare", "method", "layer", "head", "latent", "scale", "range", "colours", "sort", "statistic")
CONTROLS = {*CHOICES, "theme", "help-button", "alpha", "boxes", "mark"}
POOLED = 2
"""By how much the sound's cells are pooled on the page."""

BRIGHTEST = """selector => {
  const canvas = document.querySelector(selector);
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const lights = Array.from({ length: width * height }, (_, i) => data[4 * i] + data[4 * i + 1] + data[4 * i + 2]);
  const top = lights.reduce((a, b) => Math.max(a, b));
  const found = lights.flatMap((light, i) => (light === top ? [i] : []));
  const mean = place => found.reduce((sum, i) => sum + place(i), 0) / found.length;
  return [(mean(i => Math.floor(i / width)) + 0.5) / height, (mean(i => i % width) + 0.5) / width];
}"""
PIXELS = """selector => {
  const canvas = document.querySelector(selector);
  const { width, height } = canvas;
  return { width, height, data: [...canvas.getContext("2d").getImageData(0, 0, width, height).data] };
}"""
PICTURE = """() => ({
  panes: [...document.querySelectorAll("#panes .pane canvas")].map(canvas => canvas.toDataURL()).join(),
  text: [...document.querySelectorAll("#panes .token")].map(token => token.getAttribute("style")).join(),
  bars: [...document.querySelectorAll("#panes .bar")].map(bar => bar.innerText + bar.querySelector("canvas")?.toDataURL()).join(),
  grid: [...document.querySelectorAll("#latents canvas")].map(canvas => canvas.toDataURL()).join(),
  order: [...document.querySelectorAll("#latents [data-latent]")].map(option => option.dataset.latent).join(),
  curve: document.getElementById("curve").innerHTML,
  values: document.getElementById("values").innerText,
  belief: document.getElementById("belief-body").innerText,
  said: document.getElementById("answers").innerText,
})"""  # noqa: E501


class Explorer:
    """The page in a browser, with what it complained of and what it asked for."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.views = 0
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-drawn]")

    def view(self, **state: Any) -> None:
        """Everything as it is at first, apart from the state that is given."""
        self.views += 1
        parts = "&".join(f"{name}={value}" for name, value in state.items())
        self.page.evaluate("document.activeElement?.blur()")
        self.after(lambda: self.page.evaluate("hash => { location.hash = hash }", f"view={self.views}&{parts}"))

    def after(self, act: Any) -> None:
        """Acts, and waits until it is drawn."""
        drawn = self.page.evaluate("document.documentElement.dataset.drawn")
        act()
        self.page.wait_for_selector(f'html:not([data-drawn="{drawn}"])', state="attached")

    def set(self, control: str, value: Any) -> None:
        node = self.page.locator(f"#{control}")
        if isinstance(value, bool):
            self.after(lambda: node.set_checked(value))
        elif control == "alpha":
            self.after(lambda: node.fill(value))
        else:
            self.after(lambda: node.select_option(value))

    def press(self, key: str) -> None:
        self.after(lambda: self.page.keyboard.press(key))

    def picture(self) -> dict[str, str]:
        return self.page.evaluate(PICTURE)

    def value(self, control: str) -> str:
        return self.page.evaluate("id => document.getElementById(id).value", control)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def cell(self, modality: str, row: int, column: int, pane: str = "alone") -> tuple[float, float]:
        """The point of the screen in the middle of a cell."""
        stage = self.page.locator(f'[data-modality="{modality}"] [data-pane="{pane}"] .stage')
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        rows, columns = {"image": IMAGE, "sound": (SOUND[0] / POOLED, SOUND[1] / POOLED)}[modality]
        return box["x"] + box["width"] * (column + 0.5) / columns, box["y"] + box["height"] * (row + 0.5) / rows

    def brightest(self, modality: str, pane: str = "alone") -> list[float]:
        """The middle of all pixels of the brightest colour, from 0 to 1: down and across."""
        return self.page.evaluate(BRIGHTEST, f'[data-modality="{modality}"] [data-pane="{pane}"] canvas')


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(page_html(*synthetic()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, file) -> Explorer:
    return Explorer(browser.new_page(viewport={"width": 1280, "height": 800}), file.as_uri())


@pytest.fixture
def explorer(opened) -> Iterator[Explorer]:
    opened.view()
    yield opened
    assert opened.complaints == []
    assert {url for url in opened.requests if not url.startswith(("data:", "blob:"))} == {opened.url}


def middle(modality: str, number: int) -> list[float]:
    """Of the planted cell, from 0 to 1. The last cells of the sound are cut off by its end."""
    (shape, factor) = {"image": (IMAGE, 1), "sound": (SOUND, POOLED)}[modality]
    starts = [token // factor * factor for token in planted(modality, number)]
    return [(start + min(start + factor, size)) / 2 / size for start, size in zip(starts, shape, strict=True)]


@pytest.mark.parametrize("modality", ["image", "sound"])
@pytest.mark.parametrize("latent", [KEPT[0], KEPT[6], KEPT[8]])
def test_the_brightest_pixels_are_those_of_the_planted_cell(explorer, modality, latent):
    explorer.view(method="map", latent=latent, mark="false", boxes="false", colours="gray")
    assert explorer.brightest(modality) == pytest.approx(middle(modality, KEPT.index(latent) + 1), abs=0.01)


def test_the_map_of_an_answer_is_its_own(explorer):
    for answer in range(2):
        explorer.view(answer=answer, mark="false", boxes="false", colours="gray")
        assert explorer.brightest("image") == pytest.approx(middle("image", answer + 1), abs=0.01)


def test_colours_are_those_of_python(explorer):
    explorer.view(method="map", latent=KEPT[0], mark="false", boxes="false", colours="viridis")
    bar = explorer.page.evaluate(PIXELS, '[data-modality="image"] .bar canvas')
    ramp = np.array(bar["data"]).reshape(256, 4)
    assert np.abs(ramp[:, :3] - colorize(np.linspace(0, 1, 256)[None], 0.0, 1.0)[0]).max() <= 1, "but for rounding"
    plane = explorer.page.evaluate(PIXELS, '[data-modality="image"] [data-pane="alone"] canvas')
    pixels = np.array(plane["data"]).reshape(plane["height"], plane["width"], 4)
    row, column = (int(at * size) for at, size in zip(middle("image", 1), pixels.shape, strict=False))
    assert tuple(pixels[row, column, :3]) == YELLOW
    first = pixels[int(0.5 / IMAGE[0] * plane["height"]), int(0.5 / IMAGE[1] * plane["width"]), :3]
    content = next(of_look for of_look in synthetic()[1] if (of_look["explanation"], of_look["sample"]) == (1, 0))
    values = unpacked(content["layers"][0]["maps"])["image"][:, 0].mean(axis=0)
    assert np.abs(first - colorize(values, 0.0, values.max())[0, 0].astype(int)).max() <= 2, "there are 256 steps"


CHANGES = [
    ("event", "0.1", {}, ["panes", "grid", "curve", "values", "belief"]),
    ("event", "1.1", {}, ["panes", "grid", "curve", "values"]),
    ("compare", "0.1", {}, ["panes", "bars"]),
    ("method", "relevance", {}, ["panes", "bars"]),
    ("method", "map", {}, ["panes", "bars"]),
    ("layer", "1", {}, ["panes", "grid"]),
    ("head", "2", {}, ["panes", "grid"]),
    ("head", "0", {"sort": "entropy"}, ["order"]),
    ("latent", "7", {}, ["panes"]),
    ("scale", "sqrt", {}, ["panes", "grid", "bars"]),
    ("scale", "log", {}, ["panes", "grid", "bars"]),
    ("range", "clipped", {}, ["panes", "bars"]),
    ("range", "shared", {"method": "map"}, ["panes", "grid", "bars"]),
    ("range", "map", {}, ["panes", "bars"]),
    ("colours", "cividis", {}, ["panes", "grid", "bars"]),
    ("colours", "magma", {}, ["panes", "grid", "bars"]),
    ("colours", "gray", {}, ["panes", "grid", "bars"]),
    ("alpha", "0.2", {}, ["panes"]),
    ("alpha", "0.2", {"sample": 1}, ["text"]),
    ("boxes", False, {}, ["panes"]),
    ("mark", False, {}, ["panes"]),
    ("sort", "entropy", {}, ["order"]),
    ("sort", "number", {}, ["order"]),
    ("sort", "share:sound", {}, ["order"]),
    ("statistic", "attention/stat/cross0/entropy", {}, ["curve"]),
]


@pytest.mark.parametrize(("control", "value", "view", "parts"), CHANGES)
def test_each_control_changes_the_picture(explorer, control, value, view, parts):
    if view:
        explorer.view(**view)
    before = explorer.picture()
    explorer.set(control, value)
    after = explorer.picture()
    assert [part for part in parts if before[part] == after[part]] == []


def test_samples_and_answers_are_chosen_by_their_buttons(explorer):
    before = explorer.picture()
    explorer.after(lambda: explorer.page.click("#samples [data-sample='1']"))
    assert "barks" in explorer.picture()["said"]
    assert not explorer.page.is_visible("#facts-heading")  # nothing is known of it
    assert explorer.picture()["text"]
    explorer.after(lambda: explorer.page.click("#samples [data-sample='0']"))
    assert explorer.picture() == before
    explorer.after(lambda: explorer.page.click("#answers [data-answer='1']"))
    assert explorer.picture()["panes"] != before["panes"]
    assert explorer.page.get_attribute("#answers [data-answer='1']", "aria-pressed") == "true"


def test_latents_are_sorted_by_what_is_asked(explorer):
    _, maps = synthetic()
    content = next(m for m in maps if (m["explanation"], m["sample"]) == (1, 0))

    def order() -> list[int]:
        return [int(latent) for latent in explorer.picture()["order"].split(",")[1:]]

    layer = content["layers"][0]
    assert order() == [KEPT[i] for i in sorted(range(len(KEPT)), key=lambda i: -layer["rollout"][0][i])]
    explorer.set("sort", "entropy")
    assert order() == [KEPT[i] for i in sorted(range(len(KEPT)), key=lambda i: layer["entropy"][-1][i])]
    explorer.set("sort", "number")
    assert order() == KEPT
    assert "11 of 13 latents" in explorer.text("#latents-section")


def test_pointing_at_a_word_shows_its_map_until_it_is_left(explorer):
    explorer.view(sample=1, method="map")
    before = explorer.picture()["text"]
    explorer.page.hover("#answers [data-answer='2']")
    assert explorer.picture()["text"] != before
    assert CAPTION[2] in explorer.text("#shown")
    explorer.page.hover("h1")
    assert explorer.picture()["text"] == before
    explorer.page.focus("#answers [data-answer='3']")
    assert CAPTION[3] in explorer.text("#shown")


def test_the_tokens_of_a_text_are_coloured_and_can_be_read(explorer):
    explorer.view(sample=1, colours="gray", alpha=1, mark="false")
    for theme in ("light", "dark"):
        explorer.set("theme", theme)
        for alpha in ("1", "0.5"):
            explorer.set("alpha", alpha)
            greys = explorer.page.evaluate(
                """() => [...document.querySelectorAll(".token")].map(token => {
                  const style = getComputedStyle(token);
                  return [style.backgroundColor, style.color].map(colour => Number(colour.match(/\\d+/)[0]));
                })"""
            )
            backs = [back for back, _ in greys]
            assert backs.index(max(backs)) == planted("text", 1)[1]
            for pair in greys:
                dark, light = sorted((grey / 255) ** 2.2 for grey in pair)
                assert (light + 0.05) / (dark + 0.05) > 4.4  # WCAG asks for 4.5; their curve is not quite this power
    assert explorer.page.locator(".token").all_inner_texts() == SENTENCE


def test_hovering_tells_place_and_value(explorer):
    explorer.view(method="map", latent=KEPT[0])
    row, column = planted("image", 1)
    explorer.page.mouse.move(*explorer.cell("image", row, column))
    read = explorer.text("#readout")
    assert f"y {row * 8}–{row * 8 + 8} px, x {column * 8}–{column * 8 + 8} px" in read
    assert "weight" in read
    assert "% of the map" in read
    content = next(of_look for of_look in synthetic()[1] if (of_look["explanation"], of_look["sample"]) == (1, 0))
    value = unpacked(content["layers"][0]["maps"])["image"][:, 0, row, column].mean()
    assert float(read.split("weight ")[1].split(" ")[0]) == pytest.approx(value, rel=0.01)
    bright = explorer.text("#notes")
    assert f"y {row * 8}–{row * 8 + 8} px" in bright
    explorer.page.mouse.move(*explorer.cell("sound", 0, 0))
    # Two of eleven cells that are equally wide in mel, from 4000 Hz down to 50 Hz.
    assert "frequency 2667–4000 Hz" in explorer.text("#readout")
    assert "time 0–0.2 s" in explorer.text("#readout")


def test_whether_the_brightest_cell_lies_in_the_box_is_said(explorer):
    assert "inside the box of “dog bark”" in explorer.text("#notes")
    explorer.view(method="relevance")
    assert "outside the box of “dog bark”" in explorer.text("#notes")
    explorer.view(answer=1)
    assert "no box of “siren” is known" in explorer.text("#notes")


def test_keys_move_a_cell_that_is_read_out(explorer):
    stage = explorer.page.locator('[data-modality="image"] .stage').first
    stage.focus()
    for key in ("ArrowRight", "ArrowDown"):
        explorer.page.keyboard.press(key)
    row, column = planted("image", 1)
    expected = f"y {row * 8 + 8}–{row * 8 + 16} px, x {column * 8}–{column * 8 + 8} px"
    assert expected in explorer.text("#readout")
    explorer.page.get_by_text(expected).nth(1).wait_for(state="attached")
    explorer.page.wait_for_timeout(300)
    assert expected in explorer.text("#announced")


@pytest.mark.parametrize(
    ("key", "control", "values"),
    [
        ("]", "layer", ["1", "0"]),
        ("[", "layer", ["1", "0"]),
        (".", "head", ["0", "1"]),
        (",", "head", ["2", "1"]),
        ("m", "method", ["relevance", "map", "rollout"]),
        ("e", "event", ["1.1", "0.1", "0.3"]),
        ("ArrowRight", "latent", ["first", "second"]),
    ],
)
def test_each_shortcut_does_what_the_help_says(explorer, key, control, values):
    order = explorer.picture()["order"].split(",")
    names = {"first": order[1], "second": order[2]}
    for value in values:
        before = explorer.picture()
        explorer.press(key)
        assert explorer.value(control) == names.get(value, value)
        assert explorer.picture() != before


def test_shortcuts_choose_samples_and_answers_and_are_read_out(explorer):
    explorer.press("n")
    assert explorer.page.get_attribute("#samples [data-sample='1']", "aria-pressed") == "true"
    explorer.press("p")
    assert explorer.page.get_attribute("#samples [data-sample='0']", "aria-pressed") == "true"
    explorer.press("a")
    assert explorer.page.get_attribute("#answers [data-answer='1']", "aria-pressed") == "true"
    explorer.page.wait_for_timeout(300)
    assert "siren" in explorer.text("#announced")
    explorer.page.keyboard.press("?")
    assert explorer.page.locator("#help").is_visible()
    explorer.page.keyboard.press("Escape")
    assert not explorer.page.locator("#help").is_visible()


def test_the_grid_of_latents_is_one_stop_and_moved_through_by_arrows(explorer):
    assert explorer.page.locator('#latents [tabindex="0"]').count() == 1
    order = explorer.picture()["order"].split(",")
    explorer.page.focus('#latents [tabindex="0"]')
    explorer.press("ArrowRight")
    explorer.press("ArrowRight")
    assert explorer.page.evaluate("document.activeElement.dataset.latent") == order[2]
    assert explorer.page.get_attribute(f'#latents [data-latent="{order[2]}"]', "aria-selected") == "true"
    explorer.press("End")
    assert explorer.value("latent") == order[-1]
    explorer.page.wait_for_timeout(300)
    assert f"latent {order[-1]}, entropy" in explorer.text("#announced")


def test_the_tabulator_reaches_everything(explorer):
    reached, kinds = set(), set()
    for _ in range(60):
        explorer.page.keyboard.press("Tab")
        identity, kind, ring = explorer.page.evaluate(
            """() => { const node = document.activeElement, style = getComputedStyle(node);
              const ring = getComputedStyle(node.querySelector(".target") ?? node);
              const width = Math.max(parseFloat(style.outlineWidth), parseFloat(ring.strokeWidth) || 0);
              return [node.id, `${node.closest("[id]")?.id}:${node.getAttribute("role") ?? node.tagName}`, width]; }"""
        )
        reached.add(identity)
        kinds.add(kind)
        assert ring >= 3 or kind in {"undefined:BODY", "panes:AUDIO"}
    assert CONTROLS - reached == set()
    assert {"samples:BUTTON", "answers:BUTTON", "latents:option", "curve:button", "panes:group", "panes:AUDIO"} <= kinds


def test_the_address_keeps_the_whole_view(explorer):
    state = {
        "event": "0.1",
        "compare": "1.1",
        "method": "map",
        "layer": "1",
        "head": "2",
        "latent": "7",
        "scale": "sqrt",
        "range": "shared",
        "colours": "magma",
        "alpha": "0.3",
        "sort": "share:image",
        "statistic": "attention/energy_in_box",
        "theme": "dark",
    }
    for control, value in state.items():
        explorer.set(control, value)
    explorer.set("boxes", False)
    before = explorer.picture()
    explorer.page.wait_for_timeout(300)
    explorer.page.reload()
    explorer.page.wait_for_selector("html[data-drawn]")
    assert {control: explorer.value(control) for control in state} == state
    assert not explorer.page.is_checked("#boxes")
    assert explorer.picture() == before


def test_a_bad_address_is_as_good_as_none(explorer):
    before = explorer.picture()
    bad = {
        "sample": "99",
        "event": "7.7",
        "compare": "x",
        "method": "magic",
        "layer": "-1",
        "head": "3x",
        "latent": "4",
    }
    explorer.view(**bad, scale="cubic", range="%", alpha="2", colours="jet", sort="share:smell", statistic="none")
    assert explorer.picture() == before


def test_dark_is_dark_and_light_is_light(explorer):
    def paper() -> int:
        colour = explorer.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(colour.removeprefix("rgb(").split(",")[0])

    assert paper() > 200
    explorer.set("theme", "dark")
    assert paper() < 60
    explorer.view()
    explorer.page.emulate_media(color_scheme="dark")
    assert paper() < 60
    explorer.set("theme", "light")
    assert paper() > 200
    explorer.page.emulate_media(color_scheme="light")


def test_the_time_cursor_follows_the_sound(explorer):
    times = explorer.page.locator('[data-modality="sound"] .time')
    stage = explorer.page.locator('[data-modality="sound"] [data-pane="over"] .stage')
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    explorer.page.wait_for_selector("audio[src]")
    explorer.page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 5)
    for number in range(2):
        left = float(times.nth(number).evaluate("line => line.style.left").removesuffix("%"))
        assert left == pytest.approx(75, abs=2)
    assert explorer.page.evaluate("document.querySelector('audio').currentTime") == pytest.approx(
        0.75 * SECONDS, abs=0.05
    )
    explorer.page.evaluate("document.querySelector('audio').currentTime = 0.23")
    explorer.page.wait_for_selector('.time[style*="10%"]', state="attached")
    explorer.page.evaluate("document.activeElement?.blur()")
    explorer.page.keyboard.press(" ")
    explorer.page.wait_for_selector('[data-modality="sound"] .time:not([style*=" 10%"])', state="attached")
    assert not explorer.page.evaluate("document.querySelector('audio').paused")
    assert float(times.first.evaluate("line => line.style.left").removesuffix("%")) > 10
    explorer.page.keyboard.press(" ")
    assert explorer.page.evaluate("document.querySelector('audio').paused")


def test_an_event_does_not_differ_from_itself(explorer):
    explorer.view(compare="0.3", boxes="false")
    data = explorer.page.evaluate(PIXELS, '[data-pane="change"] canvas')["data"]
    assert set(map(tuple, zip(*[iter(data)] * 4, strict=True))) == {(247, 247, 247, 255)}


def test_a_difference_is_orange_where_there_is_more_and_blue_where_there_is_less(explorer):
    explorer.view(compare="0.1", boxes="false")
    image = explorer.page.evaluate(PIXELS, '[data-modality="image"] [data-pane="change"] canvas')
    for look, is_more in ((1, True), (0, False)):
        row, column = planted("image", look)
        y, x = (int((at + 0.5) / of * image[side]) for at, of, side in ((row, 5, "height"), (column, 7, "width")))
        red, _, blue, _ = image["data"][4 * (y * image["width"] + x) :][:4]
        assert (red > blue) is is_more


def test_what_does_not_correspond_is_said(explorer):
    explorer.view(method="map", latent=3, compare="1.1")
    assert "different runs do not correspond" in explorer.text("#notes")
    assert explorer.page.locator('[data-pane="change"]').count() == 2
    explorer.view(sample=1, compare="1.1")
    assert "has no maps of this sample" in explorer.text("#notes")
    assert explorer.page.locator('[data-pane="change"]').count() == 0
    explorer.view(sample=1, event="1.1")
    assert "has no maps of this sample" in explorer.text("#panes")


def test_points_of_the_curve_choose_their_event(explorer):
    points = explorer.page.locator("#curve [role=button]")
    assert points.count() == 3  # events with maps
    explorer.after(lambda: points.first.press("Enter"))
    assert explorer.value("event") == "0.1"
    assert explorer.page.locator('#curve [aria-pressed="true"]').count() == 1
    assert explorer.page.locator("#curve .curve.chance").count() == 2
    assert "+0.1" in explorer.text("#values tr.chosen")


def test_how_far_to_believe_it_is_said_in_sentences_the_same_as_everywhere(explorer):
    areas = deletion()["areas"]
    said = [f"{area['mark']} {area['sentence']}" for area in areas.values()]
    assert explorer.page.locator("#verdicts li").all_inner_texts() == said
    assert explorer.page.locator("#areas td.words").all_inner_texts() == [
        f"{area['mark']} {area['brief']}" for area in areas.values()
    ]
    assert said[0] in explorer.text("#verdict")
    _, *lines = belief({}, deletion(), 64)
    assert all(line.endswith(area["brief"]) for line, area in zip(lines, areas.values(), strict=True))
    scores = explorer.text("#scores")
    cells = explorer.page.locator("#scores tbody td").all_inner_texts()
    assert cells[:3] == ["80 %", "60 %", "13 %"], (
        "relevance, rollout, chance: how often the brightest cell lies in a box"
    )
    assert "rollouts of two words of a text have 84 % of their mass in common" in scores
    explorer.view(event="0.1")
    assert "inspect_attention.py run=" in explorer.text("#unmeasured")
    assert "was not measured" in explorer.text("#verdict")


def test_names_are_text(explorer):
    assert explorer.text("#sample-id") == EVIL
    assert explorer.page.title().startswith("audio_tagging/2026-11-22 </title>")


def test_it_is_not_wider_than_a_narrow_window(explorer):
    for width in (700, 1280):
        explorer.page.set_viewport_size({"width": width, "height": 800})
        for view in ({}, {"compare": "0.1"}, {"sample": 1}):
            explorer.view(**view)
            explorer.page.wait_for_timeout(50)
            assert explorer.page.evaluate("document.documentElement.scrollWidth") <= width
            assert explorer.page.locator("#panes .pane").first.bounding_box()["width"] > 100


def test_latents_are_drawn_anew_at_once(explorer):
    times = explorer.page.evaluate("explorer.redrawMilliseconds(30)")
    assert times["queries"] == len(KEPT)
    assert times["median"] < 16


def test_it_works_in_a_frame_that_may_only_run_scripts(browser, file, tmp_path):
    outer = tmp_path / "outer.html"
    content = file.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    outer.write_text(f'<iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{content}"></iframe>')
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#shown", has_text="rollout").wait_for()
    frame.locator("#method").select_option("map")
    frame.locator("#shown", has_text="Attention of cross0").wait_for()
    page.wait_for_timeout(300)
    page.close()
    assert complaints == []


def test_a_comparison_opens_as_one_and_stays_without_it_where_that_is_chosen(browser, tmp_path):
    content, maps = synthetic()
    file = tmp_path / "comparison.html"
    file.write_text(page_html(content | {"initial_events": [[0, 1], [1, 1]]}, maps), encoding="utf-8")
    page = browser.new_page()
    explorer = Explorer(page, file.as_uri())
    assert (explorer.value("event"), explorer.value("compare")) == ("0.1", "1.1")
    explorer.set("compare", "")
    page.wait_for_url("**compare=nothing**")
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    assert explorer.value("compare") == ""
    page.close()
    assert explorer.complaints == []


def test_that_there_was_nothing_to_test_is_no_missing_test(browser, tmp_path):
    content, maps = synthetic()
    for event in content["runs"][0]["events"]:
        event["deletion"] = {"num_samples": 0, "fractions": [0.0, 1.0], "curves": {}, "areas": {}}
    file = tmp_path / "untestable.html"
    file.write_text(page_html(content, maps), encoding="utf-8")
    page = browser.new_page()
    explorer = Explorer(page, file.as_uri())
    assert "no answer lost much" in explorer.text("#untestable")
    assert page.locator("#unmeasured").count() == 0
    page.close()
    assert explorer.complaints == []


@pytest.mark.parametrize("cells", [(28 * 28,), (7 * 7,)], ids=["whole", "pooled"])
def test_a_cell_of_a_film_strip_is_named_by_time_and_place(browser, tmp_path, monkeypatch, cells):
    monkeypatch.setattr(explorer_module, "CELLS", cells)
    file = tmp_path / "video.html"
    file.write_text(page_with(*looked()), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    explorer = Explorer(page, file.as_uri())
    stage = page.locator('[data-modality="video"] [data-pane="alone"] .stage')

    def read(frame: int, row: int, column: int) -> str:
        across, down = (frame * COLUMNS + column + 0.5) / (FRAMES * COLUMNS), (row + 0.5) / ROWS
        box = stage.bounding_box()
        stage.hover(position={"x": across * box["width"], "y": down * box["height"]})
        return explorer.text("#readout")

    if cells == (28 * 28,):
        assert "video, y 33–44 px, time 1–1.5 s, x 52–65 px" in read(1, 3, 4)
        assert "video, y 0–11 px, time 1.5–2 s, x 0–13 px" in read(2, 0, 0)
    else:  # cells of two by two
        assert "video, y 22–44 px, time 0.5–1 s, x 52–78 px" in read(0, 3, 4)
        assert "video, y 44–55 px, time 0.5–1.5 s, x 0–91 px" in read(0, 4, 6), "one reaches over a frame's edge"
        assert "video, y 0–22 px, time 1–1.5 s, x 13–39 px" in read(1, 0, 1)
        assert "video, y 0–22 px, time 1.5–2 s, x 78–91 px" in read(2, 0, 6), "the last one is cut off"
    page.close()
    assert explorer.complaints == []


def test_a_page_of_numbers_alone_says_so(browser, tmp_path):
    content, _ = synthetic()
    for run in content["runs"]:
        run["events"] = [event | {"explanation": None, "deletion": None} for event in run["events"]]
    file = tmp_path / "numbers.html"
    file.write_text(page_html(content | {"samples": []}, []), encoding="utf-8")
    page = browser.new_page()
    explorer = Explorer(page, file.as_uri())
    assert len(explorer.text("#runs").splitlines()) == 2
    assert "No maps are kept" in explorer.text("#panes")
    assert explorer.page.locator("#curve path").count() == 4
    assert "was not measured" in explorer.text("#unmeasured")
    page.close()
    assert explorer.complaints == []


def test_pointing_at_an_answer_while_maps_are_unpacked_does_no_harm(browser, file):
    page = browser.new_page()
    explorer = Explorer(page, file.as_uri())
    page.evaluate(
        """() => {
          const event = document.getElementById("event");
          event.value = "0.1";
          event.dispatchEvent(new Event("change"));
          document.querySelector("#answers button").dispatchEvent(new Event("pointerenter"));
        }"""
    )
    page.locator("#values-caption", has_text="step 20").wait_for()
    page.close()
    assert explorer.complaints == []
