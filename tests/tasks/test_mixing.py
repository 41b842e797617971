"""MixUp and CutMix: inputs, masks and targets are mixed by the same shares."""

from dataclasses import replace
from math import prod

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.mixing import Mixing, cut_mix, mix_up
from perceiver.types import Batch, Sample
from tests.models import named

NUM_CLASSES = 7
BATCH = 5
METHODS = pytest.mark.parametrize("method", ["mixup", "cutmix"])


def mixing(mixup=0.0, cutmix=0.0) -> Mixing:
    return Mixing(num_classes=NUM_CLASSES, mixup=mixup, cutmix=cutmix)


def marked(*sizes: int, batch=BATCH) -> torch.Tensor:
    """Inputs that in every place hold the one-hot code of their sample, so that a mixture tells what it is made of."""
    code = torch.eye(batch).reshape(batch, batch, *[1] * len(sizes))
    return code.expand(batch, batch, *sizes).clone()


def marked_batch(batch=BATCH, masks=None) -> Batch:
    """Sample i has class i in all of its modalities."""
    inputs = {
        "image": marked(23, 29, batch=batch),
        "depth": marked(37, 41, batch=batch),
        "sound": marked(997, batch=batch),
    }
    ids = [str(row) for row in range(batch)]
    return Batch(inputs=inputs, targets={"label": torch.arange(batch), "other": ids}, ids=ids, masks=masks or {})


def shares(values: torch.Tensor) -> torch.Tensor:
    """What part of each input comes from each sample."""
    return values.flatten(2).mean(dim=2)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_labels_and_tags_are_mixed_as_the_inputs_are_and_all_else_is_kept(method, dtype):
    weights = set()
    for _ in range(11):
        batch, tags = marked_batch(), torch.randint(2, (BATCH, NUM_CLASSES), dtype=dtype)
        before = {name: values.clone() for name, values in batch.inputs.items()}
        mixed = mixing(**{method: 1.0})(batch)
        labels, parts = mixed.targets["label"], torch.stack([shares(values) for values in mixed.inputs.values()])
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(BATCH))
        torch.testing.assert_close(parts.mean(dim=0), labels[:, :BATCH])
        torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=0.06)  # rounded to whole pixels
        weights.add(float(labels[0, 0]))
        tagged = mixing(**{method: 1.0})(replace(batch, targets=batch.targets | {"tags": tags}))
        own = torch.stack([shares(values) for values in tagged.inputs.values()]).mean(dim=0).diagonal()[:, None]
        torch.testing.assert_close(tagged.targets["tags"], own * tags + (1 - own) * tags.roll(1, dims=0))
        assert (mixed.ids, mixed.targets["other"], mixed.masks) == (batch.ids, batch.targets["other"], {})
        assert all(torch.equal(batch.inputs[name], before[name]) for name in before)
        assert torch.equal(batch.targets["label"], torch.arange(BATCH))
    assert len(weights) == 11


def test_waves_of_one_channel_are_added_up():
    waves, tags = torch.randn(BATCH, 1, 997), torch.eye(BATCH, NUM_CLASSES)
    mixed = mixing(mixup=1.0)(Batch(inputs={"audio": waves}, targets={"tags": tags}, ids=["x"] * BATCH))
    weight = mixed.targets["tags"][0, 0]
    assert 0.0 < weight < 1.0
    torch.testing.assert_close(mixed.inputs["audio"], weight * waves + (1 - weight) * waves.roll(1, dims=0))


def extent(places: torch.Tensor) -> list[tuple[float, float]]:
    """The first and last cell along each axis, in units of the axis."""
    return [
        (int(cells.min()) / size, (int(cells.max()) + 1) / size)
        for cells, size in zip(places.nonzero().T, places.shape, strict=True)
    ]


def test_mixup_averages_and_cutmix_cuts_one_box_around_the_same_relative_place():
    averaged, _ = mix_up(marked_batch(), 0.6)
    assert all(bool(((values > 0.0) & (values < 1.0)).any()) for values in averaged.inputs.values())
    mixtures = [cut_mix(marked_batch(), 0.7) for _ in range(31)]
    for mixed, _ in mixtures:
        extents = {}
        for name, values in mixed.inputs.items():
            assert set(values.unique().tolist()) <= {0.0, 1.0}
            foreign = values[0, BATCH - 1] == 1.0
            extents[name] = extent(foreign)
            assert float(foreign.float().mean()) == pytest.approx(prod(stop - start for start, stop in extents[name]))
        for image, depth in zip(extents["image"], extents["depth"], strict=True):
            assert image == pytest.approx(depth, abs=0.05)
    # Boxes that no border cuts have the share that was asked for.
    assert min(float(weights[0]) for _, weights in mixtures) == pytest.approx(0.7, abs=0.04)
    for name in mixtures[0][0].inputs:
        assert min(float(shares(mixed.inputs[name])[0, 0]) for mixed, _ in mixtures) == pytest.approx(0.7, abs=0.04)


def test_with_both_each_batch_gets_one_of_them():
    averaged = [
        bool(((values > 0.0) & (values < 1.0)).any())
        for _ in range(31)
        for values in [mixing(mixup=1.0, cutmix=1.0)(marked_batch()).inputs["image"]]
    ]
    assert 5 < sum(averaged) < 26


@METHODS
def test_a_mixed_input_is_real_where_one_of_its_parts_is(method):
    sizes = {"image": (23, 29), "depth": (37, 41), "sound": (997,)}
    masks = {name: torch.rand(BATCH, *size) < 0.7 for name, size in sizes.items()}
    batch = marked_batch(masks=masks)
    inputs = {name: values * masks[name][:, None] for name, values in batch.inputs.items()}
    mixed = mixing(**{method: 1.0})(replace(batch, inputs=inputs))
    for name, values in mixed.inputs.items():
        assert torch.equal(mixed.masks[name], values.sum(dim=1) > 0)
    absent = marked_batch(masks={"depth": torch.tensor([True, False, False, True, True])})
    mask = mixing(**{method: 1.0})(absent).masks["depth"]
    assert mask.flatten(1).any(dim=1).tolist() == [True, True, False, True, True]


def ragged(lengths: list[int], junk: float) -> Batch:
    """Padded waves whose values are the number of their sample; none of length 0."""
    waves = [torch.full((1, length), 1.0 + number) for number, length in enumerate(lengths)]
    batch = collate([Sample({"x": wave} if wave.numel() else {}, {"label": 0}, "x") for wave in waves])
    mask = batch.masks["x"].reshape(len(lengths), -1).expand(-1, batch.inputs["x"].shape[-1])
    batch.inputs["x"] = batch.inputs["x"].masked_fill(~mask[:, None], junk)
    return replace(batch, targets={"label": torch.arange(len(lengths))})


@METHODS
@pytest.mark.parametrize("junk", [0.0, float("nan")])
@pytest.mark.parametrize("lengths", [[997, 101, 499, 11, 997], [997, 0, 997, 0, 0], [997, 0, 101, 0, 0]], ids=str)
def test_labels_depend_on_what_is_real_of_each_sample_in_the_mixture(method, lengths, junk):
    for _ in range(11):
        mixed = mixing(**{method: 1.0})(ragged(lengths, junk))
        values, mask, labels = mixed.inputs["x"][:, 0], mixed.masks["x"], mixed.targets["label"]
        assert values.isfinite().all()
        for row in range(BATCH):
            other = (row - 1) % BATCH
            if mask[row].any():
                # A place is the weighted mean of 1 + number of those that are real there.
                share = (values[row][mask[row]] - 1.0 - other) / (row - other)
                assert float(labels[row, row]) == pytest.approx(float(share.mean()), abs=1e-3)
                assert float(labels[row, other]) == pytest.approx(1.0 - float(share.mean()), abs=1e-3)
            if lengths[other] == 0 < lengths[row] and mask[row].any():
                assert float(labels[row, row]) == 1.0


@METHODS
def test_a_batch_of_one_stays_as_it_is_and_so_does_one_without_samples_or_mixing(method):
    batch = marked_batch(batch=1)
    mixed = mixing(**{method: 1.0})(batch)
    for name, values in mixed.inputs.items():
        torch.testing.assert_close(values, batch.inputs[name])
    assert mixed.targets["label"].argmax(dim=1).tolist() == [0]
    empty = Batch(inputs={}, targets={}, ids=[])
    assert mixing(**{method: 1.0})(empty) is empty
    assert mixing()(batch) is batch


@METHODS
def test_inputs_that_cannot_be_mixed_are_refused_by_name(method):
    label = torch.zeros(BATCH, dtype=torch.long)
    for values in (torch.ones(BATCH, 3, 5, dtype=torch.long), torch.ones(BATCH, 3)):  # whole numbers, no axes
        with pytest.raises(ValueError, match="text is torch"):
            mixing(**{method: 1.0})(Batch({"text": values}, {"label": label}, ["x"] * BATCH))
    windows = Batch(inputs={"x": torch.rand(3, 1, 5)}, targets={}, ids=["a", "b"], windows=[("",), ("p", "q")])
    with pytest.raises(ValueError, match="one window"):
        mixing(**{method: 1.0})(windows)


@METHODS
def test_a_mixed_batch_can_be_trained_on_and_counted(method):
    options = {"mixup": 0.0, "cutmix": 0.0} | {method: 1.0}
    classification = Classification(num_classes=NUM_CLASSES, loss=LossSpec(label_smoothing=0.1), **options)
    batch = classification.prepare(marked_batch(), train=True)
    labels, outputs = batch.targets["label"], torch.randn(BATCH, NUM_CLASSES)
    loss = classification.loss(named(outputs), batch)
    smoothed = 0.9 * labels + 0.1 / NUM_CLASSES
    torch.testing.assert_close(loss, -(smoothed * outputs.log_softmax(dim=1)).sum(dim=1).mean())
    classification.update("train", named(labels), loss, batch)
    assert classification.metrics("train").compute()["accuracy"] == 1.0  # the larger part counts
