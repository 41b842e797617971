"""The scripts run, with settings as small as can be."""

import pytest

from perceiver.training.build import construct
from perceiver.training.config import resolved
from perceiver.training.summary import count_parameters
from tests.training.runs import SMALL, composed, script

BENCHMARK = [*SMALL, "warmup=1", "steps=2"]


def rows(out: str) -> dict[str, str]:
    """A printed table of two columns."""
    cells = (line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│"))
    return {name.strip(): value.strip() for name, value in cells}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_benchmark_prints_every_row_it_promises_and_leaves_no_files(tmp_path, monkeypatch, precision):
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


def test_a_mistake_ends_the_benchmark_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/benchmark_step.py", "model.num_latentz=3")
    assert (ended.code, ended.err) == (
        1,
        "error: model.num_latentz: no such key; did you mean model.num_latents?\n",
    )
