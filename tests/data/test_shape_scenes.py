"""The data set of shapes: repeatable, as varied as it says, and with its pairs held out."""

import pickle
from collections import Counter

import pytest
import torch
from PIL import Image

from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.data.synthetic.shape_grammar import COUNTS, WORDS, parsed
from perceiver.data.synthetic.shape_scene import COLOURS, SHAPES
from perceiver.data.synthetic.shape_scenes import NUM_TEXTS, ShapeScenes
from perceiver.tokenizer import split_words
from tests.data.datasets import dataset

SIDE = 37
HELD_OUT = ["red square", "green triangle", "blue star"]
EVERY_PAIR = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def scenes(**changes):
    settings = {
        "image_size": SIDE,
        "num_samples": {"train": 307, "val": 101, "test": 211},
        "num_objects": (1, 4),
        "small": (0.14, 0.2),
        "large": (0.28, 0.38),
        "order": "random",
        "num_references": 5,
        "held_out": HELD_OUT,
        "unseen_share": 0.3,
        "seed": 3,
    }
    return dataset(ShapeScenes, "image", **settings | changes)


def samples(stage, **changes):
    split = scenes(**changes).split(stage)
    return [split[index] for index in range(len(split))]


def image(sample):
    return sample.inputs["image"]


def things(sample):
    return sample.targets["facts"].things


def pairs(sample):
    return {f"{one.colour} {one.shape}" for one in things(sample)}


class TestSamples:
    @pytest.mark.parametrize("stage", ["train", "val", "test"])
    def test_a_sample_has_a_picture_and_what_is_to_be_said_of_it(self, stage):
        split = scenes().split(stage)
        assert len(split) == {"train": 307, "val": 101, "test": 211}[stage]
        for index in (0, 7, len(split) - 1):
            sample = split[index]
            assert sample.id == f"shape_scenes/{stage}/{index}"
            assert image(sample).shape == (3, SIDE, SIDE)
            assert image(sample).dtype == torch.float32
            assert 0 <= image(sample).min() < image(sample).max() <= 1
            assert sample.targets["caption"] == sample.targets["references"][0]
            assert ("boxes" in sample.targets) == ("facts" in sample.targets) == (stage != "train")
            assert split.classes_of(index) == ()
        assert scenes().class_names == []
        assert scenes().num_classes == 0

    def test_every_reference_is_true_and_no_two_are_the_same(self):
        for sample in samples("val"):
            references = sample.targets["references"]
            assert len(set(references)) == len(references) == 5
            for reference in references:
                assert sample.targets["facts"].scores(reference)["spice_precision"] == pytest.approx(1.0)

    def test_boxes_are_of_all_things_and_inside(self):
        for sample in samples("test"):
            boxes = sample.targets["boxes"]
            assert [SHAPES[box.label] for box in boxes] == [one.shape for one in things(sample)]
            for box, one in zip(boxes, things(sample), strict=True):
                for axis in "xy":
                    low, high = box.ranges[axis]
                    assert 0 <= low < getattr(one, axis) * SIDE < high <= SIDE

    def test_the_picture_shows_what_the_facts_say(self):
        for sample in samples("val", image_size=64):
            for one in things(sample):
                seen = image(sample)[:, int(one.y * 64), int(one.x * 64)]
                assert (255 * seen - torch.tensor(one.rgb)).abs().max() < 45

    def test_samples_make_a_batch_and_go_to_other_processes(self):
        batch = collate([scenes().split(stage)[5] for stage in ("train", "val", "test")])
        assert batch.inputs["image"].shape == (3, 3, SIDE, SIDE)
        assert all(isinstance(caption, str) for caption in batch.targets["caption"])
        data = pickle.loads(pickle.dumps(scenes()))
        assert torch.equal(image(data.split("val")[7]), image(scenes().split("val")[7]))

    def test_a_stage_without_scenes_is_none(self):
        assert scenes(num_samples={"train": 1, "val": 0, "test": 1}).split("val") is None


class TestRandomness:
    def test_evaluation_scenes_are_the_same_each_time_and_in_each_run(self):
        for stage in ("val", "test"):
            first, again = (scenes().split(stage) for _ in range(2))
            for index in (0, 7, 100):
                torch.manual_seed(index)
                assert torch.equal(image(first[index]), image(again[index]))
                for name in ("references", "boxes", "group"):
                    assert first[index].targets[name] == again[index].targets[name]
                assert things(first[index]) == things(again[index])

    def test_scenes_differ_by_seed_stage_and_index(self):
        one = image(scenes().split("val")[0])
        for other in (scenes(seed=4).split("val")[0], scenes().split("test")[0], scenes().split("val")[1]):
            assert not torch.allclose(one, image(other))
        assert len({scenes().source.random(stage, 0).random() for stage in ("train", "val", "test")}) == 3

    def test_training_scenes_are_drawn_anew(self):
        split = scenes().split("train")
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(split[17])
        first, again, other = drawn
        assert torch.equal(image(first), image(again))
        assert first.targets == again.targets
        assert not torch.allclose(image(first), image(other))
        assert len({split[17].targets["caption"] for _ in range(11)}) > 8

    def test_training_scenes_show_the_same_however_much_is_said_of_them(self):
        drawn = []
        for number in (1, 7):
            torch.manual_seed(3)
            drawn.append(scenes(num_references=number).split("train")[17])
        one, several = drawn
        assert torch.equal(image(one), image(several))
        assert one.targets["references"] == several.targets["references"][:1]

    def test_training_scenes_of_the_same_draw_differ_by_index(self):
        split = scenes().split("train")
        torch.manual_seed(1)
        one = split[0]
        torch.manual_seed(1)
        assert not torch.allclose(image(one), image(split[1]))


class TestHeldOut:
    def test_held_out_pairs_are_never_trained_on(self):
        for sample in samples("val"):
            assert not pairs(sample) & set(HELD_OUT)
            assert sample.targets["group"] == ""
        for sample in samples("train"):
            assert not any(pair in caption for pair in HELD_OUT for caption in sample.targets["references"])
            assert sample.targets["group"] == ""
        data = scenes()
        for index in range(307):
            shown = data.source.things(data.source.random("train", index, index), unseen=False)
            assert not {f"{one.colour} {one.shape}" for one in shown} & set(HELD_OUT)

    def test_test_scenes_show_one_where_they_say_so_and_only_there(self):
        groups = Counter()
        for sample in samples("test"):
            group = sample.targets["group"]
            groups[group] += 1
            assert bool(pairs(sample) & set(HELD_OUT)) == (group == "unseen")
        assert groups.keys() == {"", "unseen"}
        assert 0.2 < groups["unseen"] / 211 < 0.4

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_none_or_all_can_be_unseen(self, share):
        assert {sample.targets["group"] for sample in samples("test", unseen_share=share)} == {
            "unseen" if share else ""
        }

    def test_all_pairs_but_those_come(self):
        shown = set().union(*(pairs(sample) for sample in samples("val", num_samples={"val": 401})))
        assert shown == set(EVERY_PAIR) - set(HELD_OUT)
        assert set(HELD_OUT) <= set().union(*(pairs(sample) for sample in samples("test")))

    def test_one_pair_is_enough_to_train_on(self):
        for stage in ("train", "test"):
            assert samples(stage, held_out=EVERY_PAIR[1:], num_samples={stage: 23})


class TestParameters:
    def test_number_of_things(self):
        for least, most in ((1, 4), (1, 1), (2, 3)):
            counts = Counter(len(things(sample)) for sample in samples("val", num_objects=(least, most)))
            assert counts.keys() == set(range(least, most + 1))
        assert {len(things(s)) for s in samples("val", num_objects=(6, 6), large=(0.22, 0.3))} == {6}

    def test_sizes(self):
        ranges = {"small": (0.1, 0.13), "large": (0.4, 0.45)}
        for sample in samples("val", **ranges):
            for one in things(sample):
                assert ranges[one.size][0] <= one.diameter <= ranges[one.size][1]

    def test_number_of_references(self):
        for stage in ("train", "val"):
            for number in (1, 7):
                found = [sample.targets["references"] for sample in samples(stage, num_references=number)]
                assert {len(references) for references in found} == {len(set(r)) for r in found} == {number}

    def test_what_is_said_of_a_scene_does_not_change_it(self):
        one, *others = (scenes(**c).split("val")[7] for c in ({}, {"num_references": 2}, {"order": "left_to_right"}))
        for other in others:
            assert torch.equal(image(one), image(other))
            assert things(one) == things(other)

    def test_order(self):
        def ordered(order):
            found = []
            for sample in samples("val", order=order, held_out=[], unseen_share=0.0, num_objects=(3, 4)):
                for text in sample.targets["references"]:
                    statement = parsed(text)
                    if statement.relation is None:
                        # Only what is named without doubt.
                        fitting = [
                            [one.x for one in things(sample) if p.fits(one) == len(p.said)] for p in statement.phrases
                        ]
                        xs = [places[0] for places in fitting if len(places) == 1]
                        found += [xs == sorted(xs)] if len(xs) > 1 else []
            return sum(found) / len(found)

        assert ordered("left_to_right") == 1.0
        assert ordered("random") < 0.6

    def test_image_size(self):
        assert image(scenes(image_size=61).split("val")[0]).shape == (3, 61, 61)

    def test_some_scenes_have_things_to_count(self):
        words = Counter(word for s in samples("val") for text in s.targets["references"] for word in split_words(text))
        assert words["two"] > words["three"] > words["four"]
        assert words["three"] > 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"on_error": "panic"}, "on_error='panic'"),
            ({"image_size": 0}, "image_size=0"),
            ({"image_size": 19}, "image_size=19"),
            ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples=.*-1"),
            ({"num_objects": (0, 3)}, r"num_objects=\[0, 3\]"),
            ({"num_objects": (3, 2)}, r"num_objects=\[3, 2\]"),
            ({"num_objects": (1, 7)}, r"num_objects=\[1, 7\]"),
            ({"num_objects": (1, 5)}, r"num_objects=\[1, 5\].*large=\[0.28, 0.38\]"),
            ({"small": (0.2, 0.1)}, r"small=\[0.2, 0.1\]"),
            ({"small": (0.0, 0.1)}, r"small=\[0.0, 0.1\]"),
            ({"small": (0.2, 0.3)}, r"small=\[0.2, 0.3\].*large=\[0.28, 0.38\]"),
            ({"large": (0.38, 0.28)}, r"large=\[0.38, 0.28\]"),
            ({"large": (0.4, 0.6), "num_objects": (1, 1)}, r"large=\[0.4, 0.6\]"),
            ({"large": (0.4, 0.48)}, r"num_objects=\[1, 4\].*large=\[0.4, 0.48\]"),
            ({"order": "up"}, "order='up'"),
            ({"num_references": 0}, "num_references=0"),
            ({"held_out": ["red square", "square red"]}, r"held_out=\['square red'\].*red circle, red square"),
            ({"held_out": EVERY_PAIR}, "held_out=.*leaves nothing"),
            ({"held_out": []}, r"unseen_share=0.3 .*held_out=\[\]"),
            ({"unseen_share": 1.1}, "unseen_share=1.1"),
            ({"unseen_share": -0.1}, "unseen_share=-0.1"),
            ({"seed": -1}, "seed=-1"),
        ],
    )
    def test_what_cannot_be_is_refused_by_name(self, change, message):
        with pytest.raises(ValueError, match=message):
            scenes(**change)


class TestTexts:
    def test_they_hold_every_word_are_repeatable_and_leave_the_generator_alone(self):
        before = torch.get_rng_state()
        first, again = list(scenes().texts()), list(scenes().texts())
        assert first == again != list(scenes(seed=4).texts())
        assert torch.equal(before, torch.get_rng_state())
        counts = Counter(word for text in first for word in split_words(text))
        assert set(counts) == set(WORDS)
        assert min(counts[word] for word in COUNTS) >= 7
        assert all(parsed(text) for text in first[:NUM_TEXTS])

    def test_simple_scenes_have_the_same_words(self):
        texts = scenes(num_objects=(1, 1), order="left_to_right").texts()
        assert {word for text in texts for word in split_words(text)} == set(WORDS)


class TestFiles:
    def test_a_picture_of_any_size_is_read(self, tmp_path):
        Image.new("L", (101, 53), 200).save(tmp_path / "grey.png")
        sample = scenes().read(tmp_path / "grey.png")
        assert image(sample).shape == (3, SIDE, SIDE)
        assert sample.targets == {}
        with pytest.raises(UnreadableError, match=r"none\.png"):
            scenes().read(tmp_path / "none.png")
