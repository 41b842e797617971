"""Localization scores: coverage by counting points, scores case by case, and overlap pair by pair."""

from collections import defaultdict
from functools import reduce

import numpy as np
import pytest
import torch

from perceiver.decoders.base import LOGITS
from perceiver.inspection.evaluation.localization import (
    box_coverage,
    localization,
    map_scores,
    mean_scores,
    word_overlap,
)
from perceiver.inspection.maps.explanation import Explanation
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.models import captured_with, grid, layer, of_class, word
from tests.inspection.videos import VIDEO

SOUND = Grid((5, 7), (Axis("frequency", "Hz", 50.0, 8000.0, scale="mel"), Axis("time", "s", 0.0, 3.5)))
IMAGE = grid(2, 3, cell=10)
SPANS = {"audio": Span(0, 35, SOUND), "image": Span(35, 41, IMAGE)}
FINE = 8
"""Points per cell along each axis."""


def box_at(grid: Grid, *ranges: tuple[float, float], label: int = 0, modality: str = "audio") -> Box:
    """A box from one place to another along each axis, in cells."""
    along = zip(grid.axes, grid.shape, ranges, strict=True)
    ends = {axis.name: (axis.value(low / count), axis.value(high / count)) for axis, count, (low, high) in along}
    return Box(label, modality, ends)


def some_boxes(count: int, grid: Grid = SOUND, modality: str = "audio") -> list[Box]:
    """Boxes of three classes, whose edges lie at quarters of cells; some have no range along the first axis."""
    boxes = []
    for number in range(count):
        ranges = [(torch.randperm(4 * cells + 1)[:2].sort().values.double() / 4).tolist() for cells in grid.shape]
        box = box_at(grid, *ranges, label=number % 3, modality=modality)
        if number % 2 and len(ranges) > 1:
            del box.ranges[grid.axes[0].name]
        box.ranges["taste"] = (0.0, 1.0)
        boxes.append(box)
    return boxes


def counted_coverage(boxes: list[Box], grid: Grid) -> torch.Tensor:
    """The share of each token that boxes cover, by counting points."""
    inside = np.zeros([FINE * count for count in grid.shape], dtype=bool)
    for box in boxes:
        along = []
        for axis, count in zip(grid.axes, grid.shape, strict=True):
            points = np.array([axis.value((place + 0.5) / (FINE * count)) for place in range(FINE * count)])
            low, high = box.ranges.get(axis.name, (-np.inf, np.inf))
            along.append((points > low) & (points < high))
        inside |= reduce(np.logical_and.outer, along)
    parts = inside.reshape([size for count in grid.shape for size in (count, FINE)])
    return torch.from_numpy(parts.mean(axis=tuple(range(1, parts.ndim, 2))).reshape(-1))


@pytest.mark.parametrize("grid", [SOUND, Grid((7,), SOUND.axes[1:]), VIDEO], ids=lambda grid: f"{len(grid.shape)} axes")
def test_boxes_cover_the_share_of_cells_that_is_found_by_counting_points(grid):
    cases = [some_boxes(count, grid) for count in (1, 5, 0, 2, 3)]
    expected = torch.stack([counted_coverage(boxes, grid) for boxes in cases])
    torch.testing.assert_close(box_coverage(cases, grid), expected, rtol=0, atol=1e-6)


def some_explanation(kind: str) -> Explanation:
    """Explanations of five samples: one without boxes, one with fewer answers, and one without an image."""
    real = torch.rand(5, 41) < 0.8
    real[:, 0], real[4, 35:] = True, False
    boxes = [[] if row == 0 else some_boxes(4) + some_boxes(3, IMAGE, "image") for row in range(5)]
    if kind == "words":
        answers = [
            [
                Answer(f"word {n}", (n,), LOGITS, ids=(n,), kind=("color", "shape")[n % 2], boxes=tuple(row[n : n + 3]))
                for n in range(4)
            ]
            for row in boxes
        ]
        answers[3][1] = Answer("no query", (), LOGITS, kind="shape", boxes=tuple(boxes[3]))
    else:
        answers = [
            [of_class(label, *(box for box in row if box.label == label)) for label in range(4)] for row in boxes
        ]
    answers[2] = answers[2][:2]
    relevance = torch.rand(5, 4, 41) * real[:, None]
    relevance[1, 0] = 0
    cross = layer("cross", torch.rand(5, 1, 4, 41), real)
    captured = captured_with(SPANS, cross0=cross, decode0=layer("decode", torch.eye(4).expand(5, 1, 4, 4)))
    return explanation_of(captured, answers, own=kind != "one rollout", relevance=relevance, boxes=boxes)


def scores_by_case(explanation: Explanation, *, own: bool) -> dict[str, list[float]]:
    """The scores of each map on each modality, one after the other."""
    found, record = defaultdict(list), explanation.record
    for sample, answers in enumerate(explanation.answers):
        for slot, answer in enumerate(answers):
            cases = [("relevance/", explanation.relevance, answer.boxes)]
            if own:
                cases.append(("", explanation.rollout.inputs, answer.boxes))
            elif slot == 0:  # the rollout that all classes share
                cases.append(("", explanation.rollout.inputs, explanation.boxes[sample]))
            for prefix, maps, boxes in cases:
                for modality, span in SPANS.items():
                    here = [box for box in boxes if box.modality == modality]
                    real = record.token_mask[sample, span.start : span.stop]
                    values = maps[sample, slot, span.start : span.stop][real].double()
                    share = counted_coverage(here, span.grid)[real]
                    if not values.any() or not share.any():
                        continue
                    kind = f"_{answer.kind}" if answer.kind else ""
                    scores = {
                        "energy_in_box": (values * share).sum() / values.sum(),
                        "energy_in_box_chance": share.mean(),
                        "pointing_game": (share[values.argmax()] > 0).double(),
                        "pointing_game_chance": (share > 0).double().mean(),
                    }
                    for name, score in scores.items():
                        found[f"{prefix}{name}{kind}"].append(float(score))
                        found[f"{prefix}{name}_{modality}"].append(float(score))
    return found


@pytest.mark.parametrize("kind", ["classes", "one rollout", "words"])
def test_scores_are_those_of_each_case(kind):
    explanation = some_explanation(kind)
    found = {name: sorted(cases.tolist()) for name, cases in localization(explanation).items()}
    assert ("word_overlap" in found) == (kind == "words")
    found.pop("word_overlap", None)
    expected = scores_by_case(explanation, own=kind != "one rollout")
    assert len(expected) == (16 if kind == "words" else 8) + 8 * len(SPANS)
    assert min(map(len, expected.values())) > 1
    assert found == {name: pytest.approx(sorted(cases), rel=1e-5, abs=1e-6) for name, cases in expected.items()}
    assert mean_scores([localization(explanation)] * 2)["relevance/energy_in_box" + "_color" * (kind == "words")] > 0


@pytest.mark.parametrize("masked", [False, True])
def test_an_even_map_scores_its_chance(masked):
    mask = torch.rand(13, 35) < 0.7 if masked else None
    found = map_scores(torch.full((13, 35), 0.017), box_coverage([some_boxes(3) for _ in range(13)], SOUND), mask)
    for name in ("energy_in_box", "pointing_game"):
        assert len(found[name]) == 13
        torch.testing.assert_close(found[name], found[f"{name}_chance"], rtol=1e-12, atol=0)


def test_a_box_touches_no_cell_across_a_common_edge():
    for row, column in np.ndindex(SOUND.shape):
        covered = box_coverage([[box_at(SOUND, (row, row + 1), (column, column + 1))]], SOUND)
        chance = map_scores(torch.ones(1, 35), covered, None)["pointing_game_chance"]
        assert chance.tolist() == pytest.approx([1 / 35])


@pytest.mark.parametrize("answers", [[of_class(2)], []], ids=["classes", "none"])
def test_without_boxes_or_answers_there_are_no_scores(answers):
    captured = captured_with(SPANS, cross0=layer("cross", torch.rand(2, 1, 3, 41)))
    for boxes in ([None, None], [[], []]):
        assert localization(explanation_of(captured, [answers] * 2, own=False, boxes=boxes)) == {}
    assert mean_scores([]) == {}


def overlap_of(maps: torch.Tensor, *answers: list[Answer]) -> list[float]:
    """The overlap of the words of each sample, whose rollouts from each query are maps [batch, queries, tokens]."""
    reads = torch.eye(maps.shape[1]).expand(len(maps), 1, -1, -1)
    captured = captured_with(SPANS, cross0=layer("cross", maps[:, None]), decode0=layer("decode", reads))
    found = word_overlap(explanation_of(captured, list(answers)))
    return found["word_overlap"].tolist() if found else []


def test_overlap_is_the_mean_mass_that_pairs_of_words_have_in_common():
    maps = torch.rand(2, 5, 41) ** 5
    maps /= maps.sum(dim=-1, keepdim=True)
    pairs = [(one, other) for one in range(5) for other in range(one)]
    expected = [sum(float(torch.minimum(row[a], row[b]).sum()) for a, b in pairs) / len(pairs) for row in maps]
    words = [word((query,), ()) for query in (3, 0, 4, 1, 2)]
    assert overlap_of(maps, words, words[::-1]) == pytest.approx(expected, abs=1e-4)
    # Samples need two words with a map.
    without_query = word((), ())
    assert overlap_of(maps, [words[0], without_query], [*words, without_query]) == pytest.approx(expected[1:], abs=1e-4)
    assert overlap_of(maps[:1], [of_class(label) for label in range(3)]) == []
