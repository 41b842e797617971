import pytest
import torch

from perceiver.inspection.localization import box_coverage, localization, map_scores, mean_scores
from perceiver.types import Box, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.models import grid, lay_out, of_class
from tests.inspection.sounds import (
    COLUMNS,
    ROWS,
    SOUND,
    capture_of,
    cells,
    classes_of,
    explanation_of_maps,
    one_hot,
    planted_maps,
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


def test_boxes_of_one_case_are_nothing_to_another():
    boxes = some_boxes(7)
    together = box_coverage([boxes[:2], boxes[2:], boxes[:1]], SOUND)
    alone = torch.cat([box_coverage([part], SOUND) for part in (boxes[:2], boxes[2:], boxes[:1])])
    torch.testing.assert_close(together, alone)


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


def test_means_are_over_all_cases_of_all_parts():
    maps, boxes = torch.rand(13, 35), [some_boxes(2) for _ in range(13)]
    covered = box_coverage(boxes, SOUND)
    whole = mean_scores([map_scores(maps, covered, None)])
    assert mean_scores([map_scores(maps[:3], covered[:3], None), map_scores(maps[3:], covered[3:], None)]) == (
        pytest.approx(whole)
    )


@pytest.mark.parametrize("own", [True, False], ids=["own queries", "one rollout"])
def test_each_class_of_a_sample_is_a_case_or_all_of_them_one_and_what_was_said_makes_no_difference(own):
    first = [cells((0, 1), (0, 1), label=3), cells((2, 3), (2, 3), label=1), cells((4, 5), (4, 5), label=3)]
    boxes = [first, [], [cells((1, 2), (1, 2), label=2)]]
    maps = torch.rand(3, 5, 35)
    maps /= maps.sum(dim=-1, keepdim=True)
    found = localization(explanation_of_maps(maps, boxes, own=own))
    of_classes = [1 / 35, 2 / 35, 1 / 35]
    assert found["energy_in_box_chance"].tolist() == pytest.approx(of_classes if own else [3 / 35, 1 / 35])
    assert found["relevance/energy_in_box_chance"].tolist() == pytest.approx(of_classes)
    assert set(found) == {f"{of}{name}" for of in ("", "relevance/") for name in MEASURED}
    likeliest = [[of_class(2, name="c"), *row] if place < 2 else row for place, row in enumerate(classes_of(boxes))]
    again = localization(explanation_of_maps(maps, boxes, likeliest, own=own))
    torch.testing.assert_close(again, found)


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


def test_each_class_is_held_against_its_own_boxes():
    maps = planted_maps(INSIDE)
    found, swapped = (mean_scores([localization(explanation_of_maps(m, SAMPLES))]) for m in (maps, maps[:, [1, 2, 0]]))
    for of in ("", "relevance/"):
        assert found[f"{of}energy_in_box"] == pytest.approx(1.0, abs=1e-3)
        assert found[f"{of}pointing_game"] == 1.0
        assert swapped[f"{of}energy_in_box"] < 0.01
        assert swapped[f"{of}pointing_game"] == 0.0
        assert swapped[f"{of}pointing_game_chance"] == found[f"{of}pointing_game_chance"]


def test_a_rollout_that_classes_share_is_held_against_all_boxes_and_their_relevance_each_against_its_own():
    maps = planted_maps(INSIDE)
    classes = [[answer.label for answer in row] for row in classes_of(SAMPLES)]
    relevance = torch.zeros(4, 2, 35)
    for row, labels in enumerate(classes):
        relevance[row, : len(labels)] = maps[row, labels]
    found = localization(explanation_of_maps(maps, SAMPLES, own=False, relevance=relevance))
    expected = map_scores(maps.mean(dim=1)[[0, 1, 3]], box_coverage([row for row in SAMPLES if row], SOUND), None)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-3)
    assert found["relevance/energy_in_box"].tolist() == pytest.approx([1.0] * 4)
    assert found["relevance/pointing_game"].tolist() == [1.0] * 4


@pytest.mark.parametrize("own", [True, False])
def test_permuted_samples_give_permuted_scores(own):
    maps = torch.rand(4, 3, 35)
    maps, order = maps / maps.sum(dim=-1, keepdim=True), [3, 0, 2, 1]
    found = localization(explanation_of_maps(maps, SAMPLES, own=own))
    permuted = localization(explanation_of_maps(maps[order], [SAMPLES[i] for i in order], own=own))
    of_classes = [row for row, answers in enumerate(classes_of(SAMPLES)) for _ in answers]
    assert len(of_classes) > 2
    for name, values in found.items():
        samples = of_classes if own or name.startswith("relevance/") else [0, 1, 3]
        places = sorted(range(len(samples)), key=lambda place: (order.index(samples[place]), place))
        torch.testing.assert_close(permuted[name], values[places])


def test_only_what_is_real_counts_and_boxes_of_other_modalities_are_theirs():
    maps = planted_maps([[(1, 1)], [(1, 1)]])
    real = torch.ones(2, 35, dtype=torch.bool)
    real[1, :21] = False
    boxes = [[cells((0, 2), (0, 3)), cells((3, 5), (0, 7), modality="image")], [cells((2, 4), (0, 7))]]
    found = localization(explanation_of_maps(maps * 0.5 + 0.5 / 35, boxes, mask=real))
    for of in ("", "relevance/"):
        chance = torch.tensor([6 / 35, 7 / 14]).double()
        torch.testing.assert_close(found[f"{of}energy_in_box_chance"], chance)
        torch.testing.assert_close(found[f"{of}energy_in_box"][1], torch.tensor(0.5).double(), rtol=0, atol=1e-3)


def test_modalities_are_scored_each_on_its_own_grid():
    maps = planted_maps([[(2, 3)]])
    image = torch.full((1, 1, 6), 1 / 6)
    captured = capture_of(torch.cat([maps * 0.5, image * 0.5], dim=-1))
    lay_out(captured, {"audio": Span(0, 35, SOUND), "image": Span(35, 41, grid(2, 3, cell=10))})
    boxes = [[cells((2, 3), (3, 4)), Box(0, "image", {"y": (0.0, 10.0), "x": (0.0, 15.0)})]]
    found = localization(explanation_of(captured, classes_of(boxes), boxes=boxes))
    torch.testing.assert_close(found["energy_in_box"], torch.tensor([1.0, 0.25]).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("boxes", [[[], []], [None, None]])
@pytest.mark.parametrize("answers", [None, [[of_class(0, name="a")]] * 2], ids=["silent", "classes"])
@pytest.mark.parametrize("own", [True, False])
def test_without_boxes_there_are_no_scores(boxes, answers, own):
    assert localization(explanation_of_maps(planted_maps([[(1, 1)], [(2, 2)]]), boxes, answers, own=own)) == {}
