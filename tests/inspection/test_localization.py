"""Localization scores of maps with their weight in chosen cells, against boxes around cells."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytest
import torch

from perceiver.inspection.explanation import Explanation
from perceiver.inspection.localization import box_coverage, localization, map_scores, mean_scores, word_overlap
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.models import captured_with, grid, layer, of_class, set_tokens, word
from tests.inspection.videos import VIDEO

ROWS, COLUMNS = 5, 7
SOUND = Grid(
    (ROWS, COLUMNS), (Axis("frequency", "Hz", 50.0, 8000.0, scale="mel"), Axis("time", "s", 0.0, COLUMNS * 0.5))
)
SCORES = {f"{name}{chance}" for name in ("energy_in_box", "pointing_game") for chance in ("", "_chance")}
FINE = 8
"""Points per cell along each axis."""


def cells(row: tuple[float, float], column: tuple[float, float], label: int = 0, modality: str = "audio") -> Box:
    """A box that covers cells of `SOUND` from one number to another."""
    frequency, time = SOUND.axes
    return Box(
        label,
        modality,
        {
            "frequency": (frequency.value(row[0] / ROWS), frequency.value(row[1] / ROWS)),
            "time": (time.value(column[0] / COLUMNS), time.value(column[1] / COLUMNS)),
        },
    )


def one_hot(row: int, column: int) -> torch.Tensor:
    values = torch.zeros(1, ROWS, COLUMNS)
    values[0, row, column] = 0.3
    return values.flatten(1)


def planted_maps(places: list[list[tuple[int, int]]]) -> torch.Tensor:
    """For each sample and query a map with its weight in one cell."""
    return torch.stack([torch.cat([one_hot(*place) / 0.3 for place in row]) for row in places])


def sample_classes(boxes: Sequence[Sequence[Box] | None]) -> list[list[Answer]]:
    """For each sample the classes that apply to it, as answers."""
    return [
        [
            of_class(label, *(box for box in row or () if box.label == label), name=str(label))
            for label in sorted(labels)
        ]
        for row in boxes
        for labels in [{box.label for box in row or ()}]
    ]


def explanation_of_maps(
    maps: torch.Tensor,
    boxes: Sequence[Sequence[Box] | None] | None = None,
    answers: list[list[Answer]] | None = None,
    mask: torch.Tensor | None = None,
    **options,
) -> Explanation:
    """The explanation of a model whose rollout from each query is a map, by one latent for each.

    Args:
        maps: of each query, [batch, queries, tokens].
        boxes: of the samples.
        answers: by default the classes that have boxes.
        mask: True where a token is real.
        options: see `explanation_of`.
    """
    boxes = [None] * len(maps) if boxes is None else boxes
    answers = sample_classes(boxes) if answers is None else answers
    reads = torch.eye(maps.shape[1]).expand(len(maps), 1, -1, -1)
    layers = {"cross0": layer("cross", maps[:, None], mask), "decode0": layer("decode", reads)}
    captured = captured_with({"audio": Span(0, maps.shape[-1], SOUND)}, **layers)
    return explanation_of(captured, answers, boxes=list(boxes), **options)


def some_boxes(count: int, grid: Grid = SOUND) -> list[Box]:
    """Boxes anywhere, whose edges lie at quarters of cells; each second one has no range along the first axis."""
    boxes = []
    for number in range(count):
        ranges = {}
        for axis, cells in zip(grid.axes, grid.shape, strict=True):
            ends = (torch.randperm(4 * cells + 1)[:2].sort().values / (4 * cells)).tolist()
            ranges[axis.name] = (axis.value(ends[0]), axis.value(ends[1]))
        if number % 2 and len(ranges) > 1:
            del ranges[grid.axes[0].name]
        boxes.append(Box(number % 5, "audio", ranges | {"taste": (0.0, 1.0)}))
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


@pytest.mark.parametrize(
    "grid", [SOUND, Grid((COLUMNS,), SOUND.axes[1:]), VIDEO], ids=lambda grid: f"{len(grid.shape)} axes"
)
def test_boxes_cover_the_share_of_cells_that_is_found_by_counting_points(grid):
    cases = [some_boxes(count, grid) for count in (1, 5, 0, 2, 3)]
    expected = torch.stack([counted_coverage(boxes, grid) for boxes in cases])
    torch.testing.assert_close(box_coverage(cases, grid), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("box", "energy", "chances"),
    [
        (cells((2, 4), (1, 4)), 1.0, (6 / 35, 6 / 35)),
        (cells((2, 3), (1, 7)), 0.0, (6 / 35, 6 / 35)),
        (cells((3.2, 3.4), (2.5, 3.0)), 0.1, (0.1 / 35, 1 / 35)),  # smaller than a cell
    ],
)
def test_mass_in_one_cell_scores_what_a_box_covers_of_it_and_hits_if_it_does(box, energy, chances):
    found = mean_scores([map_scores(one_hot(3, 2), box_coverage([[box]], SOUND), None)])
    assert (found["energy_in_box"], found["pointing_game"]) == pytest.approx((energy, float(energy > 0)))
    assert (found["energy_in_box_chance"], found["pointing_game_chance"]) == pytest.approx(chances)


@pytest.mark.parametrize("masked", [False, True])
def test_an_even_map_scores_its_chance(masked):
    boxes = [some_boxes(3) for _ in range(13)]
    mask = torch.rand(13, ROWS * COLUMNS) < 0.7 if masked else None
    found = map_scores(torch.full((13, ROWS * COLUMNS), 0.017), box_coverage(boxes, SOUND), mask)
    for name in ("energy_in_box", "pointing_game"):
        assert len(found[name]) == 13
        torch.testing.assert_close(found[name], found[f"{name}_chance"], rtol=1e-12, atol=0)


def test_a_box_touches_no_cell_across_a_common_edge():
    for row in range(ROWS):
        for column in range(COLUMNS):
            covered = box_coverage([[cells((row, row + 1), (column, column + 1))]], SOUND)
            chance = map_scores(one_hot(row, column), covered, None)["pointing_game_chance"]
            assert chance.tolist() == pytest.approx([1 / 35])


def test_masked_cells_count_for_nothing():
    maps, boxes = torch.rand(11, ROWS * COLUMNS), [some_boxes(2) for _ in range(11)]
    covered, mask = box_coverage(boxes, SOUND), torch.rand(11, ROWS * COLUMNS) < 0.6
    expected = map_scores(maps, covered, mask)
    spoiled = map_scores(torch.where(mask, maps, 99.0), torch.where(mask, covered, 1.0), mask)
    assert all(torch.equal(spoiled[name], expected[name]) for name in expected)
    cut = [map_scores(maps[i : i + 1, mask[i]], covered[i : i + 1, mask[i]], None) for i in range(11)]
    assert mean_scores(cut) == pytest.approx(mean_scores([expected]))


def test_cases_in_which_nothing_can_be_found_are_left_out():
    maps = torch.stack([torch.zeros(35), torch.full((35,), 0.1), torch.full((35,), 0.1), one_hot(1, 1)[0]])
    beyond = Box(0, "audio", {"time": (50.0, 60.0)})
    boxes = [[cells((0, 2), (0, 2))], [beyond], [cells((0, 1), (0, 1))], [cells((1, 2), (1, 2))]]
    mask = torch.ones(4, 35, dtype=torch.bool)
    mask[2, 0] = False
    found = map_scores(maps, box_coverage(boxes, SOUND), mask)
    assert found["energy_in_box"].tolist() == pytest.approx([1.0])
    assert mean_scores([map_scores(maps[:1], box_coverage(boxes[:1], SOUND), None)]) == {}
    assert mean_scores([]) == {}


def localized(maps: torch.Tensor, boxes=None, answers=None, **options) -> dict[str, torch.Tensor]:
    return localization(explanation_of_maps(maps, boxes, answers, **options))


def some_maps(*shape: int) -> torch.Tensor:
    maps = torch.rand(*shape, 35)
    return maps / maps.sum(dim=-1, keepdim=True)


SAMPLES = [
    [cells((0, 2), (0, 3), label=1), cells((3, 5), (4, 7), label=2)],
    [cells((2, 3), (2, 3), label=0)],
    [],
    [cells((1, 3), (0, 7), label=2)],
]
INSIDE = [
    [(4, 0), (1, 2), (3, 5)],
    [(2, 2), (0, 0), (4, 6)],
    [(0, 0), (0, 0), (0, 0)],
    [(0, 1), (4, 1), (1, 6)],
]


class TestClasses:
    @pytest.mark.parametrize("own", [True, False], ids=["own queries", "one rollout"])
    def test_each_class_with_boxes_is_a_case_unless_all_share_a_rollout(self, own):
        """Classes without boxes among the answers make no difference."""
        first = [cells((0, 1), (0, 1), label=3), cells((2, 3), (2, 3), label=1), cells((4, 5), (4, 5), label=3)]
        boxes, maps = [first, [], [cells((1, 2), (1, 2), label=2)]], some_maps(3, 5)
        found = localized(maps, boxes, own=own)
        of_classes = [1 / 35, 2 / 35, 1 / 35]
        assert found["energy_in_box_chance"].tolist() == pytest.approx(of_classes if own else [3 / 35, 1 / 35])
        assert found["relevance/energy_in_box_chance"].tolist() == pytest.approx(of_classes)
        assert set(found) == {f"{of}{name}" for of in ("", "relevance/") for name in SCORES}
        others = [[of_class(2), *row] if place < 2 else row for place, row in enumerate(sample_classes(boxes))]
        torch.testing.assert_close(localized(maps, boxes, others, own=own), found)

    def test_each_is_compared_with_its_own_boxes(self):
        maps = planted_maps(INSIDE)
        found, swapped = (mean_scores([localized(one, SAMPLES)]) for one in (maps, maps[:, [1, 2, 0]]))
        for of in ("", "relevance/"):
            assert found[f"{of}energy_in_box"] == pytest.approx(1.0, abs=1e-3)
            assert found[f"{of}pointing_game"] == 1.0
            assert swapped[f"{of}energy_in_box"] < 0.01
            assert swapped[f"{of}pointing_game"] == 0.0

    def test_a_shared_rollout_is_compared_with_all_boxes_and_relevance_with_those_of_its_class(self):
        maps, relevance = planted_maps(INSIDE), torch.zeros(4, 2, 35)
        for row, answers in enumerate(sample_classes(SAMPLES)):
            relevance[row, : len(answers)] = maps[row, [answer.label for answer in answers]]
        found = localized(maps, SAMPLES, own=False, relevance=relevance)
        expected = map_scores(maps.mean(dim=1)[[0, 1, 3]], box_coverage([row for row in SAMPLES if row], SOUND), None)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=1e-3)
        assert found["relevance/pointing_game"].tolist() == [1.0] * 4

    def test_only_real_cells_and_boxes_of_the_modality_count(self):
        maps = planted_maps([[(1, 1)], [(1, 1)]])
        real = torch.ones(2, 35, dtype=torch.bool)
        real[1, :21] = False
        boxes = [[cells((0, 2), (0, 3)), cells((3, 5), (0, 7), modality="image")], [cells((2, 4), (0, 7))]]
        found = localized(maps * 0.5 + 0.5 / 35, boxes, mask=real)
        for of in ("", "relevance/"):
            assert found[f"{of}energy_in_box_chance"].tolist() == pytest.approx([6 / 35, 7 / 14])

    def test_each_modality_is_scored_on_its_own_grid(self):
        maps, image = planted_maps([[(2, 3)]]), torch.full((1, 1, 6), 1 / 6)
        boxes = [[cells((2, 3), (3, 4)), Box(0, "image", {"y": (0.0, 10.0), "x": (0.0, 15.0)})]]
        explanation = explanation_of_maps(torch.cat([maps * 0.5, image * 0.5], dim=-1), boxes)
        set_tokens(explanation.record, {"audio": Span(0, 35, SOUND), "image": Span(35, 41, grid(2, 3, cell=10))})
        found = localization(explanation)
        torch.testing.assert_close(found["energy_in_box"], torch.tensor([1.0, 0.25]).double(), rtol=0, atol=1e-4)


def with_boxes(queries: tuple[int, ...], kind: str, *boxes: Box) -> Answer:
    return Answer("word", queries, "logits", kind=kind, boxes=boxes)


def words(*queries: int) -> list[Answer]:
    return [word((query,), ()) for query in queries]


TEXTS = [
    [
        *words(0),
        with_boxes((1,), "color", cells((0, 2), (0, 3))),
        with_boxes((2, 3), "shape", cells((3, 5), (4, 7))),  # of two queries, whose maps each lie in its box
    ],
    [],
    [with_boxes((0,), "shape", cells((0, 1), (0, 1)), cells((4, 5), (6, 7))), *words(1)],
]
OF_TEXTS = [
    [(4, 0), (1, 2), (3, 5), (4, 6)],
    [(2, 2), (0, 0), (4, 6), (1, 1)],
    [(4, 6), (0, 1), (4, 1), (1, 6)],
]


class TestWords:
    def test_they_are_scored_by_kind_each_with_its_own_boxes(self):
        maps, elsewhere = planted_maps(OF_TEXTS), planted_maps([[(4, 0)] * 4, [(0, 0)] * 4, [(1, 1)] * 4])
        found, misses = localized(maps, answers=TEXTS), localized(elsewhere, answers=TEXTS)
        kinds = {f"{name}_{kind}" for name in SCORES for kind in ("color", "shape")}
        assert set(found) == {f"{of}{name}" for of in ("", "relevance/") for name in kinds} | {"word_overlap"}
        for kind, chances in (("color", [6 / 35]), ("shape", [6 / 35, 2 / 35])):
            assert found[f"energy_in_box_{kind}"].tolist() == pytest.approx([1.0] * len(chances), abs=0.01)
            assert found[f"pointing_game_{kind}"].tolist() == pytest.approx([1.0] * len(chances))
            assert found[f"pointing_game_chance_{kind}"].tolist() == pytest.approx(chances)
            assert misses[f"energy_in_box_{kind}"].max() < 0.01
            torch.testing.assert_close(misses[f"energy_in_box_chance_{kind}"], found[f"energy_in_box_chance_{kind}"])

    def test_padding_changes_no_score(self):
        maps = some_maps(3, 4)
        padded = torch.cat([maps, some_maps(3, 5)], dim=1)
        torch.testing.assert_close(localized(padded, answers=TEXTS), localized(maps, answers=TEXTS))

    def test_words_without_a_query_or_a_box_of_the_modality_are_no_cases(self):
        elsewhere = cells((1, 2), (1, 2), modality="image")
        text = [
            with_boxes((), "shape", cells((1, 2), (1, 2))),
            with_boxes((0,), "shape", elsewhere),
            with_boxes((1,), "shape", cells((2, 3), (2, 3)), elsewhere),
        ]
        found = localized(planted_maps([[(1, 1), (2, 2)]]), answers=[text])
        assert found["energy_in_box_shape"].tolist() == pytest.approx([1.0], abs=1e-3)
        assert found["energy_in_box_chance_shape"].tolist() == pytest.approx([1 / 35])

    def test_the_boxes_of_a_sample_are_not_those_of_its_words(self):
        boxes, maps = [[cells((0, 5), (0, 7))]] * 3, planted_maps(OF_TEXTS)
        torch.testing.assert_close(localized(maps, boxes, TEXTS), localized(maps, answers=TEXTS), rtol=0, atol=0)
        assert localized(maps, boxes, [[], [], []]) == localized(maps, None, [[of_class(0)]] * 3) == {}


def overlap_of(maps: torch.Tensor, *answers: list[Answer], **options) -> list[float]:
    found = word_overlap(explanation_of_maps(maps, answers=list(answers), **options))
    return found["word_overlap"].tolist() if found else []


class TestOverlap:
    def test_it_is_the_mean_mass_that_pairs_have_in_common(self):
        maps = some_maps(2, 5)
        pairs = [(one, other) for one in range(5) for other in range(one)]
        expected = [sum(float(torch.minimum(row[a], row[b]).sum()) for a, b in pairs) / len(pairs) for row in maps]
        assert overlap_of(maps, words(*range(5)), words(3, 0, 4, 1, 2)) == pytest.approx(expected, abs=1e-4)

    def test_samples_need_two_words_with_a_map(self):
        maps, without_query = planted_maps([[(0, 0), (0, 0), (4, 4)]] * 5), word((), ())
        real = torch.ones(5, 35, dtype=torch.bool)
        real[4] = False
        answers = [[*words(0, 1), without_query], words(2), [*words(0), without_query], words(0, 2), words(0, 2)]
        assert overlap_of(maps, *answers, mask=real) == pytest.approx([1.0, 0.0], abs=1e-6)
        assert overlap_of(maps[:1], [of_class(label) for label in range(3)]) == []
