"""The order of samples as a pure function of (seed, epoch): nothing to save, nothing to lose.

Every index travels with its epoch, so that augmentation can be a function of (seed, epoch, index) in whatever process
it runs. The position in the data is then one integer, the number of batches done.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch.utils.data import Sampler

Key: TypeAlias = tuple[int, int]


class KeyedSampler(Sampler[Key]):
    """Yields (epoch, index).

    Args:
        num_samples: size of the split.
        seed: of the order.
        shuffle: a new order each epoch; otherwise ascending.
        rank, world_size: which part of each epoch this process takes. When shuffling, all parts are made equally long
            by repeating the first samples; otherwise every sample is taken exactly once.
    """

    def __init__(self, *, num_samples: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.resume_epoch, self.resume_offset = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def resume(self, *, epoch: int, offset: int) -> None:
        """Leave out the first `offset` samples of this process in `epoch`."""
        self.epoch = self.resume_epoch = epoch
        self.resume_offset = offset

    def __len__(self) -> int:
        """Samples of this process in a whole epoch, also in one that is resumed."""
        whole, rest = divmod(self.num_samples, self.world_size)
        return whole + (rest > 0 if self.shuffle else rest > self.rank)

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch  # a loader that reads ahead may ask on after the next `set_epoch`
        offset = self.resume_offset if epoch == self.resume_epoch else 0
        return ((epoch, index) for index in self._order()[offset:])

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.rank, self.num_samples, self.world_size))
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        missing = -len(order) % self.world_size
        repeated = (order * (missing // max(len(order), 1) + 1))[:missing]
        return (order + repeated)[self.rank :: self.world_size]


def mix(*numbers: int) -> int:
    """One seed from several numbers, all of which count (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1  # torch takes 63 bits
