"""Training steps without a trainer, and rates measured with a fake clock."""

from itertools import islice, repeat

import pytest
import torch

from perceiver.data.files import UnreadableError
from perceiver.runtime.config import resolved
from perceiver.training.build import Parts, build
from perceiver.training.timing import TrainingStep, example_batch, samples_per_second, training_batches
from perceiver.types import Batch
from tests.runs import SMALL, composed


@pytest.fixture
def config():
    with composed(*SMALL) as cfg:
        return resolved(cfg)


@pytest.fixture
def parts(config) -> Parts:
    return build(config)


def test_steps_reduce_the_loss_of_a_full_batch(parts, config):
    def loss() -> float:
        with torch.no_grad():
            return float(parts.task.loss(parts.task.outputs(parts.model, example), example))

    parts.data.batch_size = len(parts.data.train_samples) + 7
    assert len(example_batch(parts.data)) == parts.data.batch_size, "samples are repeated"
    parts.data.batch_size = 53
    step, example = TrainingStep(parts, config), example_batch(parts.data)
    before = loss()
    for _ in range(3):
        step(example)
    assert loss() < before


def test_training_batches_are_those_of_a_run_without_end(parts):
    loader, expected = parts.data.train_dataloader(), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += [parts.data.train_samples[index].id for _, index in loader.sampler]
    batches = islice(training_batches(parts.data), 3 * len(loader))
    assert [id for found in batches for id in found.ids] == expected


def test_batches_without_readable_samples_are_left_out(parts, monkeypatch):
    class Broken:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int):
            if index:
                raise UnreadableError(f"{index}: broken")
            return digits[0]

    digits = parts.data.train_samples
    monkeypatch.setitem(parts.data.splits, "train", Broken())
    monkeypatch.setattr(parts.data.dataset, "on_error", "skip")
    parts.data.batch_size = 2
    assert [len(found) for found in islice(training_batches(parts.data), 7)] == [1] * 7


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_rate_includes_loading_and_excludes_the_warmup(warmup):
    now, uses = [0.0], []

    def batches():
        for size in [*repeat(13, warmup), 3, 5, 7, 11]:
            now[0] += 2.0
            yield Batch(inputs={}, targets={}, ids=[str(number) for number in range(size)])

    def use(batch: Batch) -> None:
        uses.append(len(batch))
        now[0] += 100.0 if len(uses) <= warmup else 0.5

    device = torch.device("cpu")
    rate = samples_per_second(batches(), use, device, warmup=warmup, repeats=3, clock=lambda: now[0])
    assert rate == (3 + 5 + 7) / (3 * 2.5)
    assert len(uses) == warmup + 3
