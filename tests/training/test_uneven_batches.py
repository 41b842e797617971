"""Processes whose batches have different sizes, lack a modality or are empty learn what one process learns."""

import json
import math
from dataclasses import replace

import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sampler import KeyedSampler
from perceiver.tasks.classification import Classification
from tests.kills import rows
from tests.processes import SHARDED, TWO, difference, train_on, trained_on
from tests.runs import CAPTIONING, assert_refused, checkpoint, metrics, trained

slow = pytest.mark.slow
STRATEGIES = pytest.mark.parametrize("strategy", [TWO, SHARDED], ids=["ddp", "fsdp"])
TEXT = [
    *("+encoder@model.encoders.text=text", "model.encoders.text.vocab_size=11"),
    *("model.encoders.text.positions.shape=[3]", "model.encoders.text.dim=6"),
]
SHORT = ["trainer.log_every_n_steps=1", "trainer.limit_train_batches=null", "optimizer.lr=0.001"]


class ChangedSplit:
    """The first samples of a split, each changed."""

    def __init__(self, split, length, change):
        self.split, self.length, self.change = split, length, change

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.change(index, self.split[index])

    def __getattr__(self, name):
        return getattr(self.split, name)

    @property
    def modalities(self):
        return list({name: None for index in range(2) for name in self[index].inputs})


def change_digits(monkeypatch, change, train=66, val=11, test=13):
    """Change the first digits of each split, in their order; of two processes the first gets those of even number."""
    split, lengths = Dataset.split, {"train": train, "val": val, "test": test}
    monkeypatch.setattr(Dataset, "split", lambda self, stage: ChangedSplit(split(self, stage), lengths[stage], change))
    monkeypatch.setattr(KeyedSampler, "_order", lambda self: torch.arange(self.num_samples))


def image_or_text(index, sample):
    """An image, or a text with its class, and sometimes both."""
    text = torch.tensor([[sample.targets["label"], 10]])
    inputs = {"image": sample.inputs["image"]} if index % 2 == 0 or index % 11 == 3 else {}
    return replace(sample, inputs=inputs | ({"text": text} if index % 2 else {}))


@STRATEGIES
@slow
def test_a_process_without_images_takes_part_in_batch_statistics(tmp_path, monkeypatch, strategy):
    change_digits(monkeypatch, image_or_text)
    stem = ["encoder@model.encoders.image=image_conv_stack", "model.encoders.image.stem.dims=[3,5,7]"]
    one = trained(tmp_path / "one", *TEXT, *SHORT, *stem, "loader.batch_size=12")
    run = trained_on(2, tmp_path / "two", *TEXT, *SHORT, *stem, "loader.batch_size=6", *strategy)
    weights = checkpoint(run)["state_dict"]
    seen = weights["model.encoders.image.stem.layers.0.1.num_batches_tracked"]
    assert seen == checkpoint(run)["global_step"]
    assert difference(run, one) < 1e-4
    assert all(value.isfinite().all() for value in weights.values())


@STRATEGIES
@slow
def test_each_process_lacks_another_modality(tmp_path, monkeypatch, strategy):
    change_digits(monkeypatch, image_or_text)
    one = trained(tmp_path / "one", *TEXT, *SHORT, "loader.batch_size=12")
    two = trained_on(2, tmp_path / "two", *TEXT, *SHORT, "loader.batch_size=6", *strategy)
    assert difference(two, one) < 1e-5


def unreadable_for_second(index, sample):
    """Of the second process: its second and third batch, and one more sample."""
    if index % 2 and (12 <= index < 36 or index == 41):
        raise UnreadableError(f"{sample.id} {index}: torn")
    return sample


@STRATEGIES
@slow
def test_one_process_cannot_read_some_samples_and_two_whole_batches(tmp_path, monkeypatch, strategy):
    change_digits(monkeypatch, unreadable_for_second, val=37)
    options = [*SHORT, "data.on_error=skip", "data.augment=null"]
    one = trained(tmp_path / "one", *options, "loader.batch_size=12")
    two = trained_on(2, tmp_path / "two", *options, "loader.batch_size=6", *strategy)
    assert difference(two, one) < 1e-5
    assert metrics(two)["data/unreadable"] == 13 + 12  # of training and validation


@slow
@pytest.mark.parametrize(
    "task", [["task=tagging", "task.multi_label=false"], CAPTIONING], ids=["Ranking", "TextMetrics"]
)
def test_one_process_has_nothing_to_validate(tmp_path, monkeypatch, task):
    if task is CAPTIONING:
        task = [*task, "data.num_samples={train: 24, val: 1, test: 1}"]
    else:
        change_digits(monkeypatch, lambda index, sample: sample, val=1, test=1)
    one = trained(tmp_path / "one", *task, *SHORT, "loader.batch_size=12")
    two = trained_on(2, tmp_path / "two", *task, *SHORT, "loader.batch_size=6")
    assert difference(two, one) < 1e-5


def nan_at(monkeypatch, rank, call):
    """Make the loss of one process NaN at its training step number `call`, from 0 on."""

    def prepare(own_rank):
        original, calls = Classification.prepare, iter(range(call + 1))

        def prepared(self, batch, *, train):
            batch = original(self, batch, train=train)
            if train and own_rank == rank and next(calls, None) == call:
                batch = replace(batch, inputs={name: value * math.nan for name, value in batch.inputs.items()})
            return batch

        monkeypatch.setattr(Classification, "prepare", prepared)

    return prepare


@slow
def test_nan_in_one_process_ends_all_and_lists_its_samples(tmp_path, monkeypatch):
    change_digits(monkeypatch, lambda index, sample: replace(sample, id=f"digit {index}"))
    both = train_on(2, tmp_path / "run", *SHORT, "loader.batch_size=6", before=nan_at(monkeypatch, 1, 3))
    for ended in both:
        assert_refused(ended, "train/loss is nan and its gradient not finite at step 3, epoch 0")
    listed = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert listed["samples"] == [f"digit {number}" for number in range(37, 48, 2)]  # the fourth six of its own


@STRATEGIES
@slow
def test_nan_in_one_process_is_skipped_by_all(tmp_path, monkeypatch, strategy):
    change_digits(monkeypatch, lambda index, sample: sample, train=72)
    options = [*SHORT, "on_nonfinite=skip", "trainer.accumulate_grad_batches=2", "data.augment=null"]
    one = trained_on(1, tmp_path / "one", *options, "loader.batch_size=12", before=nan_at(monkeypatch, 0, 3))
    before = nan_at(monkeypatch, 1, 3)
    two = trained_on(2, tmp_path / "two", *options, "loader.batch_size=6", *strategy, before=before)
    assert difference(two, one) < 1e-5


TASKS = {
    "classification": [],
    "balanced": [f"task.loss.{one}" for one in ("class_weights=balanced", "focal_gamma=2", "label_smoothing=0.1")],
    "tagging": ["task=tagging", "task.multi_label=false"],
    "captioning": CAPTIONING,
}


@slow
@pytest.mark.parametrize("train", [61, 67])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_the_mean_over_all_terms_of_accumulated_and_distributed_batches(tmp_path, monkeypatch, task, train):
    """Batches of 12 = of 3 accumulated by 4 = of 6 on two processes = of 3 accumulated by 2 on two processes.

    The last step of an epoch has 7 samples or a single one, which leaves one process without any. Batch norm, mixing
    and dropout would depend on which samples are in a batch together.
    """
    if task == "captioning":
        sizes = [f"data.num_samples={{train: {train}, val: 11, test: 13}}"]
    else:
        sizes = []
        change_digits(monkeypatch, lambda index, sample: sample, train=train)
    options = [*TASKS[task], *sizes, *SHORT]
    whole = trained(tmp_path / "whole", *options, "loader.batch_size=12")
    assert len([row for row in rows(whole) if "train/loss_step" in row]) == 12
    for number, accumulate in ((1, 4), (2, 1), (2, 2)):
        size = 12 // (number * accumulate)
        parts = [f"loader.batch_size={size}", f"trainer.accumulate_grad_batches={accumulate}"]
        run = trained_on(number, tmp_path / f"{number} x {accumulate}", *options, *parts)
        assert difference(run, whole) < 1e-5, (number, accumulate)
