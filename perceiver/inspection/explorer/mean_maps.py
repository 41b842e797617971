"""The mean map of the samples of each class, where all samples have the same grid of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from perceiver.types import Grid

Group = tuple[str, *tuple[int, ...]]
"""Samples that have something in common: (`all`,), (`true`, label), (`predicted`, label), and others."""
MAX_VALUES = 2**24
"""Sums of one modality; 128 MB."""


@dataclass
class MeanMaps:
    """Sums of the maps of one modality by group of samples.

    Attributes:
        grid: of the tokens of all samples that were added.
        reason: why means are undefined; empty if they are defined.
        sums: (group, kind of map) -> sum over its samples.
        counts: (group, kind of map) -> number of samples that have the map.
    """

    grid: Grid | None = None
    reason: str = ""
    sums: dict[tuple[Group, str], Float[np.ndarray, " tokens"]] = field(default_factory=dict)
    counts: dict[tuple[Group, str], int] = field(default_factory=dict)

    def exclude(self, reason: str) -> None:
        """Discard the means, for the given reason."""
        self.reason = self.reason or reason
        self.sums, self.counts = {}, {}

    def add(self, grid: Grid, groups: Iterable[Group], maps: Mapping[str, Float[np.ndarray, " tokens"]]) -> None:
        """Add the maps of a sample, by kind, to some groups."""
        if self.grid is None:
            self.grid = grid
        elif self.grid != grid:
            self.exclude("the inputs have grids of different sizes, so that their cells do not correspond")
        if self.reason:
            return
        for group in groups:
            for kind, values in maps.items():
                if (group, kind) in self.sums:
                    self.sums[group, kind] += values
                else:
                    if (len(self.sums) + 1) * len(values) > MAX_VALUES:
                        self.exclude(f"the maps of all classes would have more than {MAX_VALUES} values")
                        return
                    self.sums[group, kind] = values.astype(np.float64)
                self.counts[group, kind] = self.counts.get((group, kind), 0) + 1

    def merge(self, other: "MeanMaps") -> None:
        """Add the sums of other samples."""
        if other.reason:
            self.exclude(other.reason)
        if self.grid is not None and other.grid is not None and self.grid != other.grid:
            self.exclude("the inputs have grids of different sizes, so that their cells do not correspond")
        self.grid = self.grid or other.grid
        if self.reason:
            return
        for key, values in other.sums.items():
            self.sums[key] = self.sums[key] + values if key in self.sums else values
            self.counts[key] = self.counts.get(key, 0) + other.counts[key]

    def mean(self, group: Group, kind: str) -> Float[np.ndarray, " tokens"]:
        """Return the mean map of a group."""
        return self.sums[group, kind] / self.counts[group, kind]

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of map, in order of first occurrence."""
        return list(dict.fromkeys(kind for _, kind in self.sums))
