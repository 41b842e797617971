"""Which parameters decay, and how the learning rate goes."""

import math
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn

from perceiver.attention import BlockSpec
from perceiver.decoders.queries import QueryDecoder
from perceiver.encoders.stems import ConvStem, PixelStem
from perceiver.latents import Schedule as Repetitions
from perceiver.positions import LearnedPositions
from perceiver.queries.learned import Learned
from perceiver.runtime.config import resolved
from perceiver.training.build import construct
from perceiver.training.optimization import (
    FlatCosine,
    Steps,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
    build_optimizer,
    constant,
    parameter_groups,
)
from tests.kills import assert_same_run, continued, killed_at, rows, run_in_fork
from tests.models import DIM, NUM_CLASSES, image_encoder, small_perceiver
from tests.runs import CONF, checkpoint, composed, train, trained

slow = pytest.mark.slow


def everything() -> nn.Module:
    """A Perceiver with every kind of parameter there is, and with shared blocks."""
    decoder = QueryDecoder(
        dim=DIM, num_classes=NUM_CLASSES, queries=Learned(num_queries=1, dim=13), attention=BlockSpec(num_heads=1)
    )
    encoders = {
        "image": image_encoder(ConvStem(channels=3, dim=7)),
        "depth": image_encoder(PixelStem(channels=1, dim=5), LearnedPositions(shape=(5, 7), dim=3, project_dim=2)),
    }
    repetitions = Repetitions(
        num_cross_attends=3, num_blocks=3, num_self_attends=2, cross_sharing="all_but_first", block_sharing="all"
    )
    return small_perceiver(encoders=encoders, decoder=decoder, schedule=repetitions)


def names(model, group):
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


class TestParameterGroups:
    def test_every_parameter_is_in_exactly_one_group_shared_ones_once(self):
        model = everything()
        grouped = [id(parameter) for group in parameter_groups(model) for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    def test_weights_of_linear_and_convolutional_layers_decay_and_nothing_else(self):
        model = everything()
        decayed, spared = (names(model, group) for group in parameter_groups(model))
        assert {name.rpartition(".")[2] for name in decayed} == {"weight"}
        assert {"encoders.image.stem.conv.weight", "encoders.depth.positions.projection.weight"} <= decayed
        assert {"decoder.head.weight", "memory.self_blocks.0.1.attention.key.weight"} <= decayed
        assert {"memory.array", "decoder.queries.array", "encoders.depth.positions.embedding"} <= spared
        assert {"encoders.image.stem.norm.weight", "memory.cross_blocks.1.query_norm.weight"} <= spared
        assert {"join.embeddings.image", "join.embeddings.depth"} <= spared
        assert {name for name, parameter in model.named_parameters() if parameter.ndim < 2} <= spared

    def test_the_order_of_the_parameters_is_that_of_the_model_so_that_optimizer_states_fit(self):
        for group, again in zip(parameter_groups(everything()), parameter_groups(everything()), strict=True):
            assert [tuple(p.shape) for p in group["params"]] == [tuple(p.shape) for p in again["params"]]

    def test_frozen_parameters_are_left_out_and_a_group_without_any_too(self):
        model = everything().requires_grad_(False)
        assert parameter_groups(model) == []
        model.decoder.head.requires_grad_(True)
        decayed, spared = parameter_groups(model)
        assert (decayed["params"], spared["params"]) == ([model.decoder.head.weight], [model.decoder.head.bias])
        model.decoder.head.bias.requires_grad_(False)
        assert len(parameter_groups(model)) == 1

    def test_latents_queries_and_learned_positions_decay_if_they_shall(self):
        model = everything()
        decayed, spared = (names(model, group) for group in parameter_groups(model, decay_embeddings=True))
        assert {"memory.array", "decoder.queries.array", "encoders.depth.positions.embedding"} <= decayed
        assert names(model, parameter_groups(model)[0]) < decayed
        assert {name.rpartition(".")[2] for name in spared} == {"weight", "bias"}
        assert all("norm" in name or name.endswith("bias") for name in spared)

    @pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
    def test_the_weight_decay_of_the_yaml_reaches_the_first_group_only(self, optimizer):
        with composed(f"optimizer={optimizer}", "optimizer.weight_decay=0.37", "optimizer.lr=0.11") as cfg:
            made = construct(resolved(cfg), "optimizer")(parameter_groups(everything()))
        assert [group["weight_decay"] for group in made.param_groups] == [0.37, 0.0]
        assert [group["lr"] for group in made.param_groups] == [0.11, 0.11]

    def test_what_does_not_decay_stays_where_it_has_no_gradient(self):
        model = everything()
        with composed("optimizer.weight_decay=0.5", "optimizer.lr=0.1") as cfg:
            optimizer = construct(resolved(cfg), "optimizer")(parameter_groups(model))
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        decayed = names(model, parameter_groups(model)[0])
        for name, value in model.named_parameters():
            torch.testing.assert_close(value, before[name] * (0.95 if name in decayed else 1.0))


def stepped(*overrides, scale=1.0):
    """An optimizer, what its first step has changed of each parameter, the parameters, and what they were before."""
    model = everything()
    with composed(*overrides) as cfg:
        optimizer = build_optimizer(construct(resolved(cfg), "optimizer"), model, decay_embeddings=False)
    generator, before = torch.Generator().manual_seed(1), {}
    for name, parameter in model.named_parameters():
        parameter.data += 0.1  # none is zero
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        before[name] = parameter.detach().clone()
    optimizer.step()
    changes = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return optimizer, changes, dict(model.named_parameters()), before


class TestLamb:
    """You et al. 2020, algorithm 2."""

    def test_a_step_of_any_parameter_is_as_long_as_the_learning_rate_says_of_its_norm(self):
        _, changes, _, before = stepped("optimizer=lamb", "optimizer.lr=0.004")
        for name, change in changes.items():
            torch.testing.assert_close(change.norm(), 0.004 * before[name].norm(), msg=name)

    def test_no_gradient_is_clipped(self):
        """Its size does not change the first step, but what the moments keep."""
        moments = []
        for scale in (1.0, 1000.0):
            optimizer, *_ = stepped("optimizer=lamb", scale=scale)
            moments.append([state["exp_avg"] for state in optimizer.state.values()])
        for small, large in zip(*moments, strict=True):
            torch.testing.assert_close(1000.0 * small, large)


def test_muon_has_the_matrices_of_blocks_alone_and_its_steps_have_the_size_of_those_of_adamw():
    optimizer, changes, parameters, _ = stepped("optimizer=muon", "optimizer.lr=0.01", "optimizer.weight_decay=0")
    state = {name: optimizer.state[parameter]["use_muon"] for name, parameter in parameters.items()}
    of_muon = {name for name, is_used in state.items() if is_used}
    assert {"memory.cross_blocks.0.attention.key.weight", "memory.self_blocks.0.1.mlp.0.weight"} <= of_muon
    assert all("_block" in name or name.startswith("decoder.") for name in of_muon)
    assert (
        not {"decoder.head.weight", "decoder.queries.array", "encoders.image.stem.conv.weight", "memory.array"}
        & of_muon
    )
    sizes = {name: float(change.square().mean().sqrt()) for name, change in changes.items()}
    assert all(0.001 < size < 0.02 for size in sizes.values()), sizes  # 0.2 of the learning rate, and all of AdamW's


class TestSchedules:
    @pytest.mark.parametrize("total", [1, 2, 3, 7, 1000])
    @pytest.mark.parametrize(
        "schedule",
        [
            constant,
            WarmupCosine(warmup_steps=0, final_factor=0.0),
            WarmupCosine(warmup_steps=5, final_factor=0.1),
            WarmupCosine(warmup_steps=10_000, final_factor=0.0),
            FlatCosine(flat_fraction=0.0, final_factor=0.0),
            FlatCosine(flat_fraction=0.5, final_factor=0.2),
            FlatCosine(flat_fraction=1.0, final_factor=0.0),
            Steps(milestones=[0.7, 0.85, 0.95], factor=0.1),
            Steps(milestones=[], factor=0.1),
            WarmupLinear(warmup_steps=5, final_factor=0.1),
            WarmupStableDecay(warmup_steps=5, decay_fraction=0.1, final_factor=0.0),
            WarmupStableDecay(warmup_steps=0, decay_fraction=1.0, final_factor=0.3),
        ],
    )
    def test_a_run_of_any_length_has_a_factor_in_0_to_1_and_learns_at_its_first_step(self, schedule, total):
        factors = [schedule(step, total) for step in range(total + 1)]  # Lightning asks once more at the end
        assert all(0.0 <= factor <= 1.0 for factor in factors)
        assert factors[0] > 0.0
        assert max(factors) == 1.0

    def test_warmup_rises_linearly_to_its_peak_and_the_cosine_falls_to_its_end(self):
        schedule, total = WarmupCosine(warmup_steps=11, final_factor=0.1), 101
        factors = [schedule(step, total) for step in range(total + 1)]
        assert factors[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
        assert factors[11] == 1.0
        assert all(later < earlier for earlier, later in pairwise(factors[11:]))
        assert factors[(11 + 101) // 2] == pytest.approx(0.55)
        assert factors[-1] == pytest.approx(0.1)

    def test_linear_falls_by_equal_steps(self):
        factors = [WarmupLinear(warmup_steps=11, final_factor=0.1)(step, 101) for step in range(102)]
        assert factors[10:12] == [1.0, 1.0]
        assert [one - other for one, other in pairwise(factors[11:])] == pytest.approx([0.9 / 90] * 90)
        assert factors[-1] == pytest.approx(0.1)

    def test_wsd_is_stable_until_its_decay_whatever_the_end(self):
        schedule = WarmupStableDecay(warmup_steps=11, decay_fraction=0.1, final_factor=0.2)
        short, long = ([schedule(step, total) for step in range(total + 1)] for total in (110, 1010))
        assert short[:100] == long[:100]
        assert set(short[10:100]) == {1.0}
        progress = [(1.0 - factor) / 0.8 for factor in short[99:]]
        assert progress == pytest.approx([math.sqrt(step / 11) for step in range(12)])

    def test_a_warmup_longer_than_the_run_takes_a_quarter_of_it(self):
        schedule = WarmupCosine(warmup_steps=1000, final_factor=0.0)
        assert [schedule(step, 40) for step in range(12)][8:11] == [0.9, 1.0, 1.0]

    def test_flat_cosine_is_flat_and_then_falls(self):
        schedule, total = FlatCosine(flat_fraction=0.5, final_factor=0.0), 110
        factors = [schedule(step, total) for step in range(total + 1)]
        assert set(factors[:55]) == {1.0}
        assert all(later < earlier for earlier, later in pairwise(factors[55:]))
        assert factors[-1] == pytest.approx(0.0)
        assert factors[82] == pytest.approx(0.5 * (1 + math.cos(math.pi * 27 / 55)))

    def test_the_paper_divides_by_ten_at_epochs_84_102_and_114_of_120(self):
        with composed("schedule=steps") as cfg:
            schedule = construct(resolved(cfg), "schedule")
        steps_per_epoch = 7
        by_epoch = [schedule(epoch * steps_per_epoch, 120 * steps_per_epoch) for epoch in range(120)]
        changes = {epoch: later / earlier for epoch, (earlier, later) in enumerate(pairwise(by_epoch), start=1)}
        assert {epoch: pytest.approx(0.1) for epoch, change in changes.items() if change != 1} == {
            epoch: changes[epoch] for epoch in (84, 102, 114)
        }

    def test_the_learning_rate_of_a_run_is_that_of_its_schedule_to_the_end(self, tmp_path):
        overrides = ["schedule=flat_cosine", "schedule.flat_fraction=0.0", "optimizer.lr=0.01", "seed=3"]
        run = trained(tmp_path / "run", *overrides, "trainer.max_epochs=3", "trainer.accumulate_grad_batches=2")
        (scheduler,) = checkpoint(run)["lr_schedulers"]
        # Three batches an epoch make two steps, the second of one batch.
        assert (scheduler["last_epoch"], checkpoint(run)["global_step"]) == (6, 6)
        assert scheduler["_last_lr"] == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(("key", "value"), [("max_epochs", 2), ("max_steps", 5)])
def test_the_schedule_ends_where_the_run_does(tmp_path, key, value):
    overrides = ["schedule=flat_cosine", "schedule.final_factor=0.25", "optimizer.lr=0.01", f"trainer.{key}={value}"]
    (scheduler,) = checkpoint(trained(tmp_path / "run", *overrides))["lr_schedulers"]
    assert scheduler["_last_lr"] == pytest.approx([0.0025, 0.0025])


OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))
OF_TORCH = {
    "OneCycleLR": ["+schedule.max_lr=0.01"],
    "StepLR": ["+schedule.step_size=3", "+schedule.gamma=0.5"],
    "CosineAnnealingWarmRestarts": ["+schedule.T_0=3"],
    "ReduceLROnPlateau": ["+schedule.patience=0", "+schedule.threshold=10.0"],  # which nothing passes
}


def of_torch(name):
    return ["schedule=constant", f"schedule._target_=torch.optim.lr_scheduler.{name}", *OF_TORCH[name]]


@pytest.mark.parametrize(
    "choice",
    [
        [f"optimizer={OPTIMIZERS[-1]}"],
        *(pytest.param([f"optimizer={name}"], marks=slow) for name in OPTIMIZERS[:-1]),
        *(pytest.param([f"schedule={name}"], marks=slow) for name in SCHEDULES),
        *(pytest.param(of_torch(name), marks=slow) for name in OF_TORCH if name != "ReduceLROnPlateau"),
        of_torch("ReduceLROnPlateau"),
    ],
    ids=lambda choice: choice[1].rpartition(".")[2] if len(choice) > 1 else choice[0],
)
def test_every_choice_learns_and_goes_on_exactly_after_a_kill(tmp_path, choice):
    setup = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3", "loader.batch_size=211", *choice]
    whole, run = trained(tmp_path / "whole", *setup), tmp_path / "run"
    assert run_in_fork(run, *setup, before=killed_at(7)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, whole)
    rates = [float(row["train/learning_rate"]) for row in rows(run) if "train/learning_rate" in row]
    assert len(rates) == 9
    if choice == of_torch("ReduceLROnPlateau"):
        assert rates == pytest.approx([0.001] * 6 + [0.0001] * 3)


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        (["schedule=constant", "schedule._target_=torch.optim.lr_scheduler.StepLR"], "step_size"),
        ([*of_torch("OneCycleLR"), "+schedule.total_steps=5"], "total_steps=5"),
        ([*of_torch("ReduceLROnPlateau"), "+schedule.mode=min"], "mode=min"),
        ([*of_torch("ReduceLROnPlateau"), "trainer.limit_val_batches=0"], "ReduceLROnPlateau"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_training(tmp_path, choice, named):
    ended = train(tmp_path / "run", *choice)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith("error: schedule")
    assert named in ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()
