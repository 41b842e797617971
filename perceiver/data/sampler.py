"""The order of samples as a pure function of (seed, epoch), so that no state has to be saved.

Every index is accompanied by its epoch, so that augmentation can be a function of (seed, epoch, index) in any process;
if a sample may occur several times in an epoch, also by the number of its previous occurrences, each of which is
augmented differently. The position in the data is then one integer, the number of completed batches.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeAlias

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

Key: TypeAlias = tuple[int, int] | tuple[int, int, int]
NO_SAMPLE = -1
"""The index that pads the epoch of a process that has one sample less than the others."""


class KeyedSampler(Sampler[Key]):
    """Yields (epoch, index), or with `weights` (epoch, index, number of previous occurrences in the epoch).

    Args:
        num_samples: size of the split.
        seed: of the order.
        shuffle: whether each epoch has a new order; otherwise it is ascending.
        weights: when shuffling, `num_samples` are drawn with replacement each epoch, with probabilities proportional to
            these; None for each sample once.
        rank, world_size: the part of each epoch that this process takes; the parts are disjoint. When shuffling, all
            parts are equally long, if necessary by a last index of `NO_SAMPLE`.
        drop_last: when shuffling, leave out the samples that would need such padding.
        groups: when shuffling, puts samples of similar length into the same batch; None for any.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        seed: int,
        shuffle: bool,
        weights: Float64[Tensor, " samples"] | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        groups: "SimilarLengths | None" = None,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.weights = weights
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.groups = groups
        self.epoch = 0
        self.resume_epoch, self.resume_offset = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def resume(self, *, epoch: int, offset: int) -> None:
        """Skip the first `offset` samples of this process in `epoch`."""
        self.epoch = self.resume_epoch = epoch
        self.resume_offset = offset

    def __len__(self) -> int:
        """Number of samples of this process in a complete epoch, also if it is resumed."""
        count, rest = divmod(self.num_samples, self.world_size)
        return count + (rest > 0 and not self.drop_last if self.shuffle else rest > self.rank)

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch  # a prefetching loader may still iterate after the next `set_epoch`
        offset = self.resume_offset if epoch == self.resume_epoch else 0
        mine = slice(self.rank + offset * self.world_size, None, self.world_size)
        order = self._order()
        if self.shuffle:  # a negative padding drops the last
            order = F.pad(order, (0, len(self) * self.world_size - self.num_samples), value=NO_SAMPLE)
        if self.weights is None:
            return zip(repeat(epoch), order[mine].tolist(), strict=False)
        return zip(repeat(epoch), order[mine].tolist(), _repeat_counts(order)[mine].tolist(), strict=False)

    def _order(self) -> Int64[Tensor, " samples"]:
        """Return the indices of the whole epoch, of which each process takes every `world_size`-th."""
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed(fold_in(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_samples, replacement=True, generator=generator)
        return order if self.groups is None else self.groups.arrange(order, generator)


@dataclass(frozen=True)
class SimilarLengths:
    """Batches of samples of similar length, which need little padding (Sutskever et al. 2014, section 3.4).

    Attributes:
        lengths: of each sample, in any unit.
        batch_size: samples of a batch of all processes.
        num_batches: successive batches whose samples are distributed among them by length.
    """

    lengths: Int64[Tensor, " samples"]
    batch_size: int
    num_batches: int

    def arrange(self, order: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Return the samples in an order whose batches have similar lengths, in random order; a small one is last."""
        parts = torch.split(order, self.batch_size * self.num_batches)
        ordered = torch.cat([part[self.lengths[part].argsort(stable=True)] for part in parts])
        batches = torch.split(ordered, self.batch_size)
        count = len(order) // self.batch_size
        places = torch.randperm(count, generator=generator).tolist()
        return torch.cat([*(batches[place] for place in places), *batches[count:]])


def _repeat_counts(order: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return for each position how often its value occurs before it."""
    ascending, positions = order.sort(stable=True)
    counts = torch.empty_like(order)
    counts[positions] = torch.arange(len(order)) - torch.searchsorted(ascending, ascending)
    return counts


def class_balancing_weights(classes: Sequence[Sequence[int]]) -> Float64[Tensor, " samples"]:
    """Return sampling weights with which all classes are drawn equally often.

    The weight of a sample is the sum over its classes of 1 / (number of samples of the class), as in AST (Gong et al.
    2021, arXiv:2104.01778). Samples without a class get the mean weight of the others, and so keep their share.

    Args:
        classes: of each sample; at least one sample has one.
    """
    counts = Counter(label for labels in classes for label in set(labels))
    weights = [sum(1.0 / counts[label] for label in set(labels)) for labels in classes]
    mean = sum(weights) / sum(weight > 0.0 for weight in weights)
    return torch.tensor([weight or mean for weight in weights], dtype=torch.float64)


def fold_in(*numbers: int) -> int:
    """Return a seed that is a hash of several numbers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1  # torch accepts 63 bits
