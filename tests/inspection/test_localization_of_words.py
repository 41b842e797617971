import pytest
import torch

from perceiver.inspection.localization import localization, word_overlap
from perceiver.types import Answer, Box
from tests.inspection.sounds import cells, explanation_of_maps, planted_maps


def say(*words: tuple[str, tuple[int, ...], str, tuple[Box, ...]]) -> list[Answer]:
    return [Answer(name, queries, "logits", kind=kind, boxes=boxes) for name, queries, kind, boxes in words]


TEXTS = [
    say(
        ("a", (0,), "", ()),
        ("red", (1,), "colour", (cells((0, 2), (0, 3)),)),
        ("dot", (2, 3), "shape", (cells((3, 5), (4, 7)),)),
    ),
    [],
    say(("dots", (0,), "shape", (cells((0, 1), (0, 1)), cells((4, 5), (6, 7)))), ("here", (1,), "", ())),
]
LOOKS = [
    [(4, 0), (1, 2), (3, 5), (4, 6)],
    [(2, 2), (0, 0), (4, 6), (1, 1)],
    [(4, 6), (0, 1), (4, 1), (1, 6)],
]


def scores(maps: torch.Tensor, answers: list[list[Answer]], boxes=None) -> dict[str, torch.Tensor]:
    """The scores of a look, whose relevance is its rollout, but for how much alike words are."""
    found = localization(explanation_of_maps(maps, boxes, answers))
    found.pop("word_overlap", None)
    of_rollout = {name: values for name, values in found.items() if not name.startswith("relevance/")}
    assert found.keys() == {f"{of}{name}" for of in ("", "relevance/") for name in of_rollout}
    assert all(torch.equal(found[f"relevance/{name}"], values) for name, values in of_rollout.items())
    return of_rollout


def test_words_are_scored_by_their_kind_each_against_its_own_boxes():
    found = scores(planted_maps(LOOKS), TEXTS)
    names = {f"{name}{chance}" for name in ("energy_in_box", "pointing_game") for chance in ("", "_chance")}
    assert set(found) == {f"{name}_{kind}" for name in names for kind in ("colour", "shape")}
    assert {name: len(values) for name, values in found.items() if name.endswith("shape")} == {
        f"{name}_shape": 2 for name in names
    }
    # "dot" is said by two queries, whose maps each lie in its box.
    for kind in ("colour", "shape"):
        assert found[f"pointing_game_{kind}"].tolist() == pytest.approx([1.0] * len(found[f"pointing_game_{kind}"]))
        assert found[f"energy_in_box_{kind}"].min() > 0.99
    assert found["pointing_game_chance_colour"].tolist() == pytest.approx([6 / 35])
    assert found["energy_in_box_chance_shape"].tolist() == pytest.approx([6 / 35, 2 / 35])
    elsewhere = [[(4, 0)] * 4, [(0, 0)] * 4, [(1, 1)] * 4]
    beside = scores(planted_maps(elsewhere), TEXTS)
    assert all(values.max() < 0.01 for name, values in beside.items() if "chance" not in name)
    assert all(torch.equal(values, found[name]) for name, values in beside.items() if "chance" in name)


def test_the_map_of_a_word_is_the_mean_of_those_of_its_queries():
    maps = planted_maps([[(0, 0), (3, 5), (1, 2), (4, 6)]])
    text = say(("dot", (1, 2), "shape", (cells((3, 5), (4, 7)),)))
    found = scores(maps, [text])
    assert found["energy_in_box_shape"].tolist() == pytest.approx([0.5], abs=1e-3)


@pytest.mark.parametrize("padding", [1, 5])
def test_words_that_only_fill_up_a_batch_change_no_score(padding):
    maps = torch.rand(3, 4, 35)
    maps /= maps.sum(dim=-1, keepdim=True)
    padded = torch.cat([maps, torch.rand(3, padding, 35)], dim=1)
    padded /= padded.sum(dim=-1, keepdim=True)
    found, expected = (localization(explanation_of_maps(values, answers=TEXTS)) for values in (padded, maps))
    torch.testing.assert_close(found, expected)
    assert "word_overlap" in expected


def test_words_without_a_query_or_a_box_of_the_modality_are_no_cases():
    maps = planted_maps([[(1, 1), (2, 2)]])
    texts = say(
        ("unsaid", (), "shape", (cells((1, 2), (1, 2)),)),
        ("seen", (0,), "shape", (cells((1, 2), (1, 2), modality="image"),)),
        ("heard", (1,), "shape", (cells((2, 3), (2, 3)), cells((1, 2), (1, 2), modality="image"))),
    )
    found = scores(maps, [texts])
    assert found["energy_in_box_shape"].tolist() == pytest.approx([1.0], abs=1e-3)
    assert found["energy_in_box_chance_shape"].tolist() == pytest.approx([1 / 35])


def test_the_boxes_of_a_sample_are_nothing_to_its_words():
    boxes = [[cells((0, 5), (0, 7))]] * 3
    maps = planted_maps(LOOKS)
    torch.testing.assert_close(scores(maps, TEXTS, boxes), scores(maps, TEXTS), rtol=0, atol=0)
    assert scores(maps, [[], [], []], boxes) == {}


def words(*queries: int) -> list[Answer]:
    return [Answer(f"word {query}", (query,), "logits") for query in queries]


def overlap_of(maps: torch.Tensor, *answers: list[Answer]) -> list[float]:
    return word_overlap(explanation_of_maps(maps, answers=list(answers)))["word_overlap"].tolist()


class TestOverlap:
    def test_words_with_one_map_overlap_entirely_and_those_with_none_in_common_not_at_all(self):
        same, apart = [(2, 3)] * 4, [(0, 0), (1, 1), (2, 2), (4, 6)]
        found = overlap_of(planted_maps([same, apart]), words(0, 1, 2, 3), words(0, 1, 2, 3))
        assert found == pytest.approx([1.0, 0.0], abs=1e-6)

    def test_maps_that_share_a_part_overlap_by_it(self):
        """Of three words two are alike, and the third shares a quarter with them: (1 + 1/4 + 1/4) / 3."""
        third = 0.25 * planted_maps([[(2, 3)]]) + 0.75 * planted_maps([[(4, 4)]])
        maps = torch.cat([planted_maps([[(2, 3), (2, 3)]]), third], dim=1)
        assert overlap_of(maps, words(0, 1, 2)) == pytest.approx([0.5], abs=1e-3)

    def test_of_random_maps_it_is_the_mean_of_what_pairs_have_in_common(self):
        maps = torch.rand(2, 5, 35)
        maps /= maps.sum(dim=-1, keepdim=True)
        pairs = [(one, other) for one in range(5) for other in range(5) if one < other]
        expected = [sum(float(torch.minimum(row[a], row[b]).sum()) for a, b in pairs) / len(pairs) for row in maps]
        assert overlap_of(maps, words(*range(5)), words(*range(5))) == pytest.approx(expected, abs=1e-4)
        assert all(0.0 < value < 1.0 for value in expected)

    def test_the_order_of_words_makes_no_difference(self):
        maps = torch.rand(1, 5, 35)
        maps /= maps.sum(dim=-1, keepdim=True)
        assert overlap_of(maps, words(3, 0, 4, 1, 2)) == pytest.approx(overlap_of(maps, words(0, 1, 2, 3, 4)))

    def test_only_words_that_were_said_count_and_samples_with_at_least_two_of_them(self):
        maps = planted_maps([[(0, 0), (0, 0), (4, 4)]] * 4)
        unsaid = Answer("unsaid", (), "logits")
        found = overlap_of(maps, [*words(0, 1), unsaid], words(2), [], words(0, 2))
        assert found == pytest.approx([1.0, 0.0], abs=1e-6)
        assert word_overlap(explanation_of_maps(maps, answers=[words(2), [], [unsaid], [*words(0), unsaid]])) == {}

    def test_classes_have_none(self):
        classes = [[Answer(str(label), (label,), "logits", label=label) for label in range(3)]] * 2
        assert word_overlap(explanation_of_maps(planted_maps([[(0, 0), (1, 1), (2, 2)]] * 2), answers=classes)) == {}

    def test_words_without_a_map_are_not_alike(self):
        real = torch.ones(2, 35, dtype=torch.bool)
        real[1] = False
        maps = planted_maps([[(0, 0), (4, 4)]] * 2)
        found, nothing = (
            word_overlap(explanation_of_maps(maps, answers=[words(0, 1)] * 2, mask=mask))
            for mask in (real, real & False)
        )
        assert found["word_overlap"].tolist() == pytest.approx([0.0], abs=1e-6)
        assert nothing == {}
