"""The data set of shapes: reproducible, as varied as configured, with held-out pairs in test scenes only."""

import pickle
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.synthetic.shape_captions import COUNTS, WORDS, CaptionSampler, parse
from perceiver.data.synthetic.shape_scenes import NUM_TEXTS, PairSampler, ShapeScenes
from perceiver.data.synthetic.shapes import COLORS, SHAPES, ObjectSampler
from perceiver.tokenizer import split_words
from tests.data.datasets import dataset

SIDE = 37
HELD_OUT = ["red square", "green triangle", "blue star"]
EVERY_PAIR = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
COUNT_PER_STAGE = {"train": 101, "val": 101, "test": 211}
SMALL, LARGE = (0.14, 0.2), (0.28, 0.38)


def scenes(
    *,
    num_objects=(1, 4),
    small=SMALL,
    large=LARGE,
    held_out=HELD_OUT,
    unseen=0.3,
    order="random",
    count=5,
    **options: Any,
):
    return dataset(
        ShapeScenes,
        "image",
        **{"image_size": SIDE, "num_samples": COUNT_PER_STAGE, "seed": 3}
        | {"objects": ObjectSampler(num_objects=num_objects, small=small, large=large)}
        | {"pairs": PairSampler(held_out=held_out, unseen_fraction=unseen)}
        | {"captions": CaptionSampler(order=order, num_references=count)}
        | options,
    )


def samples(stage, **options):
    split = scenes(**options).split(stage)
    return [split[index] for index in range(len(split))]


@pytest.fixture(scope="module")
def by_stage() -> dict[str, list]:
    data = scenes()
    return {stage: [split[i] for i in range(len(split))] for stage in COUNT_PER_STAGE for split in [data.split(stage)]}


def image(sample):
    return sample.inputs["image"]


def objects(sample):
    return sample.targets["facts"].objects


def pairs(sample):
    return {f"{one.color} {one.shape}" for one in objects(sample)}


def assert_equal(one, other):
    """Two samples show and state the same."""
    assert torch.equal(image(one), image(other))
    for name in one.targets.keys() - {"facts"}:
        assert one.targets[name] == other.targets[name]


class TestSamples:
    @pytest.mark.parametrize("stage", COUNT_PER_STAGE)
    def test_a_sample_has_an_image_and_true_captions(self, by_stage, stage):
        assert (len(by_stage[stage]), scenes().class_names) == (COUNT_PER_STAGE[stage], [])
        for index, sample in enumerate(by_stage[stage]):
            assert sample.id == f"shape_scenes/{stage}/{index}"
            assert image(sample).shape == (3, SIDE, SIDE)
            assert image(sample).dtype == torch.float32
            assert 0 <= image(sample).min() < image(sample).max() <= 1
            references = sample.targets["references"]
            assert sample.targets["caption"] == references[0]
            assert len(set(references)) == len(references) == 5
            assert ("boxes" in sample.targets) == ("facts" in sample.targets) == (stage != "train")
            if stage != "train":
                scores = [sample.targets["facts"].scores(reference) for reference in references]
                assert [one["spice_precision"] for one in scores] == pytest.approx([1.0] * 5)

    def test_boxes_contain_the_objects(self, by_stage):
        for sample in by_stage["test"]:
            boxes = sample.targets["boxes"]
            assert [SHAPES[box.label] for box in boxes] == [one.shape for one in objects(sample)]
            for box, one in zip(boxes, objects(sample), strict=True):
                for axis in "xy":
                    low, high = box.ranges[axis]
                    assert 0 <= low < getattr(one, axis) * SIDE < high <= SIDE
                seen = image(sample)[:, int(one.y * SIDE), int(one.x * SIDE)]
                assert (255 * seen - torch.tensor(one.rgb)).abs().max() < 60

    def test_samples_form_a_batch_and_data_sets_are_picklable(self, by_stage):
        batch = collate([by_stage[stage][5] for stage in COUNT_PER_STAGE])
        assert batch.inputs["image"].shape == (3, 3, SIDE, SIDE)
        assert all(isinstance(caption, str) for caption in batch.targets["caption"])
        assert_equal(pickle.loads(pickle.dumps(scenes())).split("test")[7], by_stage["test"][7])


class TestRandomness:
    def test_evaluation_scenes_depend_on_seed_stage_and_index_only(self, by_stage):
        data = scenes()
        for stage in ("val", "test"):
            again = data.split(stage)
            for index in (0, 7, 100):
                torch.manual_seed(index)
                assert_equal(again[index], by_stage[stage][index])
                assert objects(again[index]) == objects(by_stage[stage][index])
            assert not torch.allclose(image(by_stage[stage][0]), image(by_stage[stage][1]))
        for other in (by_stage["val"][0], scenes(seed=4).split("test")[0]):
            assert not torch.allclose(image(by_stage["test"][0]), image(other))

    def test_training_scenes_are_drawn_anew(self):
        split = scenes().split("train")
        drawn = []
        for seed, index in ((1, 17), (1, 17), (2, 17), (1, 18)):
            torch.manual_seed(seed)
            drawn.append(split[index])
        first, again, *others = drawn
        assert_equal(first, again)
        assert not any(torch.allclose(image(first), image(other)) for other in others)
        assert len({split[17].targets["caption"] for _ in range(11)}) > 8

    def test_captions_do_not_change_the_scene(self):
        drawn = []
        for options in ({}, {"count": 2}, {"order": "left_to_right"}):
            torch.manual_seed(3)
            drawn.append(scenes(**options).split("train")[17])
        one, fewer, ordered = drawn
        assert torch.equal(image(one), image(fewer))
        assert torch.equal(image(one), image(ordered))
        assert one.targets["references"][:2] == fewer.targets["references"]


class TestHeldOut:
    def test_training_and_validation_have_no_held_out_pair(self, by_stage):
        assert not any(pairs(sample) & set(HELD_OUT) for sample in by_stage["val"])
        assert {sample.targets["group"] for stage in ("train", "val") for sample in by_stage[stage]} == {""}
        source = scenes().source
        for index in range(307):
            drawn = source.sample_objects(source.random("train", index, index))
            assert not {f"{one.color} {one.shape}" for one in drawn} & set(HELD_OUT)

    def test_a_fraction_of_the_test_scenes_has_one_and_is_a_group(self, by_stage):
        groups = [sample.targets["group"] for sample in by_stage["test"]]
        assert set(groups) == {"", "unseen"}
        assert 0.2 < groups.count("unseen") / len(groups) < 0.4
        for sample, group in zip(by_stage["test"], groups, strict=True):
            assert bool(pairs(sample) & set(HELD_OUT)) == (group == "unseen")
        for fraction, group in ((0.0, ""), (1.0, "unseen")):
            found = samples("test", unseen=fraction, num_samples={"test": 23})
            assert {sample.targets["group"] for sample in found} == {group}

    def test_all_other_pairs_occur(self):
        source = scenes().source
        drawn = [one for index in range(307) for one in source.sample_objects(source.random("val", index))]
        assert {f"{one.color} {one.shape}" for one in drawn} == set(EVERY_PAIR) - set(HELD_OUT)

    def test_one_pair_suffices_for_training(self):
        for stage in ("train", "test"):
            assert samples(stage, held_out=EVERY_PAIR[1:], num_samples={stage: 23})


class TestSettings:
    def test_some_scenes_have_objects_to_count(self, by_stage):
        counts = Counter(
            word for s in by_stage["val"] for text in s.targets["references"] for word in split_words(text)
        )
        assert counts["two"] > counts["three"] > counts["four"]
        assert counts["three"] > 5

    def test_image_size_and_empty_stages(self):
        assert image(scenes(image_size=61, num_samples={"train": 2}).split("train")[0]).shape == (3, 61, 61)
        assert scenes(num_samples={"train": 1, "val": 0, "test": 1}).split("val") is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"on_error": "panic"}, "on_error='panic'"),
            ({"image_size": 0}, "image_size=0"),
            ({"image_size": 19}, r"image_size=19: small=\[0.14, 0.2\]"),
            ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples=.*-1"),
            ({"held_out": ["red square", "square red"]}, r"held_out=\['square red'\].*red circle, red square"),
            ({"held_out": EVERY_PAIR}, "held_out=.*leaves nothing"),
            ({"held_out": []}, r"unseen_fraction=0.3 .*held_out=\[\]"),
            ({"unseen": 1.1}, "unseen_fraction=1.1"),
            ({"unseen": -0.1}, "unseen_fraction=-0.1"),
            ({"seed": -1}, "seed=-1"),
        ],
    )
    def test_invalid_settings_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            scenes(**options)


def test_texts_contain_every_word_and_depend_on_the_seed_only():
    before = torch.get_rng_state()
    first, *others = (list(islice(scenes(seed=seed).texts(), count)) for seed, count in ((3, None), (3, 101), (4, 101)))
    assert others[0] == first[:101] != others[1]
    assert torch.equal(before, torch.get_rng_state())
    assert all(parse(text) for text in first[:NUM_TEXTS])
    for texts in (first, scenes(num_objects=(1, 1), order="left_to_right").texts()):
        counts = Counter(word for text in texts for word in split_words(text))
        assert set(counts) == set(WORDS)
        assert min(counts[word] for word in COUNTS) >= 7
