import json

import numpy as np
import pytest
import torch

from perceiver.data.collate import collate
from perceiver.inspection.arrays import event_arrays
from perceiver.inspection.capture import capture
from perceiver.inspection.maps import latent_ranking
from perceiver.inspection.rollout import mean_reader, readers_of, rollout
from perceiver.types import Answer, Axis, Batch, Box, Sample
from tests.inspection.models import (
    EveryWord,
    captioning,
    captions,
    look,
    perceiver,
    perceiver_io,
    perceiver_text,
    some_masks,
)
from tests.models import small_inputs


def batch_of(inputs: dict[str, torch.Tensor]) -> Batch:
    count = len(next(iter(inputs.values())))
    samples = [
        Sample(
            {name: values[number] for name, values in inputs.items()}, {"label": number, "words": "a"}, f"s/{number}"
        )
        for number in range(count)
    ]
    return collate(samples)


@pytest.mark.parametrize("make", [perceiver, perceiver_io, perceiver_text], ids=lambda make: make.__name__)
def test_arrays_are_what_capture_and_rollout_say_and_load_without_pickle(make, tmp_path):
    inputs = small_inputs()
    captured = look(make(), inputs, some_masks())
    np.savez(tmp_path / "event.npz", **event_arrays(captured, batch_of(inputs), max_megabytes=7, alpha=0.3))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["s/0", "s/1", "s/2"]
        assert arrays["target/label"].tolist() == [0, 1, 2]
        assert "target/words" not in arrays
        for name, raw in inputs.items():
            np.testing.assert_allclose(arrays[f"input/{name}"], raw, atol=1e-3)
            span = captured.spans[name]
            assert (*arrays[f"grid/{name}"], *arrays[f"span/{name}"]) == (*span.grid.shape, span.start, span.stop)
        for name in captured.named("cross") + captured.named("decode") + captured.named("words"):
            assert arrays[f"{name}/weights"].dtype == np.float16
            np.testing.assert_allclose(arrays[f"{name}/weights"], captured.layers[name].weights(), atol=3e-4)
        for name in captured.named("cross"):
            assert (arrays[f"{name}/latents"] == np.arange(11)).all()
        traced = rollout(captured, alpha=0.3)
        np.testing.assert_allclose(arrays["rollout/inputs"], traced.inputs, atol=3e-4)
        np.testing.assert_allclose(arrays["rollout/residual"], traced.residual, atol=3e-4)
        assert arrays["rollout/alpha"] == 0.3
        assert json.loads(str(arrays["answers"])) == []


@pytest.mark.parametrize(("max_megabytes", "kept"), [(0.0, 1), (3 * 5 * 3 * 3 * 55 * 2 / 2**20, 5), (1.0, 11)])
def test_weights_stay_in_their_budget_by_keeping_the_latents_that_are_read_most(max_megabytes, kept):
    inputs = small_inputs()
    captured = look(perceiver(), inputs)
    arrays = event_arrays(captured, batch_of(inputs), max_megabytes=max_megabytes)
    most_read = latent_ranking(captured)[:, :kept].sort(dim=1).values
    for name in captured.named("cross"):
        latents = torch.from_numpy(arrays[f"{name}/latents"])
        assert torch.equal(latents, most_read)
        whole = captured.layers[name].weights()
        expected = torch.stack([whole[sample, :, chosen] for sample, chosen in enumerate(latents)])
        np.testing.assert_allclose(arrays[f"{name}/weights"], expected, atol=3e-4)
    stored = sum(values.nbytes for name, values in arrays.items() if name.startswith("cross") and "weights" in name)
    assert stored <= max(max_megabytes * 2**20, 3 * 3 * 3 * 55 * 2)


def test_rollouts_of_more_outputs_than_the_budget_holds_are_stored_as_their_mean():
    inputs = small_inputs()
    captured = look(perceiver_io(), inputs)
    arrays = event_arrays(captured, batch_of(inputs), max_megabytes=0.001)
    np.testing.assert_allclose(
        arrays["rollout/inputs"], rollout(captured, readers=mean_reader(captured)).inputs, atol=3e-4
    )


def test_axes_and_boxes_can_be_read_back_without_pickle(tmp_path):
    inputs = small_inputs()
    batch = batch_of(inputs)
    boxes = [[Box(2, "image", {"y": (1.0, 5.5)}), Box(0, "depth", {})], [], [Box(1, "image", {"x": (0.0, 13.0)})]]
    batch.targets["boxes"] = boxes
    captured = look(perceiver(), inputs)
    np.savez(tmp_path / "event.npz", **event_arrays(captured, batch, max_megabytes=1))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        for name, span in captured.spans.items():
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


def test_without_boxes_there_is_no_such_array():
    inputs = small_inputs()
    assert "boxes" not in event_arrays(look(perceiver(), inputs), batch_of(inputs), max_megabytes=1)


def test_a_sample_that_knows_of_no_boxes_has_an_empty_list():
    inputs = small_inputs()
    batch = batch_of(inputs)
    batch.targets["boxes"] = [None, [Box(2, "image", {})], None]
    arrays = event_arrays(look(perceiver(), inputs), batch, max_megabytes=1)
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
            fields |= {"queries": tuple(fields["queries"]), "boxes": tuple(boxes)}
    return [[Answer(**fields) for fields in row] for row in rows]


def test_words_can_be_read_back_with_what_they_read(tmp_path):
    model, inputs = perceiver_text(), small_inputs()
    facts = [EveryWord(Box(2, "image", {"y": (1.0, 5.5)})), None, EveryWord()]
    batch = captions(inputs, facts=facts)
    with capture(model) as captured:
        answers = captioning().answers(model, batch, ())
    np.savez(tmp_path / "event.npz", **event_arrays(captured, batch, max_megabytes=1, answers=answers))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        found = read_answers(arrays)
        assert found == answers
        assert [bool(row) and all(answer.boxes for answer in row) for row in found] == [True, False, False]
        num_queries = arrays["decode0/weights"].shape[2]
        for name in ("words0", "words1"):
            weights = arrays[f"{name}/weights"]
            assert weights.shape == (3, 2, num_queries, num_queries)
            assert (np.triu(weights, k=1) == 0).all()
            np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=2e-3)
        readers = readers_of([[answer.queries for answer in row] for row in found], num_queries)
        of_words = rollout(captured, readers=readers).inputs
        for sample, row in enumerate(found):
            for number, answer in enumerate(row):
                stored = arrays["rollout/inputs"][sample, list(answer.queries)].mean(axis=0)
                np.testing.assert_allclose(stored, of_words[sample, number], atol=3e-4)


def test_classes_can_be_read_back():
    inputs = small_inputs()
    answers = [[Answer("a", (4,), label=4), Answer("b", (1,), label=1)], [], [Answer("c", (2,), label=2)]]
    arrays = event_arrays(look(perceiver_io(), inputs), batch_of(inputs), max_megabytes=1, answers=answers)
    assert read_answers(arrays) == answers
