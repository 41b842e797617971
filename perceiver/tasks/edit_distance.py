"""Edits between two sequences (Levenshtein 1966), from which the error rates of transcripts are computed."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Edits(NamedTuple):
    """The numbers of edits that turn a reference into a hypothesis, and the length of the reference."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    length: int = 0

    @property
    def total(self) -> int:
        return self.substitutions + self.insertions + self.deletions


def edits(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> Edits:
    """Return the fewest edits; of equally few, those with the most substitutions."""
    # A row of the table: for each prefix of the hypothesis the total, then insertions and deletions.
    row = [(count, count, 0) for count in range(len(hypothesis) + 1)]
    for number, wanted in enumerate(reference, start=1):
        before, row = row, [(number, 0, number)]
        for place, found in enumerate(hypothesis):
            total, insertions, deletions = before[place]
            replaced = (total + (wanted != found), insertions, deletions)
            total, insertions, deletions = row[place]
            inserted = (total + 1, insertions + 1, deletions)
            total, insertions, deletions = before[place + 1]
            row.append(min(replaced, inserted, (total + 1, insertions, deletions + 1)))
    total, insertions, deletions = row[-1]
    return Edits(total - insertions - deletions, insertions, deletions, len(reference))
