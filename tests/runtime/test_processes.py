"""Several processes are equivalent to one with their batches together."""

from contextlib import nullcontext

import pytest

from tests.kills import rows
from tests.processes import SHARDED, TWO, difference, script_on, train_on, trained_on
from tests.runs import CAPTIONING, metrics, table, trained

slow = pytest.mark.slow
SIZES = "data.num_samples={train: 253, val: 11, test: 13}"
STEPS = [
    *("trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.log_every_n_steps=1", "loader.num_workers=0"),
    *("trainer.precision=32-true", "callbacks.progress_bar=null", "logger.mode=disabled", "attention.every_n_epochs=0"),
]
EXPERIMENTS = {
    "image_classification": [],
    "audio_tagging": [SIZES],
    # With its own learning rate rounding grows to 3e-4 in 20 steps, as on one process with the rows in another order.
    "image_captioning": [SIZES, "optimizer.lr=0.00003"],
}


def experiment(name, number, run_dir, *overrides):
    """Twenty steps of an experiment, with twelve samples a step on however many processes."""
    batches = [f"experiment={name}", "trainer=cpu", *EXPERIMENTS[name], *STEPS, f"loader.batch_size={12 // number}"]
    several = [f"trainer.devices={number}", *(TWO[1:] if number > 1 and not overrides else [])]
    arguments = [f"hydra.run.dir={run_dir}", *batches, *several, *overrides]
    all_ended = script_on(number, "experiments/train.py", *arguments)
    assert [ended.code for ended in all_ended] == [0] * number, [ended.err for ended in all_ended]
    return run_dir


@slow
def test_two_processes_write_one_run_equal_to_that_of_one(tmp_path):
    options = ["callbacks=[default]", "logger.mode=offline", "trainer.log_every_n_steps=1", "trainer.max_epochs=1"]
    both = train_on(2, tmp_path / "two", "loader.batch_size=26", *options)
    assert [ended.code for ended in both] == [0, 0], [ended.err for ended in both]
    assert both[0].out.count("GFLOPs") == both[0].out.count("best checkpoint") == 1
    assert not [part for part in ("\r", "━", "GFLOPs") if part in both[1].out]  # its bars and tables
    one = trained(tmp_path / "one", "loader.batch_size=52", *options)
    names = [
        sorted(path.name for path in run.rglob("*") if "wandb" not in path.parts) for run in (one, tmp_path / "two")
    ]
    assert names[0] == names[1]
    assert len(list((tmp_path / "two" / "wandb").glob("offline-run-*"))) == 1
    assert difference(tmp_path / "two", one) < 1e-5
    said = [sorted(row[:3] for row in table(run / "predictions.csv")) for run in (one, tmp_path / "two")]
    assert said[0] == said[1]  # each sample once


@slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_learn_the_same_on_one_two_and_three_processes(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tests.runs._few_texts", nullcontext)  # the experiment's own vocabulary
    one = experiment(name, 1, tmp_path / "one")
    assert len([row for row in rows(one) if "train/loss_step" in row]) == 20
    for number in (2, 3):
        several = experiment(name, number, tmp_path / str(number))
        assert difference(several, one, without="train/gradient_norm") < 1e-5
    if name != "audio_tagging":
        no_average = ["callbacks.ema=null"] if name == "image_captioning" else []
        whole = experiment(name, 1, tmp_path / "whole", *no_average) if no_average else one
        divided = experiment(name, 2, tmp_path / "divided", *SHARDED, *no_average)
        assert difference(divided, whole, without="train/gradient_norm") < 1e-5


@slow
@pytest.mark.parametrize("strategy", [TWO, SHARDED], ids=["ddp", "fsdp"])
def test_accumulated_gradients_looks_and_unequal_numbers_of_batches_are_those_of_one_process(tmp_path, strategy):
    # Of 11 samples for validation one process has 6 and the other 5.
    options = [*CAPTIONING, "data.num_samples={train: 104, val: 11, test: 12}", "trainer.accumulate_grad_batches=2"]
    options += ["attention.every_n_epochs=1", "attention.num_samples=3", "attention.evaluator.num_samples=7"]
    options += ["trainer.limit_train_batches=null", "optimizer.lr=0.001"]
    one = trained(tmp_path / "one", *options, "loader.batch_size=10")
    two = trained_on(2, tmp_path / "two", *options, "loader.batch_size=5", *strategy)
    assert difference(two, one) < 1e-4
    assert metrics(two)["attention/word_overlap"] > 0
