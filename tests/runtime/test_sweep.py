"""The summary of a sweep, of written files and of real runs."""

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


def write_run(folder: Path, overrides: str, found: dict[str, float] | str | None) -> None:
    """Write the files of a run; `found` are its metrics, or the text of their file."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides.split()), folder / ".hydra" / "overrides.yaml")
    if found is not None:
        (folder / "metrics.json").write_text(found if isinstance(found, str) else json.dumps(found))


def summarize(folder: Path, average_over=("data.fold", "seed")) -> dict:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    SweepSummary(average_over=list(average_over)).on_multirun_end(config, config_name="train")
    return json.loads((folder / "summary.json").read_text())


class TestSummary:
    def test_folds_are_one_group_with_mean_and_deviation(self, tmp_path, printed):
        scores = [0.5, 0.75, 0.875]
        for fold, score in enumerate(scores, start=1):
            write_run(
                tmp_path / "a=b" / f"fold={fold}", f"data=esc50 data.fold={fold}", {"test/a": score, "val/b": 2.0}
            )
        (group,) = summarize(tmp_path)["groups"]
        assert (group["overrides"], group["runs"]) == ({}, 3)
        expected = {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores), "runs": 3}
        assert group["metrics"]["test/a"] == pytest.approx(expected)
        assert group["metrics"]["val/b"] == {"mean": 2.0, "deviation": 0.0, "runs": 3}
        text = printed.export_text()
        assert "0.7083 ± 0.1909" in text
        assert "3 of 3 runs; all metrics" in text
        assert "esc50" not in text

    def test_other_keys_make_groups_in_the_order_of_the_runs(self, tmp_path, printed):
        for number in range(13):  # 10 comes after 9
            added = " +model.x=3" if number == 12 else ""
            overrides = f"optimizer.lr={number // 2} seed={number % 2} +x=1{added}"
            write_run(tmp_path / str(number), overrides, {"test/map": number})
        groups = summarize(tmp_path)["groups"]
        rates = [{"optimizer.lr": str(rate)} for rate in range(6)]
        assert [group["overrides"] for group in groups] == [*rates, {"optimizer.lr": "6", "model.x": "3"}]
        assert [group["metrics"]["test/map"]["mean"] for group in groups] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.0]
        assert groups[-1]["metrics"]["test/map"]["deviation"] is None
        assert printed.export_text().count("0.7071") == 6

    def test_the_averaged_keys_are_a_setting(self, tmp_path):
        for width in (3, 5):
            write_run(tmp_path / str(width), f"model.memory.dim={width} seed={width}", {"test/map": width})
        assert len(summarize(tmp_path)["groups"]) == 2
        assert len(summarize(tmp_path, average_over=["seed", "model.memory.dim"])["groups"]) == 1

    @pytest.mark.parametrize("undefined", ["null", "NaN"])
    def test_a_metric_is_averaged_over_the_runs_where_it_is_defined(self, tmp_path, printed, undefined):
        for seed, value in ((1, undefined), (2, "0.5"), (3, "0.75")):
            write_run(tmp_path / str(seed), f"seed={seed}", f'{{"test/AUC": {value}, "test/other": {undefined}}}')
        (group,) = summarize(tmp_path)["groups"]
        deviation = pytest.approx(statistics.stdev([0.5, 0.75]))
        assert (group["runs"], group["metrics"]) == (
            3,
            {"test/AUC": {"mean": 0.625, "deviation": deviation, "runs": 2}},
        )
        assert "0.6250 ± 0.1768 (of 2)" in printed.export_text()

    @pytest.mark.parametrize(
        ("names", "shown"),
        [
            (["test/a", "test/AP/cat/tiger", "val/b", "train/c"], ["a"]),  # not those of single classes
            (["val/b", "train/c"], ["b"]),
            (["train/c"], ["train/c"]),
        ],
        ids=["test", "val", "train"],
    )
    def test_the_table_shows_the_last_stage_and_the_file_all_metrics(self, tmp_path, printed, names, shown):
        write_run(tmp_path / "0", "seed=1", dict.fromkeys(names, 0.5))
        assert list(summarize(tmp_path)["groups"][0]["metrics"]) == sorted(names)
        header = next(line for line in printed.export_text().splitlines() if "┃" in line)
        assert header.replace("┃", " ").split() == ["runs", *shown]


class TestFailures:
    @pytest.mark.parametrize("content", [None, '{"test/map": 0.'], ids=["missing", "truncated"])
    def test_a_run_without_metrics_is_named_and_is_an_error(self, tmp_path, printed, content):
        for fold in (1, 2, 3):
            metrics = content if fold == 2 else {"test/map": float(fold)}
            write_run(tmp_path / str(fold), f"task=tagging data.fold={fold}", metrics)
        with pytest.raises(SystemExit) as end:
            summarize(tmp_path)
        assert end.value.code == "error: 1 of 3 runs failed: 2 data.fold=2"
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["runs"], summary["failed"]) == (3, ["2"])
        assert summary["groups"][0]["metrics"]["test/map"] == {"mean": 2.0, "deviation": math.sqrt(2), "runs": 2}
        assert "2 of 3 runs; all metrics" in printed.export_text()

    def test_without_runs_nothing_is_printed(self, tmp_path, printed):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
        SweepSummary(average_over=["seed"]).on_multirun_end(config)
        assert printed.export_text() == ""
        assert list(tmp_path.iterdir()) == []


def swept(folder: Path, *overrides: str) -> Ended:
    short = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    return script("experiments/train.py", "-m", f"hydra.sweep.dir={folder}", *SMALL, *short, *overrides)


@pytest.mark.slow
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

    @pytest.mark.filterwarnings("ignore:Callback SweepSummary")
    def test_a_sweep_of_one_run_succeeds_if_its_summary_cannot_be_written(self, tmp_path):
        (tmp_path / "summary.json").mkdir()
        ended = swept(tmp_path, "seed=1")
        assert ended.ok, ended.err
        assert metrics(tmp_path / "0")


def test_a_run_is_named_by_its_overrides_and_in_a_sweep_by_those_that_vary(tmp_path):
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
