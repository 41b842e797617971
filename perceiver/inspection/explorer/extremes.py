"""The most extreme samples of a split in several orders, of all samples and of groups of them, while they stream by."""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan

from perceiver.inspection.explorer.mean_maps import Group
from perceiver.types import Outcome

ORDERS: Mapping[str, Callable[[Outcome], float]] = {
    "wrongness": lambda one: -one.wrongness,
    "highest_loss": lambda one: -one.loss,
    "lowest_loss": lambda one: one.loss,
    "highest_confidence": lambda one: -one.confidence,
    "lowest_confidence": lambda one: one.confidence,
}
"""Name of an order -> the key by which samples are sorted, the lowest first; NaN if they have none in it."""
MAX_KEPT = 10_000
"""Places for the samples of single classes, and likewise of pairs of classes."""


def groups_of(one: Outcome) -> list[Group]:
    """Return the groups of a sample.

    `all`; `wrong`; `true` and `predicted` of each class; `missed` of each class that applies and is not predicted,
    `false` of each that is predicted and does not apply; `cell` of both, if there is one of each.
    """
    missed, false = set(one.true) - set(one.predicted), set(one.predicted) - set(one.true)
    groups: list[Group] = [("all",), *((("wrong",),) if missed or false else ())]
    groups += [("true", label) for label in one.true] + [("predicted", label) for label in one.predicted]
    groups += [("missed", label) for label in sorted(missed)] + [("false", label) for label in sorted(false)]
    if len(one.true) == len(one.predicted) == 1:
        groups.append(("cell", *one.true, *one.predicted))
    return groups


@dataclass
class Extremes:
    """The numbers of the most extreme samples.

    Attributes:
        top: number of samples kept in each order among all samples; fewer in a group, if there are many classes.
        num_classes: classes that a sample may have.
        places: (group, order) -> (key, number of the sample), in ascending order.
        counts: number of samples of each group but those of pairs.
    """

    top: int
    num_classes: int
    places: dict[tuple[Group, str], list[tuple[float, int]]] = field(default_factory=dict)
    counts: Counter[Group] = field(default_factory=Counter)

    def top_of(self, group: str) -> int:
        """Return the number of samples that are kept in a group, so that all groups together keep a limited number."""
        classes = max(self.num_classes, 1)
        if group in ("all", "wrong"):
            return self.top
        if group == "cell":
            return min(self.top, MAX_KEPT // classes**2)
        return min(self.top, MAX_KEPT // (4 * len(ORDERS) * classes))

    def add(self, number: int, one: Outcome) -> bool:
        """Add a sample; return whether it is among the most extreme ones so far."""
        is_kept = False
        for group in groups_of(one):
            if group[0] != "cell":
                self.counts[group] += 1
            for order in ORDERS if group[0] != "cell" else ("wrongness",):
                key = ORDERS[order](one)
                is_kept |= not isnan(key) and self._insert(group, order, (key, number))
        return is_kept

    def _insert(self, group: Group, order: str, place: tuple[float, int]) -> bool:
        top = self.top_of(group[0])
        if not top:
            return False
        places = self.places.setdefault((group, order), [])
        if len(places) == top and place > places[-1]:
            return False
        insort(places, place)
        del places[top:]
        return True

    @property
    def numbers(self) -> set[int]:
        """The samples that are kept."""
        return {number for places in self.places.values() for _, number in places}

    def ranks(self) -> dict[int, tuple[bool, int]]:
        """Return number of a sample that is kept -> its best place: first among all samples, then in groups."""
        found: dict[int, tuple[bool, int]] = {}
        for (group, _), places in self.places.items():
            for rank, (_, number) in enumerate(places):
                place = (group != ("all",), rank)
                found[number] = min(found.get(number, place), place)
        return found

    def merge(self, others: Iterable["Extremes"]) -> None:
        """Add the samples that other processes have kept."""
        for other in others:
            self.counts.update(other.counts)
            for (group, order), places in other.places.items():
                for place in places:
                    self._insert(group, order, place)
