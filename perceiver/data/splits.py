"""Held-out samples, chosen by a hash of their names, so that adding or removing samples moves no other sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from perceiver.types import Stage


def _hash(name: str, purpose: str) -> int:
    """Return 64 bits that are a function of a name and a purpose."""
    digest = hashlib.blake2b(f"{purpose}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniform_hash(name: str, purpose: str) -> float:
    """Return a number in [0, 1) that is a function of a name and a purpose."""
    return (_hash(name, purpose) >> 11) / 2**53  # as many bits as a float has


def fingerprint(name: str) -> int:
    """Return 63 bits that identify a name."""
    return _hash(name, "fingerprint") >> 1


def split_by_name(names: Sequence[str], fraction: float, purpose: str) -> tuple[list[int], list[int]]:
    """Return the indices of the other samples and of about `fraction` of the samples, both in ascending order.

    Whether a sample is chosen depends on its own name alone. Of two or more samples, at least one is chosen unless
    `fraction` is 0, and at least one is not.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction={fraction} must be in [0, 1)")
    positions = [uniform_hash(name, purpose) for name in names]
    part = [index for index, position in enumerate(positions) if position < fraction]
    if names and fraction and len(part) in (0, len(names)):
        by_position = sorted(range(len(names)), key=positions.__getitem__)
        part = sorted({*part, by_position[0]} - {by_position[-1]})
    inside = set(part)
    return [index for index in range(len(names)) if index not in inside], part


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Which samples are held out of a data set without splits of its own, by their names (`split_by_name`).

    Args:
        val_fraction: share of the training samples for validation; 0 for none.
        test_fraction: share of all samples for testing; 0 for none.
        fold: the part, from 1 to `num_folds`, that is tested instead, for cross-validation; None for `test_fraction`.
        num_folds: number of such parts.

    Raises:
        ValueError: a value is out of range.
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

    def split(self, names: Sequence[str]) -> dict[Stage, list[int]]:
        """Return the indices of the samples of each stage, in ascending order."""
        if self.fold is None:
            rest, test = split_by_name(names, self.test_fraction, "test")
        else:
            folds = [int(uniform_hash(name, "fold") * self.num_folds) + 1 for name in names]
            rest, test = ([i for i, fold in enumerate(folds) if (fold == self.fold) == part] for part in (False, True))
        train, val = self.split_val([names[index] for index in rest])
        return {"train": [rest[index] for index in train], "val": [rest[index] for index in val], "test": test}

    def split_val(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the indices for training and for validation, for data with a test set of its own."""
        return split_by_name(names, self.val_fraction, "val")
