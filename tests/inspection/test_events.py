import json

import numpy as np
import pytest
import torch

from perceiver.inspection.events import event_arrays, event_path, event_paths, with_scores, write_arrays
from perceiver.inspection.rollout import mean_of_queries, rollout
from perceiver.mechanisms.base import ENCODE, SELF
from perceiver.types import Answer, Axis, Box
from tests.inspection.explanations import explain
from tests.inspection.models import EveryWord, direct_text, perceiver, perceiver_io, perceiver_text, some_masks
from tests.models import NUM_CLASSES, small_inputs

MAKERS = [perceiver, perceiver_io, perceiver_text, direct_text]


@pytest.mark.parametrize("alpha", [0.3, "norm"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_arrays_are_those_of_the_explanation_and_load_without_pickle(make, alpha, tmp_path):
    inputs = small_inputs()
    explanation = explain(make(), inputs, some_masks(), alpha=alpha, words=["a", "b", "c"])
    record = explanation.record
    write_arrays(tmp_path / "event.npz", event_arrays(explanation, max_megabytes=7))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["s/0", "s/1", "s/2"]
        assert "target/words" not in arrays
        assert ("target/label" in arrays) == (make in (perceiver, perceiver_io))
        for name, raw in inputs.items():
            np.testing.assert_allclose(arrays[f"input/{name}"], raw, atol=1e-3)
            span = record.spans[name]
            assert (*arrays[f"grid/{name}"], *arrays[f"span/{name}"]) == (*span.grid.shape, span.start, span.stop)
        kept = [name for name, layer in record.layers.items() if layer.role not in (SELF, ENCODE)]
        assert {name.removesuffix("/weights") for name in arrays if name.endswith("/weights")} == set(kept)
        for name in kept:
            assert arrays[f"{name}/weights"].dtype == np.float16
            np.testing.assert_allclose(arrays[f"{name}/weights"], record.layers[name].weights(), atol=3e-4)
        for name in record.input_layers:
            assert (arrays[f"{name}/latents"] == np.arange(record.layers[name].num_queries)).all()
            np.testing.assert_allclose(arrays[f"{name}/reads"], explanation.rollout.latents[name], atol=3e-4)
        np.testing.assert_allclose(arrays["rollout/inputs"], explanation.rollout.inputs, atol=3e-4)
        np.testing.assert_allclose(arrays["rollout/residual"], explanation.rollout.residual, atol=3e-4)
        assert arrays["rollout/alpha"] == alpha
        np.testing.assert_allclose(arrays["answers/probability"], explanation.probability)
        if make in (perceiver, perceiver_io):
            assert arrays["target/label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_relevance_is_stored_as_shares_since_it_has_no_unit(make):
    explanation = explain(make(), small_inputs())
    found = event_arrays(explanation, max_megabytes=7)["relevance/inputs"].astype(np.float32)
    expected = explanation.relevance.numpy()
    mass = expected.sum(axis=-1, keepdims=True)
    assert (mass > 0).any()
    np.testing.assert_allclose(found.sum(axis=-1, keepdims=True), mass > 0, atol=3e-3)
    np.testing.assert_allclose(found * mass, expected, atol=1e-3 * mass.max())


def test_ids_of_a_text_are_stored_exactly():
    """Float16 has not all numbers from 2049 on."""
    explanation = explain(perceiver(), small_inputs())
    explanation.batch.inputs["text"] = torch.tensor([[[2049, 4099, 8191]]] * 3)
    kept = event_arrays(explanation, max_megabytes=1)["input/text"]
    assert kept.tolist() == [[[2049, 4099, 8191]]] * 3


@pytest.mark.parametrize(("max_megabytes", "kept"), [(0.0, 1), (3 * 5 * 3 * 3 * 55 * 2 / 2**20, 5), (1.0, 11)])
def test_weights_stay_in_their_budget_by_keeping_the_latents_that_are_read_most(max_megabytes, kept):
    explanation = explain(perceiver(), small_inputs())
    captured, arrays = explanation.record, event_arrays(explanation, max_megabytes=max_megabytes)
    most_read = explanation.query_rankings["cross0"][:, :kept].sort(dim=1).values
    for name in captured.input_layers:
        latents = torch.from_numpy(arrays[f"{name}/latents"])
        assert torch.equal(latents, most_read)
        whole = captured.layers[name].weights()
        expected = torch.stack([whole[sample, :, chosen] for sample, chosen in enumerate(latents)])
        np.testing.assert_allclose(arrays[f"{name}/weights"], expected, atol=3e-4)
        assert arrays[f"{name}/reads"].shape == (3, 3, 11), "that of all, kept or not"
    stored = sum(values.nbytes for name, values in arrays.items() if name.startswith("cross") and "weights" in name)
    assert stored <= max(max_megabytes * 2**20, 3 * 3 * 3 * 55 * 2)


def test_axes_and_boxes_can_be_read_back_without_pickle(tmp_path):
    boxes = [[Box(2, "image", {"y": (1.0, 5.5)}), Box(0, "depth", {})], [], [Box(1, "image", {"x": (0.0, 13.0)})]]
    explanation = explain(perceiver(), small_inputs(), boxes=boxes)
    write_arrays(tmp_path / "event.npz", event_arrays(explanation, max_megabytes=1))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        for name, span in explanation.record.spans.items():
            axes = tuple(Axis(**fields) for fields in json.loads(str(arrays[f"axes/{name}"])))
            assert axes == span.grid.axes
        found = [
            [
                Box(fields["label"], fields["modality"], {k: tuple(v) for k, v in fields["ranges"].items()})
                for fields in row
            ]
            for row in json.loads(str(arrays["boxes"]))
        ]
        assert found == boxes


def test_boxes_are_stored_for_samples_that_have_them():
    explanation = explain(perceiver(), small_inputs(), boxes=[None, [Box(2, "image", {})], None])
    arrays = event_arrays(explanation, max_megabytes=1)
    assert [len(row) for row in json.loads(str(arrays["boxes"]))] == [0, 1, 0]


def read_answers(arrays: dict[str, np.ndarray]) -> list[list[Answer]]:
    """The answers of an event as they were before they were written."""
    rows = json.loads(str(arrays["answers"]))
    for row in rows:
        for fields in row:
            boxes = [
                Box(box["label"], box["modality"], {axis: tuple(ends) for axis, ends in box["ranges"].items()})
                for box in fields["boxes"]
            ]
            fields |= {"queries": tuple(fields["queries"]), "ids": tuple(fields["ids"]), "boxes": tuple(boxes)}
    return [[Answer(**fields) for fields in row] for row in rows]


def test_words_can_be_read_back_with_their_queries(tmp_path):
    facts = [EveryWord(Box(2, "image", {"y": (1.0, 5.5)})), None, EveryWord()]
    explanation = explain(perceiver_text(), small_inputs(), facts=facts)
    write_arrays(tmp_path / "event.npz", event_arrays(explanation, max_megabytes=1))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        found = read_answers(arrays)
        assert found == explanation.answers
        assert all(len(answer.ids) == len(answer.queries) > 0 for row in found for answer in row)
        assert [bool(row) and all(answer.boxes for answer in row) for row in found] == [True, False, False]
        num_queries = arrays["decode0/weights"].shape[2]
        for name in ("decode_self0", "decode_self1"):
            weights = arrays[f"{name}/weights"]
            assert weights.shape == (3, 2, num_queries, num_queries)
            assert (np.triu(weights, k=1) == 0).all()
            np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=2e-3)
        readers = mean_of_queries([[answer.queries for answer in row] for row in found], num_queries)
        np.testing.assert_allclose(
            arrays["rollout/inputs"], rollout(explanation.record, query_weights=readers).inputs, atol=3e-4
        )


@pytest.mark.parametrize("make", [perceiver, perceiver_io], ids=lambda make: make.__name__)
def test_classes_can_be_read_back_with_their_probability(make):
    explanation = explain(make(), small_inputs())
    arrays = event_arrays(explanation, max_megabytes=1)
    found = read_answers(arrays)
    assert found == explanation.answers
    probability = explanation.record.outputs["logits"].softmax(dim=-1)
    assert probability.shape == (3, NUM_CLASSES)
    labels = torch.tensor([[answer.label for answer in row] for row in found])
    assert torch.equal(labels, probability.topk(3).indices)
    np.testing.assert_allclose(arrays["answers/probability"], probability.gather(1, labels), rtol=1e-5)


def test_scores_are_added_to_the_arrays():
    arrays = {"ids": np.array(["a"])}
    found = with_scores(arrays, {"stat/cross0/entropy": 1.5, "energy_in_box": 0.25})
    assert {name: values.tolist() for name, values in found.items()} == {
        "ids": ["a"],
        "score/stat/cross0/entropy": 1.5,
        "score/energy_in_box": 0.25,
    }
    assert list(arrays) == ["ids"]


def test_events_are_found_by_their_step_and_in_order(tmp_path):
    for step in (1009, 7, 211, 100_000_007):
        write_arrays(event_path(tmp_path, step), {"step": np.array(step)})
    (tmp_path / "inputs.npz").touch()
    (tmp_path / "step_00000013.part").touch()
    found = event_paths(tmp_path)
    assert list(found) == [7, 211, 1009, 100_000_007]
    for step, path in found.items():
        with np.load(path) as arrays:
            assert arrays["step"] == step


def test_a_write_error_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = event_path(tmp_path, 3)
    write_arrays(path, {"step": np.array(3)})

    def full(file, **arrays):
        file.write(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="space"):
        write_arrays(path, {"step": np.array(5)})
    with np.load(path) as arrays:
        assert arrays["step"] == 3
    assert list(event_paths(tmp_path)) == [3]
