"""Axes, windows, and batches that keep together what belongs to a sample."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.types import Answer, Axis, Batch, Box, Sample, Sound, hertz, mel

AXES = [
    Axis("time", "s", 0.0, 7.3),
    Axis("x", "px", -3.0, 11.0),
    Axis("frequency", "Hz", 53.0, 7919.0, scale="mel"),
    Axis("frequency", "Hz", 0.0, 1999.0, scale="mel"),
]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_an_axis_runs_from_start_to_stop_in_equal_steps_of_its_scale(axis):
    assert (axis.value(0.0), axis.value(1.0)) == pytest.approx((axis.start, axis.stop))
    for fraction in (-0.02, 0.0, 0.11, 0.5, 1.0, 1.3):
        assert axis.fraction(axis.value(fraction)) == pytest.approx(fraction)
    values = [axis.value(step / 5) for step in range(6)]
    scaled = torch.tensor([mel(value) if axis.scale == "mel" else value for value in values])
    assert_close(scaled.diff(), scaled.diff()[:1].expand(5))
    steps = torch.tensor(values).diff()
    assert (steps > 0).all()
    assert bool((steps.diff() > 1e-3).all()) == (axis.scale == "mel")


def test_a_thousand_hertz_are_a_thousand_mel():
    assert mel(1000.0) == pytest.approx(1000.0, abs=0.02)
    assert (mel(0.0), hertz(0.0)) == (0.0, 0.0)
    for frequency in (7.0, 440.0, 20011.0):
        assert hertz(mel(frequency)) == pytest.approx(frequency)


class TestWindows:
    def test_a_sample_is_split_into_its_windows(self):
        inputs = {"audio": torch.rand(3, 1, 11), "image": torch.rand(3, 2, 5, 7)}
        sample = Sample(inputs, {"label": 5}, "x.wav", windows=("a", "b", "c"))
        parts = sample.split()
        assert [part.id for part in parts] == ["x.wav a", "x.wav b", "x.wav c"]
        for place, part in enumerate(parts):
            assert part.targets == {"label": 5}
            assert part.windows == ()
            assert part.split() == [part]
            assert part.inputs.keys() == inputs.keys()
            assert all(torch.equal(part.inputs[name], inputs[name][place]) for name in inputs)

    @pytest.mark.parametrize("count", [2, 5])
    def test_more_or_fewer_windows_than_names_are_refused(self, count):
        with pytest.raises(ValueError, match=f"x.wav: 3 windows .*'audio' has {count}"):
            Sample({"audio": torch.rand(count, 1, 11)}, {}, "x.wav", windows=("a", "b", "c")).split()

    def test_the_mean_over_windows_is_that_of_each_sample(self):
        rows = torch.rand(7, 5, 2)
        batch = Batch({}, {}, ["p", "q", "r"], windows=[("a", "b"), ("",), ("a", "b", "c", "d")])
        expected = torch.stack([rows[:2].mean(dim=0), rows[2], rows[3:].mean(dim=0)])
        assert_close(batch.log_mean_over_windows(rows.log()).exp(), expected)

    def test_without_windows_a_row_is_a_sample(self):
        rows = torch.rand(3, 5)
        assert batch_of(3).log_mean_over_windows(rows) is rows
        assert len(batch_of(0).log_mean_over_windows(rows[:0])) == 0


def batch_of(count: int) -> Batch:
    return Batch({}, {}, [str(row) for row in range(count)])


@pytest.mark.parametrize(
    ("change", "dtype"),
    [(lambda batch: batch.map(torch.Tensor.double), torch.float64), (lambda batch: batch.to("cpu"), torch.float32)],
    ids=["map", "to"],
)
def test_map_and_to_keep_everything_that_is_no_tensor(change, dtype):
    batch = Batch(
        inputs={"x": torch.ones(2, 3)},
        targets={"label": torch.ones(2), "text": ["a", "b"], "boxes": [torch.ones(3, 4), torch.ones(5, 4)]},
        ids=["p", "q"],
        masks={"x": torch.ones(2)},
        unreadable=["z: gone"],
        windows=[("a",), ("a", "b")],
    )
    changed = change(batch)
    assert type(changed) is Batch
    assert (changed.ids, changed.unreadable, changed.targets["text"]) == (["p", "q"], ["z: gone"], ["a", "b"])
    assert changed.windows == batch.windows
    for tensor in (changed.inputs["x"], changed.targets["label"], *changed.targets["boxes"], changed.masks["x"]):
        assert tensor.dtype == dtype
        assert (tensor == 1).all()
    assert batch.inputs["x"].dtype == torch.float32


def test_a_part_of_a_batch_has_all_that_belongs_to_its_samples():
    boxes = [[Box(number, "x", {})] for number in range(5)]
    batch = Batch(
        inputs={"x": torch.arange(5.0)[:, None, None].expand(5, 1, 3)},
        targets={"label": torch.arange(5), "text": list("abcde"), "boxes": boxes},
        ids=list("pqrst"),
        masks={"x": torch.eye(5, dtype=torch.bool)},
    )
    for samples in (slice(1, 3), slice(3, 11), slice(0, 5), slice(5, 7)):
        part = batch.part(samples)
        numbers = list(range(5))[samples]
        assert len(part) == len(numbers)
        assert part.ids == [batch.ids[number] for number in numbers]
        assert part.inputs["x"][:, 0, 0].tolist() == numbers
        assert part.targets["label"].tolist() == numbers
        assert part.targets["text"] == [batch.targets["text"][number] for number in numbers]
        assert [box.label for row in part.targets["boxes"] for box in row] == numbers
        assert part.masks["x"].int().argmax(dim=1).tolist() == numbers
    assert len(batch) == 5


@pytest.mark.parametrize(("length", "sample_rate", "seconds"), [(16_000, 16_000, 1.0), (7, 2, 3.5), (0, 11, 0.0)])
def test_a_sound_lasts_as_long_as_its_samples(length, sample_rate, seconds):
    assert Sound(torch.zeros(3, length), sample_rate).seconds == seconds


def test_a_word_is_what_has_no_label():
    assert [Answer("a", (1,), "logits").is_word, Answer("a", (0,), "logits", label=0).is_word] == [True, False]
