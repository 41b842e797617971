"""Alignment: the word of an input text, or the time of a recording, that the map of each output word points to.

The attention of a translator as a matrix, output words × input words, is that of Bahdanau et al. (2015, figure 3). It
is compared with known links by the alignment error rate (Och & Ney 2003, eq. 13), here for the words of the model's own
text:

    AER = 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|)

with A one link for each word, to the maximum of its map along the text or the time, summed over other axes; S the sure
links, of words with one box; and P all links. 0 is best. In a recording, the link of a word is its whole interval, so
that the rate is the share of maxima outside of it. Words without links are left out, and so are inputs without an
order, such as images. `chance` is the rate of a column drawn at random.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from perceiver.inspection.evaluation.localization import box_coverage
from perceiver.inspection.maps.explanation import Explanation
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


def column_axis(grid: Grid) -> int | None:
    """Return the number of the axis along which a text or a recording proceeds; None for an input without an order."""
    if is_text(grid):
        return 0
    return next((number for number, axis in enumerate(grid.axes) if axis.unit == "s"), None)


def column_sums(values: Shaped[Tensor, "*rest tokens"], grid: Grid, axis: int) -> Shaped[Tensor, "*rest columns"]:
    """Return sums over the axes of a grid other than that of its columns (`column_axis`)."""
    before = prod(grid.shape[:axis])
    return values.reshape(*values.shape[:-1], before, grid.shape[axis], -1).sum(dim=(-3, -1))


def alignment_counts(explanation: Explanation) -> dict[str, AlignmentCounts]:
    """Return the counts of a batch for each kind of map (`word_maps`) and for `chance`; empty without links."""
    counts: dict[str, AlignmentCounts] = {}
    maps, mask = word_maps(explanation), explanation.record.token_mask
    for modality, span in explanation.record.spans.items():
        axis, keys = column_axis(span.grid), slice(span.start, span.stop)
        if axis is None:
            continue
        columns = {kind: column_sums(values[..., keys].float().cpu(), span.grid, axis) for kind, values in maps.items()}
        for sample, row in enumerate(explanation.answers):
            real = torch.ones(span.grid.num_tokens) if mask is None else mask[sample, keys].float().cpu()
            is_real = column_sums(real, span.grid, axis) > 0
            for slot, answer in enumerate(row):
                boxes = [box for box in answer.boxes if box.modality == modality]
                if not (answer.is_word and boxes):
                    continue
                links = column_sums(box_coverage([boxes], span.grid)[0], span.grid, axis) > 0
                sure = float(len(boxes) == 1)
                found = {kind: float(links[values[sample, slot].argmax()]) for kind, values in columns.items()}
                for kind, linked in (found | {"chance": float(links[is_real].double().mean())}).items():
                    part = AlignmentCounts(linked * (1.0 + sure), 1.0 + sure)
                    counts[kind] = counts[kind] + part if kind in counts else part
    return counts


def alignment_error_rates(parts: Iterable[Mapping[str, AlignmentCounts]]) -> dict[str, float]:
    """Return `AER_<kind of map>` over several batches; empty without links."""
    total: dict[str, AlignmentCounts] = {}
    for part in parts:
        for kind, counts in part.items():
            total[kind] = total[kind] + counts if kind in total else counts
    return {f"AER_{kind}": 1.0 - counts.matched / counts.total for kind, counts in total.items()}


def word_maps(explanation: Explanation) -> dict[str, Float[Tensor, "batch answers tokens"]]:
    """Return the maps of answers over the tokens by kind: `attention`, `rollout`, and `relevance` if it is defined.

    The first is that of the decoder alone, where it attends to the tokens and not to latents.
    """
    maps = {kind: values for kind, values in explanation.maps.items() if kind in ("rollout", "relevance")}
    attention = explanation.decoder_attention
    return maps if attention is None else {"attention": attention, **maps}
