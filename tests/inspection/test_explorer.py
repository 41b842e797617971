"""What the explorer's page is made of: the same numbers as the exact ones of the event, in few bytes."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from perceiver.inspection.events import event_arrays
from perceiver.inspection.explanation import Explanation
from perceiver.inspection.explorer import page as explorer_module
from perceiver.inspection.explorer.page import MOST_EVENTS, MOST_VALUES, page_event, sample_maps
from perceiver.types import Axis, Box
from tests.inspection.explanations import arrays_of, example_explanation, unpacked
from tests.inspection.models import EveryWord, direct_text, perceiver, perceiver_io, perceiver_text

EVERYTHING = 10**9
MAKERS = [perceiver, perceiver_io, perceiver_text, direct_text]


def on_page(explanation: Explanation, weights: torch.Tensor, modality: str) -> np.ndarray:
    """Weights over keys -> rows and columns from the top down; only frequencies run upwards."""
    span = explanation.record.spans[modality]
    maps = weights[..., span.start : span.stop].reshape(*weights.shape[:-1], *span.grid.shape).numpy()
    return np.flip(maps, axis=-2) if modality == "audio" else maps


def summed(maps: np.ndarray, down: int, across: int) -> np.ndarray:
    rows = [maps[..., start : start + down, :].sum(axis=-2) for start in range(0, maps.shape[-2], down)]
    maps = np.stack(rows, axis=-2)
    return np.stack(
        [maps[..., start : start + across].sum(axis=-1) for start in range(0, maps.shape[-1], across)], axis=-1
    )


def assert_maps_are(content: dict[str, Any], explanation: Explanation, weights: torch.Tensor) -> None:
    """The packed maps are the weights, as exact as 8 bits of a square root can be."""
    found = unpacked(content)
    assert [cells["modality"] for cells in content["cells"]] == list(found) == ["image", "audio"]
    for cells in content["cells"]:
        expected = summed(on_page(explanation, weights, cells["modality"]), *cells["pooled"])
        values = found[cells["modality"]]
        assert values.shape == expected.shape
        np.testing.assert_allclose(values.sum(axis=(-2, -1)), expected.sum(axis=(-2, -1)), atol=2e-3)
        # Half a level of a square root, and what a whole map is scaled by for it to have its mass.
        assert np.abs(values - expected).max() < 0.012 * expected.max() + 1e-4


@pytest.mark.parametrize("most_values", [EVERYTHING, 1801])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_maps_are_the_exact_ones_pooled(make, most_values, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (1009, 29, 13))
    explanation = example_explanation(make)
    arrays = arrays_of(explanation)
    for row in range(3):
        content = sample_maps(arrays, row, most_values=most_values)
        num_answers = len(explanation.answers[row])
        assert [layer["name"] for layer in content["layers"]] == explanation.record.input_layers
        for layer in content["layers"]:
            weights = explanation.record.layers[layer["name"]].weights(layer["queries"])[row]
            assert layer["maps"]["count"] == [layer["num_heads"], len(layer["queries"])] == list(weights.shape[:2])
            assert_maps_are(layer["maps"], explanation, weights)
        relevance, rollout = content["methods"]
        assert_maps_are(rollout["maps"], explanation, explanation.rollout.inputs[row, :num_answers])
        mass = explanation.relevance[row, :num_answers].sum(dim=-1, keepdim=True)
        assert_maps_are(relevance["maps"], explanation, explanation.relevance[row, :num_answers] / mass)
        assert rollout["residual"] == pytest.approx(explanation.rollout.residual[row, :num_answers].tolist(), abs=1e-3)
        assert relevance["residual"] is None
        pooled = {tuple(cells["pooled"]) for layer in content["layers"] for cells in layer["maps"]["cells"]}
        assert (pooled == {(1, 1)}) == (most_values == EVERYTHING)


def test_high_frequencies_are_on_top_and_the_first_rows_of_images_too():
    explanation = example_explanation(perceiver_io)
    arrays = arrays_of(explanation)
    spans = explanation.record.spans
    weights = np.zeros_like(arrays["cross0/weights"])
    weights[..., spans["image"].start + 1] = 0.25  # first row, second column
    weights[..., spans["audio"].stop - 2] = 0.75  # highest frequency, last column but one
    found = unpacked(sample_maps(arrays | {"cross0/weights": weights}, 1, most_values=EVERYTHING)["layers"][0]["maps"])
    for modality, place, weight in (("image", (0, 1), 0.25), ("audio", (0, 35), 0.75)):
        expected = np.zeros((4, 5) if modality == "image" else (3, 37))
        expected[place] = weight
        np.testing.assert_allclose(found[modality], np.broadcast_to(expected, found[modality].shape), rtol=1e-6)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_answers_are_those_of_the_explanation_with_their_probability(make):
    explanation = example_explanation(make)
    arrays = arrays_of(explanation)
    for row, answers in enumerate(explanation.answers):
        content = sample_maps(arrays, row, most_values=EVERYTHING)
        assert [answer["name"] for answer in content["answers"]] == [answer.name for answer in answers]
        assert [answer["is_word"] for answer in content["answers"]] == [make in (perceiver_text, direct_text)] * len(
            answers
        )
        shown = [float(answer["detail"]) for answer in content["answers"]]
        assert shown == pytest.approx(explanation.probability[row, : len(answers)].tolist(), abs=6e-4)
        for layer in content["layers"]:
            assert len(layer["rollout"]) == len(answers)


@pytest.mark.parametrize(("alpha", "label"), [(0.3, "rollout, α = 0.3"), ("norm", "rollout, norm-weighted")])
def test_the_rollout_is_named_by_its_alpha(alpha, label):
    content = sample_maps(arrays_of(example_explanation(alpha=alpha)), 0, most_values=EVERYTHING)
    assert content["methods"][1]["label"] == label


@pytest.mark.parametrize("most_values", [900, 2003, 3001, EVERYTHING])
def test_of_many_latents_those_are_kept_that_the_answers_read_most(most_values, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (29,))
    explanation = example_explanation(perceiver)
    arrays = arrays_of(explanation)
    for row in range(3):
        layers = sample_maps(arrays, row, most_values=most_values)["layers"]
        read = torch.stack(
            [explanation.rollout.latents[name][row].sum(dim=0) for name in explanation.record.input_layers]
        )
        kept = layers[0]["queries"]
        assert kept == sorted(read.sum(dim=0).argsort(descending=True)[: len(kept)].tolist())
        assert (len(kept) < 11) == (most_values < EVERYTHING)
        for layer in layers:
            assert layer["queries"] == kept, "the same in all cross-attends"
            assert layer["num_queries"] == 11
            weights = explanation.record.layers[layer["name"]].weights(kept)[row].double()
            rows = torch.cat([weights, weights.mean(dim=0, keepdim=True)])
            assert np.array(layer["entropy"]).shape == (3 + 1, len(kept))
            np.testing.assert_allclose(layer["entropy"], torch.special.entr(rows).sum(dim=-1), atol=5e-3)
            np.testing.assert_allclose(
                layer["rollout"], explanation.rollout.latents[layer["name"]][row][:, kept], atol=1e-3
            )


def test_latents_that_an_event_did_not_store_are_not_in_the_page():
    explanation = example_explanation(perceiver)
    arrays = event_arrays(explanation, max_megabytes=3 * 5 * 3 * 3 * 131 * 2 / 2**20)
    for row in range(3):
        (kept,) = {tuple(layer["queries"]) for layer in sample_maps(arrays, row, most_values=EVERYTHING)["layers"]}
        assert list(kept) == arrays["cross0/latents"][row].tolist()
        assert len(kept) == 5
        for layer in sample_maps(arrays, row, most_values=EVERYTHING)["layers"]:
            assert layer["num_queries"] == 11
            assert_maps_are(
                layer["maps"], explanation, explanation.record.layers[layer["name"]].weights(list(kept))[row]
            )
            np.testing.assert_allclose(
                layer["rollout"], explanation.rollout.latents[layer["name"]][row][:, list(kept)], atol=1e-3
            )


def test_layers_with_different_queries_are_grouped_separately():
    """Latents read the tokens, and the outputs do so, too."""
    arrays = arrays_of(example_explanation(perceiver))
    decoder_queries = {
        "ask0/query_kind": np.array("query"),
        "ask0/latents": arrays["cross0/latents"][:, :5],
        "ask0/weights": arrays["cross0/weights"][:, :, :5],
        "ask0/reads": arrays["cross0/reads"][..., :5],
    }
    layers = sample_maps(arrays | decoder_queries, 1, most_values=EVERYTHING)["layers"]
    counts = {layer["name"]: (layer["num_queries"], len(layer["queries"])) for layer in layers}
    assert counts == dict.fromkeys(("cross0", "cross1", "cross2"), (11, 11)) | {"ask0": (5, 5)}


def num_values(content: dict[str, Any]) -> int:
    """Bytes of all maps of a sample before they are compressed."""
    packs = [part["maps"] for part in (*content["layers"], *content["methods"])]
    return sum(math.prod(maps["count"]) * sum(math.prod(cells["shape"]) for cells in maps["cells"]) for maps in packs)


@pytest.mark.parametrize("most_values", [3_001, 10_007, 30_011, 100_003])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_maps_stay_within_their_limit_of_bytes(make, most_values, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (111, 53, 29, 13, 3))
    arrays = arrays_of(example_explanation(make))
    for row in range(3):
        assert num_values(sample_maps(arrays, row, most_values=most_values)) <= most_values


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_there_is_at_least_one_latent(make):
    arrays = arrays_of(example_explanation(make))
    content = sample_maps(arrays, 0, most_values=1)
    assert {len(layer["queries"]) for layer in content["layers"]} == {1}
    assert all(np.isfinite(values).all() for values in unpacked(content["layers"][0]["maps"]).values())


def test_a_sample_of_the_largest_models_takes_less_than_two_megabytes():
    """512 latents that read 50,176 tokens, in as many events as a page has."""
    num_latents, side = 512, 224
    noise = np.random.default_rng(1).dirichlet(np.full(side * side, 0.05)).astype(np.float16)
    weights = np.broadcast_to(noise, (1, 1, num_latents, side * side))
    answers = [{"name": f"class {label}", "label": label, "boxes": []} for label in range(3)]
    axes = [Axis("y", "px", 0.0, side), Axis("x", "px", 0.0, side)]
    arrays = {
        "ids": np.array(["a"]),
        "step": np.array(1),
        "epoch": np.array(0),
        "grid/image": np.array([side, side]),
        "span/image": np.array([0, side * side]),
        "axes/image": np.array(json.dumps([vars(axis) for axis in axes])),
        "answers": np.array(json.dumps([answers])),
        "answers/probability": np.full((1, 3), 0.3),
        "rollout/inputs": np.broadcast_to(noise, (1, 3, side * side)),
        "rollout/residual": np.full((1, 3), 0.5),
        "rollout/alpha": np.array(0.5),
        "relevance/inputs": np.broadcast_to(noise, (1, 3, side * side)),
        "cross0/weights": weights,
        "cross0/query_kind": np.array("latent"),
        "cross0/latents": np.arange(num_latents)[None],
        "cross0/reads": np.full((1, 3, num_latents), 1 / num_latents),
    }
    content = page_event(arrays).maps["a"]
    assert num_values(content) <= MOST_VALUES // MOST_EVENTS
    assert len(json.dumps(content)) < 2 * 2**20 / MOST_EVENTS
    (layer,) = content["layers"]
    assert len(layer["queries"]) >= 32
    assert unpacked(layer["maps"])["image"].sum(axis=(-2, -1)) == pytest.approx(float(noise.sum(dtype=float)), rel=1e-3)


@pytest.mark.parametrize(("make", "shared"), [(perceiver, True), (perceiver_io, False), (perceiver_text, False)])
def test_rollouts_are_shared_where_no_answer_has_queries_of_its_own(make, shared):
    content = sample_maps(arrays_of(example_explanation(make)), 0, most_values=EVERYTHING)
    assert len(content["answers"]) > 1
    assert [method["shared"] for method in content["methods"]] == [False, shared]


def test_the_one_answer_of_a_sample_shares_its_rollout_with_none():
    arrays = arrays_of(example_explanation(perceiver))
    first = [row[:1] for row in json.loads(str(arrays["answers"]))]
    content = sample_maps(arrays | {"answers": np.array(json.dumps(first))}, 1, most_values=EVERYTHING)
    assert len(content["answers"]) == 1
    assert content["methods"][1]["maps"]["count"] == [1]
    assert not content["methods"][1]["shared"]


def test_a_sample_without_answers_has_its_latents():
    arrays = arrays_of(example_explanation(perceiver))
    answers = json.loads(str(arrays["answers"]))
    answers[1] = []
    content = sample_maps(arrays | {"answers": np.array(json.dumps(answers))}, 1, most_values=EVERYTHING)
    assert content["answers"] == []
    assert [method["maps"]["count"] for method in content["methods"]] == [[0], [0]]
    assert len(content["layers"][0]["queries"]) == 11


def test_boxes_of_a_class_are_all_that_have_its_label_as_fractions_of_the_plane():
    plain = example_explanation(perceiver)
    best, second = (answer.label for answer in plain.answers[1][:2])
    boxes = [
        Box(best, "image", {"y": (3.0, 6.0), "x": (0.0, 7.5)}),
        Box(best, "audio", {"time": (0.25, 0.5)}),
        Box(best, "image", {"y": (100.0, 101.0)}),
        Box(second, "image", {}),
    ]
    explanation = example_explanation(perceiver, boxes=[None, boxes, [Box(best, "image", {})]])
    content = sample_maps(arrays_of(explanation), 1, most_values=EVERYTHING)
    first, other, third = (answer["boxes"] for answer in content["answers"])
    grids = {modality: span.grid for modality, span in explanation.record.spans.items()}
    rows, columns = grids["image"].axes
    (box,) = first["image"]
    assert box == pytest.approx(
        {"left": 0.0, "top": 3 / rows.stop, "right": 7.5 / columns.stop, "bottom": 6 / rows.stop}
    )
    (heard,) = first["audio"]
    assert (heard["top"], heard["bottom"]) == (0.0, 1.0)
    assert (heard["left"], heard["right"]) == pytest.approx(
        tuple(grids["audio"].axes[1].fraction(second) for second in (0.25, 0.5))
    )
    assert other == {"image": [{"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}]}
    assert third == {}
    assert all(
        answer["boxes"] == {} for answer in sample_maps(arrays_of(explanation), 0, most_values=EVERYTHING)["answers"]
    )


def test_boxes_of_a_sound_have_high_frequencies_on_top():
    label = example_explanation(perceiver).answers[2][0].label
    box = Box(label, "audio", {"frequency": (300.0, 900.0)})
    explanation = example_explanation(perceiver, boxes=[[], [], [box]])
    (found,) = sample_maps(arrays_of(explanation), 2, most_values=EVERYTHING)["answers"][0]["boxes"]["audio"]
    axis = explanation.record.spans["audio"].grid.axes[0]
    assert found["top"] == pytest.approx(1 - axis.fraction(900.0))
    assert found["bottom"] == pytest.approx(1 - axis.fraction(300.0))
    assert found["top"] < found["bottom"]


def test_boxes_of_a_word_are_its_own():
    own, others = Box(0, "image", {"x": (0.0, 7.5)}), [[Box(0, "image", {})]] * 3
    facts = [EveryWord(own), None, EveryWord()]
    explanation = example_explanation(perceiver_text, facts=facts, boxes=others)
    arrays = arrays_of(explanation)
    right = 7.5 / explanation.record.spans["image"].grid.axes[1].stop
    for row, expected in enumerate(([{"left": 0.0, "top": 0.0, "right": right, "bottom": 1.0}], None, None)):
        for answer in sample_maps(arrays, row, most_values=EVERYTHING)["answers"]:
            assert answer["boxes"] == ({} if expected is None else {"image": [pytest.approx(expected[0])]})
