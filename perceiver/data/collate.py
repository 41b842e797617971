"""Collation of samples into a batch: stacked, and padded with masks if their sizes differ."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver.types import Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Return one batch of all samples.

    An input that some samples lack is zero there, with a mask [batch]. Inputs of different sizes are padded with zeros
    at the end to the largest, with a mask [batch, *sizes without channels]. Numbers and tensors of equal shape among
    the targets are stacked; other targets stay lists. Each window of a sample becomes a row.

    Raises:
        ValueError: samples differ in the channels of an input.
    """
    inputs: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    rows = [row for sample in samples for row in sample.split()]
    for name in {name: None for row in rows for name in row.inputs}:
        inputs[name], mask = _pad(name, [row.inputs.get(name) for row in rows])
        if mask is not None:
            masks[name] = mask
    names = {name: None for sample in samples for name in sample.targets}
    targets = {name: _stack([sample.targets.get(name) for sample in samples]) for name in names}
    return Batch(
        inputs=inputs,
        targets=targets,
        ids=[sample.id for sample in samples],
        masks=masks,
        windows=[sample.windows or ("",) for sample in samples] if len(rows) > len(samples) else [],
    )


def _pad(name: str, values: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    present = [value for value in values if value is not None]
    shapes = {value.shape for value in present}
    if len(present) == len(values) and len(shapes) == 1:
        return torch.stack(present), None
    # The first dimension of a raw input is its channels, which a mask does not cover.
    if len({(len(shape), *shape[:1]) for shape in shapes}) > 1:
        raise ValueError(f"input {name!r}: shapes {', '.join(str(list(shape)) for shape in sorted(shapes))} in a batch")
    size = [max(sizes) for sizes in zip(*shapes, strict=True)]
    batch = present[0].new_zeros(len(values), *size)
    mask = torch.zeros(len(values), *size[1:], dtype=torch.bool)
    for row, value in enumerate(values):
        if value is not None:
            batch[row][tuple(slice(length) for length in value.shape)] = value
            mask[row][tuple(slice(length) for length in value.shape[1:])] = True
    return batch, mask if len(shapes) > 1 else torch.tensor([value is not None for value in values])


def _stack(values: Sequence[Any]) -> Tensor | list[Any]:
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values)
    if all(isinstance(value, Tensor) for value in values) and len({value.shape for value in values}) == 1:
        return torch.stack(list(values))
    return list(values)
