"""Weight decay by parameter group, optimizers, and schedules of the learning rate."""

import math
import signal
from copy import deepcopy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver.attention import BlockSpec, CrossBlock, SelfBlock
from perceiver.decoders.queries import QueryDecoder
from perceiver.encoders.stems import ConvStem, PixelStem
from perceiver.latents import Schedule as Repetitions
from perceiver.positions import LearnedPositions
from perceiver.queries.learned import Learned
from perceiver.runtime.config import resolved
from perceiver.training.build import construct
from perceiver.training.optimization import (
    build_optimizer,
    constant,
    flat_cosine,
    fuse_on_cpu,
    parameter_groups,
    steps,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)
from tests.kills import assert_same_run, continued, killed_at, rows, run_in_fork
from tests.models import DIM, NUM_CLASSES, image_encoder, small_perceiver
from tests.runs import CONF, assert_refused, checkpoint, composed, train, trained

slow = pytest.mark.slow


def model_with_every_parameter() -> nn.Module:
    """A Perceiver with every kind of parameter, and with shared blocks."""
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


def constructed(key, *overrides):
    with composed(*overrides) as cfg:
        return construct(resolved(cfg), key)


EMBEDDINGS = {"memory.array", "decoder.queries.array", "encoders.depth.positions.embedding"}


class TestParameterGroups:
    def test_each_parameter_is_in_one_group_in_the_order_of_the_model(self):
        model = model_with_every_parameter()
        order = {id(parameter): number for number, parameter in enumerate(model.parameters())}
        groups = [[order[id(parameter)] for parameter in group["params"]] for group in parameter_groups(model)]
        assert sorted(number for group in groups for number in group) == list(range(len(order)))
        assert all(group == sorted(group) for group in groups), "so that optimizer states can be restored"

    def test_weights_of_linear_and_convolutional_layers_decay_and_nothing_else(self):
        model = model_with_every_parameter()
        decayed, others = (names(model, group) for group in parameter_groups(model))
        assert {name.rpartition(".")[2] for name in decayed} == {"weight"}
        assert {"encoders.image.stem.conv.weight", "encoders.depth.positions.projection.weight"} <= decayed
        assert {"decoder.head.weight", "memory.self_blocks.0.1.attention.key.weight"} <= decayed
        assert {"encoders.image.stem.norm.weight", "memory.cross_blocks.1.query_norm.weight", *EMBEDDINGS} <= others
        assert {"join.embeddings.image", "join.embeddings.depth"} <= others
        assert {name for name, parameter in model.named_parameters() if parameter.ndim < 2} <= others

    def test_embeddings_decay_if_configured(self):
        model = model_with_every_parameter()
        decayed, others = (names(model, group) for group in parameter_groups(model, decay_embeddings=True))
        assert decayed >= EMBEDDINGS
        assert names(model, parameter_groups(model)[0]) < decayed
        assert others == {name for name, _ in model.named_parameters() if "norm" in name or name.endswith("bias")}

    def test_frozen_parameters_and_empty_groups_are_left_out(self):
        model = model_with_every_parameter().requires_grad_(False)
        assert parameter_groups(model) == []
        model.decoder.head.requires_grad_(True)
        assert [group["params"] for group in parameter_groups(model)] == [
            [model.decoder.head.weight],
            [model.decoder.head.bias],
        ]
        model.decoder.head.bias.requires_grad_(False)
        assert len(parameter_groups(model)) == 1

    @pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
    def test_the_configured_weight_decay_is_that_of_the_first_group(self, optimizer):
        overrides = [f"optimizer={optimizer}", "optimizer.weight_decay=0.5", "optimizer.lr=0.1"]
        model = model_with_every_parameter()
        made = constructed("optimizer", *overrides)(parameter_groups(model))
        assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.1, 0.5), (0.1, 0.0)]
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        decayed = names(model, made.param_groups[0])
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert changed == {name for name in decayed if before[name].any()}


def applied_blocks(model):
    """The names of the attention blocks in the order in which a forward pass first applies them."""
    order, names = {}, {module: name for name, module in model.named_modules()}
    for block in model.modules():
        if isinstance(block, CrossBlock | SelfBlock):
            block.register_forward_pre_hook(lambda module, _: order.setdefault(names[module]))
    model({"image": torch.rand(2, 3, 11, 13), "depth": torch.rand(2, 1, 5, 7)})
    return list(order)


def test_learning_rates_decay_by_layer_in_the_order_of_application_and_are_scaled_by_part():
    """BEiT: 0.7 ** (num_layers + 1 - layer)."""
    model = model_with_every_parameter()
    blocks = applied_blocks(model)
    assert blocks.index("memory.self_blocks.0.0") < blocks.index("memory.cross_blocks.1"), "not the order of modules"
    settings = {"layer_decay": 0.7, "lr_scale": {"decoder": 10.0, "decoder.head.*": 3.0, "*.query_norm.weight": 0.5}}
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=0.02), model, **settings)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        layer = next((layer for layer, block in enumerate(blocks, 1) if name.startswith(f"{block}.")), 0)
        layer = len(blocks) + 1 if layer == 0 and name.startswith("decoder.") else layer
        scale = 10.0 if name.startswith("decoder.") else 1.0
        scale = 3.0 if name.startswith("decoder.head.") else scale
        scale = 0.5 if name.endswith(".query_norm.weight") else scale
        assert rates[id(parameter)] == pytest.approx(0.02 * scale * 0.7 ** (len(blocks) + 1 - layer)), name
    assert len(rates) == len(list(model.parameters()))


def test_scaled_learning_rates_follow_the_schedule(tmp_path):
    scaled = ["optimizer.lr=0.01", "optimizer.lr_scale={decoder: 10}", "trainer.log_every_n_steps=1"]
    run = trained(tmp_path / "run", *scaled, "schedule=flat_cosine", "schedule.final_factor=0.25")
    groups = checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.0025, 0.0025, 0.025, 0.025])
    assert float(rows(run)[0]["train/learning_rate"]) == pytest.approx(0.01)


def first_step(*overrides, scale=1.0):
    """An optimizer after one step, the change of each parameter, the parameters, and their values before."""
    model = model_with_every_parameter()
    optimizer = build_optimizer(constructed("optimizer", *overrides), model, decay_embeddings=False)
    generator, before = torch.Generator().manual_seed(1), {}
    for name, parameter in model.named_parameters():
        parameter.data += 0.1  # none is zero
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        before[name] = parameter.detach().clone()
    optimizer.step()
    changes = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return optimizer, changes, dict(model.named_parameters()), before


def test_the_step_of_lamb_is_the_learning_rate_times_the_norm_of_the_parameter_and_clips_nothing():
    """You et al. 2020, algorithm 2. The scale of the gradient changes only the moments."""
    moments = []
    for scale in (1.0, 1000.0):
        optimizer, changes, _, before = first_step("optimizer=lamb", "optimizer.lr=0.004", scale=scale)
        for name, change in changes.items():
            torch.testing.assert_close(change.norm(), 0.004 * before[name].norm(), msg=name)
        moments.append([state["exp_avg"] for state in optimizer.state.values()])
    for small, large in zip(*moments, strict=True):
        torch.testing.assert_close(1000.0 * small, large)


def test_muon_updates_the_matrices_of_blocks_only_with_steps_of_the_size_of_adamw():
    optimizer, changes, parameters, _ = first_step("optimizer=muon", "optimizer.lr=0.01", "optimizer.weight_decay=0")
    of_muon = {name for name, parameter in parameters.items() if optimizer.state[parameter]["use_muon"]}
    assert {"memory.cross_blocks.0.attention.key.weight", "memory.self_blocks.0.1.mlp.0.weight"} <= of_muon
    assert all("_block" in name or name.startswith("decoder.") for name in of_muon)
    assert not {"decoder.head.weight", "encoders.image.stem.conv.weight", *EMBEDDINGS} & of_muon
    sizes = {name: float(change.square().mean().sqrt()) for name, change in changes.items()}
    assert all(0.001 < size < 0.02 for size in sizes.values()), sizes  # Muon 0.2 of the learning rate, AdamW all of it


def factors_of(schedule, total):
    return [schedule(step, total) for step in range(total + 1)]  # Lightning asks once more at the end


class TestSchedules:
    @pytest.mark.parametrize("total", [1, 2, 3, 7, 1000])
    @pytest.mark.parametrize(
        "schedule",
        [
            constant,
            *(partial(warmup_cosine, warmup_steps=number, final_factor=0.1) for number in (0, 5, 10_000)),
            *(partial(flat_cosine, flat_fraction=fraction, final_factor=0.2) for fraction in (0.0, 0.5, 1.0)),
            *(partial(steps, milestones=milestones, factor=0.1) for milestones in ([0.7, 0.85, 0.95], [])),
            partial(warmup_linear, warmup_steps=5, final_factor=0.0),
            *(partial(warmup_stable_decay, warmup_steps=5, decay_fraction=x, final_factor=0.0) for x in (0.1, 1.0)),
        ],
    )
    def test_factors_are_in_0_to_1_from_the_first_step_and_reach_1(self, schedule, total):
        factors = factors_of(schedule, total)
        assert all(0.0 <= factor <= 1.0 for factor in factors)
        assert factors[0] > 0.0
        assert max(factors) == 1.0

    def test_warmup_is_linear_over_at_most_a_quarter_of_the_run_and_cosine_falls_to_its_end(self):
        factors = factors_of(partial(warmup_cosine, warmup_steps=11, final_factor=0.1), 101)
        assert factors[:12] == pytest.approx([(step + 1) / 11 for step in range(11)] + [1.0])
        assert all(later < earlier for earlier, later in pairwise(factors[11:]))
        assert (factors[(11 + 101) // 2], factors[-1]) == pytest.approx((0.55, 0.1))
        assert factors_of(partial(warmup_cosine, warmup_steps=1000, final_factor=0.0), 40)[8:11] == [0.9, 1.0, 1.0]

    def test_linear_falls_by_equal_steps(self):
        factors = factors_of(partial(warmup_linear, warmup_steps=11, final_factor=0.1), 101)
        assert factors[10:12] == [1.0, 1.0]
        assert [one - other for one, other in pairwise(factors[11:])] == pytest.approx([0.9 / 90] * 90)

    def test_wsd_is_constant_until_its_decay_whatever_the_end(self):
        schedule = partial(warmup_stable_decay, warmup_steps=11, decay_fraction=0.1, final_factor=0.2)
        short, long = (factors_of(schedule, total) for total in (110, 1010))
        assert short[:100] == long[:100]
        assert set(short[10:100]) == {1.0}
        progress = [(1.0 - factor) / 0.8 for factor in short[99:]]
        assert progress == pytest.approx([math.sqrt(step / 11) for step in range(12)])

    def test_flat_cosine_is_flat_and_then_falls(self):
        factors = factors_of(partial(flat_cosine, flat_fraction=0.5, final_factor=0.0), 110)
        assert set(factors[:55]) == {1.0}
        assert all(later < earlier for earlier, later in pairwise(factors[55:]))
        assert factors[-1] == pytest.approx(0.0)
        assert factors[82] == pytest.approx(0.5 * (1 + math.cos(math.pi * 27 / 55)))

    def test_steps_divide_by_ten_at_epochs_84_102_and_114_of_120_as_in_the_paper(self):
        schedule = constructed("schedule", "schedule=steps")
        by_epoch = [schedule(7 * epoch, 7 * 120) for epoch in range(120)]
        changes = {epoch: later / earlier for epoch, (earlier, later) in enumerate(pairwise(by_epoch), start=1)}
        changes = {epoch: change for epoch, change in changes.items() if change != 1}
        assert changes == {epoch: pytest.approx(0.1) for epoch in (84, 102, 114)}

    @pytest.mark.parametrize(
        ("end", "num_steps"),
        [
            # Three batches an epoch make two steps, the second of one batch.
            ("trainer.max_epochs=2 trainer.accumulate_grad_batches=2", 4),
            pytest.param("trainer.max_steps=5", 5, marks=slow),
        ],
    )
    def test_it_ends_with_the_run(self, tmp_path, end, num_steps):
        overrides = ["schedule=flat_cosine", "schedule.final_factor=0.25", "optimizer.lr=0.01", *end.split()]
        saved = checkpoint(trained(tmp_path / "run", *overrides))
        (scheduler,) = saved["lr_schedulers"]
        assert (scheduler["last_epoch"], saved["global_step"]) == (num_steps, num_steps)
        assert scheduler["_last_lr"] == pytest.approx([0.0025, 0.0025])


OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
TORCH = {
    "OneCycleLR": ["+schedule.max_lr=0.01"],
    "StepLR": ["+schedule.step_size=3", "+schedule.gamma=0.5"],
    "CosineAnnealingWarmRestarts": ["+schedule.T_0=3"],
    "ReduceLROnPlateau": ["+schedule.patience=0", "+schedule.threshold=10.0"],  # every validation is a plateau
}


def torch_schedule(name):
    return ["schedule=constant", f"schedule._target_=torch.optim.lr_scheduler.{name}", *TORCH[name]]


SCHEDULES = [
    *([f"schedule={name}"] for name in sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))),
    *map(torch_schedule, TORCH),
]


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        # Each optimizer and each schedule in some pair.
        pytest.param(OPTIMIZERS[-1 - place % len(OPTIMIZERS)], schedule, marks=slow)
        for place, schedule in enumerate(reversed(SCHEDULES))
    ],
)
def test_optimizers_and_schedules_are_resumed_exactly_after_a_kill(tmp_path, optimizer, schedule):
    setup = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3", f"optimizer={optimizer}", *schedule]
    run, whole = tmp_path / "run", trained(tmp_path / "whole", *setup)
    assert run_in_fork(run, *setup, before=killed_at(7)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, whole)
    rates = [float(row["train/learning_rate"]) for row in rows(run) if "train/learning_rate" in row]
    assert len(rates) == 9
    if schedule == torch_schedule("ReduceLROnPlateau"):
        assert rates == pytest.approx([rates[0]] * 6 + [0.1 * rates[0]] * 3)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        pytest.param(
            ["schedule=constant", "schedule._target_=torch.optim.lr_scheduler.StepLR"], "step_size", marks=slow
        ),
        ([*torch_schedule("OneCycleLR"), "+schedule.total_steps=5"], "total_steps=5"),
        pytest.param([*torch_schedule("OneCycleLR"), "optimizer.layer_decay=0.5"], "layer_decay", marks=slow),
        pytest.param([*torch_schedule("ReduceLROnPlateau"), "+schedule.mode=min"], "mode=min", marks=slow),
        ([*torch_schedule("ReduceLROnPlateau"), "trainer.limit_val_batches=0"], "ReduceLROnPlateau"),
    ],
)
def test_an_impossible_schedule_is_refused_before_training(tmp_path, choice, reason):
    assert_refused(train(tmp_path / "run", *choice), "error: schedule", reason)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_in_one_kernel_gives_the_same_weights(kind):
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    other = deepcopy(model)
    plain, fused = (kind(one.parameters(), lr=0.1, weight_decay=0.3) for one in (model, other))
    fuse_on_cpu(fused)
    assert [group["fused"] for optimizer in (plain, fused) for group in optimizer.param_groups] == [None, True]
    for _ in range(5):
        gradients = [torch.randn_like(one) for one in model.parameters()]
        for weights, optimizer in ((model, plain), (other, fused)):
            for weight, gradient in zip(weights.parameters(), gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
    assert_close([*other.parameters()], [*model.parameters()])


def test_an_optimizer_that_has_a_choice_or_is_elsewhere_is_left_as_it_is():
    weight, on_meta = (nn.Parameter(torch.zeros(3, device=device)) for device in ("cpu", "meta"))
    for optimizer in (
        torch.optim.AdamW([weight], fused=False),
        torch.optim.AdamW([on_meta]),
        torch.optim.SGD([weight]),
    ):
        before = dict(optimizer.param_groups[0])
        fuse_on_cpu(optimizer)
        assert optimizer.param_groups[0] == before
