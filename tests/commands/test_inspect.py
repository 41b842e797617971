"""Inspection of finished runs: of a checkpoint, of two, and of a user's own files."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from perceiver.commands import inspect as inspect_module
from perceiver.commands.finished_run import load
from perceiver.data.synthetic.shape_captions import WORDS
from perceiver.inspection.evaluation import evaluator
from perceiver.inspection.explorer.events import event_arrays
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.runtime.errors import ConfigError
from perceiver.tokenizer import split_words
from tests.commands.test_sound_run import SMALL_SOUND
from tests.inspection.explanations import contents_of
from tests.runs import CAPTIONING, CONF, Ended, assert_refused, checkpoint, image_tree, script, trained

WITH_EVENTS = [
    "attention.every_n_epochs=1",
    "attention.num_samples=3",
    "attention.evaluator.num_samples=0",
    "attention.max_seconds=0",
]
WITH_EVENTS += ["trainer.limit_test_batches=1"]
NUM_EPOCHS = 7
STEPS = [3 * epoch + 2 for epoch in range(NUM_EPOCHS)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run whose best checkpoint is neither that of its first nor of its last event. Only read it."""
    overrides = [f"trainer.max_epochs={NUM_EPOCHS}", "optimizer.lr=0.01"]
    run = trained(tmp_path_factory.mktemp("family") / "digits", *WITH_EVENTS, *overrides)
    # Make the third event that of the best checkpoint.
    saved = checkpoint(run, "last")
    saved["global_step"], saved["epoch"] = STEPS[2] + 1, 2
    torch.save(saved, run / "checkpoints" / "best.ckpt")
    return run


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A run with boxes and a query per class. Only read it."""
    run = tmp_path_factory.mktemp("sounds") / "run"
    ended = script("experiments/train.py", f"hydra.run.dir={run}", *SMALL_SOUND, "logger.mode=disabled", *WITH_EVENTS)
    assert ended.ok, ended.err
    return run


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """A run without classes. Only read it."""
    return trained(tmp_path_factory.mktemp("captions") / "run", *CAPTIONING, *WITH_EVENTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run on images that were deleted, without events. Only read it."""
    root = image_tree(tmp_path_factory.mktemp("images") / "tree", per_class=11)
    options = ["data=image_folder", f"data.root={root}", "data.image_size=9", "data.channels=3"]
    run = trained(tmp_path_factory.mktemp("folders") / "run", *options, "loader.batch_size=5")
    shutil.rmtree(root)
    return run


def inspected(run: Path, *overrides: str) -> Ended:
    return script("experiments/inspect_attention.py", f"run={run}", *overrides)


def explored(run: Path, output: Path, *overrides: str) -> tuple[Ended, dict[str, Any], list[dict[str, Any]]]:
    """The output of the command, which must succeed, and what a browser reads in its page."""
    ended = inspected(run, f"output={output}", *overrides)
    assert ended.ok, ended.err
    return ended, *contents(output)


def contents(page: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return contents_of(page.read_text(encoding="utf-8"))


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def explained(run: Path, name: str, chosen: int | list[int]) -> tuple[Explanation, dict[str, np.ndarray]]:
    """The explanation of samples of a run's validation set, and its arrays."""
    finished = load(str(run), name, [])
    explainer = finished.parts.explainer(finished.config["attention"]["rollout_alpha"])
    explanation = explainer.explain(finished.parts.data.probe(chosen), foil="second")
    return explanation, event_arrays(explanation, max_megabytes=finished.config["attention"]["max_megabytes"])


def check_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """To the last bit."""
    more = found.keys() - expected.keys()
    rest = {name for name in more if not name.startswith(("score/", "knockout/"))}
    assert rest <= {"step", "epoch", "faithfulness", "sinks"}
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert np.array_equal(found[name], values), name


def files_of(*paths: Path) -> str:
    return "inputs=[" + ",".join(f'"{path}"' for path in paths) + "]"


def with_value(node: Any, key: str, value: Any) -> Any:
    """The config with another value wherever a key has one."""
    if isinstance(node, list):
        return [with_value(child, key, value) for child in node]
    if not isinstance(node, dict):
        return node
    return {name: value if name == key else with_value(child, key, value) for name, child in node.items()}


def refused(**settings: Any) -> str:
    """The error of invalid settings; without the command line, which takes longer."""
    cfg = OmegaConf.load(CONF / "inspect_attention.yaml")
    with pytest.raises(ConfigError) as error, mock.patch.object(inspect_module, "prepare_torch"):
        inspect_module.inspect_attention(OmegaConf.merge(cfg, {"samples": 1, "scored_samples": 0}, settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def error_of(ended: Ended) -> str:
    """The one sentence of an error."""
    assert_refused(ended)
    return ended.err


@pytest.fixture(scope="module")
def digits_page(digits, tmp_path_factory):
    """A copy of the run, and the output of the command on it."""
    run = tmp_path_factory.mktemp("copy") / "digits"
    shutil.copytree(digits, run)
    (run / "attention" / "index.html").write_text("of the training")
    return run, inspected(run, "scored_samples=7")


class TestOneRun:
    def test_the_page_and_its_arrays_are_the_only_files_written(self, digits, digits_page):
        run, ended = digits_page
        assert ended.ok, ended.err
        assert f"open {run}/attention/index.html" in ended.out
        assert f"{run}/attention/index.npz" in ended.out
        files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
        before = {path.relative_to(digits) for path in digits.rglob("*") if path.is_file()}
        assert files - before == {Path("attention/index.npz")}
        assert before <= files
        for path in before - {Path("attention/index.html")}:
            assert (run / path).read_bytes() == (digits / path).read_bytes(), path

    def test_the_page_has_the_scores_of_all_events_and_the_maps_of_some(self, digits_page):
        run, _ = digits_page
        page, maps = contents(run / "attention" / "index.html")
        (of_run,) = page["runs"]
        assert of_run["name"] == page["title"] == f"{run.parent.name}/digits (best)"
        events = of_run["events"]
        assert [event["step"] for event in events] == STEPS
        kept = [event["explanation"] for event in events if event["explanation"] is not None]
        assert kept == list(range(len(kept)))
        assert 3 <= len(kept) <= 6
        assert events[-1]["explanation"] is not None
        assert {(one["explanation"], one["sample"]) for one in maps} == {(one, row) for one in kept for row in range(3)}
        assert all("attention/stat/cross0/entropy" in event["values"] for event in events)

    def test_the_event_of_the_checkpoint_replaces_that_of_the_training_at_its_step(self, digits_page):
        run, _ = digits_page
        events = contents(run / "attention" / "index.html")[0]["runs"][0]["events"]
        name = f"{run.parent.name}/digits (best) · step {STEPS[2]}"
        assert [event["name"] for event in events if "best" in event["name"]] == [name]
        assert events[2]["explanation"] is not None
        assert events[2]["epoch"] == 2
        found, before = (arrays_in(run / "attention" / f"{one}.npz") for one in ("index", f"step_{STEPS[2]:08d}"))
        key = "score/stat/cross0/entropy"
        assert events[2]["values"][key.replace("score", "attention")] == pytest.approx(float(found[key]))
        assert found[key] != before[key]
        assert (int(found["step"]), int(found["epoch"])) == (STEPS[2], 2)

    def test_arrays_and_report_are_those_of_the_explanation(self, digits_page):
        run, ended = digits_page
        explanation, arrays = explained(run, "best", 3)
        check_same(arrays_in(run / "attention" / "index.npz"), arrays)
        for name, value in explanation.statistics.items():
            assert f"{value:.3f}" in ended.out, name
        for row, id in enumerate(explanation.batch.ids):
            assert f"\n{id} " in ended.out
            assert f"{explanation.answers[row][0].name} " in ended.out
            assert f"{float(explanation.probability[row, 0]):.3f}" in ended.out
        assert max(map(len, ended.out.splitlines()[:-2])) <= 80

    def test_the_last_checkpoint_may_be_chosen(self, digits, tmp_path):
        path = tmp_path / "new" / "folder" / "page.html"
        _, page, _ = explored(digits, path, "checkpoint=last", "scored_samples=0")
        events = page["runs"][0]["events"]
        assert [event["step"] for event in events] == STEPS
        assert "(last)" in events[-1]["name"]
        check_same(arrays_in(path.with_suffix(".npz")), explained(digits, "last", 3)[1])

    @pytest.mark.parametrize(("samples", "chosen"), [("2", [0, 88]), ("[4,1]", [4, 1])])
    def test_samples_are_chosen_by_number_or_index(self, digits, tmp_path, samples, chosen):
        ended, page, maps = explored(digits, tmp_path / "page.html", f"samples={samples}", "scored_samples=0")
        data = load(str(digits), "best", []).parts.data
        assert len(data.splits["val"]) == 177
        expected = data.probe(chosen).ids
        assert [sample["id"] for sample in page["samples"]] == expected
        assert arrays_in(tmp_path / "page.npz")["ids"].tolist() == expected
        now = page["runs"][0]["events"][2]["explanation"]
        assert [one["sample"] for one in maps if one["explanation"] == now] == list(range(len(chosen)))
        assert [line.strip() for line in ended.out.splitlines() if line.startswith("digits/")] == expected

    def test_without_scored_samples_nothing_is_tested(self, digits, tmp_path, monkeypatch):
        for name in ("faithfulness", "localization"):
            monkeypatch.setattr(evaluator, name, mock.Mock(side_effect=AssertionError))
        ended, page, _ = explored(digits, tmp_path / "page.html", "scored_samples=0")
        assert page["runs"][0]["events"][2]["faithfulness"] is None
        assert "faithfulness" not in arrays_in(tmp_path / "page.npz")
        assert "scored_samples=0" in ended.out

    @pytest.mark.parametrize(
        ("least_loss", "count", "tested", "expected"),
        [
            (-1.0, 61, 61, "61 samples"),  # a batch of 53 and one of 8
            (-1.0, 1, 1, "too few samples"),
            (2.0, 5, 0, "could not be tested"),
        ],
    )
    def test_as_many_samples_are_tested_as_requested(
        self, digits, tmp_path, monkeypatch, least_loss, count, tested, expected
    ):
        monkeypatch.setattr("perceiver.inspection.evaluation.faithfulness.MIN_LOSS", least_loss)
        ended, page, _ = explored(digits, tmp_path / "page.html", f"scored_samples={count}", "samples=1")
        found = page["runs"][0]["events"][2]["faithfulness"]
        assert found["num_samples"] == tested
        assert found == json.loads(str(arrays_in(tmp_path / "page.npz")["faithfulness"]))
        assert expected in " ".join(ended.out.split())
        for one in found["maps"].values():
            assert one["scores"].keys() == {"deletion", "insertion", "randomization"}
            assert all(f"{score['mean']:.2f}" in ended.out for score in one["scores"].values())

    def test_samples_that_are_shown_and_tested_are_explained_once(self, digits, tmp_path, monkeypatch):
        sizes, original = [], Explainer.explain
        monkeypatch.setattr(
            Explainer,
            "explain",
            lambda one, batch, **options: sizes.append(len(batch)) or original(one, batch, **options),
        )
        for count in (5, 7):
            explored(digits, tmp_path / "page.html", "samples=5", f"scored_samples={count}")
        assert sizes == [5, 5, 7]


@pytest.mark.slow
class TestComparison:
    def test_another_checkpoint_of_the_same_run(self, digits, tmp_path):
        run = tmp_path / "family" / "digits"
        shutil.copytree(digits, run)
        ended = inspected(run, f"compare={run}", "compare_checkpoint=last", "scored_samples=0", "samples=[7,5]")
        assert ended.ok, ended.err
        page, maps = contents(run / "attention" / "comparison.html")
        assert page["title"] == "family/digits (best) against family/digits (last)"
        assert [one["name"] for one in page["runs"]] == ["family/digits (best)", "family/digits (last)"]
        assert [[event["step"] for event in one["events"]] for one in page["runs"]] == [STEPS, STEPS]
        explanations = [[event["explanation"] for event in one["events"]] for one in page["runs"]]
        assert explanations == [[None, None, 0, *[None] * (NUM_EPOCHS - 3)], [*[None] * (NUM_EPOCHS - 1), 1]]
        assert page["initial_events"] == [[0, 2], [1, NUM_EPOCHS - 1]]
        assert sorted((one["explanation"], one["sample"]) for one in maps) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for name, checkpoint_name in (("comparison", "best"), ("comparison_compared", "last")):
            found = arrays_in(run / "attention" / f"{name}.npz")
            check_same(found, explained(run, checkpoint_name, [7, 5])[1])
            assert found["ids"].tolist() == [sample["id"] for sample in page["samples"]]
            assert f"{name}.npz" in ended.out
        assert "family/digits (best), step" in ended.out
        assert "family/digits (last), step" in ended.out

    def test_runs_whose_folders_are_called_alike_are_told_apart(self, digits, tmp_path):
        """As those of two sweeps are: `outputs/one/2026-11-22/0` and `outputs/other/2026-11-22/0`."""
        runs = [tmp_path / name / "date" / "0" for name in ("one", "other")]
        for run in runs:
            shutil.copytree(digits, run)
        options = [f"compare={runs[1]}", "samples=1", "scored_samples=0"]
        _, page, maps = explored(runs[0], tmp_path / "page.html", *options)
        assert [one["name"] for one in page["runs"]] == ["date/0 (best)", f"{runs[1]} (best)"]
        assert len(maps) == 2

    def test_the_samples_are_those_of_the_first_run_also_where_the_other_has_other_classes(
        self, captions, folders, pictures, tmp_path
    ):
        options = ["scored_samples=3", "samples=2"]
        ended, page, maps = explored(captions, tmp_path / "page.html", f"compare={folders}", *options)
        assert all(sample["id"].startswith("shape_scenes/") for sample in page["samples"])
        assert [one["answers"][0]["is_word"] for one in sorted(maps, key=lambda one: one["explanation"])] == [
            *(True, True, False, False)
        ]
        ended, page, maps = explored(folders, tmp_path / "page.html", f"compare={captions}", files_of(*pictures))
        assert [sample["id"] for sample in page["samples"]] == [str(path) for path in pictures]
        assert len(maps) == 4
        assert "cat" in ended.out

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"compare": "{digits}"}, "compare={digits}, compare_checkpoint=best: the same checkpoint"),
            ({"compare": "{digits}/../digits"}, "compare_checkpoint=best: the same checkpoint"),
            ({"compare": "{sounds}"}, "compare={sounds}: its model reads audio, that of run reads image"),
            ({"compare": "{captions}"}, "compare={captions}: it cannot read the samples of run={digits}"),
            ({"compare": "/no/such"}, "compare=/no/such: no such run directory"),
            (
                {"compare": "{captions}", "compare_checkpoint": "bets"},
                "compare_checkpoint=bets: {captions} has no such checkpoint; did you mean 'best'?",
            ),
        ],
        ids=["same", "same by another way", "other modality", "other channels", "missing", "missing checkpoint"],
    )
    def test_what_cannot_be_compared_is_refused(self, digits, sounds, captions, tmp_path, settings, expected):
        runs = {"digits": digits, "sounds": sounds, "captions": captions}
        output = tmp_path / "page.html"
        settings = {key: value.format(**runs) for key, value in settings.items()}
        assert expected.format(**runs) in refused(run=str(digits), output=str(output), **settings)
        assert not output.exists()

    def test_whatever_the_other_model_refuses_names_both_runs(self, digits, captions, monkeypatch):
        run, other = str(digits), str(captions)
        monkeypatch.setattr(inspect_module, "check_reads_alike", mock.Mock(side_effect=RuntimeError("3 and 5\ndiffer")))
        assert f"compare={other}: it cannot read the samples of run={run} (3 and 5 differ)" in refused(
            run=run, compare=other, output=str(digits.parent / "page.html")
        )

    def test_sounds_of_another_rate_are_no_samples_of_the_first(self, sounds, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(sounds, other)
        saved = checkpoint(sounds, "best")
        saved["description"]["config"] = with_value(saved["description"]["config"], "sample_rate", 24_000)
        torch.save(saved, other / "checkpoints" / "best.ckpt")
        options = [f"output={tmp_path}/page.html", "samples=1", "scored_samples=0"]
        assert "its audio has 24000 Hz and not 16000" in error_of(inspected(sounds, f"compare={other}", *options))


class TestInputs:
    def test_neither_the_data_nor_events_of_the_training_are_needed(self, folders, pictures, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(folders, run)
        ended = inspected(run, files_of(*pictures))
        assert [path.name for path in sorted((run / "attention").iterdir())] == ["inputs.html", "inputs.npz"]
        page, maps = contents(run / "attention" / "inputs.html")
        assert [sample["id"] for sample in page["samples"]] == [str(path) for path in pictures]
        assert len(maps) == 2
        assert {answer["name"] for one in maps for answer in one["answers"]} <= {"cat", "dog", "eel"}
        assert "two [2].png" in ended.out

    def test_without_them_it_says_that_the_data_is_not_there(self, folders, tmp_path):
        output = tmp_path / "page.html"
        assert "data.source.root=" in error_of(inspected(folders, f"output={output}"))
        assert not output.exists()

    def test_one_may_be_named_without_brackets_and_twice_is_once(self, folders, pictures, tmp_path):
        _, page, _ = explored(folders, tmp_path / "page.html", f"inputs={pictures[0]}")
        assert len(page["samples"]) == 1
        _, page, maps = explored(folders, tmp_path / "page.html", files_of(pictures[0], pictures[0]))
        assert len(page["samples"]) == len(maps) == 1

    def test_they_are_tested_themselves(self, folders, pictures, tmp_path, monkeypatch):
        monkeypatch.setattr("perceiver.inspection.evaluation.faithfulness.MIN_LOSS", -1.0)
        _, page, _ = explored(folders, tmp_path / "page.html", files_of(*pictures))
        assert page["runs"][0]["events"][-1]["faithfulness"]["num_samples"] == 2

    def test_those_that_cannot_be_read_are_named_after_all_others_are_done(self, folders, pictures, tmp_path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(pictures[0].read_bytes()[:50])
        inputs = files_of(broken, pictures[1], tmp_path / "nosuch.png")
        message = error_of(inspected(folders, f"output={tmp_path}/page.html", inputs))
        assert f"{broken}: " in message
        assert f"{tmp_path}/nosuch.png: " in message
        page, maps = contents(tmp_path / "page.html")
        assert [sample["id"] for sample in page["samples"]] == [str(pictures[1])]
        assert len(maps) == 1

    def test_where_none_can_be_read_there_is_no_page(self, folders, tmp_path):
        ended = inspected(folders, f"output={tmp_path}/page.html", f"inputs={tmp_path}/nosuch.png")
        assert "nosuch.png: " in error_of(ended)
        assert list(tmp_path.iterdir()) == []

    def test_each_window_of_a_long_sound_is_a_sample(self, sounds, tmp_path):
        long = tmp_path / "long.wav"
        soundfile.write(long, 0.1 * np.random.default_rng(1).standard_normal(round(2.03 * 16_000)), 16_000)
        _, page, maps = explored(sounds, tmp_path / "page.html", files_of(long))
        windows = [f"{long} {start:.2f}-{start + 0.7:.2f} s" for start in (0.0, 0.3, 0.6, 0.9, 1.2, 1.33)]
        assert [sample["id"] for sample in page["samples"]] == windows
        assert len(maps) == 6
        assert all(sample["modalities"]["audio"]["sound"] for sample in page["samples"])

    def test_of_a_very_long_sound_some_windows_are_looked_at_and_it_says_so(self, sounds, tmp_path, monkeypatch):
        monkeypatch.setattr(inspect_module, "MAX_WINDOWS", 3)
        long = tmp_path / "long.wav"
        soundfile.write(long, 0.1 * np.random.default_rng(1).standard_normal(round(2.03 * 16_000)), 16_000)
        ended, page, _ = explored(sounds, tmp_path / "page.html", files_of(long))
        assert len(page["samples"]) == 3
        assert page["samples"][0]["id"].endswith("0.00-0.70 s")
        assert page["samples"][-1]["id"].endswith("1.33-2.03 s")
        assert f"{long}: 3 of 6 windows" in ended.out


class TestTasks:
    def test_of_sounds_places_are_told_in_hertz_and_seconds_and_scores_beside_chance(self, sounds, tmp_path):
        ended, page, maps = explored(sounds, tmp_path / "page.html", "samples=7", "scored_samples=11")
        found = arrays_in(tmp_path / "page.npz")
        check_same(found, explained(sounds, "best", 7)[1])
        assert " Hz,\n" in ended.out or " Hz, " in ended.out
        score, chance = (float(found[f"score/energy_in_box{end}"]) for end in ("", "_chance"))
        assert f"energy in box: {score:.2f}, by chance {chance:.2f}" in ended.out
        assert page["runs"][0]["events"][-1]["values"]["attention/energy_in_box"] == pytest.approx(score)
        assert any(one["answers"][0]["boxes"] for one in maps) or not any(
            sample["modalities"]["audio"]["boxes"] for sample in page["samples"]
        )

    def test_of_captions_answers_are_words(self, captions, tmp_path):
        ended, page, maps = explored(captions, tmp_path / "page.html", "samples=2", "scored_samples=5")
        check_same(arrays_in(tmp_path / "page.npz"), explained(captions, "best", 2)[1])
        assert {event["step"] for event in page["runs"][0]["events"]} == {2, 5}
        answers = [answer for one in maps for answer in one["answers"]]
        assert answers
        assert all(answer["is_word"] for answer in answers)
        assert {answer["name"] for answer in answers} <= {*WORDS, ".", ","}
        assert all(
            sample["ground_truth"] and len(split_words(sample["ground_truth"][0])) > 2 for sample in page["samples"]
        )
        assert ended.out.count("over image") == 2 * (2 + 2), (
            "two maps, and the evidence for and against rather than a foil"
        )


class TestMistakes:
    @pytest.mark.parametrize(
        "chosen", [0, -1, "many", "", [], 1.5, True, [1, 1], [1, "x"], [True], [1.0], [[1]], {"a": 1}], ids=repr
    )
    def test_what_is_no_choice_of_samples(self, chosen):
        node = OmegaConf.create({"samples": chosen})
        assert not inspect_module.is_choice(node.samples, 1)

    @pytest.mark.parametrize(("chosen", "least"), [(1, 1), (0, 0), (7, 0), ([0], 1), ([5, 3], 1)])
    def test_what_is_one(self, chosen, least):
        assert inspect_module.is_choice(OmegaConf.create({"samples": chosen}).samples, least)

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"samples": 0}, "samples=0: must be a number of samples, at least 1"),
            ({"samples": True}, "samples=True: must be a number of samples, at least 1"),
            ({"samples": [1, "x"]}, "samples=[1, 'x']: must be a number of samples, at least 1"),
            ({"random_orders": 0}, "random_orders=0: must be a number of random orders, at least 1"),
            ({"knockout": ["neurons"]}, "knockout=['neurons']: must be a list of some of modalities, latents"),
            ({"foil": "ten"}, "foil=ten: is not an answer of the model"),
            ({"rivals": 1}, "rivals=1: must be true or false"),
            ({"scored_samples": -1}, "scored_samples=-1: must be a number of samples, at least 0"),
            ({"samples": [3, 999]}, "samples=[3, 999]: there is no sample 999; the split has 0 to 176"),
            ({"scored_samples": [-1]}, "scored_samples=[-1]: there is no sample -1; the split has 0 to 176"),
        ],
        ids=str,
    )
    def test_such_a_choice_is_refused(self, digits, tmp_path, settings, expected):
        assert expected in refused(run=str(digits), output=f"{tmp_path}/new/page.html", **settings)
        assert list(tmp_path.iterdir()) == []

    def test_data_of_which_nothing_can_be_read(self, folders, tmp_path):
        root = image_tree(tmp_path / "tree")
        for path in root.rglob("*.png"):
            path.write_bytes(b"no picture")
        options = [f"output={tmp_path}/page.html", "samples=2"]
        overrides = f'overrides=["data.root={root}","data.on_error=skip"]'
        assert ".png: " in error_of(inspected(folders, *options, overrides))
        assert not (tmp_path / "page.html").exists()

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"run": "/no/such"}, "run=/no/such: no such run directory"),
            ({"run": 7}, "run=7: no such run directory"),
            ({"run": "{empty}"}, "run={empty}: it has neither checkpoints/"),
            ({"checkpoint": "lost"}, "checkpoint=lost: {digits} has no such checkpoint; did you mean 'last'?"),
            ({"checkpoint": 3}, "checkpoint=3: {digits} has no such checkpoint; there are: best, last"),
            ({"output": "{empty}"}, "output={empty}: must be a file whose name ends in .html"),
            ({"output": "{folder}"}, "output={folder}: must be a file whose name ends in .html"),
            ({"output": "{empty}/page.npz"}, "output={empty}/page.npz: must be a file whose name ends in .html"),
            ({"output": 3}, "output=3: must be a file whose name ends in .html"),
            ({"output": "{file}/page.html"}, "output={file}/page.html: its folder cannot be created"),
            ({"output": "{file}/new/page.html"}, "output={file}/new/page.html: its folder cannot be created"),
        ],
        ids=str,
    )
    def test_every_other_mistake(self, digits, tmp_path, settings, expected):
        names = {"digits": digits, "empty": tmp_path / "empty", "file": tmp_path / "file"}
        names["folder"] = tmp_path / "folder.html"
        names["empty"].mkdir()
        names["folder"].mkdir()
        names["file"].touch()
        before = sorted(path.name for path in (digits / "attention").iterdir())
        given = {key: value.format(**names) if isinstance(value, str) else value for key, value in settings.items()}
        assert expected.format(**names) in refused(**{"run": str(digits), **given})
        assert sorted(path.name for path in (digits / "attention").iterdir()) == before
        assert list(names["empty"].iterdir()) == []

    def test_a_folder_that_cannot_be_written_to(self, digits, tmp_path, monkeypatch):
        monkeypatch.setattr("perceiver.commands.finished_run.os.access", lambda *args: False)
        message = refused(run=str(digits), output=f"{tmp_path}/page.html")
        assert f"output={tmp_path}: is not writable" in message

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("sample=3", "sample: no such key; did you mean samples?"),
            ("port=7", "port: no such key; did you mean serve_port?"),
            ("run=/no/such", "run=/no/such: no such run directory"),
            ('overrides=["loader.batch_sice=7"]', "loader.batch_sice: no such key; did you mean loader.batch_size?"),
        ],
    )
    def test_on_the_command_line_they_end_in_one_sentence(self, digits, override, expected):
        assert expected in error_of(inspected(digits, override))

    def test_the_run_must_be_named(self):
        assert "run must be given" in error_of(script("experiments/inspect_attention.py"))
