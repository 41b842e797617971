"""Which parameters decay, and how the learning rate goes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from perceiver.attention import BlockSpec
from perceiver.decoders.queries import QueryDecoder
from perceiver.encoders.stems import ConvStem, PixelStem
from perceiver.latents import Schedule as Repetitions
from perceiver.positions import LearnedPositions
from perceiver.training.build import construct
from perceiver.training.config import resolved
from perceiver.training.optimization import FlatCosine, Steps, WarmupCosine, constant, parameter_groups
from tests.models import DIM, NUM_CLASSES, image_encoder, small_perceiver
from tests.training.runs import checkpoint, composed, trained


def everything() -> nn.Module:
    """A Perceiver with every kind of parameter there is, and with shared blocks."""
    decoder = QueryDecoder(dim=DIM, num_classes=NUM_CLASSES, query_dim=13, attention=BlockSpec(num_heads=1))
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
        assert {"decoder.head.weight", "latents.self_blocks.0.1.attention.key.weight"} <= decayed
        assert {"latents.array", "decoder.queries", "encoders.depth.positions.embedding"} <= spared
        assert {"encoders.image.stem.norm.weight", "latents.cross_blocks.1.query_norm.weight"} <= spared
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
