"""The page of an atlas in Chromium: rows, orders, and the keyboard."""

import shutil

import pytest
import torch

from perceiver.inspection.explorer.atlas import Atlas, collect
from perceiver.inspection.explorer.atlas_page import write_atlas
from tests.inspection.explanations import explainer, image_and_sound, labelled
from tests.inspection.models import perceiver
from tests.models import audio_encoder, image_encoder

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


def test_the_page_in_a_browser(tmp_path):
    torch.manual_seed(5)
    model = perceiver(encoders={"image": image_encoder(), "audio": audio_encoder()})
    atlas = collect(explainer(model), [labelled(image_and_sound())], lambda name, raw: None, Atlas(2))
    path = write_atlas(tmp_path / "atlas.html", "run", atlas)
    problems, requests = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-rendered]")
        assert page.locator(".latent").count() == 11
        assert page.locator(".reads button").count() == 11 * 2 * 2

        page.select_option("#sort", "entropy")
        order = page.eval_on_selector_all(".latent h3", "nodes => nodes.map(node => node.textContent)")
        assert order == [f"latent {number}" for number in atlas.entropy.argsort(kind="stable")]
        page.select_option("#modality", "audio")
        assert page.locator(".reads").count() == 11
        page.select_option("#sort", "index")

        def focused():
            return page.evaluate("document.activeElement.getAttribute('aria-label')")

        page.focus("#find")
        page.keyboard.press("Tab")
        assert focused().startswith("latent 0, audio 1: weight ")
        for key, expected in (
            ("ArrowRight", "latent 0, audio 2"),
            ("ArrowRight", "latent 0, audio 2"),
            ("ArrowDown", "latent 1, audio 2"),
            ("Home", "latent 1, audio 1"),
            ("ArrowUp", "latent 0, audio 1"),
            ("End", "latent 0, audio 2"),
        ):
            page.keyboard.press(key)
            assert focused().startswith(expected)
            assert page.inner_text("#readout") == focused()
        page.fill("#find", "7")
        page.keyboard.press("Enter")
        assert focused().startswith("latent 7, audio 1")
        page.screenshot(path=str(tmp_path / "atlas.png"))
        browser.close()
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
