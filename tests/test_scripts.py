"""The scripts, with the smallest possible settings."""

import pytest

from perceiver.runtime.config import resolved
from perceiver.runtime.cost import count_parameters
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.build import construct
from scripts.benchmark_loader import verdict
from scripts.kill_and_resume import differences
from tests.runs import CAPTIONING, CONF, SMALL, assert_refused, composed, script, trained

BENCHMARK = [*SMALL, "warmup=1", "steps=2"]


def rows(out: str) -> dict[str, str]:
    """Parse a printed table of two columns."""
    cells = (line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│"))
    return {name.strip(): value.strip() for name, value in cells}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_benchmark_of_a_step_prints_all_rows_and_leaves_no_files(tmp_path, monkeypatch, precision):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/benchmark_step.py", *BENCHMARK, f"trainer.precision={precision}")
    assert ended.ok, ended.err
    printed = rows(ended.out)
    with composed(*SMALL) as cfg:
        parameters = count_parameters(construct(resolved(cfg), "model"))
    assert printed["device"].startswith("CPU")
    assert precision in printed["device"]
    assert printed["parameters"] == f"{parameters:,}"
    assert printed["batch size"] == "53"
    assert printed["step time"].endswith("ms (median of 2)")
    assert printed["FLOPs per sample, forward"].endswith(" G")
    assert printed["peak memory"].endswith(" GiB")
    assert printed["share"].endswith("%")
    for row in ("rate of the step", "rate of a matrix product"):
        assert printed[row].endswith(" TFLOP/s")
    assert float(printed["samples per second"].replace(",", "")) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_benchmark_of_a_step_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/benchmark_step.py", "model.memory.num_latentz=3")
    assert_refused(ended, "model.memory.num_latentz: no such key; did you mean model.memory.num_latents?")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_benchmark_of_the_loader_prints_three_rates_and_a_verdict(tmp_path, monkeypatch, num_workers):
    monkeypatch.chdir(tmp_path)
    workers = f"loader.num_workers={num_workers}"
    ended = script("scripts/benchmark_loader.py", *SMALL, "warmup=1", "batches=3", workers)
    assert ended.ok, ended.err
    printed = rows(ended.out)
    assert printed["device"].startswith("CPU")
    assert (printed["batch size"], printed["workers"]) == ("53", str(num_workers))
    rates = {}
    for row in ("loader alone", "step alone", "both together"):
        number, _, unit = printed[row].partition(" ")
        assert unit == "samples per second"
        rates[row] = float(number.replace(",", ""))
    assert min(rates.values()) > 0
    ratio = rates["loader alone"] / rates["step alone"]
    assert float(printed["loader / step"]) == pytest.approx(ratio, rel=0.01, abs=0.01)
    assert (
        ended.out.strip().splitlines()[-1].startswith(("The loader keeps ahead", "The step waits", "Without workers"))
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_of_the_loader_compares_experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = "experiments=[image_classification,'image_classification loader.batch_size=7']"
    ended = script("scripts/benchmark_loader.py", *SMALL, "warmup=1", "batches=2", chosen)
    assert ended.ok, ended.err
    lines = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in ended.out.splitlines() if "│" in line]
    assert [name for name, *_ in lines] == ["image_classification"] * 2
    for _, *cells in lines:
        loader, step, ratio = (float(cell.replace(",", "")) for cell in cells)
        assert min(loader, step) > 0
        assert ratio == pytest.approx(loader / step, rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("ratio", "num_workers", "expected"),
    [
        (2.0, 1, "The loader keeps ahead: it reads 2.0 times as fast"),
        (1.0, 1, "The loader keeps ahead"),
        (0.5, 1, "The step waits for the loader, which reads 50%"),
        (2.0, 0, "Without workers every step waits"),
    ],
)
def test_the_verdict_on_a_loader(ratio, num_workers, expected):
    assert verdict(ratio, num_workers).startswith(expected)


PARTS_OF_AN_EVENT = [
    *("forward pass", "forward pass, captured", "explanation: capture, rollout, relevance", "statistics"),
    *("event file", "maps for the explorer", "contact sheets", "faithfulness test"),
]
EVENTS = ["attention.every_n_epochs=1", "attention.num_samples=3", "attention.evaluator.num_samples=2"]


def benchmark_explanations(folder, *overrides: str) -> tuple[str, list[list[str]]]:
    """Run the benchmark, and return its output and the rows of the tables in it."""
    ended = script("scripts/benchmark_explanations.py", f"hydra.run.dir={folder}", *SMALL, *EVENTS, *overrides)
    assert ended.ok, ended.err
    rows = [
        [cell.strip() for cell in line.strip("│ ").split("│")] for line in ended.out.splitlines() if line[:1] == "│"
    ]
    return ended.out, rows


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], CAPTIONING], ids=["classes", "captions"])
def test_the_benchmark_of_explanations_prints_time_and_memory_and_leaves_no_files(tmp_path, overrides):
    out, found = benchmark_explanations(tmp_path / "run", *overrides, "train=false")
    assert [row[0] for row in found] == PARTS_OF_AN_EVENT
    for _, seconds, memory in found:
        assert float(seconds) >= 0
        assert float(memory.removesuffix(" MiB").replace(",", "")) >= 0
    cells = 144 if overrides else 16
    assert f"3 samples, {cells} tokens × 5 queries" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_of_explanations_measures_them_during_training(tmp_path):
    methods = [AttentionCallback.on_train_epoch_end, AttentionCallback.on_train_end]
    _, found = benchmark_explanations(tmp_path / "run")
    whole, events, share = found[-3:]
    assert [row[0] for row in found][: len(PARTS_OF_AN_EVENT)] == PARTS_OF_AN_EVENT
    assert [whole[0], events[0], share[0]] == ["total", "explanations", "explanations, relative to the rest"]
    total, seconds = float(whole[1]), float(events[1])
    assert 0 < seconds < total
    assert float(share[1].removesuffix("%")) / 100 == pytest.approx(seconds / (total - seconds), rel=0.2, abs=0.01)
    assert (tmp_path / "run" / "attention" / "index.html").exists()
    assert methods == [AttentionCallback.on_train_epoch_end, AttentionCallback.on_train_end], (
        "patched methods are restored"
    )


@pytest.mark.parametrize("mistake", ["model.memory.num_latentz=3", "model.memory.dim=15", "attention.num_samples=0"])
def test_a_mistake_ends_the_benchmark_of_explanations_in_one_sentence(tmp_path, mistake):
    ended = script("scripts/benchmark_explanations.py", f"hydra.run.dir={tmp_path}/run", *SMALL, mistake)
    assert_refused(ended, mistake.partition("=")[0].split(".")[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one():
    options = ["kills=3", "trainer.max_epochs=80", "trainer.limit_val_batches=1", "callbacks=[ema]"]
    ended = script("scripts/kill_and_resume.py", *SMALL, *options)
    assert ended.ok, ended.err
    assert "3 times killed and continued, it came to the same end, to the last bit" in ended.out


@pytest.mark.parametrize("option", ["kills=0", "kills=many", "kill_seed=-1"])
def test_an_invalid_number_of_kills_is_refused(option):
    ended = script("scripts/kill_and_resume.py", option)
    assert (ended.code, ended.err) == (1, f"error: {option}: must be a whole number, at least 1\n")


@pytest.mark.slow
def test_differences_of_two_runs_are_found(tmp_path):
    one, other = (trained(tmp_path / str(seed), f"seed={seed}", "trainer.max_epochs=1") for seed in (1, 2))
    assert differences(one, one) == []
    assert {"rows of metrics.csv", "val/loss", "weights of best.ckpt", "weights of last.ckpt"} <= {
        *differences(one, other)
    }


def test_the_benchmark_of_mechanisms_has_a_row_for_each_and_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    sizes = [
        f"sizes.{name}.{key}={value}" for name in ("words", "latents") for key, value in (("batch", 2), ("dim", 6))
    ]
    ended = script("scripts/benchmark_mechanisms.py", *sizes, "repeats=1", "warmup=0")
    assert ended.ok, ended.err
    found = [line.split() for line in ended.out.splitlines() if "(" in line and "│" in line]
    ratios = {cells[1]: cells[4] for cells in found}
    assert ratios.keys() == {path.stem for path in (CONF / "mechanism").glob("*.yaml")}
    assert ratios["scaled_dot_product"] == "(1.00)"
    assert list(tmp_path.iterdir()) == []
