"""The one DataModule: any data set -> batches, in an order and with an augmentation that a resumed run repeats."""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float64, Int64
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset, Split
from perceiver.data.files import UnreadableError
from perceiver.data.sampler import NO_SAMPLE, Key, KeyedSampler, class_balancing_weights, fold_in
from perceiver.data.splits import fingerprint_of
from perceiver.processes import all_gather, end_with_parent
from perceiver.runtime.errors import PositionError
from perceiver.types import Batch, Sample, Stage

log = logging.getLogger(__name__)


MOST_NAMES = 20
"""Of classes in a message."""


class DataModule(LightningDataModule):
    """Loaders over the splits of a data set.

    The place in the training data is one integer, the number of batches done, which Lightning keeps. It stands for the
    same samples whatever the number of processes, as long as all their batches together are as large.

    Args:
        dataset: where the samples come from.
        batch_size: samples per process and step.
        num_workers: processes that read ahead; 0 reads in the training process.
        timeout_seconds: how long to wait for a batch of theirs; 0 for ever.
        drop_last: leave out a last training batch that is smaller than the others.
        class_balanced: draw the training samples of an epoch with replacement, those of rare classes more often
            (`class_balancing_weights`).
        pin_memory: faster copies to a GPU.
        seed: of order and augmentation.
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
    ) -> None:
        super().__init__()
        for name, value, least in (
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
        self.tested: Stage = "test"
        """The split that is tested: whichever it is, each of its samples once."""
        self._labels: list[int] | None = None
        self.unreadable: dict[str, None] = {}
        """What was left out so far because it could not be read, in the order it was met."""

    def prepare_data(self) -> None:
        self.dataset.prepare()

    @cached_property
    def splits(self) -> dict[Stage, Split | None]:
        """The splits by stage; None where the data set has none."""
        stages: tuple[Stage, ...] = ("train", "val", "test")
        return {stage: self.dataset.split(stage) for stage in stages}

    @property
    def train_samples(self) -> Split:
        split = self.splits["train"]
        if split is None:
            raise ValueError("the data set has no training samples")
        if self.drop_last and len(split) < self.batch_size:
            raise ValueError(self._no_batch(len(split)))
        self._train_weights  # noqa: B018  (that there is nothing to balance is found now)
        return split

    def _no_batch(self, num_samples: int) -> str:
        """Why there is nothing to train on."""
        problem = f"loader.drop_last=true leaves no batch of {num_samples} training samples for a process"
        return f"{problem}, as loader.batch_size={self.batch_size}; choose a smaller one, or loader.drop_last=false"

    def check_readable(self, *stages: Stage) -> None:
        """Make sure that each of some stages has a sample that can be read, if those that cannot are skipped.

        Raises:
            UnreadableError: one has some samples, but none that can be; says why of the first.
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
        """How often each training sample is drawn, relative to the others; None where each comes once an epoch."""
        if not self.class_balanced or self.splits["train"] is None:
            return None
        return class_balancing_weights(self._train_classes("loader.class_balanced=true"))

    def class_counts(self) -> tuple[Int64[Tensor, " classes"], int]:
        """How many training samples each class applies to, and how many there are.

        Raises:
            ValueError: they have no classes.
        """
        classes = self._train_classes("balanced")
        labels = torch.tensor([label for of_sample in classes for label in set(of_sample)])
        return labels.bincount(minlength=self.dataset.num_classes), len(classes)

    def _train_classes(self, asked: str) -> list[Sequence[int]]:
        split = self.splits["train"]
        classes = [] if split is None else [split.classes_of(index) for index in range(len(split))]
        if not any(classes):
            raise ValueError(f"{asked}: the training samples have no classes to balance")
        return classes

    def match_classes(self, class_names: Sequence[str]) -> None:
        """Number the classes as a run does that has them in this order, whatever their order in the data set.

        Raises:
            ValueError: the data set has other classes.
        """
        own = self.dataset.class_names
        if sorted(own) != sorted(class_names):
            mine, theirs = (
                ", ".join(names[:MOST_NAMES]) + ", …"[: 3 * (len(names) > MOST_NAMES)] for names in (own, class_names)
            )
            raise ValueError(f"its classes are {mine}, but those that the run has learned are {theirs}")
        labels = {name: label for label, name in enumerate(class_names)}
        order = [labels[name] for name in own]
        self._labels = None if order == list(range(len(own))) else order

    def fingerprints(self, stage: Stage) -> Int64[Tensor, " samples"]:
        """What a stage's samples are recognised by, in their order."""
        split = self.splits[stage]
        if split is None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.tensor([fingerprint_of(split.name_of(index)) for index in range(len(split))], dtype=torch.int64)

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self._loader("train")
        if self.trainer is not None:
            # The loops are restored by now: leave out what a run that is resumed has already seen.
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
            epoch, batches = divmod(done, max(self.batches_in_epoch(loader), 1))
            assert isinstance(loader.sampler, KeyedSampler)
            loader.sampler.resume(epoch=epoch, offset=batches * self.batch_size)
        return loader

    def batches_in_epoch(self, loader: DataLoader[Any]) -> int:
        """How many of a loader's batches a training epoch has."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader))

    def total_steps(self) -> int:
        """Optimizer steps of the trainer's whole run.

        Lightning's `estimated_stepping_batches` would be the same number, but asking for it makes the training loader
        start to read, before a run that is resumed knows from where on.
        """
        trainer = self.trainer
        assert trainer is not None
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs  # as Lightning reads it when it trains
        batches = self.batches_in_epoch(self.train_dataloader())
        ends = (math.ceil(batches / trainer.accumulate_grad_batches) * epochs, trainer.max_steps)
        return min(end for end in ends if end >= 0)

    def _place(self) -> dict[str, int]:
        """What the number of batches done counts from and in."""
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return {
            "loader.seed": self.seed,
            "training samples": len(self.train_samples),
            "samples in a batch of all processes": self.batch_size * world_size,
            "batches in an epoch": self.batches_in_epoch(self._loader("train")),
        }

    def state_dict(self) -> dict[str, Any]:
        unreadable = {message: None for part in all_gather(list(self.unreadable)) for message in part}
        return {"place": self._place(), "unreadable": list(unreadable)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was unreadable so far.

        Raises:
            PositionError: the place in the data has no meaning any more.
        """
        was, now = state_dict["place"], self._place()
        if changed := [f"{name} {was.get(name)}, now {value}" for name, value in now.items() if was.get(name) != value]:
            raise PositionError(
                f"the run cannot be continued at its place in the data: {'; '.join(changed)}. With another number of "
                "processes, choose loader.batch_size so that their batches together are as large as before"
            )
        self.unreadable |= dict.fromkeys(state_dict["unreadable"])

    @cached_property
    def stand_in(self) -> Batch:
        """The first training sample that can be read, for a process whose batch has none: it must go along.

        Its inputs are masked, so that it counts in no statistics either.

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
    def probed(self) -> Stage:
        """The split that is looked at: the one for validation, or the next best."""
        return next((stage for stage in ("val", "test") if self.splits[stage] is not None), "train")

    def probe(self, chosen: int | Sequence[int]) -> Batch:
        """A fixed batch of samples of the validation split, or the next best one.

        Of a sample that is looked at in several windows it holds the first, so that each row is one sample.

        Args:
            chosen: how many, evenly spread; or their numbers in the split.

        Raises:
            ValueError: there is no sample of such a number.
        """
        split = self.splits[self.probed] or self.train_samples
        if isinstance(chosen, int):
            count = min(chosen, len(split))
            chosen = [index * len(split) // count for index in range(count)]
        if wrong := [index for index in chosen if not 0 <= index < len(split)]:
            raise ValueError(f"there is no sample {wrong[0]}; the split has 0 to {len(split) - 1}")
        samples = _KeyedSplit(split, self.seed, self._labels)
        items = [samples[0, index] for index in chosen]
        batch = _collate_readable([item.split()[0] if isinstance(item, Sample) else item for item in items])
        return self._without_unreadable(batch)

    def _loader(self, stage: Stage, *, trains: bool | None = None) -> DataLoader[Any]:
        split = self.splits[stage]
        if split is None:
            raise ValueError(f"the data set has no {stage} samples")
        train = stage == "train" if trains is None else trains
        sampler = KeyedSampler(
            num_samples=len(split),
            seed=self.seed,
            shuffle=train,
            weights=self._train_weights if train else None,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            drop_last=self.drop_last,
        )
        if train and self.drop_last and len(sampler) < self.batch_size:
            raise MisconfigurationException(self._no_batch(len(sampler)))
        batches: dict[str, Any] = {"batch_size": self.batch_size, "sampler": sampler}
        if len(sampler) == 0 < len(split):
            batches = {"batch_sampler": [[]]}  # the other processes have some, and would wait for this one
        elif train:
            batches["drop_last"] = self.drop_last
        return DataLoader(
            _KeyedSplit(split, self.seed, self._labels),
            **batches,
            num_workers=self.num_workers,
            collate_fn=_collate_readable,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_begin_worker,
            timeout=self.timeout_seconds if self.num_workers else 0,
            generator=torch.Generator(),  # the loader draws from it, and would else draw from the global one
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self._without_unreadable(batch)

    def _without_unreadable(self, batch: Batch) -> Batch:
        """The batch, if the data set allows for what it lacks. Here and not in a worker, whose traceback hides names.

        Raises:
            UnreadableError: a sample could not be read, and none may be skipped.
        """
        if batch.unreadable and self.dataset.on_error == "raise":
            raise UnreadableError(batch.unreadable[0])
        for message in batch.unreadable:
            if message not in self.unreadable:
                self.unreadable[message] = None
                log.warning("left out, number %d: %s", len(self.unreadable), message)
        return batch


class _KeyedSplit(TorchDataset[Sample | UnreadableError | None]):
    """A split asked by a sampler's key, with torch's generator seeded from it for the time of the answer.

    Labels of the data set are translated into those of the run, where these are others.

    Asked by index alone, as by the sampler that Lightning puts in for `overfit_batches`, it answers as in epoch 0.
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


def _begin_worker(number: int) -> None:
    """A reading process ends with the one that it reads for, however that ends, and leaves others' signals to it."""
    if sys.platform == "linux":
        end_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_asked_by, args=(os.getppid(),), daemon=True).start()
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


def _end_when_asked_by(process: int) -> None:
    """End on this process's SIGTERM, and nobody else's: it waits for one that hangs, else for ever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(128 + signal.SIGTERM)


def _collate_readable(items: Sequence[Sample | UnreadableError | None]) -> Batch:
    batch = collate([item for item in items if isinstance(item, Sample)])
    return replace(batch, unreadable=[str(item) for item in items if isinstance(item, UnreadableError)])
