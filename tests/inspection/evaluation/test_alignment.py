"""The alignment error rate is that of Och & Ney (2003) of the maxima of the maps of words."""

import pytest
import torch

from perceiver.inspection.evaluation.alignment import (
    alignment_counts,
    alignment_error_rates,
    column_axis,
    column_sums,
)
from perceiver.inspection.maps.capture import Capture
from perceiver.inspection.maps.record import Layer
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.roles import DECODE
from perceiver.types import Answer, Axis, Box, Grid, JoinedTokens, Span
from tests.inspection.drawn import explanation_of

KEYS = 7


def aligned(attended: list[int], links: list[list[int]], unit: str = ""):
    """An explanation of one sample whose decoder attends to one token for each word."""
    captured = Capture()
    grid = Grid((KEYS,), (Axis("place", unit, 0.0, KEYS),))
    captured.tokens = JoinedTokens(torch.zeros(1, KEYS, 3), None, {"text": Span(0, KEYS, grid)})
    q = 20.0 * torch.eye(KEYS)[attended][None, None]
    share = torch.ones(1, len(attended))
    captured.layers["decode0"] = Layer(
        DECODE, ScaledDotProduct(), q, torch.eye(KEYS)[None, None], None, False, share, False
    )
    captured.outputs = {"logits": torch.zeros(1, len(attended), 11)}
    answers = [
        Answer(
            "word",
            (number,),
            "logits",
            ids=(3,),
            boxes=tuple(Box(0, "text", {"place": (float(link), link + 1.0)}) for link in found),
        )
        for number, found in enumerate(links)
    ]
    return explanation_of(captured, [answers], own=False)


def test_it_counts_sure_and_possible_links_over_the_corpus():
    # Right and sure, wrong and sure, possible, wrong and possible, without links.
    one = aligned([2, 3, 5, 1, 0], [[2], [4], [5, 6], [5, 6], []])
    other = aligned([1, 1], [[1], [1]])
    counts = [alignment_counts(one), alignment_counts(other)]
    #     |A ∩ S| = 1 + 2, |A ∩ P| = 2 + 2, |A| = 4 + 2, |S| = 2 + 2
    expected = 1 - (3 + 4) / (6 + 4)
    chance = 1 - (4 * 2 * 1 + 2 * 2) / KEYS / 10  # four sure links to one of the keys, two to two of them
    assert alignment_error_rates(counts) == pytest.approx(
        {f"AER_{kind}": expected for kind in ("attention", "rollout", "relevance")} | {"AER_chance": chance}
    )


def test_it_is_defined_for_words_with_links_to_a_text_or_a_time():
    assert alignment_counts(aligned([2], [[]])) == {}
    assert alignment_counts(aligned([2], [[2]], unit="m")) == {}
    assert alignment_error_rates([{}]) == {}
    rates = alignment_error_rates([alignment_counts(aligned([2, 3], [[2], [2]], unit="s"))])
    assert rates["AER_attention"] == 0.5


def test_columns_are_sums_over_the_other_axes():
    for axis, unit in enumerate(("Hz", "s", "m")):
        grid = Grid(
            (2, 5, 3), tuple(Axis(f"axis {number}", one, 0.0, 1.0) for number, one in enumerate(("Hz", "s", "m")))
        )
        values = torch.arange(60.0).reshape(2, 30)
        others = tuple(number + 1 for number in range(3) if number != axis)
        assert torch.equal(column_sums(values, grid, axis), values.reshape(2, 2, 5, 3).sum(dim=others))
        assert (column_axis(grid) == axis) == (unit == "s")
