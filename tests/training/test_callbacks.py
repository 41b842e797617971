"""What happens around the training steps."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from perceiver.training.callbacks import MovingAverage


class Model(nn.Module):
    """A weight, and a constant that only a build makes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -7.1]))
        self.register_buffer("constant", torch.linspace(1.0, 99.5, 67), persistent=False)


class TestMovingAverage:
    DECAY = 0.9

    def averaged(self, weights, warmup=False):
        model, callback = Model(), MovingAverage(decay=self.DECAY, warmup=warmup, update_every_n_steps=1)
        average = AveragedModel(model, use_buffers=True, **callback._kwargs)
        for weight in weights:
            model.weight.data = weight
            average.update_parameters(model)
        return average.module

    def test_it_is_the_exponential_one(self):
        weights = torch.randn(11, 2, generator=torch.Generator().manual_seed(1))
        expected = weights[0]
        for weight in weights[1:]:
            expected = self.DECAY * expected + (1 - self.DECAY) * weight
        torch.testing.assert_close(self.averaged(weights).weight.data, expected)

    def test_its_decay_warms_up(self):
        """After 31 steps of it the weights of the first, which would have 0.9³⁰ = 0.04 of it, are forgotten."""
        weights = torch.randn(101, 2, generator=torch.Generator().manual_seed(1))
        expected = weights[0]
        for num, weight in enumerate(weights[1:], start=1):
            decay = min(self.DECAY, (1 + num) / (10 + num))
            expected = decay * expected + (1 - decay) * weight
        torch.testing.assert_close(self.averaged(weights, warmup=True).weight.data, expected)
        of_first = torch.zeros(31, 2).index_fill(0, torch.tensor(0), 1.0)
        assert self.averaged(of_first, warmup=True).weight.max() < 1e-6 < 0.04 < self.averaged(of_first).weight.max()

    @pytest.mark.parametrize("warmup", [False, True])
    def test_what_is_constant_stays_so_to_the_bit(self, warmup):
        average = self.averaged(torch.zeros(53, 2), warmup)
        assert torch.equal(average.constant, Model().constant)

    def test_it_is_updated_every_so_many_steps(self):
        callback = MovingAverage(decay=self.DECAY, warmup=True, update_every_n_steps=3)
        assert [callback.should_update(step_idx=step) for step in range(5)] == [True, False, False, True, False]
        assert not callback.should_update(epoch_idx=3)

    @pytest.mark.parametrize("options", [{"decay": 1.1}, {"decay": -0.1}, {"update_every_n_steps": 0}], ids=str)
    def test_impossible_settings_are_refused_by_name(self, options):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            MovingAverage(**{"decay": 0.5, "warmup": True, "update_every_n_steps": 1} | options)
