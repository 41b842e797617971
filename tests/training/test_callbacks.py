"""The moving average of the weights, and what the progress bar shows."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel

from perceiver.training.callbacks import MovingAverage, ProgressBar
from perceiver.training.module import TrainingModule

DECAY = 0.9


class Model(nn.Module):
    """A weight, and a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -7.1]))
        self.register_buffer("constant", torch.linspace(1.0, 99.5, 67), persistent=False)


def average(weights, warmup):
    model, callback = Model(), MovingAverage(decay=DECAY, warmup=warmup, update_every_n_steps=1)
    averaged = AveragedModel(model, use_buffers=True, **callback._kwargs)
    for weight in weights:
        model.weight.data = weight
        averaged.update_parameters(model)
    return averaged.module


@pytest.mark.parametrize("warmup", [False, True])
def test_it_is_exponential_and_its_decay_warms_up(warmup):
    weights = torch.randn(101, 2, generator=torch.Generator().manual_seed(1))
    expected = weights[0]
    for num, weight in enumerate(weights[1:], start=1):
        decay = min(DECAY, (1 + num) / (10 + num)) if warmup else DECAY
        expected = decay * expected + (1 - decay) * weight
    averaged = average(weights, warmup)
    torch.testing.assert_close(averaged.weight.data, expected)
    assert torch.equal(averaged.constant, Model().constant), "to the bit"


def test_it_is_updated_every_n_steps():
    callback = MovingAverage(decay=DECAY, warmup=True, update_every_n_steps=3)
    assert [callback.should_update(step_idx=step) for step in range(5)] == [True, False, False, True, False]
    assert not callback.should_update(epoch_idx=3)


@pytest.mark.parametrize("options", [{"decay": 1.1}, {"decay": -0.1}, {"update_every_n_steps": 0}], ids=str)
def test_impossible_settings_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        MovingAverage(**{"decay": 0.5, "warmup": True, "update_every_n_steps": 1} | options)


def test_the_progress_bar_shows_the_loss_of_the_last_step():
    bar, trainer = ProgressBar(), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[])
    module = TrainingModule.__new__(TrainingModule)  # of which the bar reads nothing else
    nn.Module.__init__(module)
    module.progress = {}
    assert "train/loss_step" not in bar.get_metrics(trainer, module)
    module.progress = {"train/loss_step": torch.tensor(1.75), "train/gradient_norm": torch.tensor(3.0)}
    shown = bar.get_metrics(trainer, module)
    assert shown["train/loss_step"] == 1.75
    assert "train/gradient_norm" not in shown
