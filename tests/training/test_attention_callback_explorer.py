"""What a training leaves of its looks: statistics, drift, the deletion test, and the explorer's page."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from perceiver.commands.results import final_metrics
from perceiver.inspection import faithfulness as deletion_module
from perceiver.inspection.capture import Capture
from perceiver.inspection.statistics import drift, statistics
from perceiver.runtime.loggers import wandb as wandb_module
from perceiver.runtime.loggers.curves import Curves
from perceiver.training import attention_callback as callback_module
from tests.inspection.explanations import contents_of
from tests.inspection.models import look
from tests.noise import NoiseItems, attention, events, fit
from tests.runs import ROOT, SMALL, metrics, train, trained
from tests.wandb_file import offline_mirror, rows, run_folders

DELETION = [f"attention/deletion/{name}" for name in ("mean_map", "relevance", "rollout")]


@pytest.fixture
def hides(monkeypatch):
    """Whatever hiding tokens costs an answer, it is tested."""
    monkeypatch.setattr(deletion_module, "LEAST_LOSS", -1.0)


@pytest.fixture
def loggers(tmp_path, monkeypatch):
    mirror = offline_mirror(tmp_path, monkeypatch)
    return [Curves(tmp_path / "metrics.csv"), mirror]


def page_in(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a browser reads in the page of a run: all but the maps, and these."""
    return contents_of((folder / "attention" / "index.html").read_text(encoding="utf-8"))


def table(folder: Path, key: str) -> dict[int, dict[str, float]]:
    """Step -> all numbers of the lines of `metrics.csv` that have one for `key`."""
    with (folder / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line.get(key)]
    return {int(line["step"]): {name: float(value) for name, value in line.items() if value} for line in lines}


def of_wandb(folder: Path, key: str) -> dict[int, dict[str, Any]]:
    """The same of W&B's file."""
    (run,) = run_folders(folder)
    return {row["trainer/global_step"]: row for row in rows(run) if key in row}


def test_numbers_and_tests_reach_files_and_loggers_at_the_steps_of_the_validation(tmp_path, loggers, hides):
    callback = attention(2)
    trainer, _ = fit(tmp_path, callback, boxes=True, max_epochs=5, logger=loggers)
    loggers[1].end(0)
    found = events(tmp_path)
    steps = [int(event["step"]) for event in found]
    validated = sorted(of_wandb(tmp_path, "val/loss"))
    assert steps == [validated[epoch] for epoch in (1, 3, 4)] == [5, 11, 14]
    key = "attention/stat/cross0/entropy"
    lines, mirrored = table(tmp_path, key), of_wandb(tmp_path, key)
    assert list(lines) == list(mirrored) == steps
    earlier: dict[str, Any] | None = None
    for step, event in zip(steps, found, strict=True):
        stats = {name.replace("score/", "attention/"): float(event[name]) for name in event if "/stat/" in name}
        drifts = {f"attention/stat/{name}": value for name, value in drift(earlier, event).items()} if earlier else {}
        assert {name for name in stats if name.endswith("drift")} == set(drifts)
        assert set(drifts) == ({"attention/stat/cross0/drift"} if earlier else set())
        assert {name: stats[name] for name in drifts} == pytest.approx(drifts)
        for logged in (lines[step], mirrored[step]):
            assert {name: logged[name] for name in stats} == pytest.approx(stats)
            assert {name for name in logged if "/stat/" in name} == set(stats)
        earlier = event
    tested, mirrored = table(tmp_path, DELETION[0]), of_wandb(tmp_path, DELETION[0])
    assert list(tested) == list(mirrored) == steps[-1:], "tested once, in the end"
    for name in DELETION:
        value = callback.scores[name]
        assert tested[14][name] == pytest.approx(value)
        assert mirrored[14][name] == pytest.approx(value)
        assert float(found[-1][name.replace("attention/", "score/")]) == pytest.approx(value)
    assert [name in event for event in found for name in ("deletion",)] == [False, False, True]
    assert not [name for name in callback.scores if "/stat/" in name]
    measured = final_metrics(trainer)
    assert {name: measured[name] for name in callback.scores} == callback.scores
    assert {"attention/energy_in_box", *DELETION} < set(measured)


def test_statistics_are_those_of_the_model_on_the_first_probe_set(tmp_path, monkeypatch):
    alphas, original = [], Capture.statistics
    monkeypatch.setattr(
        Capture, "statistics", lambda self, *, alpha: alphas.append(alpha) or original(self, alpha=alpha)
    )
    _, module = fit(tmp_path, attention(rollout_alpha="norm"), max_epochs=1)
    images = NoiseItems("val").images[[0, 4, 8]]
    expected = statistics(look(module.model, {"image": images}), alpha="norm")
    assert alphas == ["norm"]
    (event,) = events(tmp_path)
    assert str(event["rollout/alpha"]) == "norm"
    found = {name.removeprefix("score/stat/"): float(event[name]) for name in event if name.startswith("score/stat/")}
    assert found == pytest.approx(expected, abs=1e-4)
    assert "cross0/entropy" in found


def test_each_event_is_in_the_page_as_soon_as_it_is_over(tmp_path, monkeypatch):
    found, original = [], callback_module.log_explanation

    def log_explanation(*args, **options):
        page, maps = page_in(tmp_path)
        found.append([event["step"] for event in page["runs"][0]["events"]])
        assert {(one["explanation"], one["sample"]) for one in maps} == {
            (look, sample) for look in range(len(found[-1])) for sample in range(3)
        }
        return original(*args, **options)

    monkeypatch.setattr(callback_module, "log_explanation", log_explanation)
    fit(tmp_path, attention(2))
    assert found == [[5], [5, 11], [5, 11, 14]]


def test_the_page_has_what_the_files_have(tmp_path, hides):
    fit(tmp_path / "family" / "run", attention(), boxes=True, max_epochs=3)
    page, maps = page_in(tmp_path / "family" / "run")
    assert page["title"] == "family/run"
    (run,) = page["runs"]
    assert run["name"] == "family/run"
    assert [sample["id"] for sample in page["samples"]] == ["val/0", "val/4", "val/8"]
    assert [sample["ground_truth"] for sample in page["samples"]] == [["a"], ["b"], ["c"]]
    for shown, event in zip(run["events"], events(tmp_path / "family" / "run"), strict=True):
        assert (shown["step"], shown["epoch"]) == (int(event["step"]), int(event["epoch"]))
        expected = {name.replace("score/", "attention/"): float(event[name]) for name in event if "score/" in name}
        assert shown["values"] == pytest.approx({k: None if math.isnan(v) else v for k, v in expected.items()})
        answers = json.loads(str(event["answers"]))
        for content in (one for one in maps if one["explanation"] == shown["explanation"]):
            assert [one["name"] for one in content["answers"]] == [one["name"] for one in answers[content["sample"]]]
    assert [event["deletion"] is not None for event in run["events"]] == [False, False, True]
    assert run["events"][2]["deletion"]["num_samples"] > 0


def test_the_page_of_long_trainings_has_the_maps_of_some_looks_and_the_numbers_of_all(tmp_path):
    fit(tmp_path, attention(), max_epochs=8)
    page, maps = page_in(tmp_path)
    looks = [event["explanation"] for event in page["runs"][0]["events"]]
    assert len(looks) == 8
    shown = [look for look in looks if look is not None]
    assert shown == list(range(6))
    assert looks[-1] == 5
    assert {one["explanation"] for one in maps} == set(shown)
    assert all("attention/stat/cross0/entropy" in event["values"] for event in page["runs"][0]["events"])


def test_a_resumed_run_goes_on_with_the_page_of_the_looks_before(tmp_path):
    saving = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, attention(), saving, max_epochs=3, enable_checkpointing=True)
    before, _ = page_in(tmp_path)
    first = events(tmp_path)
    trainer, _ = fit(tmp_path, attention(), max_epochs=5, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    page, maps = page_in(tmp_path)
    shown, shown_before = (one["runs"][0]["events"] for one in (page, before))
    assert [event["step"] for event in shown] == [2, 5, 8, 11, 14]
    assert [event["values"] for event in shown[:2]] == [event["values"] for event in shown_before[:2]]
    assert {one["explanation"] for one in maps} == set(range(5))
    again = events(tmp_path)
    assert len(again) == 5
    assert (again[0]["cross0/weights"] == first[0]["cross0/weights"]).all()
    assert "score/stat/cross0/drift" in again[3]
    assert float(again[3]["score/stat/cross0/drift"]) == pytest.approx(drift(again[2], again[3])["cross0/drift"])
    assert trainer.global_step == 15


def test_looks_that_are_made_again_replace_those_of_the_training_before(tmp_path):
    """A run that goes on from an old checkpoint in the same directory finds looks from its own future."""
    fit(tmp_path, attention(), max_epochs=3)
    before, _ = page_in(tmp_path)
    fit(tmp_path, attention(rollout_alpha=0.25), max_epochs=3, seed=1)
    page, maps = page_in(tmp_path)
    for shown, old, event in zip(page["runs"][0]["events"], before["runs"][0]["events"], events(tmp_path), strict=True):
        key = "attention/stat/cross0/entropy"
        assert shown["values"][key] == pytest.approx(float(event[key.replace("attention", "score")]))
        assert shown["values"][key] != old["values"][key]
    assert {one["methods"][1]["label"] for one in maps} == {"rollout, α = 0.25"}
    assert ["score/stat/cross0/drift" in event for event in events(tmp_path)] == [False, True, True]


def test_the_page_reaches_wandb_once_and_is_the_one_of_the_run_directory(tmp_path, loggers):
    fit(tmp_path, attention(2), max_epochs=3, logger=loggers)
    loggers[1].end(0)
    (folder,) = run_folders(tmp_path)
    ((step, row),) = of_wandb(tmp_path, "attention/explorer").items()
    assert step == 8
    logged = folder / "files" / row["attention/explorer"]["path"]
    assert tmp_path / "wandb" in logged.parents
    page = (tmp_path / "attention" / "index.html").read_text(encoding="utf-8")
    assert logged.read_text(encoding="utf-8") == page
    assert len(page_in(tmp_path)[0]["runs"][0]["events"]) == 2


def test_pages_that_are_too_large_for_wandb_stay_in_the_run_directory(tmp_path, loggers, hides, monkeypatch):
    monkeypatch.setattr(wandb_module, "MOST_PAGE_BYTES", 1000)
    fit(tmp_path, attention(2), max_epochs=2, logger=loggers)
    loggers[1].end(0)
    assert of_wandb(tmp_path, "attention/explorer") == {}
    assert list(of_wandb(tmp_path, DELETION[0])) == [5]
    assert (tmp_path / "attention" / "index.html").stat().st_size > 1000


def test_a_page_of_texts_has_their_words(tmp_path):
    fit(tmp_path, attention(), texts=True, boxes=True, max_epochs=1)
    _, maps = page_in(tmp_path)
    (event,) = events(tmp_path)
    for content, answers in zip(maps, json.loads(str(event["answers"])), strict=True):
        assert [one["name"] for one in content["answers"]] == [one["name"] for one in answers]
        assert all(one["is_word"] for one in content["answers"])


def test_without_scored_samples_nothing_is_tested_and_never_looking_leaves_nothing(tmp_path, monkeypatch):
    def never(*args, **options):
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr("perceiver.training.attention_callback.faithfulness", never)
    monkeypatch.setattr("perceiver.training.attention_callback.localization", never)
    callback = attention(num_scored_samples=0)
    fit(tmp_path / "without", callback, boxes=True, max_epochs=1)
    assert callback.scores == {}
    assert callback.failures == 0
    assert len(events(tmp_path / "without")) == 1
    assert page_in(tmp_path / "without")[0]["runs"][0]["events"][0]["deletion"] is None
    callback = attention(0)
    fit(tmp_path / "never", callback, boxes=True, max_epochs=1)
    assert callback.scores == {}
    assert not (tmp_path / "never" / "attention").exists()


def test_nothing_but_whole_files_is_left(tmp_path, hides):
    fit(tmp_path, attention(), boxes=True, max_epochs=2)
    names = sorted(path.name for path in (tmp_path / "attention").iterdir())
    assert names == ["index.html", "step_00000002.npz", "step_00000005.npz"]


LOOKING = ["attention.every_n_epochs=1", "attention.num_samples=3", "attention.num_scored_samples=7"]


def test_what_a_layer_passes_on_may_be_said_on_the_command_line(tmp_path, hides):
    run = trained(tmp_path / "run", *LOOKING, "attention.rollout_alpha=norm", "attention.max_seconds=0")
    assert [str(event["rollout/alpha"]) for event in events(run)] == ["norm", "norm"]
    _, maps = page_in(run)
    assert {content["methods"][1]["label"] for content in maps} == {"rollout, norm-weighted"}
    measured = metrics(run)
    assert set(DELETION) < set(measured)
    assert not [name for name in measured if "/stat/" in name]


@pytest.mark.parametrize("alpha", ["norms", "1.5"])
def test_what_a_layer_cannot_pass_on_ends_the_run_in_one_sentence(tmp_path, alpha):
    ended = train(tmp_path / "run", *LOOKING, f"attention.rollout_alpha={alpha}")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "rollout_alpha" in ended.err
    assert alpha in ended.err


@pytest.mark.slow
def test_two_processes_leave_the_looks_of_one(tmp_path):
    """Each takes half of every batch, so that both runs take the same steps."""
    two, one = tmp_path / "family" / "two", tmp_path / "family" / "one"
    options = [*LOOKING, "optimizer.lr=0.001"]
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
    assert [event["step"] for event in page["runs"][0]["events"]] == [2, 5]
    assert [sample["id"] for sample in page["samples"]] == [sample["id"] for sample in expected["samples"]]
