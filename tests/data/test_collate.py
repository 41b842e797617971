import pytest
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.types import Batch, Sample


def sample(id="x", targets=None, **inputs) -> Sample:
    return Sample(inputs=inputs, targets=targets or {}, id=id)


def image(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, height, width) + 0.1  # nothing in it looks like padding


def test_equal_sizes_are_stacked_without_a_mask():
    images, depths = [image(5, 7) for _ in range(2)], [image(11, 13, 1) for _ in range(2)]
    batch = collate([sample(image=i, depth=d) for i, d in zip(images, depths, strict=True)])
    assert batch.masks == {}
    torch.testing.assert_close(batch.inputs["image"], torch.stack(images), rtol=0, atol=0)
    torch.testing.assert_close(batch.inputs["depth"], torch.stack(depths), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "padded"),
    [([(5, 7), (3, 11)], (5, 11)), ([(2, 3), (5, 7), (2, 3)], (5, 7)), ([(5,), (13,), (7,)], (13,))],
    ids=["neither is the larger", "one is the largest", "signals"],
)
@pytest.mark.parametrize("lacking", [None, 0, 1])
def test_different_sizes_are_padded_and_the_mask_says_exactly_where_they_are_real(sizes, padded, lacking):
    values = [torch.rand(3, *size) + 0.1 for size in sizes]
    samples = [sample(x=value) for value in values]
    if lacking is not None:
        values.insert(lacking, torch.zeros(3, *[0] * len(padded)))
        samples.insert(lacking, sample())
    batch = collate(samples)
    assert batch.inputs["x"].shape == (len(samples), 3, *padded)
    assert batch.masks["x"].shape == (len(samples), *padded)
    for row, value in enumerate(values):
        mask = batch.masks["x"][row]
        torch.testing.assert_close(batch.inputs["x"][row][:, mask].flatten(), value.flatten(), rtol=0, atol=0)
        assert (batch.inputs["x"][row][:, ~mask] == 0).all()
        assert mask[tuple(slice(length) for length in value.shape[1:])].all()
        assert mask.sum() == value[0].numel()


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 11), (13,), (2, 0)], ids=str)
def test_an_input_that_some_samples_lack_is_zero_there_and_masked_by_sample(shape):
    there = torch.rand(shape) + 0.1
    batch = collate([sample(always=there), sample(always=there, x=there), sample(always=there)])
    assert list(batch.masks) == ["x"]
    assert batch.masks["x"].tolist() == [False, True, False]
    assert batch.inputs["x"].shape == (3, *shape)
    assert (batch.inputs["x"][[0, 2]] == 0).all()
    assert (batch.inputs["x"][1] == there).all()


def test_inputs_keep_their_dtype():
    batch = collate([sample(x=torch.ones(1, 5, dtype=torch.uint8)), sample(x=torch.ones(1, 3, dtype=torch.uint8))])
    assert batch.inputs["x"].dtype == torch.uint8


def test_inputs_with_different_channels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'image'.*\[1, 5, 7\].*\[3, 5, 7\]"):
        collate([sample(image=image(5, 7, 3)), sample(image=image(5, 7, 1))])


@pytest.mark.parametrize(
    ("values", "stacked"),
    [
        ([2, 3, 5], torch.tensor([2, 3, 5])),
        ([2.0, 3.5], torch.tensor([2.0, 3.5])),
        ([True, False], torch.tensor([True, False])),
        ([torch.ones(5), torch.zeros(5)], torch.stack([torch.ones(5), torch.zeros(5)])),
    ],
    ids=["ints", "floats", "bools", "equal tensors"],
)
def test_numbers_and_equal_tensors_among_targets_are_stacked(values, stacked):
    targets = collate([sample(targets={"t": value}) for value in values]).targets
    assert targets["t"].dtype == stacked.dtype
    assert torch.equal(targets["t"], stacked)


@pytest.mark.parametrize(
    "values",
    [["a", "b"], [["a", "b"], ["c"]], [torch.ones(2), torch.ones(3)], [1, None], [(1, 2), (3, 4)]],
    ids=["texts", "lists", "tensors of different sizes", "one is lacking", "tuples"],
)
def test_other_targets_stay_lists(values):
    targets = collate([sample(targets={} if value is None else {"t": value}) for value in values]).targets
    assert targets["t"] is not values
    assert all(got is value for got, value in zip(targets["t"], values, strict=True))


def test_ids_keep_the_order_of_the_samples():
    assert collate([sample(id=id) for id in ("c", "a", "b")]).ids == ["c", "a", "b"]


def test_no_samples_make_an_empty_batch():
    batch = collate([])
    assert len(batch) == 0
    assert batch == Batch(inputs={}, targets={}, ids=[])


class TestViews:
    def test_they_become_rows_and_the_rest_stays_one_a_sample(self):
        first, second = torch.rand(3, 1, 11), torch.rand(2, 1, 11)
        batch = collate(
            [
                Sample({"audio": first}, {"label": 5, "tags": torch.ones(7)}, "p", windows=("a", "b", "c")),
                Sample({"audio": second}, {"label": 2, "tags": torch.zeros(7)}, "q", windows=("d", "e")),
            ]
        )
        assert_close(batch.inputs["audio"], torch.cat([first, second]), atol=0, rtol=0)
        assert batch.masks == {}
        assert (len(batch), batch.ids, batch.targets["label"].tolist()) == (2, ["p", "q"], [5, 2])
        assert batch.targets["tags"].shape == (2, 7)
        assert batch.windows == [("a", "b", "c"), ("d", "e")]

    def test_samples_without_views_stand_among_those_with(self):
        several, one, long = torch.rand(2, 1, 11) + 0.1, torch.rand(1, 5) + 0.1, torch.rand(3, 1, 13) + 0.1
        batch = collate(
            [
                Sample({"audio": several}, {}, "p", windows=("a", "b")),
                Sample({"audio": one}, {}, "q"),
                Sample({"audio": long}, {}, "r", windows=("a", "b", "c")),
            ]
        )
        assert batch.windows == [("a", "b"), ("",), ("a", "b", "c")]
        rows = [*several, one, *long]
        assert batch.inputs["audio"].shape == (6, 1, 13)
        for row, mask, value in zip(batch.inputs["audio"], batch.masks["audio"], rows, strict=True):
            assert torch.equal(mask, torch.arange(13) < value.shape[1])
            assert torch.equal(row[:, mask], value)
            assert (row[:, ~mask] == 0).all()

    def test_a_modality_that_a_sample_lacks_is_masked_in_all_of_its_views(self):
        audio, image = torch.rand(2, 1, 11), torch.rand(2, 3, 5, 7)
        batch = collate(
            [
                Sample({"audio": audio}, {}, "p", windows=("a", "b")),
                Sample({"audio": audio, "image": image}, {}, "q", windows=("a", "b")),
                Sample({"image": image[0]}, {}, "r"),
            ]
        )
        assert batch.masks["image"].tolist() == [False, False, True, True, True]
        assert batch.masks["audio"].tolist() == [True, True, True, True, False]

    @pytest.mark.parametrize("windows", [(), ("only",)])
    def test_one_view_each_is_a_batch_as_any_other(self, windows):
        values = torch.rand(3, 1, 11)
        samples = [Sample({"audio": value[None] if windows else value}, {}, "x", windows=windows) for value in values]
        batch = collate(samples)
        assert batch.windows == []
        assert torch.equal(batch.inputs["audio"], values)
