"""Runs with weights sharded over two processes give the numbers and files of unsharded ones."""

import pytest
import torch

from tests.kills import assert_same_run, killed_at, rows
from tests.processes import SHARDED, TWO, difference, script_on, train_on, trained_on
from tests.runs import CAPTIONING, checkpoint, metrics, script, trained, weights_equal

slow = pytest.mark.slow
CAPTIONS = [*CAPTIONING, "data.num_samples={train: 104, val: 11, test: 12}", "trainer.log_every_n_steps=1"]
INSPECTED = ["attention.every_n_epochs=2", "attention.num_samples=3", "attention.evaluator.num_samples=7"]
BATCH_NORM = "encoder@model.encoders.image=image_conv_stack"
RANDOM = [BATCH_NORM, "model.memory.cross_attention.residual_dropout=0.3", "model.decoder.dropout=0.3"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A sharded run. Read-only, except for its evaluation."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    return trained_on(2, run, *CAPTIONS, *RANDOM, *INSPECTED, "loader.batch_size=5", *SHARDED)


@slow
def test_it_is_evaluated_and_predicts_in_any_number_of_processes(sharded, pictures):
    tested = {name: value for name, value in metrics(sharded).items() if name.startswith("test/")}
    (alone,) = script_on(1, "experiments/evaluate.py", f"run={sharded}", 'overrides=["trainer.devices=1"]')
    assert alone.ok, alone.err
    assert metrics(sharded, "evaluation") == pytest.approx(tested, rel=1e-6, abs=1e-6)
    (sharded / "evaluation.json").unlink()
    both = script_on(2, "experiments/evaluate.py", f"run={sharded}")
    assert [ended.code for ended in both] == [0, 0], [ended.err for ended in both]
    assert metrics(sharded, "evaluation") == pytest.approx(tested, rel=1e-6, abs=1e-6)
    ended = script("experiments/predict.py", f"run={sharded}", f"inputs=[{pictures[0]}]", "top=2")
    assert ended.ok, ended.err
    assert (sharded / "attention" / "index.html").exists()
    assert "attention/word_overlap" in metrics(sharded)


@slow
@pytest.mark.parametrize("method", ["training_step", "validation_step"])
def test_it_is_resumed_exactly_after_a_kill(tmp_path, sharded, method):
    run = tmp_path / "run"
    options = [*CAPTIONS, *RANDOM, *INSPECTED, "loader.batch_size=5", *SHARDED]
    count = 4 if method == "training_step" else 2
    both = train_on(2, run, *options, before=lambda rank: killed_at(count, method)())
    assert both[0].code == -9
    assert both[1].code != 0  # killed, too, or without a peer
    trained_on(2, run, *options, "ckpt_path=last")
    assert_same_run(run, sharded)


@slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (
            "trainer.gradient_clip_val=0.1 model.memory.schedule.cross_sharing=all "
            "model.memory.schedule.block_sharing=all",
            1e-5,
        ),
        (
            "trainer.gradient_clip_val=0.001 +trainer.gradient_clip_algorithm=value "
            "model.memory.activation_checkpointing=true",
            1e-5,
        ),
        ("trainer.precision=bf16-mixed", 0.01),
    ],
)
def test_clipping_sharing_checkpointing_and_half_precision_give_the_steps_of_one_process(tmp_path, options, tolerance):
    options = [*CAPTIONS, "optimizer.lr=0.001", "trainer.max_epochs=1", *options.split()]
    one = trained(tmp_path / "one", *options, "loader.batch_size=10")
    two = trained_on(2, tmp_path / "two", "loader.batch_size=5", *SHARDED, *options)
    assert all(value.dtype == torch.float32 for value in checkpoint(two)["state_dict"].values())
    losses, expected = (
        [float(row["train/loss_step"]) for row in rows(run) if "train/loss_step" in row] for run in (two, one)
    )
    assert losses == pytest.approx(expected, abs=tolerance)
    if "bf16" not in options[-1]:
        assert difference(two, one) < tolerance


@slow
def test_checkpointed_blocks_repeat_their_dropout(tmp_path):
    options = [*CAPTIONS, *RANDOM, "loader.batch_size=5", "trainer.max_epochs=1"]
    for number, strategy in ((1, []), (2, TWO), (2, SHARDED)):
        runs = [tmp_path / f"{len(strategy)} {again}" for again in ("false", "true")]
        for run, again in zip(runs, ("false", "true"), strict=True):
            trained_on(number, run, *options, *strategy, f"model.memory.activation_checkpointing={again}")
        assert weights_equal(*(checkpoint(run)["state_dict"] for run in runs))


@slow
def test_a_moving_average_is_refused(tmp_path):
    both = train_on(2, tmp_path / "run", "callbacks=[ema]", *SHARDED)
    sentence = "callbacks: the average of sharded weights is not supported; leave out ema, or trainer=ddp"
    assert [(ended.code, ended.err) for ended in both] == [(1, f"error: {sentence}\n")] * 2
