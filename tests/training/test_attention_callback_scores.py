import csv
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.collate import collate
from perceiver.inspection import localization as truth_module
from perceiver.inspection.explanation import Explainer
from perceiver.inspection.localization import localization, mean_scores
from perceiver.runtime.loggers.curves import Curves
from perceiver.tasks.captioning import Captioning
from perceiver.training import attention_callback as callback_module
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.data_module import DataModule
from perceiver.training.module import TrainingModule
from tests.inspection.explanations import explainer
from tests.noise import attention, events, fit, noise
from tests.wandb_file import offline_mirror, rows, run_folders

SCORES = ["energy_in_box", "energy_in_box_chance", "pointing_game", "pointing_game_chance"]


def scores_of(module: TrainingModule, num_samples: int) -> dict[str, float]:
    """The scores of the module's present weights for all samples of a probe set at once."""
    split = noise("val", boxes=True).split("val")
    batch = collate([split[index * len(split) // num_samples] for index in range(num_samples)])
    look = explainer(module.model.eval(), class_names=["a", "b", "c"]).explain(batch)
    return {f"attention/{name}": value for name, value in mean_scores([localization(look)]).items()}


def truths(callback: AttentionCallback) -> dict[str, float]:
    """What the last look measured of rollouts, without the deletion test."""
    others = ("attention/deletion/", "attention/relevance/")
    return {name: value for name, value in callback.scores.items() if not name.startswith(others)}


def truths_of_relevance(callback: AttentionCallback) -> dict[str, float]:
    """What it measured of relevance, by the names of rollouts."""
    start = "attention/relevance/"
    found = {name: value for name, value in callback.scores.items() if name.startswith(start)}
    return {f"attention/{name.removeprefix(start)}": value for name, value in found.items()}


@pytest.mark.parametrize("num_samples", [2, 3, 11])
@pytest.mark.parametrize("num_queries", [1, 3], ids=["whole", "classes"])
def test_scores_are_those_of_the_larger_probe_set_however_large_its_parts(tmp_path, num_samples, num_queries):
    callback = attention(2, num_samples=num_samples)
    _, module = fit(tmp_path, callback, boxes=True, max_epochs=3, num_queries=num_queries)
    expected = scores_of(module, 7)
    assert set(expected) == {f"attention/{of}{name}" for of in ("", "relevance/") for name in SCORES}
    measured = truths(callback) | {
        name.replace("/", "/relevance/", 1): value for name, value in truths_of_relevance(callback).items()
    }
    assert measured == pytest.approx(expected, abs=1e-4)
    last = events(tmp_path)[-1]
    assert {name: float(last[name.replace("attention", "score", 1)]) for name in expected} == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(("boxes", "num_scored_samples"), [(False, 7), (True, 0)])
def test_nothing_is_scored_without_boxes_or_samples(tmp_path, boxes, num_scored_samples):
    callback = attention(num_scored_samples=num_scored_samples)
    fit(tmp_path, callback, boxes=boxes, max_epochs=1)
    assert truths(callback) == {}
    if num_scored_samples == 0:
        assert callback.scores == {}
    assert not [
        name
        for event in events(tmp_path)
        for name in event
        if name.startswith("score/") and not name.startswith(("score/stat/", "score/deletion/"))
    ]


@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, [3, 7]), ({"boxes": True}, [3, 7]), ({"texts": True}, [3, 7]), ({"num_scored_samples": 0}, [3])],
    ids=str,
)
def test_each_probe_set_is_read_once(tmp_path, options, asked, monkeypatch):
    found, original = [], DataModule.probe
    monkeypatch.setattr(DataModule, "probe", lambda data, count: found.append(count) or original(data, count))
    of_data = {name: options[name] for name in options if name != "num_scored_samples"}
    of_callback = {name: options[name] for name in options if name == "num_scored_samples"}
    fit(tmp_path, attention(**of_callback), max_epochs=3, **of_data)
    assert found == asked
    assert len(events(tmp_path)) == 3


def test_scores_of_a_look_that_failed_are_not_those_of_the_one_before(tmp_path, monkeypatch):
    callback, original = attention(), callback_module.event_arrays

    def broken_in_the_end(*args, **options):
        if len(events(tmp_path)) == 2:
            raise RuntimeError("no maps today")
        return original(*args, **options)

    monkeypatch.setattr(callback_module, "event_arrays", broken_in_the_end)
    fit(tmp_path, callback, boxes=True, max_epochs=3)
    assert callback.scores == {}


def test_scores_reach_csv_and_wandb_with_the_panels_in_one_row(tmp_path, monkeypatch):
    mirror = offline_mirror(tmp_path, monkeypatch)
    table = Curves(tmp_path / "metrics.csv")
    callback = attention(2)
    fit(tmp_path, callback, boxes=True, max_epochs=4, logger=[table, mirror])
    mirror.close(0)
    (folder,) = run_folders(tmp_path)
    logged = [row for row in rows(folder) if "attention/image/cross0" in row]
    truths_of = [{key: row[key] for key in row if key in truths(callback)} for row in logged]
    assert [sorted(one) for one in truths_of] == [[f"attention/{name}" for name in SCORES]] * 2
    assert truths_of[-1] == pytest.approx(truths(callback))
    with (tmp_path / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["attention/energy_in_box"]]
    assert [int(line["step"]) for line in lines] == [row["trainer/global_step"] for row in logged] == [5, 11]
    assert {key: float(lines[-1][key]) for key in truths(callback)} == pytest.approx(truths(callback))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("texts", [False, True], ids=["classes", "texts"])
def test_boxes_are_scored_in_any_precision(tmp_path, precision, texts):
    callback = attention()
    fit(tmp_path, callback, boxes=True, texts=texts, max_epochs=1, precision=precision, limit_val_batches=0)
    names = [f"attention/{name}" for name in (SCORES_OF_WORDS if texts else SCORES)]
    assert sorted(truths(callback)) == names
    assert sorted(truths_of_relevance(callback)) == [name for name in names if "word_overlap" not in name]
    assert all(0.0 <= value <= 1.0 for value in truths_of_relevance(callback).values())


SCORES_OF_WORDS = sorted([f"{name}_{kind}" for name in SCORES for kind in ("colour", "shape")] + ["word_overlap"])


@pytest.mark.parametrize("num_samples", [2, 3, 11])
def test_words_are_scored_by_kind_and_for_how_much_alike_they_are(tmp_path, num_samples):
    callback = attention(2, num_samples=num_samples)
    _, module = fit(tmp_path, callback, texts=True, boxes=True, max_epochs=3)
    split = noise("val", boxes=True, texts=True).split("val")
    samples = [split[index * len(split) // 7] for index in range(7)]
    cases = []
    for sample in samples:  # alone, so that nothing fills up its text
        look = Explainer(module.model, module.task, [], 0.5).explain(collate([sample]))
        cases.append({name: values for name, values in localization(look).items() if not name.startswith("relevance/")})
    expected = mean_scores(cases)
    assert sorted(expected) == SCORES_OF_WORDS
    assert truths(callback) == pytest.approx({f"attention/{name}": value for name, value in expected.items()}, abs=1e-4)
    last = events(tmp_path)[-1]
    assert {name: float(last[f"score/{name}"]) for name in SCORES_OF_WORDS} == pytest.approx(expected, abs=1e-4)


def test_without_boxes_words_are_scored_for_how_much_alike_they_are_alone(tmp_path):
    callback = attention()
    fit(tmp_path, callback, texts=True, max_epochs=1)
    assert list(callback.scores) == ["attention/word_overlap"]
    assert 0.0 <= callback.scores["attention/word_overlap"] <= 1.0


@pytest.mark.parametrize(("overlap", "warns"), [(0.97, True), (0.93, False)])
def test_maps_that_are_nearly_the_same_for_all_words_are_warned_of(tmp_path, monkeypatch, caplog, overlap, warns):
    monkeypatch.setattr(truth_module, "overlaps", lambda *args, **options: {"word_overlap": torch.full((2,), overlap)})
    caplog.set_level(logging.WARNING)
    callback = attention()
    fit(tmp_path, callback, texts=True, max_epochs=2)
    messages = [record.getMessage() for record in caplog.records if record.name == callback_module.__name__]
    assert len(messages) == (1 if warns else 0), "of two looks, the last one counts"
    assert all(f"{overlap:.3f}" in message for message in messages)
    assert callback.scores["attention/word_overlap"] == pytest.approx(overlap)


def test_words_and_strips_reach_the_event_csv_and_wandb(tmp_path, monkeypatch):
    mirror = offline_mirror(tmp_path, monkeypatch)
    table = Curves(tmp_path / "metrics.csv")
    callback = attention(2)
    fit(tmp_path, callback, texts=True, boxes=True, max_epochs=2, logger=[table, mirror])
    mirror.close(0)
    (event,) = events(tmp_path)
    answers = json.loads(str(event["answers"]))
    assert len(answers) == 3
    assert any(answers)
    assert {query for row in answers for answer in row for query in answer["queries"]} <= set(
        range(event["decode_self0/weights"].shape[-1])
    )
    (folder,) = run_folders(tmp_path)
    (logged,) = [row for row in rows(folder) if "attention/image/cross0" in row]
    media = {"attention/image/cross0", "attention/caption/words"}
    others = ("attention/stat/", "attention/relevance/")
    assert {key for key in logged if key.startswith("attention/") and not key.startswith(others)} == {
        f"attention/{n}" for n in SCORES_OF_WORDS
    } | media
    assert {key: logged[key] for key in callback.scores if key.startswith("attention/relevance/")} == pytest.approx(
        {f"attention/relevance/{key.split('/')[1]}": value for key, value in truths_of_relevance(callback).items()}
    )
    for name in media:
        for path in logged[name]["filenames"]:
            with Image.open(folder / "files" / path) as picture:
                assert np.ptp(np.asarray(picture)) > 60
    with (tmp_path / "metrics.csv").open() as file:
        (line,) = [line for line in csv.DictReader(file) if line["attention/word_overlap"]]
    assert {key: float(line[key]) for key in truths(callback)} == pytest.approx(truths(callback))


def test_a_model_that_says_nothing_has_no_scores_and_is_looked_at_all_the_same(tmp_path, monkeypatch):
    """A text without a word is no sample whose boxes would be held against all that its outputs read."""
    original = Captioning.answers
    monkeypatch.setattr(Captioning, "answers", lambda task, *args: [[] for _ in original(task, *args)])
    callback = attention()
    fit(tmp_path, callback, texts=True, boxes=True, max_epochs=1)
    assert callback.scores == {}
    (event,) = events(tmp_path)
    assert json.loads(str(event["answers"])) == [[], [], []]
