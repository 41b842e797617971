"""The estimate of REINFORCE against the gradient of the expected loss, by enumeration of all draws."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver.attention import BlockSpec, SelfBlock, run_block
from perceiver.mechanisms.choices import Sampled
from perceiver.mechanisms.explicit import Explicit
from perceiver.mechanisms.reaches import Everywhere
from perceiver.mechanisms.scores import DotProduct
from perceiver.reinforce import Reinforce
from perceiver.types import HasAuxiliaryLoss
from tests.mechanisms.parts import build, factory, qkv

QUERIES, KEYS, DIM = 2, 3, 5


def loss_of(out: torch.Tensor) -> torch.Tensor:
    """A loss of each row that depends on all queries together, [rows, heads, queries, dim] -> [rows]."""
    return (out.sum(dim=2).square().sum(dim=(1, 2)) - 3.0).sin() + 2.0


def mechanism_with(soft_share: float, momentum: float = 0.9) -> Explicit:
    estimator = partial(Reinforce, entropy=0.0, momentum=momentum)
    choice = partial(Sampled, soft_share=soft_share, estimator=estimator)
    return Explicit(score=DotProduct, choice=choice, reach=Everywhere, num_heads=1, dim=DIM).train()


def expected_gradient(q, k, v, soft_share: float) -> torch.Tensor:
    """The gradient of the expected loss with respect to the queries; a query reads one key, or the mean."""
    soft = (q[0, 0] @ k[0, 0].T).softmax(dim=-1)
    rows = [*torch.eye(KEYS)]
    loss = 0.0
    for reads in product(range(KEYS + 1), repeat=QUERIES):
        probability, weights = 1.0, []
        for query, read in enumerate(reads):
            is_soft = read == KEYS
            probability = probability * (soft_share if is_soft else (1 - soft_share) * soft[query, read])
            weights.append(soft[query] if is_soft else rows[read])
        loss = loss + probability * loss_of(torch.stack(weights)[None, None] @ v)[0]
    return torch.autograd.grad(loss, q)[0]


@pytest.mark.parametrize("soft_share", [0.0, 0.5])
@pytest.mark.parametrize("baseline", [0.0, 2.0])
def test_the_estimate_is_unbiased_with_and_without_a_baseline(soft_share, baseline):
    torch.manual_seed(5)
    num_draws = 40_000
    q, k, v = (torch.randn(1, 1, length, DIM) * 0.7 for length in (QUERIES, KEYS, KEYS))
    expected = expected_gradient(q.requires_grad_(), k, v, soft_share)
    repeated = q.detach().repeat(num_draws, 1, 1, 1).requires_grad_()
    mechanism = mechanism_with(soft_share)
    mechanism.choice.estimator.baseline.fill_(baseline)
    mechanism.choice.estimator.num_steps.fill_(1.0)
    losses = loss_of(mechanism(repeated, k.expand(num_draws, -1, -1, -1), v.expand(num_draws, -1, -1, -1)))
    total = losses.sum() + mechanism.choice.estimator.auxiliary_loss(losses.detach(), torch.ones(num_draws))
    (estimates,) = torch.autograd.grad(total, repeated)
    errors = estimates.std(dim=0) / num_draws**0.5
    assert float(expected.abs().max()) > 20 * float(errors.min())
    assert ((estimates.mean(dim=0) - expected[0]).abs() < 4.5 * errors + 1e-6).all()


def test_a_baseline_near_the_mean_lowers_the_variance_and_follows_the_loss():
    variances = []
    for baseline in (0.0, 2.0):
        torch.manual_seed(5)
        q, k, v = (torch.randn(1009, 1, length, DIM) for length in (QUERIES, KEYS, KEYS))
        mechanism = mechanism_with(0.0, momentum=0.75)
        estimator = mechanism.choice.estimator
        estimator.baseline.fill_(baseline)
        estimator.num_steps.fill_(1.0)
        losses = loss_of(mechanism(q.requires_grad_(), k, v)).detach()
        (gradient,) = torch.autograd.grad(estimator.auxiliary_loss(losses, torch.ones(1009)), q)
        variances.append(gradient.var(dim=0).sum())
        assert_close(estimator.baseline, 0.75 * baseline + 0.25 * losses.mean())
    assert variances[1] < 0.5 * variances[0]


def test_terms_weight_the_loss_and_samples_without_a_finite_one_have_no_influence():
    estimator = Reinforce(entropy=0.0, momentum=0.5)
    logs = torch.zeros(8, 3, requires_grad=True)  # two rows for each of four samples
    losses, terms = torch.tensor([1.0, 2.0, torch.nan, 7.0]), torch.tensor([3.0, 1.0, 5.0, 0.0])
    mean = (3 * 1.0 + 1 * 2.0) / 4
    estimator.record(logs, torch.zeros(8, 3))
    estimator.auxiliary_loss(losses, terms).backward()
    of_samples = torch.tensor([3 * (1.0 - mean), 1 * (2.0 - mean), 0.0, 0.0])
    assert_close(logs.grad, of_samples.repeat_interleave(2)[:, None].expand(8, 3))
    assert_close(estimator.baseline, torch.tensor(mean))
    estimator.record(logs, torch.zeros(8, 3))
    estimator.auxiliary_loss(torch.full((4,), torch.nan), terms)
    assert_close(estimator.baseline, torch.tensor(mean))


def test_the_entropy_of_draws_is_maximized():
    mechanism, (q, k, v) = build("hard").train(), qkv()
    mechanism.choice.estimator.entropy = 0.3
    mechanism(q.requires_grad_(), k, v)
    entropy = torch.special.entr(build("explicit").weights(q, k)).sum()
    losses = torch.ones(len(q))  # equal to the baseline of the first step
    assert_close(mechanism.choice.estimator.auxiliary_loss(losses, torch.ones(len(q))), -0.3 * entropy)


def test_draws_are_recorded_once_in_training_and_discarded_with_a_change_of_mode():
    mechanism, inputs = build("hard"), qkv()
    estimator = mechanism.choice.estimator
    assert [module for module in mechanism.modules() if isinstance(module, HasAuxiliaryLoss)] == [estimator]
    mechanism(*inputs)
    assert not estimator.records
    mechanism.train()
    mechanism(*inputs)
    mechanism(*inputs)
    assert len(estimator.records) == 2
    estimator.auxiliary_loss(torch.ones(3), torch.ones(3))
    assert not estimator.records
    mechanism(*inputs)
    mechanism.eval()
    assert not estimator.records


def test_recomputed_blocks_draw_the_same_and_record_nothing():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(11)
        block: nn.Module = SelfBlock(dim=15, spec=BlockSpec(num_heads=3, mechanism=factory("hard")))
        estimator = block.attention.mechanism.choice.estimator
        losses = run_block(block, torch.randn(3, 7, 15), checkpointing=checkpointing).square().mean(dim=(1, 2))
        total = losses.sum() + estimator.auxiliary_loss(losses.detach(), torch.ones(3))
        total.backward()
        assert not estimator.records
        gradients.append([parameter.grad for parameter in block.parameters()])
    assert_close(*gradients)


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"entropy": -0.1}], ids=str)
def test_values_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Reinforce(**({"entropy": 0.0, "momentum": 0.5} | options))
