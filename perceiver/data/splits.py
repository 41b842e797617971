"""Which samples are held out: told by a hash of their names, so that no sample moves when others come or go."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from perceiver.types import Stage


def _hashed(name: str, purpose: str) -> int:
    """A number of 64 bits that depends on a name and on what it is for, and on nothing else."""
    digest = hashlib.blake2b(f"{purpose}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def position_of(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on a name and on what it is drawn for, and on nothing else."""
    return (_hashed(name, purpose) >> 11) / 2**53  # as many bits as a float has


def fingerprint_of(name: str) -> int:
    """A number of 63 bits by which a name is told from others."""
    return _hashed(name, "fingerprint") >> 1


def split_by_name(names: Sequence[str], fraction: float, purpose: str) -> tuple[list[int], list[int]]:
    """Indices of about `fraction` of the samples, and of the others before them, both in ascending order.

    Whether a sample belongs to the part depends on its own name alone, so that samples that are added or removed move
    no other. Of few samples there is at least one in the part, if it is wanted at all, and one that is left.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"a fraction of {fraction} of the data cannot be split off; it must be in [0, 1)")
    positions = [position_of(name, purpose) for name in names]
    part = [index for index, position in enumerate(positions) if position < fraction]
    if names and fraction and len(part) in (0, len(names)):
        by_position = sorted(range(len(names)), key=positions.__getitem__)
        part = sorted({*part, by_position[0]} - {by_position[-1]})
    inside = set(part)
    return [index for index in range(len(names)) if index not in inside], part


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Which samples of a set without splits of its own are held out, by their names (`split_by_name`).

    Args:
        val_fraction: share of the training samples that is kept for validation; 0 for none.
        test_fraction: share of all samples that is kept for testing; 0 for none.
        fold: the part, from 1 to `num_folds`, that is tested instead, for cross-validation; None for `test_fraction`.
        num_folds: how many such parts there are.

    Raises:
        ValueError: any of them is out of range.
    """

    val_fraction: float
    test_fraction: float
    fold: int | None = None
    num_folds: int = 5

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.num_folds < 2:
            raise ValueError(f"num_folds={self.num_folds} must be at least 2")
        if self.fold is not None and not 1 <= self.fold <= self.num_folds:
            raise ValueError(f"fold={self.fold} must be 1 to num_folds={self.num_folds}")

    def parts(self, names: Sequence[str]) -> dict[Stage, list[int]]:
        """Indices of the samples of each stage, in ascending order."""
        if self.fold is None:
            rest, test = split_by_name(names, self.test_fraction, "test")
        else:
            folds = [int(position_of(name, "fold") * self.num_folds) + 1 for name in names]
            rest, test = ([i for i, fold in enumerate(folds) if (fold == self.fold) == held] for held in (False, True))
        train, val = self.without_test([names[index] for index in rest])
        return {"train": [rest[index] for index in train], "val": [rest[index] for index in val], "test": test}

    def without_test(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Indices of the samples for training and for validation where there is a test set already."""
        return split_by_name(names, self.val_fraction, "val")
