"""Training steps without a trainer around them, how fast things are, and what they hold."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import torch
from lightning.fabric import Fabric

from perceiver.data.collate import collate
from perceiver.data.sampler import KeyedSampler
from perceiver.training.build import Parts
from perceiver.training.data_module import DataModule
from perceiver.types import Batch


class TrainingStep:
    """Forward, backward and optimizer of a run, on the device and in the precision that its trainer would take.

    Args:
        parts: of the run; the model moves to the device.
        config: the checked config of the run.
    """

    def __init__(self, parts: Parts, config: Mapping[str, Any]) -> None:
        trainer = config["trainer"]
        self.fabric = Fabric(accelerator=trainer["accelerator"], devices=1, precision=trainer["precision"])
        if config["compile"]:
            parts.model.compile()
        self.model, self.optimizer = self.fabric.setup(parts.model, parts.module.new_optimizer())
        self.task = parts.task.to(self.fabric.device)
        name = f"CPU, {torch.get_num_threads()} threads"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        self.description = f"{name}, {trainer['precision']}{', compiled' if config['compile'] else ''}"
        """Device and precision, in words."""

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def __call__(self, batch: Batch) -> None:
        mixed = self.task.prepare(batch, train=True)
        self.fabric.backward(self.task.loss(self.task.outputs(self.model, mixed), mixed))
        self.optimizer.step()
        self.optimizer.zero_grad()


def example_batch(data: DataModule) -> Batch:
    """A training batch of the full size."""
    samples = data.train_samples
    return collate([samples[index % len(samples)] for index in range(data.batch_size)])


def training_batches(data: DataModule) -> Iterator[Batch]:
    """What a run trains on, epoch after epoch, without end; batches of which nothing could be read are left out."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, KeyedSampler)
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if len(data.on_before_batch_transfer(batch, 0)):
                yield batch


def samples_per_second(
    batches: Iterable[Batch], use: Callable[[Batch], Any], device: torch.device, *, warmup: int, repeats: int
) -> float:
    """How many samples pass through `use` in a second.

    Args:
        batches: taken one after the other; getting them counts.
        use: what is done with each; its work on the device counts.
        device: where that is done.
        warmup: batches that are not counted.
        repeats: batches that are, of which there must be so many.
    """
    endless = iter(batches)
    for batch in islice(endless, warmup):
        use(batch)
    synchronize(device)
    start, samples = time.perf_counter(), 0
    for batch in islice(endless, repeats):
        use(batch)
        samples += len(batch)
    synchronize(device)
    return samples / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far: the device's allocations, or the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
