"""Training steps without a trainer, and how rates are counted, by a clock that is made up."""

from itertools import islice, repeat

import pytest
import torch

from perceiver.data.files import UnreadableError
from perceiver.runtime.config import resolved
from perceiver.training import timing
from perceiver.training.build import Parts, build
from perceiver.training.timing import TrainingStep, example_batch, samples_per_second, training_batches
from perceiver.types import Batch
from tests.runs import SMALL, composed, weights_equal

CPU = torch.device("cpu")


@pytest.fixture
def parts() -> Parts:
    with composed(*SMALL) as cfg:
        return build(resolved(cfg))


@pytest.fixture
def step(parts) -> TrainingStep:
    with composed(*SMALL) as cfg:
        return TrainingStep(parts, resolved(cfg))


def batch(size: int) -> Batch:
    return Batch(inputs={}, targets={}, ids=[str(number) for number in range(size)])


def test_a_step_makes_the_loss_of_its_batch_smaller(parts, step):
    def loss() -> float:
        with torch.no_grad():
            return float(parts.task.loss(parts.task.outputs(parts.model, example), example))

    example = example_batch(parts.data)
    first, before = {name: value.clone() for name, value in parts.model.state_dict().items()}, loss()
    for _ in range(3):
        step(example)
    assert not weights_equal(first, parts.model.state_dict())
    assert loss() < before


def test_an_example_batch_is_full_even_where_there_are_fewer_samples(parts):
    parts.data.batch_size = len(parts.data.train_samples) + 7
    assert len(example_batch(parts.data)) == parts.data.batch_size


def test_training_batches_are_those_of_a_run_without_end(parts):
    loader, expected = parts.data.train_dataloader(), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += [parts.data.train_samples[index].id for _, index in loader.sampler]
    batches = islice(training_batches(parts.data), 3 * len(loader))
    assert [id for found in batches for id in found.ids] == expected


def test_batches_of_which_nothing_can_be_read_are_left_out(parts, monkeypatch):
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
def test_a_rate_counts_what_comes_behind_the_warm_up(monkeypatch, warmup):
    now = [0.0]

    def use(used: Batch) -> None:
        uses.append(len(used))
        now[0] += 100.0 if len(uses) <= warmup else 0.5

    uses: list[int] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    batches = [*repeat(batch(13), warmup), batch(3), batch(5), batch(7), batch(11)]
    assert samples_per_second(batches, use, CPU, warmup=warmup, repeats=3) == 15 / 1.5
    assert len(uses) == warmup + 3


def test_getting_a_batch_counts_too(monkeypatch):
    now = [0.0]

    def slow():
        while True:
            now[0] += 2.0
            yield batch(7)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert samples_per_second(slow(), lambda _: None, CPU, warmup=1, repeats=5) == 7 / 2
