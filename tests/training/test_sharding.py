"""Runs whose weights are divided over two processes are those of any other run: the same numbers, the same files."""

import pytest
import torch

from tests.kills import assert_same_run, killed_at, rows
from tests.processes import SHARDED, TWO, difference, script_on, train_on, trained_on
from tests.runs import CAPTIONING, checkpoint, metrics, script, trained, weights_equal

slow = pytest.mark.slow
CAPTIONS = [*CAPTIONING, "data.num_samples={train: 104, val: 11, test: 12}", "trainer.log_every_n_steps=1"]
LOOKING = ["attention.every_n_epochs=2", "attention.num_samples=3", "attention.num_scored_samples=7"]
BATCH_NORM = "encoder@model.encoders.image=image_conv_stack"
RANDOM = [BATCH_NORM, "model.memory.cross_attention.residual_dropout=0.3", "model.decoder.dropout=0.3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A divided run that was never stopped. Only read it, but for its evaluation."""
    run = tmp_path_factory.mktemp("divided") / "run"
    return trained_on(2, run, *CAPTIONS, *RANDOM, *LOOKING, "loader.batch_size=5", *SHARDED)


@slow
def test_it_is_evaluated_and_asked_by_any_number_of_processes(whole, pictures):
    tested = {name: value for name, value in metrics(whole).items() if name.startswith("test/")}
    (alone,) = script_on(1, "experiments/evaluate.py", f"run={whole}", 'overrides=["trainer.devices=1"]')
    assert alone.ok, alone.err
    assert metrics(whole, "evaluation") == pytest.approx(tested, rel=1e-6, abs=1e-6)
    (whole / "evaluation.json").unlink()
    both = script_on(2, "experiments/evaluate.py", f"run={whole}")
    assert [ended.code for ended in both] == [0, 0], [ended.err for ended in both]
    assert metrics(whole, "evaluation") == pytest.approx(tested, rel=1e-6, abs=1e-6)
    ended = script("experiments/predict.py", f"run={whole}", f"inputs=[{pictures[0]}]", "top=2")
    assert ended.ok, ended.err
    assert (whole / "attention" / "index.html").exists()
    assert "attention/word_overlap" in metrics(whole)


@slow
@pytest.mark.parametrize("method", ["training_step", "validation_step"])
def test_it_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path, whole, method):
    run = tmp_path / "run"
    options = [*CAPTIONS, *RANDOM, *LOOKING, "loader.batch_size=5", *SHARDED]
    count = 4 if method == "training_step" else 2
    both = train_on(2, run, *options, before=lambda rank: killed_at(count, method)())
    assert both[0].code == -9
    assert both[1].code != 0  # killed as well, or left alone
    trained_on(2, run, *options, "ckpt_path=last")
    assert_same_run(run, whole)


@slow
@pytest.mark.parametrize(
    "options",
    [
        "trainer.gradient_clip_val=0.1 model.memory.schedule.cross_sharing=all model.memory.schedule.block_sharing=all",
        "trainer.gradient_clip_val=0.001 +trainer.gradient_clip_algorithm=value "
        "model.memory.activation_checkpointing=true",
    ],
)
def test_settings_do_what_they_do_in_one_process(tmp_path, options):
    options = [*CAPTIONS, "optimizer.lr=0.001", "trainer.max_epochs=1", *options.split()]
    one = trained(tmp_path / "one", *options, "loader.batch_size=10")
    two = trained_on(2, tmp_path / "two", "loader.batch_size=5", *SHARDED, *options)
    assert difference(two, one) < 1e-5


@slow
def test_half_precision_is_that_of_one_process(tmp_path):
    options = [*CAPTIONS, "optimizer.lr=0.001", "trainer.max_epochs=1", "trainer.precision=bf16-mixed"]
    one = trained(tmp_path / "one", *options, "loader.batch_size=10")
    two = trained_on(2, tmp_path / "two", "loader.batch_size=5", *SHARDED, *options)
    assert all(value.dtype == torch.float32 for value in checkpoint(two)["state_dict"].values())
    losses, expected = (
        [float(row["train/loss_step"]) for row in rows(run) if "train/loss_step" in row] for run in (two, one)
    )
    assert losses == pytest.approx(expected, abs=0.01)


@slow
def test_blocks_that_are_run_again_draw_the_same_dropout(tmp_path):
    options = [*CAPTIONS, *RANDOM, "loader.batch_size=5", "trainer.max_epochs=1"]
    for number, strategy in ((1, []), (2, TWO), (2, SHARDED)):
        runs = [tmp_path / f"{len(strategy)} {again}" for again in ("false", "true")]
        for run, again in zip(runs, ("false", "true"), strict=True):
            trained_on(number, run, *options, *strategy, f"model.memory.activation_checkpointing={again}")
        assert weights_equal(*(checkpoint(run)["state_dict"] for run in runs))


@slow
def test_a_moving_average_of_divided_weights_is_refused(tmp_path):
    both = train_on(2, tmp_path / "run", "callbacks=[ema]", *SHARDED)
    sentence = "callbacks: the average of sharded weights is not supported; leave out ema, or trainer=ddp"
    assert [(ended.code, ended.err) for ended in both] == [(1, f"error: {sentence}\n")] * 2
