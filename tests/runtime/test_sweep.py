"""What is said at the end of a sweep, of folders made up here and of real runs."""

import json
import math
import statistics
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from perceiver.runtime import sweep
from perceiver.runtime.config import resolved
from perceiver.runtime.sweep import SweepSummary
from perceiver.training.build import construct
from tests.runs import CONF, SMALL, Ended, composed, metrics, script

RECIPE = CONF.parent / "experiments" / "wandb_sweep.yaml"


@pytest.fixture
def printed(monkeypatch) -> Console:
    console = Console(width=100, record=True, markup=False, emoji=False)
    monkeypatch.setattr(sweep, "console", console)
    return console


def fake_run(folder: Path, overrides: str, found: dict[str, float] | str | None) -> Path:
    """The directory of a run as Hydra and a launcher leave it; `found` are its metrics, or what their file holds."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides.split()), folder / ".hydra" / "overrides.yaml")
    if found is not None:
        (folder / "metrics.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return folder


def summarised(folder: Path, average_over=("data.fold", "seed")) -> dict:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    SweepSummary(average_over=list(average_over)).on_multirun_end(config, config_name="train")
    return json.loads((folder / "summary.json").read_text())


class TestSummary:
    def test_folds_are_one_group_with_mean_and_deviation(self, tmp_path, printed):
        scores = [0.5, 0.75, 0.875]
        for fold, score in enumerate(scores, start=1):
            fake_run(tmp_path / str(fold), f"data=esc50 data.fold={fold}", {"test/accuracy": score, "val/loss": 2.0})
        (group,) = summarised(tmp_path)["groups"]
        assert group["overrides"] == {}
        assert group["runs"] == 3
        expected = {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores), "runs": 3}
        assert group["metrics"]["test/accuracy"] == pytest.approx(expected)
        assert group["metrics"]["val/loss"] == {"mean": 2.0, "deviation": 0.0, "runs": 3}
        text = printed.export_text()
        assert "0.7083 ± 0.1909" in text
        assert "3 of 3 runs; all metrics" in text
        assert "esc50" not in text

    def test_other_keys_make_groups_in_the_order_of_the_runs(self, tmp_path, printed):
        number = 0
        for rate in ("1e-3", "1e-4"):
            for seed in (1, 2):
                fake_run(tmp_path / str(number), f"optimizer.lr={rate} seed={seed} +x=1", {"test/map": number})
                number += 1
        groups = summarised(tmp_path)["groups"]
        assert [group["overrides"] for group in groups] == [{"optimizer.lr": "1e-3"}, {"optimizer.lr": "1e-4"}]
        assert [group["metrics"]["test/map"]["mean"] for group in groups] == [0.5, 2.5]
        lines = printed.export_text().splitlines()
        assert [line for line in lines if "1e-3" in line and "0.5000 ± 0.7071" in line]
        assert [line for line in lines if "1e-4" in line and "2.5000 ± 0.7071" in line]

    def test_keys_to_average_over_are_a_setting(self, tmp_path):
        for width in (3, 5):
            fake_run(tmp_path / str(width), f"model.memory.dim={width} seed={width}", {"test/map": width})
        assert len(summarised(tmp_path)["groups"]) == 2
        assert len(summarised(tmp_path, average_over=["seed", "model.memory.dim"])["groups"]) == 1

    def test_a_key_that_some_runs_lack_makes_a_group(self, tmp_path):
        fake_run(tmp_path / "0", "seed=1", {"test/map": 1.0})
        fake_run(tmp_path / "1", "seed=1 +model.x=3", {"test/map": 2.0})
        assert [group["overrides"] for group in summarised(tmp_path)["groups"]] == [{}, {"model.x": "3"}]

    def test_ten_runs_and_more_stand_in_the_order_in_which_they_were_started(self, tmp_path):
        for number in range(13):
            fake_run(tmp_path / str(number), f"model.memory.dim={number}", {"test/map": float(number)})
        names = [group["overrides"]["model.memory.dim"] for group in summarised(tmp_path)["groups"]]
        assert names == [str(number) for number in range(13)]

    def test_directories_of_runs_may_lie_deep_and_be_named_anyhow(self, tmp_path):
        for fold in (1, 2):
            fake_run(tmp_path / "a=b" / f"data.fold={fold}", f"data.fold={fold}", {"test/map": fold})
        assert summarised(tmp_path)["groups"][0]["runs"] == 2

    def test_one_run_has_no_deviation(self, tmp_path, printed):
        fake_run(tmp_path / "0", "data.fold=1", {"test/accuracy": 0.25})
        assert summarised(tmp_path)["groups"][0]["metrics"]["test/accuracy"] == {
            "mean": 0.25,
            "deviation": None,
            "runs": 1,
        }
        assert "0.2500" in printed.export_text()

    def test_a_metric_is_averaged_over_the_runs_that_have_it(self, tmp_path):
        fake_run(tmp_path / "0", "seed=1", {"test/map": 1.0, "data/unreadable": 7.0})
        fake_run(tmp_path / "1", "seed=2", {"test/map": 2.0})
        found = summarised(tmp_path)["groups"][0]["metrics"]
        assert found["data/unreadable"] == {"mean": 7.0, "deviation": None, "runs": 1}
        assert found["test/map"]["runs"] == 2

    @pytest.mark.parametrize("undefined", ["null", "NaN"])
    def test_what_is_not_defined_in_a_run_is_left_out_and_shown_to_be(self, tmp_path, printed, undefined):
        for seed, value in ((1, undefined), (2, "0.5"), (3, "0.75")):
            fake_run(tmp_path / str(seed), f"seed={seed}", f'{{"test/AUC": {value}, "test/other": {undefined}}}')
        (group,) = summarised(tmp_path)["groups"]
        assert group["runs"] == 3
        assert group["metrics"] == {
            "test/AUC": {"mean": 0.625, "deviation": pytest.approx(statistics.stdev([0.5, 0.75])), "runs": 2}
        }
        assert "0.6250 ± 0.1768 (of 2)" in printed.export_text()

    def test_single_classes_are_for_the_file_alone(self, tmp_path, printed):
        fake_run(tmp_path / "0", "seed=1", {"test/AP/dog": 0.25, "test/AP/cat/tiger": 0.75, "test/mAP": 0.5})
        (group,) = summarised(tmp_path)["groups"]
        assert group["metrics"]["test/AP/dog"]["mean"] == 0.25
        text = printed.export_text()
        assert "mAP" in text
        assert "dog" not in text
        assert "tiger" not in text

    @pytest.mark.parametrize(
        ("names", "shown", "hidden"),
        [
            (["test/a", "val/b", "train/c"], ["a"], ["b", "c"]),
            (["val/b", "train/c"], ["b"], ["c"]),
            (["train/c"], ["train/c"], []),
        ],
        ids=["test", "val", "train"],
    )
    def test_the_table_shows_what_matters_most(self, tmp_path, printed, names, shown, hidden):
        fake_run(tmp_path / "0", "seed=1", dict.fromkeys(names, 0.5))
        assert list(summarised(tmp_path)["groups"][0]["metrics"]) == sorted(names)
        heads = next(line for line in printed.export_text().splitlines() if "┃" in line).replace("┃", " ").split()
        assert heads == ["runs", *shown]
        assert not set(heads) & set(hidden)


class TestFailures:
    @pytest.mark.parametrize("left", [None, "", '{"test/map": 0.'], ids=["nothing", "an empty file", "half a file"])
    def test_a_run_without_metrics_is_named_and_ends_the_process_with_an_error(self, tmp_path, printed, left):
        for fold in (1, 2, 3):
            found = left if fold == 2 else {"test/map": float(fold)}
            fake_run(tmp_path / str(fold), f"task=tagging data.fold={fold}", found)
        with pytest.raises(SystemExit) as end:
            summarised(tmp_path)
        assert end.value.code == "error: 1 of 3 runs failed: 2 data.fold=2"
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["runs"], summary["failed"]) == (3, ["2"])
        assert summary["groups"][0]["metrics"]["test/map"] == {"mean": 2.0, "deviation": math.sqrt(2), "runs": 2}
        assert "2 of 3 runs; all metrics" in printed.export_text()

    def test_if_all_failed_that_is_what_is_said(self, tmp_path):
        fake_run(tmp_path / "0", "seed=1", None)
        with pytest.raises(SystemExit) as end:
            summarised(tmp_path)
        assert end.value.code == "error: 1 of 1 runs failed: 0"

    def test_where_there_are_no_runs_nothing_is_said(self, tmp_path, printed):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
        SweepSummary(average_over=["seed"]).on_multirun_end(config)
        assert printed.export_text() == ""
        assert list(tmp_path.iterdir()) == []


def swept(folder: Path, *overrides: str) -> Ended:
    short = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    return script("experiments/train.py", "-m", f"hydra.sweep.dir={folder}", *SMALL, *short, *overrides)


class TestRuns:
    def test_runs_of_two_seeds_are_averaged(self, tmp_path):
        ended = swept(tmp_path, "seed=1,2")
        assert ended.ok, ended.err
        runs = [metrics(tmp_path / name) for name in ("0", "1")]
        (group,) = metrics(tmp_path, "summary")["groups"]
        assert group["metrics"].keys() == runs[0].keys()
        for name, found in group["metrics"].items():
            values = [run[name] for run in runs]
            assert found["mean"] == pytest.approx(statistics.mean(values))
            assert found["deviation"] == pytest.approx(statistics.stdev(values))
        accuracy = group["metrics"]["test/accuracy"]
        assert f"{accuracy['mean']:.4f} ±" in ended.out
        assert "2 of 2 runs; all metrics" in ended.out

    def test_one_run_is_a_sweep_too(self, tmp_path):
        ended = swept(tmp_path)
        assert ended.ok, ended.err
        assert metrics(tmp_path, "summary")["runs"] == 1

    @pytest.mark.filterwarnings("ignore:Callback SweepSummary")
    def test_a_summary_that_cannot_be_written_hides_no_run(self, tmp_path):
        (tmp_path / "summary.json").mkdir()
        ended = swept(tmp_path, "seed=1")
        assert ended.ok, ended.err
        assert metrics(tmp_path / "0")


def test_a_run_is_named_by_what_is_overridden_and_in_a_sweep_by_what_that_varies(tmp_path):
    alone, swept = tmp_path / "alone", tmp_path / "sweep" / "3"
    given = ["experiment=digits", "optimizer.lr=0.003", "data.size=7", "model.size=5", "ckpt_path=last", "seed=2"]
    assert sweep.display_name(alone, "digits", given) == "digits lr=0.003 data.size=7 model.size=5 seed=2"
    assert sweep.group_name(alone, "digits") == "digits"
    swept.mkdir(parents=True)
    common = [one for one in given if not one.startswith("seed")]
    OmegaConf.save({"hydra": {"overrides": {"task": [*common, "seed=1,2"]}}}, swept.parent / sweep.MULTIRUN)
    assert sweep.display_name(swept, "digits", given) == "digits seed=2"
    assert sweep.group_name(swept, "digits") == "sweep"
    assert len(sweep.display_name(alone, None, [f"key{n}=13" for n in range(37)]) or "") == sweep.MAX_NAME_LENGTH


def test_the_recipe_of_a_wandb_sweep_makes_command_lines_that_compose():
    recipe = OmegaConf.to_container(OmegaConf.load(RECIPE), resolve=False)
    values = {key: str(one.get("min", (one.get("values") or [None])[0])) for key, one in recipe["parameters"].items()}
    fixed = [one for one in recipe["command"] if not one.startswith("$")]
    with composed(*fixed, *(f"{key}={value}" for key, value in values.items())) as cfg:
        assert {key: str(OmegaConf.select(cfg, key)) for key in values} == values
        assert recipe["metric"]["name"] == f"best/val/{construct(resolved(cfg), 'task').monitor}"
    assert recipe["command"][-1] == "${args_no_hyphens}"
