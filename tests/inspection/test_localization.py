import pytest
import torch

from perceiver.inspection.localization import box_coverage, localization, map_scores, mean_scores, word_overlap
from perceiver.types import Answer, Box, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.models import grid, of_class, set_tokens, word
from tests.inspection.sounds import (
    COLUMNS,
    ROWS,
    SOUND,
    capture_of,
    cells,
    explanation_of_maps,
    one_hot,
    planted_maps,
    sample_classes,
)

MEASURED = {f"{name}{chance}" for name in ("energy_in_box", "pointing_game") for chance in ("", "_chance")}


def coverage(*boxes: Box) -> torch.Tensor:
    return box_coverage([boxes], SOUND)[0].reshape(ROWS, COLUMNS)


def some_boxes(count: int) -> list[Box]:
    """Boxes anywhere, of five classes."""
    places = torch.rand(count, 2, 2).sort(dim=-1).values * torch.tensor([[[ROWS], [COLUMNS]]])
    return [cells(tuple(row), tuple(column), label=number % 5) for number, (row, column) in enumerate(places.tolist())]


def test_a_cell_is_covered_by_the_share_of_its_area():
    found = coverage(cells((1.0, 2.5), (3.25, 5.0)))
    expected = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    expected[1, 3:5] = torch.tensor([0.75, 1.0])
    expected[2, 3:5] = torch.tensor([0.375, 0.5])
    torch.testing.assert_close(found, expected)


def test_boxes_that_overlap_cover_what_any_of_them_does():
    boxes = some_boxes(11)
    fine = 400
    rows, columns = (torch.arange(size * fine).double().add(0.5) / fine for size in (ROWS, COLUMNS))
    inside = torch.zeros(ROWS * fine, COLUMNS * fine, dtype=torch.bool)
    frequency, time = SOUND.axes
    for box in boxes:
        low, high = (frequency.fraction(value) * ROWS for value in box.ranges["frequency"])
        start, stop = (time.fraction(value) * COLUMNS for value in box.ranges["time"])
        inside |= ((rows > low) & (rows < high))[:, None] & ((columns > start) & (columns < stop))
    expected = inside.reshape(ROWS, fine, COLUMNS, fine).double().mean(dim=(1, 3))
    torch.testing.assert_close(coverage(*boxes), expected, rtol=0, atol=0.01)


def test_boxes_in_hertz_lie_on_mel_rows():
    box = Box(0, "audio", {"frequency": (2900.0, 3100.0), "time": (1.0, 1.5)})
    found = coverage(box)
    # 50 to 8000 Hz are 78 to 2840 mel, and 3000 Hz 1876 mel: 0.651 of the way, in row 3 of 5. Linearly it were row 1.
    assert found.nonzero().tolist() == [[3, 2]]


def test_an_axis_that_a_box_does_not_name_is_covered_from_end_to_end():
    found = coverage(Box(0, "audio", {"time": (1.0, 2.0)}))
    assert found.sum(dim=0).tolist() == pytest.approx([0, 0, ROWS, ROWS, 0, 0, 0])


def test_on_a_grid_of_time_alone_a_box_covers_its_time():
    alone = Grid((COLUMNS,), SOUND.axes[1:])
    box = cells((1.0, 1.5), (2.5, 4.0))
    torch.testing.assert_close(box_coverage([[box]], alone)[0], torch.tensor([0, 0, 0.5, 1, 0, 0, 0]).double())


def test_all_mass_in_one_cell_scores_one_in_a_box_around_it_and_chance_is_the_area_of_the_box():
    covered = box_coverage([[cells((2, 4), (1, 4))]], SOUND)
    found = map_scores(one_hot(3, 2), covered, None)
    assert mean_scores([found]) == pytest.approx(
        {
            "energy_in_box": 1.0,
            "energy_in_box_chance": 6 / 35,
            "pointing_game": 1.0,
            "pointing_game_chance": 6 / 35,
        }
    )
    outside = mean_scores([map_scores(one_hot(3, 4), covered, None)])
    assert outside["energy_in_box"] == outside["pointing_game"] == 0.0


@pytest.mark.parametrize("masked", [False, True])
def test_an_even_map_scores_its_chance(masked):
    boxes = [some_boxes(3) for _ in range(13)]
    mask = torch.rand(13, ROWS * COLUMNS) < 0.7 if masked else None
    found = map_scores(torch.full((13, ROWS * COLUMNS), 0.017), box_coverage(boxes, SOUND), mask)
    for name in ("energy_in_box", "pointing_game"):
        assert len(found[name]) == 13
        torch.testing.assert_close(found[name], found[f"{name}_chance"], rtol=1e-12, atol=0)


def test_a_box_smaller_than_a_cell_gets_its_share_and_can_be_pointed_at():
    covered = box_coverage([[cells((3.2, 3.4), (2.5, 3.0))]], SOUND)
    found = mean_scores([map_scores(one_hot(3, 2), covered, None)])
    assert found["energy_in_box"] == pytest.approx(0.1)
    assert found["pointing_game"] == 1.0
    assert found["pointing_game_chance"] == pytest.approx(1 / 35)


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
        assert set(found) == {f"{of}{name}" for of in ("", "relevance/") for name in MEASURED}
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
            chance = torch.tensor([6 / 35, 7 / 14]).double()
            torch.testing.assert_close(found[f"{of}energy_in_box_chance"], chance)
            torch.testing.assert_close(found[f"{of}energy_in_box"][1], torch.tensor(0.5).double(), rtol=0, atol=1e-3)

    def test_each_modality_is_scored_on_its_own_grid(self):
        maps, image = planted_maps([[(2, 3)]]), torch.full((1, 1, 6), 1 / 6)
        captured = capture_of(torch.cat([maps * 0.5, image * 0.5], dim=-1))
        set_tokens(captured, {"audio": Span(0, 35, SOUND), "image": Span(35, 41, grid(2, 3, cell=10))})
        boxes = [[cells((2, 3), (3, 4)), Box(0, "image", {"y": (0.0, 10.0), "x": (0.0, 15.0)})]]
        found = localization(explanation_of(captured, sample_classes(boxes), boxes=boxes))
        torch.testing.assert_close(found["energy_in_box"], torch.tensor([1.0, 0.25]).double(), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("boxes", [[[], []], [None, None]])
    @pytest.mark.parametrize("answers", [None, [[of_class(0)]] * 2], ids=["none", "classes"])
    def test_without_boxes_there_are_no_scores(self, boxes, answers):
        assert localized(planted_maps([[(1, 1)], [(2, 2)]]), boxes, answers) == {}


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
        kinds = {f"{name}_{kind}" for name in MEASURED for kind in ("color", "shape")}
        assert set(found) == {f"{of}{name}" for of in ("", "relevance/") for name in kinds} | {"word_overlap"}
        for kind, chances in (("color", [6 / 35]), ("shape", [6 / 35, 2 / 35])):
            assert found[f"energy_in_box_{kind}"].tolist() == pytest.approx([1.0] * len(chances), abs=0.01)
            assert found[f"pointing_game_{kind}"].tolist() == pytest.approx([1.0] * len(chances))
            assert found[f"pointing_game_chance_{kind}"].tolist() == pytest.approx(chances)
            assert misses[f"energy_in_box_{kind}"].max() < 0.01
            torch.testing.assert_close(misses[f"energy_in_box_chance_{kind}"], found[f"energy_in_box_chance_{kind}"])

    def test_the_map_of_a_word_is_the_mean_of_those_of_its_queries(self):
        maps = planted_maps([[(0, 0), (3, 5), (1, 2), (4, 6)]])
        found = localized(maps, answers=[[with_boxes((1, 2), "shape", cells((3, 5), (4, 7)))]])
        assert found["energy_in_box_shape"].tolist() == pytest.approx([0.5], abs=1e-3)

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
        assert localized(maps, boxes, [[], [], []]) == {}


def overlap_of(maps: torch.Tensor, *answers: list[Answer], **options) -> list[float]:
    found = word_overlap(explanation_of_maps(maps, answers=list(answers), **options))
    return found["word_overlap"].tolist() if found else []


class TestOverlap:
    def test_it_is_one_for_equal_and_zero_for_disjoint_maps(self):
        equal, disjoint = [(2, 3)] * 4, [(0, 0), (1, 1), (2, 2), (4, 6)]
        found = overlap_of(planted_maps([equal, disjoint]), words(0, 1, 2, 3), words(0, 1, 2, 3))
        assert found == pytest.approx([1.0, 0.0], abs=1e-6)

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
