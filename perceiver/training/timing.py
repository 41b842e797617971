"""Speed and memory of training steps, without a trainer."""

import resource
import statistics
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
from perceiver.training.module import auxiliary_loss, auxiliary_parts
from perceiver.training.optimization import fuse_on_cpu
from perceiver.types import Batch

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
LOW_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class TrainingStep:
    """Forward, backward and optimizer step of a run, on the device and in the precision of its trainer.

    Attributes:
        description: device and precision.

    Args:
        parts: of the run; the model moves to the device.
        config: the checked config of the run.
    """

    def __init__(self, parts: Parts, config: Mapping[str, Any]) -> None:
        trainer = config["trainer"]
        self.fabric = Fabric(accelerator=trainer["accelerator"], devices=1, precision=trainer["precision"])
        if config["compile"]:
            parts.model.compile()
        self.model, self.optimizer = self.fabric.setup(parts.model, parts.module.make_optimizer(parts.model))
        fuse_on_cpu(self.optimizer.optimizer)
        self.task = parts.task.to(self.fabric.device)
        self.auxiliary_parts = auxiliary_parts(parts.model)
        name = f"CPU, {torch.get_num_threads()} threads"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        self.description = f"{name}, {trainer['precision']}{', compiled' if config['compile'] else ''}"

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def __call__(self, batch: Batch) -> None:
        mixed = self.task.prepare(batch, train=True)
        outputs = self.task.outputs(self.model, mixed)
        loss = self.task.loss(outputs, mixed)
        if self.auxiliary_parts:
            loss = loss + auxiliary_loss(self.auxiliary_parts, self.task, outputs, mixed)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


def example_batch(data: DataModule) -> Batch:
    """A training batch of the full size."""
    samples = data.train_samples
    return collate([samples[index % len(samples)] for index in range(data.batch_size)])


def training_batches(data: DataModule) -> Iterator[Batch]:
    """The batches of a run without end, epoch after epoch, except those of which no sample could be read."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, KeyedSampler)
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if len(data.report_unreadable(batch)):
                yield batch


def samples_per_second(
    batches: Iterable[Batch],
    use: Callable[[Batch], Any],
    device: torch.device,
    *,
    warmup: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure samples per second.

    Args:
        batches: at least `warmup + repeats`; the time to get them is included.
        use: is called with each; its work on the device is included.
        device: of that work.
        warmup: batches that are not counted.
        repeats: batches that are counted.
        clock: in seconds.
    """
    endless = iter(batches)
    for batch in islice(endless, warmup):
        use(batch)
    synchronize(device)
    start, samples = clock(), 0
    for batch in islice(endless, repeats):
        use(batch)
        samples += len(batch)
    synchronize(device)
    return samples / (clock() - start)


def median_seconds(function: Callable[[], Any], device: torch.device, *, warmup: int, repeats: int) -> float:
    """Median wall time of a call, including its work on the device."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def matrix_product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square product of random matrices, in a precision of the trainer."""
    size, dtype = MATRIX_SIZE[device.type], LOW_PRECISION.get(precision, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, warmup=2, repeats=5)


def synchronize(device: torch.device) -> None:
    """Wait for the work on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of the device's allocations, or of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
