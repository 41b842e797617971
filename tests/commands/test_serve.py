"""The explorer from a local port: answers, refused requests, and what is left of uploads."""

import base64
import http.client
import json
import re
import shutil
import tempfile
import threading

import numpy as np
import pytest
from omegaconf import OmegaConf

from perceiver.commands import serve as module
from perceiver.commands.finished_run import load
from perceiver.commands.serve import Question, live_server, safe_name
from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.runtime.errors import ConfigError
from tests.inspection.explanations import contents_of, unpacked
from tests.runs import CONF, image_tree, trained

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")


def settings(**changed):
    cfg = OmegaConf.load(CONF / "inspect_attention.yaml")
    return OmegaConf.merge(cfg, {"data": None, "samples": 3, "serve": True, "serve_port": 0}, changed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = image_tree(tmp_path_factory.mktemp("images") / "tree", per_class=11)
    options = ["data=image_folder", f"data.root={root}", "data.image_size=9", "data.channels=3"]
    return trained(tmp_path_factory.mktemp("run") / "run", *options, "loader.batch_size=5")


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    server = live_server(settings(run=str(run), serve_megabytes=0.5))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    tempfile.tempdir = before
    # Other tests train meanwhile, whose locks are beside them.
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []


def request(server, method="POST", path="/explain", body=None, **headers):
    """Status and text of a response."""
    connection = http.client.HTTPConnection(*server.server_address)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, content, kind | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


def upload(name, content):
    return {"file": {"name": name, "data": base64.b64encode(content).decode()}}


def picture(run):
    return next((run.parent.parent).glob("images*/tree/dog/3.png"), None) or next(
        path for path in run.parents[1].rglob("tree/dog/3.png")
    )


def test_an_uploaded_file_is_explained_as_by_the_library(server, run):
    path = picture(run)
    status, page = request(server, body=upload("C:\\photos\\a dog.png", path.read_bytes()))
    assert status == 200
    whole, (maps,) = contents_of(page)
    finished = load(str(run))
    explanation = finished.parts.explainer(0.5).explain(collate([finished.parts.data.dataset.read(path)]))
    assert [sample["id"] for sample in whole["samples"]] == ["a dog.png"]
    assert whole["live"]["bases"] == [None]
    assert [answer["name"] for answer in maps["answers"]] == [answer.name for answer in explanation.answers[0]]
    assert [float(answer["detail"]) for answer in maps["answers"]] == pytest.approx(
        explanation.probability[0].tolist(), abs=1e-3
    )
    rollout = next(method for method in maps["methods"] if method["name"] == "rollout")
    expected = explanation.rollout.inputs[0].reshape(
        len(maps["answers"]), *unpacked(rollout["maps"])["image"].shape[1:]
    )
    np.testing.assert_allclose(unpacked(rollout["maps"])["image"], expected, atol=2e-2 * float(expected.max()))


def test_the_samples_and_another_checkpoint(server, run):
    status, page = request(server, "GET", "/")
    whole, maps = contents_of(page)
    assert status == 200
    assert len(maps) == len(whole["samples"]) == 3
    assert whole["live"]["checkpoints"] == sorted(path.stem for path in (run / "checkpoints").glob("*.ckpt"))
    assert "connect-src 'self'" in page
    other = next(name for name in whole["live"]["checkpoints"] if name != whole["live"]["checkpoint"])
    status, page = request(server, body={"checkpoint": other})
    assert (status, contents_of(page)[0]["live"]["checkpoint"]) == (200, other)
    status, answer = request(server, body={"checkpoint": "../best"})
    assert status == 400
    assert "checkpoint=../best" in json.loads(answer)["error"]
    assert request(server, body={"checkpoint": whole["live"]["checkpoint"]})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_origins_are_refused(server, headers):
    for method, path, body in (("GET", "/", None), ("POST", "/explain", {})):
        status, answer = request(server, method, path, body, **headers)
        assert status == 403
        assert "samples" not in answer


def test_its_own_page_is_answered(server):
    own = f"127.0.0.1:{server.server_address[1]}"
    assert server.server_address[0] == "127.0.0.1"
    assert request(server, body=upload("a.png", b""), Origin=f"http://{own}", Sec_Fetch_Site="same-origin")[0] == 400


def test_what_cannot_be_answered_is_one_sentence(server):
    large = base64.b64encode(bytes(2**19 + 1)).decode()
    for body, status, part in (
        (upload("broken.png", b"no image"), 400, "broken.png"),
        ({"file": {"name": "a.png", "data": large}}, 413, "serve_megabytes=0.5"),
        (bytes(2**20 + 2**17), 413, "serve_megabytes=0.5"),
        (b"{", 400, "not readable"),
        ({"file": {"name": "a.png"}}, 400, "not readable"),
        ({"sample": "x"}, 400, "'x'"),
    ):
        found, answer = request(server, body=body)
        sentence = json.loads(answer)["error"]
        assert found == status
        assert part in sentence
        assert "\n" not in sentence
        assert tempfile.gettempdir() not in sentence
    assert request(server, "POST", "/explain", body=None)[0] == 415
    assert request(server, "GET", "/../etc/passwd")[0] == 404


def test_files_that_cannot_be_read_are_named_in_the_terminal(run, tmp_path, capsys):
    bad = tmp_path / "bad [1].png"
    bad.write_bytes(b"no image")
    explorer = live_server(settings(run=str(run), inputs=[str(bad), str(picture(run))])).explorer
    assert len(explorer.batch) == 1
    assert bad.name in capsys.readouterr().out
    with pytest.raises(UnreadableError):
        explorer.answer(Question(name="worse.png", content=b"no image"))
    assert "worse.png" in capsys.readouterr().out


def test_computations_do_not_overlap(server, monkeypatch):
    running, most = [], []
    page = module.LiveExplorer._page

    def counted(self, batch, bases):
        running.append(1)
        most.append(len(running))
        found = page(self, batch, bases)
        running.pop()
        return found

    monkeypatch.setattr(module.LiveExplorer, "_page", counted)
    threads = [threading.Thread(target=request, args=(server,), kwargs={"body": {}}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_latents_are_knocked_out(run):
    asked = Question(name="a.png", content=picture(run).read_bytes())
    explorers = [live_server(settings(run=str(run), knockout=kinds)).explorer for kinds in ([], ["latents"])]
    (without,), (maps,) = (contents_of(explorer.answer(asked))[1] for explorer in explorers)
    assert (without["knockouts"], len(maps["knockouts"])) == ([], 1)
    assert maps["methods"] == without["methods"]


def test_names_of_files():
    for name, expected in (("../../etc/passwd", "passwd"), ("a\\b.png", "b.png"), ("..", "file"), ("", "file")):
        assert safe_name(name) == expected
    assert len(safe_name(300 * "é" + ".png").encode()) <= 255
    assert safe_name(300 * "é" + ".png").endswith(".png")


def test_settings(run):
    for key, value in (("serve_port", 99999), ("serve_megabytes", 0), ("atlas", True)):
        with pytest.raises(ConfigError, match=key):
            live_server(settings(run=str(run), **{key: value}))


def test_an_edited_text_replaces_that_of_a_sample_or_belongs_to_a_file(tmp_path):
    options = ["data=visual_questions", "tokenizer=words_small", "+encoder@model.encoders.text=text"]
    options += ["data.image_size=24", "data.num_samples={train: 211, val: 13, test: 17}"]
    run = trained(tmp_path / "run", *options)
    explorer = live_server(settings(run=str(run))).explorer
    asked = "how many circles are there ?"
    (whole, maps), (edited, edited_maps) = (
        contents_of(explorer.answer(one)) for one in (Question(), Question(sample=1, text=asked))
    )
    assert whole["live"]["reads_text"]
    assert len(whole["live"]["texts"]) == 3
    (sample,) = edited["samples"]
    before = whole["samples"][1]
    assert edited["live"]["bases"] == [1]
    assert edited["live"]["texts"] == [asked] != [whole["live"]["texts"][1]]
    assert sample["modalities"]["image"]["picture"] == before["modalities"]["image"]["picture"]
    assert edited_maps[0]["answers"] != maps[1]["answers"]
    same = contents_of(explorer.answer(Question(sample=1, text=whole["live"]["texts"][1])))[1]
    # The run's own sample also has its true class as an answer.
    details = [[float(answer["detail"]) for answer in one["answers"][:3]] for one in (same[0], maps[1])]
    assert details[0] == pytest.approx(details[1], abs=2e-3)
    content = base64.b64decode(before["modalities"]["image"]["picture"].partition(",")[2])
    both, _ = contents_of(explorer.answer(Question(text=asked, name="a.png", content=content)))
    assert both["live"]["bases"] == [None]
    assert set(both["samples"][0]["modalities"]) == {"image", "text"}
    with pytest.raises(ConfigError, match="sample=3"):
        explorer.answer(Question(sample=3, text="how many ?"))
    with pytest.raises(UnreadableError, match=r"the text\.txt"):
        explorer.answer(Question(sample=1, text=" "))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser(server, run, tmp_path):
    problems, requests = [], []
    (tmp_path / "bad.png").write_bytes(b"no image")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda one: requests.append(one.url))
        page.goto(server.url)
        page.wait_for_selector("html[data-rendered]")
        assert page.locator("#samples button").count() in (0, 3)
        page.set_input_files("#live-file", str(picture(run)))
        page.focus("#live-file")
        page.keyboard.press("Tab")  # to the checkpoint
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector('#live-status:has-text("explained")')
        page.wait_for_selector("html[data-rendered]")
        assert page.inner_text("#sample-id") == "3.png"
        assert page.evaluate("document.activeElement.id") == "live-explain"
        page.screenshot(path=str(tmp_path / "live.png"))
        assert problems == []
        page.set_input_files("#live-file", str(tmp_path / "bad.png"))
        page.click("#live-explain")
        page.wait_for_selector('#live-status:has-text("bad.png")')
        page.click("#live-samples")
        page.wait_for_selector("#live-status:empty", state="attached")
        browser.close()
    assert all(re.match(r"data:|blob:|http://127\.0\.0\.1:", url) for url in requests)
    assert all("400" in problem for problem in problems)  # the browser's note of the refused file
