"""The page of a gallery in Chromium: orders, filters, the matrix, and the keyboard."""

import shutil
from dataclasses import replace

import pytest
import torch

from perceiver.inspection.explorer.gallery import Gallery, collect, finish
from perceiver.inspection.explorer.gallery_page import gallery_page, write_gallery
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from tests.inspection.explanations import CLASS_NAMES, explainer, image_and_sound, labelled
from tests.inspection.models import perceiver
from tests.models import NUM_CLASSES, audio_encoder, image_encoder

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture
def opened():
    """Opens pages, and asserts that they have neither errors nor requests."""
    problems, requests = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(path):
            page = browser.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-rendered]")
            return page

        yield open_page
        browser.close()
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in requests)


def gallery_of(task=None, **targets):
    torch.manual_seed(5)
    model = perceiver(encoders={"image": image_encoder(), "audio": audio_encoder()})
    asked = explainer(model)
    asked = replace(asked, task=task or asked.task)
    batches = [labelled(image_and_sound(), **targets) for _ in range(5)]
    for number, batch in enumerate(batches):
        batch.ids = [f"s/{number}/{row}" for row in range(len(batch))]
    return finish(asked, collect(asked, batches, lambda name, raw: None, Gallery(3, CLASS_NAMES)))


def test_orders_filters_matrix_and_keys(tmp_path, opened):
    gallery = gallery_of()
    (shown,) = gallery.outputs.values()
    path = tmp_path / "gallery.html"
    first = shown.items[shown.extremes.places[("all",), "wrongness"][0][1]].id
    path.write_text(gallery_page("run", gallery, explained=["other", first]))
    page = opened(path)

    def ids():
        return page.eval_on_selector_all(".card .id", "nodes => nodes.map(node => node.textContent)")

    def focused():
        return page.evaluate("document.activeElement.getAttribute('aria-label')")

    for order in ("wrongness", "highest_loss", "lowest_confidence"):
        page.select_option("#order", order)
        assert ids() == [shown.items[number].id for _, number in shown.extremes.places[("all",), order]]
    page.select_option("#order", "wrongness")
    assert page.locator("a.card").count() == 1
    assert page.get_attribute("a.card", "href") == "index.html#sample=1"
    assert page.locator(".card img.map").count() == 3 * 2
    page.select_option("#map", "none")
    assert page.locator(".card img.map").count() == 0

    cells = shown.confusion.nonzero().tolist()
    assert page.locator("#confusion button").count() == len(cells)
    assert sum(map(int, page.locator("#confusion button").all_inner_texts())) == int(shown.confusion.sum())
    page.focus("#confusion button")
    before = focused()
    page.keyboard.press("End")
    assert focused() != before
    page.keyboard.press("Home")
    assert focused() == before
    page.keyboard.press("Enter")
    true, predicted = cells[0]
    kept = shown.extremes.places[("cell", true, predicted), "wrongness"]
    assert ids() == [shown.items[number].id for _, number in kept]
    assert page.input_value("#true") == str(true)
    assert focused() == page.get_attribute(".card", "aria-label")
    assert page.locator('#confusion button[aria-pressed="true"]').count() == 1
    page.click("#reset")
    page.check("#errors")
    assert f"of {shown.extremes.counts['wrong',]} samples" in page.inner_text("#samples-heading")
    page.focus(".card")
    for key, place in (("ArrowRight", 1), ("End", 2), ("ArrowLeft", 1), ("Home", 0)):
        page.keyboard.press(key)
        assert focused() == page.locator(".card").nth(place).get_attribute("aria-label")
        assert focused() in page.inner_text("#readout")
    assert page.locator("#means figure").count() == 0
    page.select_option("#map", "rollout")
    assert page.locator("#means figure").count() == len({group for group, _ in shown.means["image"].sums}) * 2


def test_the_window_that_is_shown_is_named(tmp_path, opened):
    asked = explainer(perceiver(encoders={"image": image_encoder(), "audio": audio_encoder()}))
    batch = labelled(image_and_sound())
    long = replace(batch, targets={"label": torch.tensor([1, 0])}, ids=["a", "b"], windows=[("0–2 s", "2–4 s"), ("",)])
    for name, given in (("long", long), ("short", batch)):
        gallery = collect(asked, [given], lambda name, raw: None, Gallery(3, CLASS_NAMES))
        page = opened(write_gallery(tmp_path / f"{name}.html", "run", gallery))
        assert page.is_visible("#windows-hint") == (name == "long")
        shown = {card.split("\n")[0]: "window 0–2 s" in card for card in page.locator(".card").all_inner_texts()}
        assert [id for id, has_window in shown.items() if has_window] == (["a"] if name == "long" else [])


def test_tags_have_a_table_whose_numbers_select_samples(tmp_path, opened):
    task = Tagging(num_classes=NUM_CLASSES, multi_label=True, loss=LossSpec(), mixup=0.0)
    tags = (torch.arange(3 * NUM_CLASSES).reshape(3, NUM_CLASSES) % 3 == 0).float()
    gallery = gallery_of(task, tags=tags)
    (shown,) = gallery.outputs.values()
    page = opened(write_gallery(tmp_path / "gallery.html", "run", gallery))
    assert page.is_hidden("#confusion-section")
    assert page.locator("#classes tbody tr").count() == NUM_CLASSES
    heads = page.locator("#classes thead th").all_inner_texts()
    assert {"AP", "precision", "recall"} <= {*heads}
    label = next(label for label in range(NUM_CLASSES) if shown.extremes.counts["missed", label])
    page.locator("#classes tbody tr").nth(label).locator("td").nth(heads.index("missed") - 1).locator("button").click()
    kept = shown.extremes.places[("missed", label), "wrongness"]
    found = page.eval_on_selector_all(".card .id", "nodes => nodes.map(node => node.textContent)")
    assert found == [shown.items[number].id for _, number in kept]
    assert page.is_checked("#errors")
