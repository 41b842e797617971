"""Alignment: from which word of an input text each word of an output comes, by its maps.

The attention of a translator as a matrix, output words × input words, is that of Bahdanau et al. (2015, figure 3). It
is compared with known links by the alignment error rate (Och & Ney 2003, eq. 13), here for the words of the model's own
text:

    AER = 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|)

with A one link for each word, to the token with the maximum of its map; S the sure links, of words with one box; and P
all links. 0 is best. Words without links are left out, and so are those of other inputs than texts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.explanation import Explanation
from perceiver.inspection.localization import box_coverage
from perceiver.types import Grid


@dataclass(frozen=True)
class AlignmentCounts:
    """The numbers in the alignment error rate of one kind of map: |A ∩ S| + |A ∩ P|, and |A| + |S|."""

    matched: float
    total: float

    def __add__(self, other: "AlignmentCounts") -> "AlignmentCounts":
        return AlignmentCounts(self.matched + other.matched, self.total + other.total)


def is_text(grid: Grid) -> bool:
    """Return whether the tokens of a grid are those of a text: along one axis without a unit."""
    return len(grid.axes) == 1 and not grid.axes[0].unit


def alignment_counts(explanation: Explanation) -> dict[str, AlignmentCounts]:
    """Return the counts of a batch for each kind of map (`word_maps`); none without links."""
    counts: dict[str, AlignmentCounts] = {}
    maps = word_maps(explanation)
    for modality, span in explanation.record.spans.items():
        if not is_text(span.grid):
            continue
        for sample, row in enumerate(explanation.answers):
            for slot, answer in enumerate(row):
                boxes = [box for box in answer.boxes if box.modality == modality]
                if not (answer.is_word and boxes):
                    continue
                links = box_coverage([boxes], span.grid)[0] > 0
                for kind, values in maps.items():
                    linked = bool(links[int(values[sample, slot, span.start : span.stop].argmax())])
                    is_sure = len(boxes) == 1
                    found = AlignmentCounts(linked * (1.0 + is_sure), 1.0 + is_sure)
                    counts[kind] = counts[kind] + found if kind in counts else found
    return counts


def alignment_error_rates(parts: Iterable[Mapping[str, AlignmentCounts]]) -> dict[str, float]:
    """Return `AER_<kind of map>` of several batches together; none without links."""
    total: dict[str, AlignmentCounts] = {}
    for part in parts:
        for kind, counts in part.items():
            total[kind] = total[kind] + counts if kind in total else counts
    return {f"AER_{kind}": 1.0 - counts.matched / counts.total for kind, counts in total.items()}


def word_maps(explanation: Explanation) -> dict[str, Float[Tensor, "batch answers tokens"]]:
    """Return the maps of answers over the tokens by kind: `attention`, `rollout`, and `relevance` if it has a meaning.

    The first is that of the decoder alone, where it attends to the tokens and not to latents.
    """
    maps = {kind: values for kind, values in explanation.maps.items() if kind in ("rollout", "relevance")}
    attention = explanation.decoder_attention
    return maps if attention is None else {"attention": attention, **maps}
