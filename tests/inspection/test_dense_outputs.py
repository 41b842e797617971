"""Classes of a dense output are explained from their places, and each place is traced back to the input."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perceiver.inspection.explorer.events import event_arrays
from perceiver.inspection.writer import ExplanationWriter
from tests.inspection.dense import SIZE, dense_page, explained_places, explainer_of_places
from tests.inspection.explanations import arrays_of, contents_of, unpacked

PLACES = SIZE[0] * SIZE[1]


@pytest.mark.parametrize("chunk_size", [29, 1009], ids=["chunks", "whole"])
def test_a_class_has_the_mean_rollout_and_probability_of_its_places(chunk_size):
    explanation = explained_places(chunk_size)
    record = explanation.record
    rollouts = record.rollout(output="logits", alpha=0.3).inputs
    assert_close(explanation.place_rollout("logits", [3, 71]), rollouts[:, [3, 71]])
    labels = record.outputs["logits"].argmax(dim=-1)
    for row, answers in enumerate(explanation.answers):
        assert sum(len(answer.queries) for answer in answers) == PLACES
        for slot, answer in enumerate(answers):
            places = (labels[row] == answer.label).nonzero()[:, 0]
            assert sorted(answer.queries) == places.tolist()
            assert explanation.has_own_queries(answer)
            assert_close(explanation.rollout.inputs[row, slot], rollouts[row, places].mean(dim=0))
            logs = record.outputs["logits"][row, places].log_softmax(dim=-1)[:, answer.label]
            assert_close(explanation.probability[row, slot], logs.mean().exp())
            assert explanation.relevance[row, slot].ge(0).all()


def test_events_and_pages_have_the_rollout_from_each_place():
    explanation = explained_places()
    arrays = arrays_of(explanation)
    np.testing.assert_allclose(
        arrays["logits/places/weights"][:, 0], explanation.place_rollout("logits", range(PLACES)), atol=1e-3, rtol=1e-3
    )
    assert arrays["logits/places/reads"].sum(axis=-1) == pytest.approx(1.0, abs=0.02)
    _, maps = contents_of(dense_page(explanation))
    for row, content in enumerate(maps):
        *_, layer = content["layers"]
        assert (layer["name"], layer["query_kind"]) == ("logits/places", "place")
        assert layer["queries"] == list(range(PLACES))
        centers = torch.tensor(layer["places"]).reshape(*SIZE, 2)
        assert_close(centers[3, 5], torch.tensor([3.5 / SIZE[0], 5.5 / SIZE[1]]), atol=1e-4, rtol=0.0)
        found = unpacked(layer["maps"])["image"][0]
        expected = explanation.place_rollout("logits", range(PLACES))[row]
        np.testing.assert_allclose(found.reshape(PLACES, -1), expected, atol=0.02)
        assert all(other["places"] is None for other in content["layers"][:-1])


def test_of_many_places_an_event_has_as_many_as_fit():
    explanation = explained_places()
    bytes_of_a_place = 2 * explanation.relevance[:, 0].numel()
    arrays = event_arrays(explanation, max_megabytes=7.5 * bytes_of_a_place / 2**20)
    kept = arrays["logits/places/latents"]
    assert kept.tolist() == [[0, 24, 47, 71, 95, 118, 142]] * 2
    expected = explanation.place_rollout("logits", kept[0].tolist())
    np.testing.assert_allclose(arrays["logits/places/weights"][:, 0], expected, atol=1e-3, rtol=1e-3)


def test_pictures_of_predictions_are_drawn_for_all_samples():
    explainer, explanation = explainer_of_places(), explained_places()
    pictures = ExplanationWriter.of_model(explainer, explanation, lambda modality, raw: None).predictions(explainer)
    assert {name: len(of_samples) for name, of_samples in pictures.items()} == {"mask": 2, "overlay": 2}
    labels = explanation.record.outputs["logits"].argmax(dim=-1).reshape(-1, *SIZE)
    for mask, expected in zip(pictures["mask"], labels, strict=True):
        assert np.array_equal(np.array(mask), expected)
