"""What the explorer's page is made of: the same numbers as the exact ones of the event, in few bytes."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from perceiver.inspection.explorer import page as explorer_module
from perceiver.inspection.explorer.packing import sum_pooled
from perceiver.inspection.explorer.page import MAX_EVENTS, MAX_VALUES, page_event, sample_maps
from perceiver.inspection.maps.explanation import Explanation
from perceiver.roles import TOKENS
from perceiver.types import Axis, Box
from tests.inspection.explanations import arrays_of, example_explanation, unpacked
from tests.inspection.models import MODELS, perceiver, perceiver_io, perceiver_text

EVERYTHING = 10**9


def on_page(explanation: Explanation, weights: torch.Tensor, modality: str) -> np.ndarray:
    """Weights over keys -> rows and columns from the top down; only frequencies run upwards."""
    span = explanation.record.spans[modality]
    maps = weights[..., span.start : span.stop].reshape(*weights.shape[:-1], *span.grid.shape).numpy()
    return np.flip(maps, axis=-2) if modality == "audio" else maps


def assert_maps_are(content: dict[str, Any], explanation: Explanation, weights: torch.Tensor) -> None:
    """The packed maps are the weights, as exact as 8 bits of a square root can be."""
    found = unpacked(content)
    assert [cells["modality"] for cells in content["cells"]] == list(found) == ["image", "audio"]
    for cells in content["cells"]:
        expected = sum_pooled(on_page(explanation, weights, cells["modality"]), cells["pooled"])
        values = found[cells["modality"]]
        assert values.shape == expected.shape
        np.testing.assert_allclose(values.sum(axis=(-2, -1)), expected.sum(axis=(-2, -1)), atol=2e-3)
        # Half a level of a square root, and what a whole map is scaled by for it to have its mass.
        assert np.abs(values - expected).max() < 0.012 * expected.max() + 1e-4


@pytest.mark.parametrize("max_values", [EVERYTHING, 1801])
@MODELS
def test_answers_and_maps_are_the_exact_ones_pooled(make, max_values, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (1009, 29, 13))
    explanation = example_explanation(make)
    arrays = arrays_of(explanation)
    for row, answers in enumerate(explanation.answers):
        content = sample_maps(arrays, row, max_values=max_values)
        num_answers = len(answers)
        shown = [(answer["name"], answer["is_word"]) for answer in content["answers"]]
        assert shown == [(answer.name, answer.is_word) for answer in answers]
        probability = [float(answer["detail"]) for answer in content["answers"]]
        assert probability == pytest.approx(explanation.probability[row, :num_answers].tolist(), abs=6e-4)
        assert [layer["name"] for layer in content["layers"]] == explanation.record.input_layers
        for layer in content["layers"]:
            weights = explanation.record.layers[layer["name"]].weights(layer["queries"])[row]
            assert layer["maps"]["count"] == [layer["num_heads"], len(layer["queries"])] == list(weights.shape[:2])
            assert_maps_are(layer["maps"], explanation, weights)
        *decoder, relevance, rollout = content["methods"]
        assert [method["name"] for method in decoder] == (["decoder"] if explanation.record.memory == TOKENS else [])
        for method in decoder:
            assert_maps_are(method["maps"], explanation, explanation.decoder_attention[row, :num_answers])
        assert_maps_are(rollout["maps"], explanation, explanation.rollout.inputs[row, :num_answers])
        mass = explanation.relevance[row, :num_answers].sum(dim=-1, keepdim=True)
        assert_maps_are(relevance["maps"], explanation, explanation.relevance[row, :num_answers] / mass)
        assert rollout["residual"] == pytest.approx(explanation.rollout.residual[row, :num_answers].tolist(), abs=1e-3)
        assert relevance["residual"] is None
        pooled = {tuple(cells["pooled"]) for layer in content["layers"] for cells in layer["maps"]["cells"]}
        assert (pooled == {(1, 1)}) == (max_values == EVERYTHING)


@pytest.mark.parametrize(
    ("max_values", "stored"), [(900, 11), (2003, 11), (3001, 11), (EVERYTHING, 11), (EVERYTHING, 5), (1, 11)]
)
def test_of_many_latents_those_are_kept_that_are_stored_and_that_the_answers_read_most(max_values, stored, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (29,))
    explanation = example_explanation(perceiver)
    arrays = arrays_of(explanation, max_megabytes=3 * stored * 3 * 3 * 131 * 2 / 2**20)
    for row in range(3):
        layers = sample_maps(arrays, row, max_values=max_values)["layers"]
        read = torch.stack(
            [explanation.rollout.latents[name][row].sum(dim=0) for name in explanation.record.input_layers]
        )
        kept = layers[0]["queries"]
        if stored == 11:
            assert kept == sorted(read.sum(dim=0).argsort(descending=True)[: len(kept)].tolist())
            assert (0 < len(kept) < 11) == (max_values < EVERYTHING)
        else:
            assert kept == arrays["cross0/latents"][row].tolist()
            assert len(kept) == stored
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


def num_values(content: dict[str, Any]) -> int:
    """Bytes of all maps of a sample before they are compressed."""
    packs = [part["maps"] for part in (*content["layers"], *content["methods"])]
    return sum(math.prod(maps["count"]) * sum(math.prod(cells["shape"]) for cells in maps["cells"]) for maps in packs)


@pytest.mark.parametrize("max_values", [3_001, 10_007, 100_003])
@MODELS
def test_maps_stay_within_their_limit_of_bytes(make, max_values, monkeypatch):
    monkeypatch.setattr(explorer_module, "CELLS", (111, 53, 29, 13, 3))
    arrays = arrays_of(example_explanation(make))
    for row in range(3):
        assert num_values(sample_maps(arrays, row, max_values=max_values)) <= max_values


def test_a_sample_of_the_largest_models_takes_less_than_two_megabytes():
    """512 latents that read 50,176 tokens, in as many events as a page has."""
    num_latents, side = 512, 224
    noise = np.random.default_rng(1).dirichlet(np.full(side * side, 0.05)).astype(np.float16)
    weights = np.broadcast_to(noise, (1, 1, num_latents, side * side))
    answers = [{"name": f"class {label}", "label": label, "output": "logits", "boxes": []} for label in range(3)]
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
    assert num_values(content) <= MAX_VALUES // MAX_EVENTS
    assert len(json.dumps(content)) < 2 * 2**20 / MAX_EVENTS
    (layer,) = content["layers"]
    assert len(layer["queries"]) >= 32
    assert unpacked(layer["maps"])["image"].sum(axis=(-2, -1)) == pytest.approx(float(noise.sum(dtype=float)), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "alpha", "shared"), [(perceiver, 0.3, True), (perceiver_io, "norm", False), (perceiver_text, 0.3, False)]
)
def test_the_rollout_of_several_answers_is_shared_if_none_has_queries_of_its_own(make, alpha, shared):
    arrays = arrays_of(example_explanation(make, alpha=alpha))
    rows = json.loads(str(arrays["answers"]))
    for num_answers in (len(rows[0]), 1, 0):
        answers = np.array(json.dumps([row[:num_answers] for row in rows]))
        content = sample_maps(arrays | {"answers": answers}, 0, max_values=EVERYTHING)
        assert len(content["answers"]) == num_answers
        assert [method["maps"]["count"] for method in content["methods"]] == [[num_answers]] * 2
        assert [method["shared"] for method in content["methods"]] == [False, shared and num_answers > 1]
        assert len(content["layers"][0]["queries"]) == 11
        assert ("norm" if alpha == "norm" else "0.3") in content["methods"][1]["label"]


def test_boxes_of_an_answer_are_outlined_on_their_modality_and_frequencies_run_upwards():
    best, second = (answer.label for answer in example_explanation(perceiver).answers[1][:2])
    boxes = [
        Box(best, "image", {"y": (3.0, 6.0), "x": (0.0, 7.5)}),
        Box(best, "audio", {"time": (0.25, 0.5), "frequency": (300.0, 900.0)}),
        Box(best, "image", {"y": (100.0, 101.0)}),
        Box(second, "image", {}),
    ]
    explanation = example_explanation(perceiver, boxes=[None, boxes, None])
    arrays = arrays_of(explanation)
    found = [answer["boxes"] for answer in sample_maps(arrays, 1, max_values=EVERYTHING)["answers"]]
    (y, x), (frequency, time) = (explanation.record.spans[name].grid.axes for name in ("image", "audio"))
    in_image = {"left": 0.0, "top": 3 / y.stop, "right": 7.5 / x.stop, "bottom": 6 / y.stop}
    in_sound = {"left": time.fraction(0.25), "top": 1 - frequency.fraction(900.0)}
    in_sound |= {"right": time.fraction(0.5), "bottom": 1 - frequency.fraction(300.0)}
    assert found[0] == {"image": [pytest.approx(in_image)], "audio": [pytest.approx(in_sound)]}
    assert found[1] == {"image": [{"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}]}
    assert found[2] == {}
    assert all(answer["boxes"] == {} for answer in sample_maps(arrays, 0, max_values=EVERYTHING)["answers"])
