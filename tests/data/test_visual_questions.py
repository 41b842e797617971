"""Questions about scenes of shapes: right answers, balanced, and not given away by the text."""

import re
from collections import Counter

import pytest
import torch

from perceiver.data.synthetic.shape_captions import PLURALS
from perceiver.data.synthetic.shapes import RELATION_MARGIN, RELATIONS, ObjectSampler
from perceiver.data.synthetic.visual_questions import ANSWERS, CLASS_NAMES, NUMBERS, VisualQuestions
from perceiver.tokenizer import WordTokenizer
from perceiver.types import Box

SIDE = 29
COUNTS = {"train": 211, "val": 101, "test": 211}
SINGULAR = {plural: noun for noun, plural in PLURALS.items()}


def questions(*, num_objects=(3, 5), **options) -> VisualQuestions:
    objects = ObjectSampler(num_objects=num_objects, small=(0.14, 0.18), large=(0.22, 0.3))
    settings = {"image_size": SIDE, "num_samples": COUNTS, "num_classes": len(CLASS_NAMES), "objects": objects}
    return VisualQuestions(**{**settings, "kinds": list(ANSWERS), "seed": 3, **options})


def drawn(source: VisualQuestions, count: int, kind: str = "") -> list:
    """The kind, answer and question of samples, of one kind if given."""
    indices = (index for index in range(count) if kind in ("", source.kind_and_answer(index)[0]))
    return [(*source.kind_and_answer(i), source.question(source.random("test", i), i)) for i in indices]


def fits(one, words: str) -> bool:
    attributes = {SINGULAR.get(word, word) for word in words.split()} - {"shape"}
    return attributes <= set(one.attributes.values())


def answer(text: str, objects) -> str:
    """Answer a question from the objects of a scene."""
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return NUMBERS[sum(fits(one, match[1]) for one in objects)]
    if match := re.fullmatch(r"what (color|shape) is the (.+)\?", text):
        [one] = [one for one in objects if fits(one, match[2])]
        return one.attributes[match[1]]
    match = re.fullmatch(rf"is the (.+?) (?:to the )?({'|'.join(RELATIONS)})(?: of)? the (.+)\?", text)
    [one], [other] = ([one for one in objects if fits(one, words)] for words in match.group(1, 3))
    axis, sign = RELATIONS[match[2]]
    difference = sign * (getattr(one, axis) - getattr(other, axis))
    assert abs(difference) >= RELATION_MARGIN
    return "yes" if difference > 0 else "no"


def test_answers_are_true_of_the_scene():
    for kind, expected, question in drawn(questions(num_objects=(1, 4)), 1009):
        assert answer(question.text, question.objects) == expected in ANSWERS[kind]
        assert 1 <= len(question.objects) <= 4
        if kind == "count":
            assert len(question.referents) == NUMBERS.index(expected)


def test_answers_of_a_kind_are_equally_frequent():
    source = questions()
    counts = Counter(map(source.kind_and_answer, range(1009)))
    for kind, answers in ANSWERS.items():
        of_kind = [counts[kind, one] for one in answers]
        assert max(of_kind) - min(of_kind) <= 1


def test_words_and_number_of_objects_are_independent_of_the_answer():
    source = questions()
    for index, kind in enumerate(source.kinds[:3]):
        for number in range(37):
            with_answers = [
                source.question(source.random("test", number), index + len(ANSWERS) * place)
                for place in range(len(ANSWERS[kind]))
            ]
            assert len({(question.text, len(question.objects)) for question in with_answers}) == 1
    relations = drawn(questions(kinds=["relation"]), 1009)
    phrases = {one: Counter() for one in ANSWERS["relation"]}
    for _, expected, question in relations:
        phrases[expected][re.search("|".join(RELATIONS), question.text)[0]] += 1
    yes, no = (phrases[one] for one in ANSWERS["relation"])
    assert all(abs(yes[word] - no[word]) < 5 * (yes[word] + no[word]) ** 0.5 for word in RELATIONS)
    assert min(yes[word] for word in RELATIONS) > 31


def test_items_depend_on_seed_stage_and_index_and_are_drawn_anew_in_training():
    test = questions().items("test", {})
    for index in (0, 1, 2, 3, 210):
        torch.manual_seed(index)
        item, again = test[index], questions().items("test", {})[index]
        assert (item.parts["text"], item.targets) == (again.parts["text"], again.targets)
        assert torch.equal(item.parts["image"], again.parts["image"])
        other = questions(seed=4).items("test", {})[index]
        assert not torch.equal(item.parts["image"], other.parts["image"])
    train = questions().items("train", {})
    items = [train[5] for _ in range(11)]
    assert len({item.parts["text"] for item in items}) > 1
    assert {(item.targets["label"], item.targets["group"]) for item in items} == {
        (train.sample_classes(5)[0], questions().kind_and_answer(5)[0])
    }


def test_an_item_has_both_modalities_and_the_boxes_of_the_referents_as_those_of_its_class():
    source = questions()
    for stage in COUNTS:
        items = source.items(stage, {})
        assert len(items) == COUNTS[stage]
        item = items[3]
        assert item.id == f"visual_questions/{stage}/3"
        assert item.parts.keys() == set(items.roles)
        assert item.parts["image"].shape == (3, SIDE, SIDE)
        assert source.class_names[item.targets["label"]] == source.kind_and_answer(3)[1]
        assert ("boxes" in item.targets) == (stage != "train")
    boxes = items[3].targets["boxes"]
    assert len(boxes) == 2
    assert all(isinstance(box, Box) and [box.label] == list(items.sample_classes(3)) for box in boxes)


def test_every_word_is_known_to_a_tokenizer_of_its_texts():
    source = questions()
    tokenizer = WordTokenizer(vocab_size=64, max_length=32, lowercase=True, min_frequency=1)
    tokenizer.train(source.texts(on_error="raise"))
    loss = tokenizer.encoding_loss(question.text for _, _, question in drawn(source, 1009))
    assert (loss.num_unknown, loss.num_truncated) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, "num_classes=7.*19"),
        ({"kinds": []}, r"kinds=\[\].*count, color, shape, relation"),
        ({"kinds": ["count", "size"]}, "kinds=.*size"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        questions(**options)
