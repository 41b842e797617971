"""The DataModule for all data sets: batches in an order and with an augmentation that a resumed run repeats."""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset, Split
from perceiver.data.files import UnreadableError
from perceiver.data.sampler import (
    NO_SAMPLE,
    Key,
    KeyedSampler,
    SimilarLengths,
    class_balancing_weights,
    fold_in,
)
from perceiver.data.splits import fingerprint
from perceiver.processes import all_gather
from perceiver.runtime.errors import ConfigError, PositionError
from perceiver.runtime.signals import end_with_parent
from perceiver.types import STAGES, Batch, Sample, Stage

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

MAX_CLASS_NAMES = 20
"""Class names listed in an error."""


class DataModule:
    """Loaders over the splits of a data set; `LightningData` gives them to a trainer.

    The position in the training data is one integer, the number of batches done, which Lightning stores. It denotes the
    same samples for any number of processes with the same total batch size.

    Attributes:
        trainer: that it loads for, if any: its limits, processes, and position.
        tested: the split that is tested, each sample once.
        unreadable: errors of the samples that were skipped, in order (a dict, as an ordered set).

    Args:
        dataset: the samples.
        batch_size: samples per process and step.
        num_workers: processes that read ahead; 0 reads in the training process.
        timeout_seconds: for a batch of a worker; 0 waits forever.
        drop_last: leave out a last training batch that is smaller than the others.
        class_balanced: draw the training samples of an epoch with replacement, those of rare classes more often
            (`class_balancing_weights`).
        pin_memory: faster copies to a GPU.
        seed: of order and augmentation.
        similar_lengths: number of successive training batches whose samples are distributed among them by length, so
            that batches of texts need less padding; 0 for none.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        batch_size: int,
        num_workers: int,
        timeout_seconds: int,
        drop_last: bool,
        class_balanced: bool,
        pin_memory: bool,
        seed: int,
        similar_lengths: int = 0,
    ) -> None:
        for name, value, least in (
            ("similar_lengths", similar_lengths, 0),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("timeout_seconds", timeout_seconds, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        self.drop_last = drop_last
        self.class_balanced = class_balanced
        self.pin_memory = pin_memory
        self.seed = seed
        self.similar_lengths = similar_lengths
        self.trainer: Trainer | None = None
        self.tested: Stage = "test"
        self.unreadable: dict[str, None] = {}
        self._labels: list[int] | None = None  # label of the run, by label of the data set

    def prepare_data(self) -> None:
        self.dataset.prepare()

    @cached_property
    def splits(self) -> dict[Stage, Split | None]:
        """The splits by stage; None where the data set has none."""
        return {stage: self.dataset.split(stage) for stage in STAGES}

    @property
    def train_samples(self) -> Split:
        split = self.splits["train"]
        if split is None:
            raise ValueError("the data set has no training samples")
        if self.drop_last and len(split) < self.batch_size:
            raise ValueError(self._no_batch(len(split)))
        self._train_weights  # noqa: B018  (raises if there are no classes to balance)
        if self.similar_lengths:
            self._train_lengths  # noqa: B018  (raises if they are unknown)
        return split

    def has_validation(self, limit_val_batches: float | None) -> bool:
        """Whether there are validation samples, and the trainer's limit is not 0."""
        return self.splits["val"] is not None and limit_val_batches != 0

    def _no_batch(self, num_samples: int) -> str:
        problem = f"loader.drop_last=true leaves no batch of {num_samples} training samples for a process"
        return f"{problem}, as loader.batch_size={self.batch_size}; choose a smaller one, or loader.drop_last=false"

    def check_readable(self, *stages: Stage) -> None:
        """Check that each stage with samples has a readable one, if unreadable ones are skipped.

        Raises:
            UnreadableError: one has none; with the errors of its first samples.
        """
        for stage in stages:
            if self.dataset.on_error == "skip" and self.splits[stage]:
                self._first_readable(stage)

    def _first_readable(self, stage: Stage) -> Sample:
        split = self.splits[stage]
        assert split is not None
        samples, problems = _KeyedSplit(split, self.seed, self._labels), []
        for index in range(len(split)):
            item = samples[0, index]
            if isinstance(item, Sample):
                return item
            problems.append(str(item))
        problem = f"none of the {len(split)} samples for {stage} can be read, and data.on_error={self.dataset.on_error}"
        raise UnreadableError(f"{problem}: {'; '.join(problems[:3])}{'; …' if problems[3:] else ''}")

    @cached_property
    def _train_weights(self) -> Float64[Tensor, " samples"] | None:
        """Relative frequency of each training sample in an epoch; None if each is drawn once."""
        if not self.class_balanced or self.splits["train"] is None:
            return None
        return class_balancing_weights(self._train_classes("loader.class_balanced=true"))

    @cached_property
    def _train_lengths(self) -> Int64[Tensor, " samples"]:
        """The length of each training sample.

        Raises:
            ValueError: they are not known without reading the samples.
        """
        split = self.splits["train"]
        lengths = [] if split is None else [split.sample_length(index) for index in range(len(split))]
        if None in lengths:
            problem = "lengths of samples are not known without reading them; 0 leaves their order random"
            raise ValueError(f"loader.similar_lengths={self.similar_lengths}: {problem}")
        return torch.tensor(lengths)

    def class_counts(self) -> tuple[Int64[Tensor, " classes"], int]:
        """The number of training samples of each class, and of all.

        Raises:
            ValueError: they have no classes.
        """
        classes = self._train_classes("balanced")
        labels = torch.tensor([label for of_sample in classes for label in set(of_sample)])
        return labels.bincount(minlength=self.dataset.num_classes), len(classes)

    def _train_classes(self, setting: str) -> list[Sequence[int]]:
        split = self.splits["train"]
        classes = [] if split is None else [split.sample_classes(index) for index in range(len(split))]
        if not any(classes):
            raise ValueError(f"{setting}: the training samples have no classes to balance")
        return classes

    def match_classes(self, class_names: Sequence[str]) -> None:
        """Map the labels of the data set to those of a run that has its classes in another order.

        Raises:
            ValueError: the data set has other classes.
        """
        own = self.dataset.class_names
        if sorted(own) != sorted(class_names):
            raise ValueError(f"its classes are {_listed(own)}, but those of the run are {_listed(class_names)}")
        labels = {name: label for label, name in enumerate(class_names)}
        order = [labels[name] for name in own]
        self._labels = None if order == list(range(len(own))) else order

    def fingerprints(self, stage: Stage) -> Int64[Tensor, " samples"]:
        """Hashes of the names of a stage's samples, in their order."""
        split = self.splits[stage]
        if split is None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.tensor([fingerprint(split.sample_name(index)) for index in range(len(split))], dtype=torch.int64)

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self._loader("train")
        if self.trainer is not None:
            # The loops are restored by now: skip the batches that a resumed run has already processed.
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
            epoch, batches = divmod(done, max(self.batches_in_epoch(loader), 1))
            assert isinstance(loader.sampler, KeyedSampler)
            loader.sampler.resume(epoch=epoch, offset=batches * self.batch_size)
        return loader

    def batches_in_epoch(self, loader: DataLoader[Any]) -> int:
        """The number of a loader's batches in a training epoch, which the trainer may limit."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader))

    def total_steps(self) -> int:
        """Optimizer steps from the start of the run to its end.

        Lightning's `estimated_stepping_batches` is the same number, but starts to load training data before the
        position of a resumed run is restored.
        """
        trainer = self.trainer
        assert trainer is not None
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs  # as in Lightning's fit
        batches = self.batches_in_epoch(self.train_dataloader())
        ends = (math.ceil(batches / trainer.accumulate_grad_batches) * epochs, trainer.max_steps)
        return min(end for end in ends if end >= 0)

    def _position(self) -> dict[str, int]:
        """The values on which the meaning of the number of batches done depends."""
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return {
            "loader.seed": self.seed,
            "training samples": len(self.train_samples),
            "samples in a batch of all processes": self.batch_size * world_size,
            "batches in an epoch": self.batches_in_epoch(self._loader("train")),
        }

    def state_dict(self) -> dict[str, Any]:
        unreadable = {message: None for part in all_gather(list(self.unreadable)) for message in part}
        return {"position": self._position(), "unreadable": list(unreadable)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the unreadable samples.

        Raises:
            PositionError: the number of batches done has another meaning.
        """
        old, new = state_dict["position"], self._position()
        if changed := [f"{name} {old.get(name)}, now {value}" for name, value in new.items() if old.get(name) != value]:
            raise PositionError(
                f"the run cannot be resumed at its position in the data: {'; '.join(changed)}. With another number of "
                "processes, choose loader.batch_size so that the batch size of all processes together stays the same"
            )
        self.unreadable |= dict.fromkeys(state_dict["unreadable"])

    @cached_property
    def placeholder(self) -> Batch:
        """A batch for a process that could read none of its samples: the first readable training sample, masked.

        Raises:
            UnreadableError: there is none.
        """
        batch = collate([self._first_readable("train")])
        masks = {name: rows.new_zeros(len(rows), dtype=torch.bool) for name, rows in batch.inputs.items()}
        return replace(batch, masks=masks)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self._loader("val") if self.splits["val"] is not None else []

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self._loader(self.tested, trains=False) if self.splits[self.tested] is not None else []

    @property
    def probe_stage(self) -> Stage:
        """The split that the probe is taken from: validation, else test, else training."""
        return next((stage for stage in ("val", "test") if self.splits[stage] is not None), "train")

    def probe(self, chosen: int | Sequence[int]) -> Batch:
        """A fixed batch of samples of `probe_stage`; of a sample with several windows the first.

        Args:
            chosen: how many, evenly spread; or their indices in the split.

        Raises:
            ValueError: an index is out of range.
        """
        split = self.splits[self.probe_stage] or self.train_samples
        if isinstance(chosen, int):
            count = min(chosen, len(split))
            chosen = [index * len(split) // count for index in range(count)]
        if wrong := [index for index in chosen if not 0 <= index < len(split)]:
            raise ValueError(f"there is no sample {wrong[0]}; the split has 0 to {len(split) - 1}")
        samples = _KeyedSplit(split, self.seed, self._labels)
        items = [samples[0, index] for index in chosen]
        batch = _collate_readable([item.split()[0] if isinstance(item, Sample) else item for item in items])
        return self.report_unreadable(batch)

    def in_order(
        self, stage: Stage, num_samples: int | None = None, *, start: int = 0, step: int = 1
    ) -> Iterator[Batch]:
        """Yield the samples of a stage in their order, in batches, in this process alone.

        Args:
            stage: the split.
            num_samples: number of samples, evenly spread over the split; None for all.
            start, step: of these, only the numbers start, start + step, …

        Raises:
            ValueError: there is no such split.
            UnreadableError: see `report_unreadable`.
        """
        split = self.splits[stage]
        if split is None:
            raise ValueError(f"the data set has no {stage} samples")
        count = len(split) if num_samples is None else min(num_samples, len(split))
        keys = [(0, index * len(split) // count) for index in range(start, count, step)]
        loader: DataLoader[Any] = DataLoader(
            _KeyedSplit(split, self.seed, self._labels),
            batch_size=self.batch_size,
            sampler=keys,
            num_workers=self.num_workers,
            collate_fn=_collate_readable,
            worker_init_fn=_init_worker,
            timeout=self.timeout_seconds if self.num_workers else 0,
            generator=torch.Generator(),
        )
        return (self.report_unreadable(batch) for batch in loader)

    def _loader(self, stage: Stage, *, trains: bool | None = None) -> DataLoader[Any]:
        split = self.splits[stage]
        if split is None:
            raise ValueError(f"the data set has no {stage} samples")
        train = stage == "train" if trains is None else trains
        world_size = self.trainer.world_size if self.trainer else 1
        groups = None
        if train and self.similar_lengths:
            groups = SimilarLengths(self._train_lengths, self.batch_size * world_size, self.similar_lengths)
        sampler = KeyedSampler(
            num_samples=len(split),
            seed=self.seed,
            shuffle=train,
            weights=self._train_weights if train else None,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            drop_last=self.drop_last,
            groups=groups,
        )
        if train and self.drop_last and len(sampler) < self.batch_size:
            raise ConfigError(self._no_batch(len(sampler)))
        batches: dict[str, Any] = {"batch_size": self.batch_size, "sampler": sampler}
        if len(sampler) == 0 < len(split):
            batches = {"batch_sampler": [[]]}  # one empty batch, since the other processes have one
        elif train:
            batches["drop_last"] = self.drop_last
        return DataLoader(
            _KeyedSplit(split, self.seed, self._labels),
            **batches,
            num_workers=self.num_workers,
            collate_fn=_collate_readable,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_init_worker,
            timeout=self.timeout_seconds if self.num_workers else 0,
            generator=torch.Generator(),  # otherwise the loader would draw from the global one
        )

    def report_unreadable(self, batch: Batch) -> Batch:
        """Report the samples of a batch that could not be read; here, since errors of a worker hide the file name.

        Raises:
            UnreadableError: there is one, and the data set does not skip them.
        """
        if batch.unreadable and self.dataset.on_error == "raise":
            raise UnreadableError(batch.unreadable[0])
        for message in batch.unreadable:
            if message not in self.unreadable:
                self.unreadable[message] = None
                log.warning("skipped sample %d: %s", len(self.unreadable), message)
        return batch


class _KeyedSplit(TorchDataset[Sample | UnreadableError | None]):
    """A split indexed by (epoch, index), which seed torch's generator while a sample is read.

    An index alone, as from Lightning's sampler for `overfit_batches`, means epoch 0. Labels are mapped to those of the
    run.
    """

    def __init__(self, split: Split, seed: int, labels: Sequence[int] | None) -> None:
        self.split = split
        self.seed = seed
        self.labels = labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> Sample | UnreadableError | None:
        key = key if isinstance(key, tuple) else (0, key)
        if key[1] == NO_SAMPLE:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_in(self.seed, *key))
            try:
                sample = self.split[key[1]]
            except UnreadableError as error:
                return error
        return sample if self.labels is None else sample.relabel(self.labels)


def _init_worker(number: int) -> None:
    """Let a worker end with the training process, which alone handles the signals sent to all processes."""
    if sys.platform == "linux":
        end_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


def _exit_on_sigterm_of(process: int) -> None:
    """Exit at a SIGTERM of the given process, ignoring those of others; it waits for workers that hang."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(128 + signal.SIGTERM)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_CLASS_NAMES]) + (", …" if len(names) > MAX_CLASS_NAMES else "")


def _collate_readable(items: Sequence[Sample | UnreadableError | None]) -> Batch:
    batch = collate([item for item in items if isinstance(item, Sample)])
    return replace(batch, unreadable=[str(item) for item in items if isinstance(item, UnreadableError)])
