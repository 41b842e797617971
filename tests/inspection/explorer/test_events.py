"""Event files: what they store of an explanation, and that it is read back without this package."""

import json

import numpy as np
import pytest
import torch

from perceiver.inspection.explorer.events import event_arrays, event_path, event_paths, write_arrays
from perceiver.roles import ENCODE, SELF
from perceiver.types import Answer, Axis, Box
from tests.inspection.explanations import explain
from tests.inspection.models import (
    EveryWord,
    direct_text,
    perceiver,
    perceiver_io,
    perceiver_joint,
    perceiver_text,
    some_masks,
    without_end,
)
from tests.models import small_inputs

BOXES = [[Box(2, "image", {"y": (1.0, 5.5)}), Box(0, "depth", {})], None, [Box(1, "image", {"x": (0.0, 13.0)})]]


def boxes_in(fields: list[dict]) -> tuple[Box, ...]:
    return tuple(
        Box(box["label"], box["modality"], {axis: tuple(ends) for axis, ends in box["ranges"].items()})
        for box in fields
    )


def answers_in(arrays) -> list[list[Answer]]:
    rows = json.loads(str(arrays["answers"]))
    for fields in (fields for row in rows for fields in row):
        fields |= {"queries": tuple(fields["queries"]), "ids": tuple(fields["ids"]), "boxes": boxes_in(fields["boxes"])}
    return [[Answer(**fields) for fields in row] for row in rows]


@pytest.mark.parametrize(
    ("make", "alpha"),
    [(perceiver, 0.3), (perceiver_io, "norm"), (perceiver_text, 0.3), (direct_text, "norm"), (perceiver_joint, 0.3)],
)
def test_arrays_are_those_of_the_explanation_and_load_without_pickle(make, alpha, tmp_path):
    inputs, facts = small_inputs(), [EveryWord(BOXES[0][0])] * 3
    model, options = without_end(make()), {"alpha": alpha, "words": ["a", "b", "c"], "facts": facts, "boxes": BOXES}
    explanation = explain(model, inputs, some_masks(), **options)
    record, found = explanation.record, explanation.rollout
    write_arrays(tmp_path / "event.npz", event_arrays(explanation, max_megabytes=7))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["ids"].tolist() == explanation.batch.ids
    assert {name for name in arrays if name.startswith("target/")} == {
        f"target/{name}" for name, target in explanation.batch.targets.items() if isinstance(target, torch.Tensor)
    }
    for name, raw in inputs.items():
        np.testing.assert_allclose(arrays[f"input/{name}"], raw, atol=1e-3)
        span = record.spans[name]
        assert (*arrays[f"grid/{name}"], *arrays[f"span/{name}"]) == (*span.grid.shape, span.start, span.stop)
        assert tuple(Axis(**fields) for fields in json.loads(str(arrays[f"axes/{name}"]))) == span.grid.axes
    expected = {
        f"{name}/weights": layer.weights() for name, layer in record.layers.items() if layer.role not in (SELF, ENCODE)
    }
    assert {name for name in arrays if name.endswith("/weights")} == set(expected)
    for name in record.input_layers:
        assert (arrays[f"{name}/latents"] == np.arange(record.layers[name].num_queries)).all()
        expected[f"{name}/reads"] = found.latents[name]
    mass = explanation.relevance.sum(dim=-1, keepdim=True)
    expected["relevance/inputs"] = explanation.relevance / mass.clamp_min(1e-30)  # shares, since it has no unit
    expected |= {"rollout/inputs": found.inputs, "rollout/residual": found.residual}
    for name, values in expected.items():
        assert arrays[name].dtype == np.float16
        np.testing.assert_allclose(arrays[name], values, atol=3e-4)
    assert arrays["rollout/alpha"] == alpha
    np.testing.assert_allclose(arrays["answers/probability"], explanation.probability)
    assert answers_in(arrays) == explanation.answers
    assert any(answer.boxes for row in explanation.answers for answer in row)
    assert [boxes_in(row) for row in json.loads(str(arrays["boxes"]))] == [tuple(row or ()) for row in BOXES]


def test_log_weights_are_scores_up_to_a_constant_and_masked_tokens_have_none():
    explanation = explain(perceiver(), small_inputs(), some_masks())
    arrays = event_arrays(explanation, max_megabytes=1)
    layer = explanation.record.layers["cross0"]
    scores = (layer.q @ layer.k.mT / layer.q.shape[-1] ** 0.5).numpy()
    visible = np.unpackbits(arrays["cross0/visible"], axis=-1, count=layer.num_keys).astype(bool)
    assert (visible == layer.mask[:, None, None].numpy()).all()
    mean = np.where(visible, scores, 0).sum(axis=-1, keepdims=True) / visible.sum(axis=-1, keepdims=True)
    weights = np.where(visible, np.exp(scores - mean + arrays["cross0/log_weight"][..., None]), 0)
    np.testing.assert_allclose(arrays["cross0/weights"], weights, rtol=2e-3, atol=1e-7)
    assert "cross0/visible" not in event_arrays(explain(perceiver(), small_inputs()), max_megabytes=1)


def test_ids_of_a_text_are_stored_exactly():
    """Float16 has not all numbers from 2049 on."""
    explanation = explain(perceiver(), small_inputs())
    explanation.batch.inputs["text"] = torch.tensor([[[2049, 4099, 8191]]] * 3)
    arrays = event_arrays(explanation, max_megabytes=1)
    assert arrays["input/text"].tolist() == [[[2049, 4099, 8191]]] * 3
    assert "boxes" not in arrays


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


def test_events_are_found_by_their_step_and_in_order(tmp_path):
    for step in (1009, 7, 211, 100_000_007):
        write_arrays(event_path(tmp_path, step), {"step": np.array(step)})
    (tmp_path / "inputs.npz").touch()
    (tmp_path / "step_00000013.part").touch()
    found = event_paths(tmp_path)
    assert list(found) == [7, 211, 1009, 100_000_007]
    assert [int(np.load(path)["step"]) for path in found.values()] == list(found)


def test_a_write_error_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = event_path(tmp_path, 3)
    write_arrays(path, {"step": np.array(3)})

    def full(file, **arrays):
        file.write(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="space"):
        write_arrays(path, {"step": np.array(5)})
    assert int(np.load(path)["step"]) == 3
    assert list(event_paths(tmp_path)) == [3]
