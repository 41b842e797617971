"""What a training leaves of its explanations: event files, scores, the explorer's page, and what loggers get."""

import csv
import json
import logging
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from PIL import Image

from perceiver.commands.results import final_metrics
from perceiver.data.collate import collate
from perceiver.inspection import writer as writer_module
from perceiver.inspection.evaluation import evaluator as evaluator_module
from perceiver.inspection.evaluation import faithfulness as faithfulness_module
from perceiver.inspection.evaluation import localization as localization_module
from perceiver.inspection.evaluation.localization import localization, mean_scores
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.statistics import drift, statistics
from perceiver.runtime.loggers import wandb as wandb_module
from perceiver.runtime.loggers.curves import Curves
from perceiver.tasks.captioning import Captioning
from perceiver.training import attention_callback as callback_module
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.data_module import DataModule
from perceiver.training.module import TrainingModule
from tests.inspection.explanations import contents_of
from tests.inspection.models import forward_record
from tests.noise import NoiseItems, attention, evaluator, events, fit, noise
from tests.runs import ROOT, SMALL, assert_refused, metrics, train, trained
from tests.wandb_file import offline_mirror, rows, run_folders

FAITHFULNESS = [
    f"attention/{score}/{name}" for score in ("deletion", "insertion") for name in ("mean_map", "relevance", "rollout")
]
SCORES = ["energy_in_box", "energy_in_box_chance", "pointing_game", "pointing_game_chance"]
WORD_SCORES = [f"{name}_{kind}" for name in SCORES for kind in ("colour", "shape")]
SMALL_EVENTS = ["attention.every_n_epochs=1", "attention.num_samples=3", "attention.evaluator.num_samples=7"]


@dataclass
class Run:
    """A training with explanations after the second, fourth and fifth epoch, with logs."""

    folder: Path
    callback: AttentionCallback
    module: TrainingModule
    metrics: dict[str, float]

    @property
    def events(self) -> list[dict[str, np.ndarray]]:
        return events(self.folder)

    def logged(self, key: str) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
        """Step -> all values of the rows with a value for `key`, in `metrics.csv` and in W&B's file."""
        with (self.folder / "metrics.csv").open() as file:
            lines = [line for line in csv.DictReader(file) if line.get(key)]
        table = {int(line["step"]): {name: float(value) for name, value in line.items() if value} for line in lines}
        return table, {row["trainer/global_step"]: row for row in rows(self.media) if key in row}

    @property
    def media(self) -> Path:
        (folder,) = run_folders(self.folder)
        return folder


@pytest.fixture(scope="module", params=["classes", "texts"])
def run(request, tmp_path_factory) -> Run:
    folder, callback = tmp_path_factory.mktemp("family") / request.param, attention(2)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faithfulness_module, "MIN_LOSS", -1.0)
        mirror = offline_mirror(folder, patch)
        loggers = [Curves(folder / "metrics.csv"), mirror]
        trainer, module = fit(folder, callback, boxes=True, texts=request.param == "texts", logger=loggers)
        mirror.end(0)
        return Run(folder, callback, module, final_metrics(trainer))


@pytest.fixture
def lenient(monkeypatch):
    """Test the faithfulness of every answer, whatever it loses without input."""
    monkeypatch.setattr(faithfulness_module, "MIN_LOSS", -1.0)


def page_in(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a browser reads in the page of a run: all but the maps, and these."""
    return contents_of((folder / "attention" / "index.html").read_text(encoding="utf-8"))


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == callback_module.__name__]


def breaks(monkeypatch, target: Any, name: str, *, after: int = 0) -> list[int]:
    """Have a function raise an error, after some calls; collects its calls."""
    original, calls = getattr(target, name), []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("no maps today")
        return original(*args, **options)

    monkeypatch.setattr(target, name, broken)
    return calls


class TestSchedule:
    @pytest.mark.parametrize(
        ("every_n_epochs", "options", "epochs", "steps"),
        [
            (1, {"max_epochs": 3}, [0, 1, 2], [2, 5, 8]),
            (7, {"max_epochs": 2}, [1], [5]),
            (2, {"max_steps": 7}, [1, 2], [5, 6]),
            (1, {"max_steps": 6}, [0, 1], [2, 5]),
            (5, {"stages": "train"}, [4], [14]),
            (2, {"check_val_every_n_epoch": 3, "max_epochs": 4}, [1, 3], [5, 11]),
            (2, {"val_check_interval": 1, "max_epochs": 3}, [1, 2], [5, 8]),
            (2, {"accumulate_grad_batches": 2, "max_epochs": 3}, [1, 2], [3, 5]),
        ],
        ids=str,
    )
    def test_there_is_one_event_at_each_due_epoch_and_the_end(self, tmp_path, every_n_epochs, options, epochs, steps):
        fit(tmp_path, attention(every_n_epochs), **options)
        assert [(int(event["epoch"]), int(event["step"])) for event in events(tmp_path)] == [
            *zip(epochs, steps, strict=True)
        ]

    def test_there_is_one_at_an_early_end(self, tmp_path):
        fit(tmp_path, attention(5), EarlyStopping(monitor="val/loss", min_delta=1e9, patience=2))
        assert [int(event["epoch"]) for event in events(tmp_path)] == [2]

    def test_with_0_there_is_none(self, tmp_path):
        callback = attention(0)
        fit(tmp_path, callback, boxes=True, max_epochs=1)
        assert callback.scores == {}
        assert not (tmp_path / "attention").exists()

    @pytest.mark.parametrize("stages", ["train val", "train test", "train"])
    def test_events_have_the_same_samples_from_outside_training_where_possible(self, tmp_path, stages):
        fit(tmp_path, attention(), stages=stages, max_epochs=2)
        first, second = events(tmp_path)
        assert first["ids"].tolist() == [f"{stages.split()[-1]}/{index}" for index in (0, 4, 8)]
        assert all((second[name] == first[name]).all() for name in ("ids", "input/image", "target/label"))
        assert (second["cross0/weights"] != first["cross0/weights"]).any()

    @pytest.mark.parametrize(
        ("options", "sizes"), [({}, [3, 7]), ({"evaluator": evaluator(0)}, [3])], ids=["scored", "unscored"]
    )
    def test_each_set_of_samples_is_read_once(self, tmp_path, options, sizes, monkeypatch):
        found, original = [], DataModule.probe
        monkeypatch.setattr(DataModule, "probe", lambda data, count: found.append(count) or original(data, count))
        fit(tmp_path, attention(**options), max_epochs=3, boxes=True)
        assert found == sizes

    @pytest.mark.parametrize("options", [{}, {"texts": True}], ids=str)
    def test_training_is_the_same_to_the_bit(self, tmp_path, options):
        _, without = fit(tmp_path / "without", max_epochs=3, **options)
        _, found = fit(tmp_path / "with", attention(), max_epochs=3, **options)
        assert len(events(tmp_path / "with")) == 3
        expected, weights = without.state_dict(), found.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    @pytest.mark.parametrize(
        "options",
        [{"every_n_epochs": -1}, {"num_samples": 0}, {"rollout_alpha": 1.1}],
        ids=str,
    )
    def test_invalid_settings_are_refused(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            attention(**options)


class ValidatedWeights(Callback):
    """Stores the weights that were validated last."""

    def on_validation_batch_start(self, trainer, pl_module, *args) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


def map_of(module: TrainingModule, event: dict[str, np.ndarray]) -> np.ndarray:
    """The attention of the model of `module` for the images of an event."""
    record = forward_record(module.model, {"image": torch.from_numpy(event["input/image"]).float()})
    return record.layers["cross0"].weights().numpy()


@pytest.mark.parametrize("first", ["attention", "averaging"])
@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_steps": 7, "stages": "train"}], ids=str)
def test_averaged_weights_are_explained_where_they_are_validated_and_saved(tmp_path, first, options):
    validated, averaging = ValidatedWeights(), EMAWeightAveraging(decay=0.95)
    callbacks = (attention(2), averaging) if first == "attention" else (averaging, attention(2))
    _, module = fit(tmp_path, *callbacks, validated, **options)
    found = events(tmp_path)
    # When training ends, the averages become the module's weights. The images of an event are in half precision.
    np.testing.assert_allclose(found[-1]["cross0/weights"], map_of(module, found[-1]), atol=2e-3)
    _, raw = fit(tmp_path / "raw", **options)
    assert np.abs(found[-1]["cross0/weights"] - map_of(raw, found[-1])).max() > 0.01
    if "stages" not in options:
        module.load_state_dict(validated.weights)
        np.testing.assert_allclose(found[0]["cross0/weights"], map_of(module, found[0]), atol=2e-3)


def test_maps_of_a_training_in_mixed_precision_are_those_of_its_precision(tmp_path):
    _, module = fit(tmp_path, attention(), max_epochs=1, precision="bf16-mixed")
    (event,) = events(tmp_path)
    event["input/image"] = NoiseItems("val").images[[0, 4, 8]].numpy()  # unrounded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(event["cross0/weights"], map_of(module, event), atol=5e-4)
    assert 1e-3 < np.abs(event["cross0/weights"] - map_of(module, event)).max() < 0.03


@pytest.mark.parametrize(("precision", "texts"), [("bf16-true", True), ("64-true", False)])
def test_localization_works_in_any_precision(tmp_path, precision, texts):
    callback = attention()
    fit(tmp_path, callback, boxes=True, texts=texts, max_epochs=1, precision=precision, limit_val_batches=0)
    assert {f"attention/relevance/{name}" for name in (WORD_SCORES if texts else SCORES)} < callback.scores.keys()
    assert all(0.0 <= value <= 1.0 for name, value in callback.scores.items() if name not in FAITHFULNESS)


class TestErrors:
    @pytest.mark.parametrize(
        ("target", "part", "texts"),
        [
            (writer_module, "event_arrays", False),
            (writer_module, "page_samples", False),
            (writer_module, "contact_sheets", True),
            (callback_module, "explorer_page", False),
            (callback_module, "log_explanation", True),
        ],
    )
    def test_after_three_it_is_off_with_a_warning_and_training_goes_on(
        self, tmp_path, monkeypatch, caplog, target, part, texts
    ):
        calls, callback = breaks(monkeypatch, target, part), attention()
        caplog.set_level(logging.WARNING)
        trainer, module = fit(tmp_path, callback, texts=texts, max_epochs=4)
        assert (trainer.global_step, len(calls)) == (12, 3)
        assert callback.scores == {}
        messages = warnings_in(caplog)
        assert ["off" in message for message in messages] == [False, False, True]
        assert all("no maps today" in message for message in messages)
        assert all(part.training for part in module.model.modules())

    def test_one_of_the_faithfulness_test_leaves_the_last_event(self, tmp_path, monkeypatch, caplog):
        breaks(monkeypatch, evaluator_module, "faithfulness")
        caplog.set_level(logging.WARNING)
        callback = attention(2)
        fit(tmp_path, callback, boxes=True, max_epochs=3)
        (message,) = warnings_in(caplog)
        assert "faithfulness test" in message
        assert "off" not in message
        assert "attention/energy_in_box" in callback.scores
        assert [int(event["step"]) for event in events(tmp_path)] == [5, 8]

    def test_one_of_the_last_event_leaves_the_faithfulness_test_and_no_older_scores(
        self, tmp_path, monkeypatch, caplog, lenient
    ):
        breaks(monkeypatch, writer_module, "event_arrays", after=2)
        caplog.set_level(logging.WARNING)
        callback = attention()
        fit(tmp_path, callback, boxes=True, max_epochs=3)
        assert len(warnings_in(caplog)) == 1
        assert len(events(tmp_path)) == 2
        assert sorted(callback.scores) == FAITHFULNESS

    def test_without_any_event_there_is_no_page(self, tmp_path, monkeypatch):
        breaks(monkeypatch, writer_module, "event_arrays")
        fit(tmp_path, attention(), max_epochs=1)
        assert list((tmp_path / "attention").iterdir()) == []

    def test_a_slow_event_has_no_sheets_and_warns_once(self, tmp_path, monkeypatch, caplog):
        calls = breaks(monkeypatch, writer_module, "contact_sheets")
        caplog.set_level(logging.WARNING)
        callback = attention(max_seconds=0.0)
        fit(tmp_path, callback, boxes=True, max_epochs=3)
        assert not calls
        (message,) = warnings_in(caplog)
        assert "max_seconds=0" in message
        assert "num_samples" in message
        assert len(events(tmp_path)) == 3
        assert (tmp_path / "attention" / "index.html").exists()
        assert "attention/energy_in_box" in callback.scores


class TestScores:
    def test_statistics_and_drift_are_logged_at_the_steps_of_the_validation(self, run):
        _, validated = run.logged("val/loss")
        steps, key = [sorted(validated)[epoch] for epoch in (1, 3, 4)], "attention/stat/cross0/entropy"
        assert [int(event["step"]) for event in run.events] == steps == [5, 11, 14]
        earlier: dict[str, Any] | None = None
        for logged in run.logged(key):
            assert list(logged) == steps
            for step, event in zip(steps, run.events, strict=True):
                stats = {name.replace("score/", "attention/"): float(event[name]) for name in event if "/stat/" in name}
                assert {name: value for name, value in logged[step].items() if "/stat/" in name} == pytest.approx(stats)
        for event in run.events:
            drifts = drift(earlier, event) if earlier else {}
            assert set(drifts) == ({"cross0/drift"} if earlier else set())
            found = {name: float(event[name]) for name in event if name.endswith("drift")}
            assert found == pytest.approx({f"score/stat/{name}": value for name, value in drifts.items()})
            earlier = event
        assert not [name for name in run.callback.scores if "/stat/" in name]

    def test_all_others_are_in_the_event_the_logs_and_the_metrics_of_the_run(self, run):
        texts = run.folder.name == "texts"
        names = {f"attention/{of}{name}" for of in ("", "relevance/") for name in (WORD_SCORES if texts else SCORES)}
        names |= {"attention/word_overlap"} if texts else set()
        assert set(run.callback.scores) == names | set(FAITHFULNESS)
        assert {name: run.metrics[name] for name in run.callback.scores} == run.callback.scores
        for key, steps in ((sorted(names)[0], [5, 11, 14]), (FAITHFULNESS[0], [14])):
            for logged in run.logged(key):
                assert list(logged) == steps, "faithfulness is tested at the end"
                of_key = [name for name in run.callback.scores if (name in names) == (key in names)]
                expected = {name: run.callback.scores[name] for name in of_key}
                assert {name: logged[14][name] for name in of_key} == pytest.approx(expected)
        last = {name: float(run.events[-1][name.replace("attention/", "score/")]) for name in run.callback.scores}
        assert last == pytest.approx(run.callback.scores)
        assert ["faithfulness" in event for event in run.events] == [False, False, True]

    def test_localization_is_that_of_the_second_set_of_samples(self, run):
        texts = run.folder.name == "texts"
        split = noise("val", boxes=True, texts=texts).split("val")
        explainer = Explainer(run.module.model, run.module.task, [] if texts else ["a", "b", "c"], 0.5)
        samples = [collate([split[index * len(split) // 7]]) for index in range(7)]  # alone, without padding
        expected = mean_scores(localization(explainer.explain(sample)) for sample in samples)
        found = {name: value for name, value in run.callback.scores.items() if name not in FAITHFULNESS}
        assert found == pytest.approx({f"attention/{name}": value for name, value in expected.items()}, abs=1e-4)

    def test_statistics_are_those_of_the_model_on_the_first_set(self, tmp_path):
        _, module = fit(tmp_path, attention(rollout_alpha="norm"), max_epochs=1)
        images = NoiseItems("val").images[[0, 4, 8]]
        expected = statistics(forward_record(module.model, {"image": images}), alpha="norm")
        (event,) = events(tmp_path)
        assert str(event["rollout/alpha"]) == "norm"
        prefix = "score/stat/"
        found = {name.removeprefix(prefix): float(event[name]) for name in event if name.startswith(prefix)}
        assert found == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(
        ("options", "scores"),
        [
            ({"boxes": False, "texts": False}, set()),
            ({"boxes": False, "texts": True}, {"attention/word_overlap"}),
            ({"boxes": True, "texts": False, "evaluator": evaluator(0)}, set()),
        ],
        ids=["without boxes", "words", "without samples"],
    )
    def test_there_are_none_without_boxes_or_samples(self, tmp_path, options, scores):
        of_callback = {name: options.pop(name) for name in list(options) if name == "evaluator"}
        callback = attention(**of_callback)
        fit(tmp_path, callback, max_epochs=1, **options)
        assert {name for name in callback.scores if name not in FAITHFULNESS} == scores
        if of_callback:
            assert callback.scores == {}
            assert page_in(tmp_path)[0]["runs"][0]["events"][0]["faithfulness"] is None

    @pytest.mark.parametrize(("overlap", "warns"), [(0.97, True), (0.93, False)])
    def test_maps_that_are_nearly_the_same_for_all_words_cause_one_warning(
        self, tmp_path, monkeypatch, caplog, overlap, warns
    ):
        found = {"word_overlap": torch.full((2,), overlap)}
        monkeypatch.setattr(localization_module, "word_overlap", lambda explanation: found)
        caplog.set_level(logging.WARNING)
        callback = attention()
        fit(tmp_path, callback, texts=True, max_epochs=2)
        messages = warnings_in(caplog)
        assert len(messages) == (1 if warns else 0)
        assert all(f"{overlap:.3f}" in message for message in messages)

    def test_empty_texts_have_none(self, tmp_path, monkeypatch):
        """The boxes of a sample without words are not compared with the rollout of all queries."""
        monkeypatch.setattr(Captioning, "answers", lambda task, outputs, queries, batch, *args: [[]] * len(batch))
        callback = attention()
        fit(tmp_path, callback, texts=True, boxes=True, max_epochs=1)
        assert callback.scores == {}
        (event,) = events(tmp_path)
        assert json.loads(str(event["answers"])) == [[], [], []]


class TestContactSheets:
    def test_they_are_logged_with_the_scores_of_their_event(self, run):
        names = {"attention/image/cross0"} | ({"attention/caption/words"} if run.folder.name == "texts" else set())
        logged = [row for row in rows(run.media) if "attention/image/cross0" in row]
        assert [(row["trainer/global_step"], "attention/stat/cross0/entropy" in row) for row in logged] == [
            *((5, True), (11, True), (14, True))
        ]
        for row, epoch in zip(logged, (1, 3, 4), strict=True):
            media = {
                key: value for key, value in row.items() if key.startswith("attention/") and isinstance(value, dict)
            }
            assert set(media) == names
            for sheets in media.values():
                ids = ("val/0", "val/4", "val/8")
                assert sheets["captions"] == [f"{id} · step {row['trainer/global_step']} · epoch {epoch}" for id in ids]
                for name in sheets["filenames"]:
                    with Image.open(run.media / "files" / name) as picture:
                        assert picture.mode == "RGB"
                        assert np.ptp(np.asarray(picture)) > 60


class TestPage:
    def test_it_has_what_the_files_have(self, run):
        page, maps = page_in(run.folder)
        name = "/".join(run.folder.parts[-2:])
        assert page["title"] == page["runs"][0]["name"] == name
        assert [sample["id"] for sample in page["samples"]] == ["val/0", "val/4", "val/8"]
        if run.folder.name == "classes":
            assert [sample["ground_truth"] for sample in page["samples"]] == [["a"], ["b"], ["c"]]
        assert len(maps) == 3 * 3
        for of_page, event in zip(page["runs"][0]["events"], run.events, strict=True):
            assert (of_page["step"], of_page["epoch"]) == (int(event["step"]), int(event["epoch"]))
            expected = {name.replace("score/", "attention/"): float(event[name]) for name in event if "score/" in name}
            expected = {name: None if math.isnan(value) else value for name, value in expected.items()}
            assert of_page["values"] == pytest.approx(expected)
            tested = json.loads(str(event["faithfulness"])) if "faithfulness" in event else None
            assert of_page["faithfulness"] == tested
            answers = json.loads(str(event["answers"]))
            for content in (one for one in maps if one["explanation"] == of_page["explanation"]):
                names = [(one["name"], one["is_word"]) for one in content["answers"]]
                assert names == [(one["name"], one["label"] is None) for one in answers[content["sample"]]]

    def test_it_is_logged_once_and_is_the_one_of_the_run_directory(self, run):
        _, logged = run.logged("attention/explorer")
        ((step, row),) = logged.items()
        assert step == 14
        page = (run.folder / "attention" / "index.html").read_text(encoding="utf-8")
        assert (run.media / "files" / row["attention/explorer"]["path"]).read_text(encoding="utf-8") == page

    def test_nothing_but_complete_files_is_left(self, run):
        names = sorted(path.name for path in (run.folder / "attention").iterdir())
        assert names == ["index.html", *(f"step_{step:08d}.npz" for step in (5, 11, 14))]

    def test_it_is_written_at_each_event(self, tmp_path, monkeypatch):
        found, original = [], callback_module.log_explanation

        def log_explanation(*args):
            page, maps = page_in(tmp_path)
            found.append([event["step"] for event in page["runs"][0]["events"]])
            assert {(one["explanation"], one["sample"]) for one in maps} == {
                (event, sample) for event in range(len(found[-1])) for sample in range(3)
            }
            return original(*args)

        monkeypatch.setattr(callback_module, "log_explanation", log_explanation)
        fit(tmp_path, attention(2), max_epochs=3)
        assert found == [[5], [5, 8], [5, 8]]  # the last with the faithfulness test

    def test_of_a_long_training_it_has_some_maps_and_all_scores(self, tmp_path):
        fit(tmp_path, attention(), max_epochs=8)
        page, maps = page_in(tmp_path)
        found = page["runs"][0]["events"]
        kept = [event["explanation"] for event in found if event["explanation"] is not None]
        assert (len(found), kept, found[-1]["explanation"]) == (8, list(range(6)), 5)
        assert {one["explanation"] for one in maps} == set(kept)
        assert all("attention/stat/cross0/entropy" in event["values"] for event in found)

    def test_one_too_large_for_wandb_stays_in_the_run_directory(self, tmp_path, lenient, monkeypatch):
        monkeypatch.setattr(wandb_module, "MAX_PAGE_BYTES", 1000)
        mirror = offline_mirror(tmp_path, monkeypatch)
        fit(tmp_path, attention(2), max_epochs=2, logger=mirror)
        mirror.end(0)
        (folder,) = run_folders(tmp_path)
        assert not [row for row in rows(folder) if "attention/explorer" in row]
        assert [row["trainer/global_step"] for row in rows(folder) if FAITHFULNESS[0] in row] == [5]
        assert (tmp_path / "attention" / "index.html").stat().st_size > 1000

    def test_a_resumed_run_continues_it(self, tmp_path):
        saving = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
        fit(tmp_path, attention(), saving, max_epochs=3, enable_checkpointing=True)
        before, first = page_in(tmp_path)[0], events(tmp_path)
        fit(tmp_path, attention(), max_epochs=5, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
        page, maps = page_in(tmp_path)
        found, found_before = (one["runs"][0]["events"] for one in (page, before))
        assert [event["step"] for event in found] == [2, 5, 8, 11, 14]
        assert [event["values"] for event in found[:2]] == [event["values"] for event in found_before[:2]]
        assert {one["explanation"] for one in maps} == set(range(5))
        again = events(tmp_path)
        assert (again[0]["cross0/weights"] == first[0]["cross0/weights"]).all()
        assert float(again[3]["score/stat/cross0/drift"]) == pytest.approx(drift(again[2], again[3])["cross0/drift"])

    def test_events_of_an_earlier_run_in_the_directory_are_replaced(self, tmp_path):
        """A run resumed from an old checkpoint finds events of later steps."""
        fit(tmp_path, attention(), max_epochs=2)
        before, key = page_in(tmp_path)[0]["runs"][0]["events"], "attention/stat/cross0/entropy"
        fit(tmp_path, attention(rollout_alpha=0.25), max_epochs=2, seed=1)
        page, maps = page_in(tmp_path)
        for of_page, old, event in zip(page["runs"][0]["events"], before, events(tmp_path), strict=True):
            assert of_page["values"][key] == pytest.approx(float(event[key.replace("attention", "score")]))
            assert of_page["values"][key] != old["values"][key]
        assert {one["methods"][1]["label"] for one in maps} == {"rollout, α = 0.25"}
        assert ["score/stat/cross0/drift" in event for event in events(tmp_path)] == [False, True]


def test_settings_of_the_command_line_reach_the_callback(tmp_path, lenient):
    run = trained(tmp_path / "run", *SMALL_EVENTS, "attention.rollout_alpha=norm", "attention.max_seconds=0")
    assert [str(event["rollout/alpha"]) for event in events(run)] == ["norm", "norm"]
    assert {content["methods"][1]["label"] for content in page_in(run)[1]} == {"rollout, norm-weighted"}
    measured = metrics(run)
    assert set(FAITHFULNESS) < set(measured)
    assert not [name for name in measured if "/stat/" in name]


def test_an_invalid_alpha_ends_the_run_with_one_sentence(tmp_path):
    ended = train(tmp_path / "run", *SMALL_EVENTS, "attention.rollout_alpha=norms")
    assert_refused(ended, "rollout_alpha", "norms")


@pytest.mark.slow
def test_two_processes_leave_the_events_of_one(tmp_path):
    """Each has half of every batch, so that both runs take the same steps."""
    two, one = tmp_path / "family" / "two", tmp_path / "family" / "one"
    options = [*SMALL_EVENTS, "optimizer.lr=0.001"]
    of_two = [*SMALL, *options, "loader.batch_size=29", "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, "experiments/train.py", f"hydra.run.dir={two}", *of_two]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr
    trained(one, *options, "loader.batch_size=58")
    names = [sorted(path.name for path in (run / "attention").iterdir()) for run in (one, two)]
    assert names[0] == names[1] == ["index.html", "step_00000002.npz", "step_00000005.npz"]
    for found, expected in zip(events(two), events(one), strict=True):
        assert set(found) == set(expected)
        assert (found["ids"] == expected["ids"]).all()
        for name in ("cross0/weights", "rollout/inputs", "score/stat/cross0/entropy"):
            np.testing.assert_allclose(found[name], expected[name], atol=2e-3)
    (page, maps), (expected, expected_maps) = page_in(two), page_in(one)
    assert len(maps) == len(expected_maps) == 6
    assert [sample["id"] for sample in page["samples"]] == [sample["id"] for sample in expected["samples"]]
