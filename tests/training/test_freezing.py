"""Frozen parts keep their weights and statistics, for the whole run or until an epoch, also when it is resumed."""

import signal

import pytest
import torch
from torch import nn

from perceiver.training.freezing import Freezing, matching_names
from tests.kills import assert_same_run, continued, killed_at, run_in_fork
from tests.models import small_perceiver
from tests.processes import SHARDED, TWO, difference, train_on, trained_on
from tests.runs import assert_refused, checkpoint, train, trained

slow = pytest.mark.slow
BATCH_NORM = "encoder@model.encoders.image=image_conv_stack"
FROZEN = [BATCH_NORM, "freeze=[encoders,memory.array,*.query_norm.*]", "schedule=constant", "optimizer.lr=0.01"]
ACCUMULATED = ["trainer.accumulate_grad_batches=2"]
RELEASED = [*FROZEN, "unfreeze_at_epoch=1", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


def is_frozen(name):
    return name.startswith("model.encoders.") or name == "model.memory.array" or ".query_norm." in name


def changed(run, start):
    """The names of weights and statistics of the model that differ between the last checkpoints of two runs."""
    before, after = (checkpoint(one)["state_dict"] for one in (start, run))
    return {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The weights with which each run starts. Read-only."""
    return trained(tmp_path_factory.mktemp("start") / "run", BATCH_NORM, "optimizer.lr=0", "trainer.max_steps=1")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A run whose parts are frozen in its first epoch, with steps that LAMB counts by group. Read-only."""
    return trained(tmp_path_factory.mktemp("released") / "run", *RELEASED, "optimizer=lamb")


def test_exactly_what_is_frozen_keeps_its_weights_and_statistics(start, tmp_path):
    # The run `start` has updated statistics in its step: this one starts with them.
    run = trained(tmp_path / "run", *FROZEN, f"init.from={start}")
    names = {name for name in checkpoint(run)["state_dict"] if name.startswith("model.")}
    assert any("running_mean" in name for name in names)
    assert changed(run, start) == {name for name in names if not is_frozen(name)}
    (optimizer,) = checkpoint(run)["optimizer_states"]
    assert len(optimizer["state"]) == sum(not is_frozen(f"model.{name}") for name, _ in named_parameters_of(run)), (
        "frozen parameters have no state"
    )
    table = (run / "train.log").read_text().partition("trainable")[2]
    assert any("encoders.image" in line and " 0 │" in line for line in table.splitlines())


def named_parameters_of(run):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    state = checkpoint(run)["state_dict"]
    return [
        (name.removeprefix("model."), value)
        for name, value in state.items()
        if name.startswith("model.") and not name.endswith(buffers)
    ]


def test_they_are_trained_from_their_epoch_on_with_steps_counted_from_there(released, tmp_path):
    frozen = trained(tmp_path / "frozen", *RELEASED, "optimizer=lamb", "trainer.max_epochs=1")
    kept, moved = (
        {name for name, value in named_parameters_of(one) if is_frozen(f"model.{name}")} for one in (frozen, released)
    )
    assert kept == moved
    moved = changed(released, frozen)
    assert {name for name in moved if is_frozen(name)} >= {
        "model.memory.array",
        "model.encoders.image.stem.layers.0.0.weight",
    }
    assert any("running_mean" in name for name in moved)
    steps = sorted(int(group["step"]) for group in checkpoint(released)["optimizer_states"][0]["param_groups"])
    assert set(steps) == {6, 9}  # three an epoch


@pytest.mark.parametrize("step", [2, 3, 4])
@slow
def test_a_run_that_is_killed_before_or_after_that_epoch_is_resumed_exactly(released, tmp_path, step):
    run = tmp_path / "run"
    assert run_in_fork(run, *RELEASED, "optimizer=lamb", before=killed_at(step)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, released)


@slow
@pytest.mark.parametrize(("strategy", "setup"), [(TWO, FROZEN), (TWO, RELEASED), (SHARDED, FROZEN)])
def test_several_processes_freeze_like_one_and_are_resumed_exactly(tmp_path, strategy, setup):
    one = trained(tmp_path / "one", *setup, "loader.batch_size=106")
    two = trained_on(2, tmp_path / "two", *setup, *strategy)
    assert difference(two, one) < 1e-4
    both = train_on(2, tmp_path / "run", *setup, *strategy, before=lambda rank: killed_at(4)())
    assert both[0].code == -signal.SIGKILL
    trained_on(2, tmp_path / "run", *setup, *strategy, "ckpt_path=last")
    assert_same_run(tmp_path / "run", two)


@pytest.mark.parametrize(
    ("ends", "warned"),
    [
        # Three batches an epoch, in steps of two: two steps an epoch.
        (["trainer.max_steps=2", "trainer.max_epochs=3"], True),
        pytest.param(["trainer.max_steps=3", "trainer.max_epochs=3"], False, marks=slow),
        pytest.param(["trainer.max_epochs=1"], True, marks=slow),
    ],
)
def test_an_epoch_after_the_end_of_the_run_is_warned_of(tmp_path, ends, warned):
    run = trained(tmp_path / "run", "freeze=[decoder]", "unfreeze_at_epoch=1", *ACCUMULATED, *ends)
    lines = (run / "train.log").read_text().splitlines()
    assert any("WARNING" in line and "unfreeze_at_epoch=1" in line for line in lines) == warned


@slow
def test_sharded_weights_with_a_first_epoch_are_refused(tmp_path):
    assert_refused(train(tmp_path / "run", *RELEASED, *SHARDED), "unfreeze_at_epoch=1", "trainer=ddp")


class TestPatterns:
    def test_they_are_parts_their_other_names_parameters_and_globs(self):
        model = small_perceiver()
        names = {name for name, _ in model.named_parameters()}
        for pattern, expected in (
            ("encoders", {name for name in names if name.startswith("encoders.")}),
            ("encoders.depth", {"encoders.depth.positions.embedding"}),
            ("latents", {name for name in names if name.startswith("memory.")}),
            ("memory.array", {"memory.array"}),
            ("*.bias", {name for name in names if name.endswith(".bias")}),
        ):
            assert matching_names(model, pattern) == expected, pattern
        assert matching_names(model, "memory") < names

    def test_tied_parameters_are_frozen_under_any_of_their_names(self):
        model = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(3, 5)})
        model["b"].weight = model["a"].weight
        Freezing(patterns=["b"]).start(model)
        assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {
            "a.weight",
            "b.bias",
        }

    def test_batch_norm_without_all_its_parameters_stays_in_training_and_one_without_any_is_chosen_by_name(self):
        model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3, affine=False), "c": nn.Linear(3, 5)})
        for patterns, modes in (
            (["a.weight"], (True, True)),
            (["a"], (False, True)),
            (["a", "[ab].*"], (False, False)),
        ):
            freezing = Freezing(patterns=patterns, until_epoch=2)
            freezing.start(model.train())
            assert (model["a"].training, model["b"].training) == modes
            freezing.start_epoch(model, 2)
            assert (model["a"].training, model["b"].training) == (True, True)

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("freeze=[encodrs]", ["freeze: 'encodrs'", "encoders, encoders.image, memory, decoder"]),
            pytest.param("freeze=[*]", ["freeze: ['*']", "no parameter to train"], marks=slow),
            pytest.param("unfreeze_at_epoch=3", ["unfreeze_at_epoch=3", "freeze=["], marks=slow),
            pytest.param("optimizer.lr_scale={decodr: 10}", ["lr_scale.decodr=10", "decoder"], marks=slow),
            # The learning rate that is logged is that of the first group, divided by its factor.
            pytest.param("optimizer.lr_scale={encoders: 0}", ["optimizer.lr_scale", "encoders", "0"], marks=slow),
            pytest.param("optimizer.lr_scale={decoder: inf}", ["optimizer.lr_scale", "decoder", "inf"], marks=slow),
            pytest.param("optimizer.layer_decay=1.5", ["optimizer.layer_decay=1.5"], marks=slow),
        ],
    )
    def test_what_has_no_meaning_is_refused_by_name(self, tmp_path, override, parts):
        assert_refused(train(tmp_path / "run", override), *parts)
