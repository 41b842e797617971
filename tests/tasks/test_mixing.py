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
def test_labels_are_mixed_as_the_inputs_are(method):
    weights = set()
    for _ in range(11):
        mixed = mixing(**{method: 1.0})(marked_batch())
        labels, parts = mixed.targets["label"], torch.stack([shares(values) for values in mixed.inputs.values()])
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(BATCH))
        torch.testing.assert_close(parts.mean(dim=0), labels[:, :BATCH])
        torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=0.06)  # rounded to whole pixels
        weights.add(float(labels[0, 0]))
    assert len(weights) == 11


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_tags_are_mixed_by_the_same_weight_as_labels(method, dtype):
    batch, tags = marked_batch(), torch.randint(2, (BATCH, NUM_CLASSES), dtype=dtype)
    batch.targets["tags"] = tags
    mixed = mixing(**{method: 1.0})(batch)
    own = torch.stack([shares(values) for values in mixed.inputs.values()]).mean(dim=0).diagonal()[:, None]
    torch.testing.assert_close(mixed.targets["tags"], own * tags + (1 - own) * tags.roll(1, dims=0))
    assert torch.equal(batch.targets["tags"], tags)


def test_waves_of_one_channel_are_added_up():
    waves, tags = torch.randn(BATCH, 1, 997), torch.eye(BATCH, NUM_CLASSES)
    batch = Batch(inputs={"audio": waves}, targets={"tags": tags}, ids=["x"] * BATCH)
    mixed = mixing(mixup=1.0)(batch)
    weight = mixed.targets["tags"][0, 0]
    assert 0.0 < weight < 1.0
    torch.testing.assert_close(mixed.inputs["audio"], weight * waves + (1 - weight) * waves.roll(1, dims=0))


@METHODS
def test_samples_in_several_views_are_refused(method):
    batch = Batch(inputs={"x": torch.rand(3, 1, 5)}, targets={}, ids=["a", "b"], windows=[("",), ("p", "q")])
    with pytest.raises(ValueError, match="one window"):
        mixing(**{method: 1.0})(batch)
    assert mixing()(batch) is batch


def test_with_one_image_cutmix_weighs_labels_by_exactly_what_is_cut():
    batch = marked_batch()
    for _ in range(11):
        mixed = mixing(cutmix=1.0)(Batch(inputs={"x": batch.inputs["image"]}, targets=batch.targets, ids=batch.ids))
        torch.testing.assert_close(shares(mixed.inputs["x"]), mixed.targets["label"][:, :BATCH])


@pytest.mark.parametrize(("mix", "between"), [(mix_up, True), (cut_mix, False)], ids=["mixup", "cutmix"])
def test_mixup_averages_and_cutmix_cuts(mix, between):
    mixed, _ = mix(marked_batch(), 0.6)
    for values in mixed.inputs.values():
        assert bool(((values > 0.0) & (values < 1.0)).any()) == between


def extent(places: torch.Tensor) -> list[tuple[float, float]]:
    """Where the places begin and end along each axis, in units of the axis."""
    return [
        (int(cells.min()) / size, (int(cells.max()) + 1) / size)
        for cells, size in zip(places.nonzero().T, places.shape, strict=True)
    ]


def test_cutmix_cuts_one_box_around_the_same_relative_place_of_all_inputs():
    for _ in range(11):
        mixed, _ = cut_mix(marked_batch(), 0.7)
        extents = {}
        for name, values in mixed.inputs.items():
            foreign = values[0, BATCH - 1] == 1.0
            extents[name] = extent(foreign)
            volume = prod(stop - start for start, stop in extents[name])
            assert float(foreign.float().mean()) == pytest.approx(volume)
        for image, depth in zip(extents["image"], extents["depth"], strict=True):
            assert image == pytest.approx(depth, abs=0.05)


def test_a_box_that_no_border_cuts_off_has_the_share_asked_for_in_every_input():
    mixtures = [cut_mix(marked_batch(), 0.7) for _ in range(31)]
    assert min(float(weights[0]) for _, weights in mixtures) == pytest.approx(0.7, abs=0.04)
    for name in mixtures[0][0].inputs:
        kept = [float(shares(mixed.inputs[name])[0, 0]) for mixed, _ in mixtures]
        assert min(kept) == pytest.approx(0.7, abs=0.04)


@METHODS
def test_everything_else_of_a_batch_is_kept(method):
    batch = marked_batch()
    before = {name: values.clone() for name, values in batch.inputs.items()}
    mixed = mixing(**{method: 1.0})(batch)
    assert mixed.ids == batch.ids
    assert mixed.targets["other"] == batch.targets["other"]
    assert mixed.masks == {}
    assert list(mixed.inputs) == list(batch.inputs)
    assert all(torch.equal(batch.inputs[name], before[name]) for name in before)
    assert torch.equal(batch.targets["label"], torch.arange(BATCH))


@METHODS
def test_a_mixed_input_is_real_where_what_it_is_made_of_is(method):
    sizes = {"image": (23, 29), "depth": (37, 41), "sound": (997,)}
    masks = {name: torch.rand(BATCH, *size) < 0.7 for name, size in sizes.items()}
    batch = marked_batch(masks=masks)
    inputs = {name: values * masks[name][:, None] for name, values in batch.inputs.items()}
    mixed = mixing(**{method: 1.0})(Batch(inputs=inputs, targets=batch.targets, ids=batch.ids, masks=masks))
    for name, values in mixed.inputs.items():
        assert torch.equal(mixed.masks[name], values.sum(dim=1) > 0)


@METHODS
def test_a_modality_that_one_of_two_samples_lacks_is_there_in_their_mixture(method):
    mask = torch.tensor([True, False, False, True, True])
    mixed = mixing(**{method: 1.0})(marked_batch(masks={"depth": mask}))
    assert mixed.masks["depth"].flatten(1).any(dim=1).tolist() == [True, True, False, True, True]


def ragged(lengths: list[int], junk: float) -> Batch:
    """Waves of which each place tells its sample, padded, and nothing of those of length 0."""
    waves = [torch.full((1, length), 1.0 + number) for number, length in enumerate(lengths)]
    batch = collate([Sample({"x": wave} if wave.numel() else {}, {"label": 0}, "x") for wave in waves])
    mask = batch.masks["x"].reshape(len(lengths), -1).expand(-1, batch.inputs["x"].shape[-1])
    batch.inputs["x"] = batch.inputs["x"].masked_fill(~mask[:, None], junk)
    return replace(batch, targets={"label": torch.arange(len(lengths))})


@METHODS
@pytest.mark.parametrize("junk", [0.0, float("nan")])
@pytest.mark.parametrize("lengths", [[997, 101, 499, 11, 997], [997, 0, 997, 0, 0], [997, 0, 101, 0, 0]], ids=str)
def test_labels_go_by_what_is_real_of_each_sample_in_the_mixture(method, lengths, junk):
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
def test_a_batch_of_one_stays_as_it_is(method):
    batch = marked_batch(batch=1)
    mixed = mixing(**{method: 1.0})(batch)
    for name, values in mixed.inputs.items():
        torch.testing.assert_close(values, batch.inputs[name])
    assert mixed.targets["label"].argmax(dim=1).tolist() == [0]


def test_an_empty_batch_and_a_batch_without_mixing_are_left_alone():
    empty = Batch(inputs={}, targets={}, ids=[])
    assert mixing(mixup=1.0, cutmix=1.0)(empty) is empty
    batch = marked_batch()
    assert mixing()(batch) is batch


def test_with_both_each_batch_gets_one_of_them():
    averaged = [
        bool(((values > 0.0) & (values < 1.0)).any())
        for _ in range(31)
        for values in [mixing(mixup=1.0, cutmix=1.0)(marked_batch()).inputs["image"]]
    ]
    assert 5 < sum(averaged) < 26


@pytest.mark.parametrize(
    "values",
    [torch.ones(BATCH, 3, 5, dtype=torch.long), torch.ones(BATCH, 1, 997, dtype=torch.int16), torch.ones(BATCH, 3)],
    ids=["integers", "a wave of integers", "no axes"],
)
@METHODS
def test_inputs_that_cannot_be_mixed_are_refused_by_name(method, values):
    batch = Batch(inputs={"text": values}, targets={"label": torch.zeros(BATCH, dtype=torch.long)}, ids=["x"] * BATCH)
    with pytest.raises(ValueError, match="text is torch"):
        mixing(**{method: 1.0})(batch)


@METHODS
def test_a_mixed_batch_can_be_trained_on_and_counted(method):
    options = {"mixup": 0.0, "cutmix": 0.0} | {method: 1.0}
    classification = Classification(num_classes=NUM_CLASSES, loss=LossSpec(label_smoothing=0.1), **options)
    batch = classification.prepare(marked_batch(), train=True)
    labels = batch.targets["label"]
    outputs = torch.randn(BATCH, NUM_CLASSES)
    loss = classification.loss(named(outputs), batch)
    smoothed = 0.9 * labels + 0.1 / NUM_CLASSES
    torch.testing.assert_close(loss, -(smoothed * outputs.log_softmax(dim=1)).sum(dim=1).mean())
    classification.update("train", named(labels), loss, batch)
    assert classification.metrics("train").compute()["accuracy"] == 1.0  # the larger part counts
