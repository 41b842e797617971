"""The grammar of shapes: captions are true, parsed and scored, and their words refer to the right objects."""

import pickle
import re
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest

from perceiver.data.synthetic.shape_captions import (
    COUNTS,
    KINDS,
    MAX_WORDS,
    PLURALS,
    WORDS,
    CaptionSampler,
    ShapeFacts,
    constant_caption,
    parse,
)
from perceiver.data.synthetic.shapes import COLORS, RELATIONS, SHAPES, SIZES, ObjectSampler, SceneObject
from perceiver.tokenizer import WordTokenizer, split_words

SIDE = 64


def scene_object(name, x=0.5, y=0.5):
    size, color, shape = name.split()
    return SceneObject(size, color, shape, x, y, {"small": 0.14, "large": 0.28}[size], COLORS[color])


def facts(*objects):
    return ShapeFacts(objects, SIDE)


RED_CIRCLE, BLUE_SQUARE = scene_object("small red circle", 0.2, 0.3), scene_object("large blue square", 0.7, 0.65)
TWO = facts(RED_CIRCLE, BLUE_SQUARE)
STARS = facts(
    scene_object("small red star", 0.1), scene_object("large red star", 0.5), scene_object("small cyan star", 0.9)
)


def scenes(number, *, most=4, alike=False):
    """Random scenes, each with its generator; if `alike`, with few different objects."""
    sampler = ObjectSampler(num_objects=(1, most), small=(0.14, 0.2), large=(0.25, 0.3))
    for seed in range(number):
        random = np.random.default_rng(seed)
        colors, shapes = (list(COLORS)[:2], SHAPES[:2]) if alike else (list(COLORS), SHAPES)
        pairs = [(str(random.choice(colors)), str(random.choice(shapes))) for _ in range(sampler.count(random))]
        yield sampler.place(random, pairs), random


def captions(objects, random, count=5, order="random"):
    return CaptionSampler(order=order, num_references=count).sample(random, objects)


@pytest.fixture(scope="module", params=[False, True], ids=["varied", "alike"])
def captioned(request) -> list:
    """Objects of scenes, and some captions of each."""
    return [(objects, captions(objects, random)) for objects, random in scenes(307, alike=request.param)]


def is_true(graph, caption):
    """Whether every proposition of a caption is true."""
    return graph.scores(caption)["spice_precision"] == pytest.approx(1.0)


def precisions(graph, caption):
    scores = graph.scores(caption)
    names = {kind: f"spice_precision/{kind}" for kind in KINDS}
    return {kind: scores[name] for kind, name in names.items() if name in scores}


class TestGeneration:
    def test_captions_are_grammatical_true_and_contain_every_word(self):
        words = set()
        for most, alike, order in ((4, False, "random"), (6, True, "left_to_right")):
            for objects, random in scenes(307, most=most, alike=alike):
                for caption in captions(objects, random, order=order):
                    assert is_true(facts(*objects), caption), (caption, objects)
                    assert len(split_words(caption)) <= 24
                    words.update(split_words(caption))
        assert words == set(WORDS)

    def test_captions_of_a_scene_differ_and_take_all_forms(self):
        texts = []
        for objects, random in scenes(211):
            found = captions(objects, random, 7)
            assert len(set(found)) == len(found) == 7
            texts += found
            if len(objects) > 1:
                assert all(len(parse(caption).slots) >= 2 for caption in found)
        starts = ("there is", "there are", "the picture shows", "i see", "(a|two) ", "(left|right) of", "to the ")
        others = (" is (right|left|to)", "[^s] (left|right) of", " a \\w+ shape", "^(above|below).* is ", ", .* and ")
        for form in (*(f"^{start}" for start in starts), *others):
            assert sum(bool(re.search(form, text)) for text in texts) > 10, form

    def test_fewer_captions_are_drawn_if_there_are_no_more(self):
        assert 0 < len(captions([RED_CIRCLE], np.random.default_rng(0), 1000)) < 1000

    def test_captions_depend_on_the_generator_alone(self):
        for objects, _ in scenes(7):
            first, again, other = (captions(objects, np.random.default_rng(seed)) for seed in (3, 3, 4))
            assert first == again != other

    @pytest.mark.parametrize("order", ["left_to_right", "random"])
    def test_order(self, order):
        """Of phrases and relations that refer to one object each."""
        is_ordered = []
        for objects, random in scenes(211):
            for caption in captions(objects, random, order=order):
                parsed = parse(caption)
                if parsed.relation:
                    word, position = parsed.relation
                    axis = RELATIONS[word][0]
                    (boxes,) = (one.boxes for one in facts(*objects).mentions(caption) if one.kind == "relation")
                    if len(boxes) > 2:
                        continue
                    centers = [sum(box.ranges[axis]) / 2 for box in boxes]
                    if position < min(phrase.position for phrase in parsed.phrases):
                        centers.reverse()
                else:
                    complete = [phrase for phrase in parsed.phrases if len(phrase.attributes) == 3]
                    fitting = [[one.x for one in objects if phrase.num_true(one) == 3] for phrase in complete]
                    centers = [xs[0] for xs in fitting if len(xs) == 1]
                if len(centers) > 1:
                    is_ordered.append(centers == sorted(centers))
        assert len(is_ordered) > 100
        assert np.mean(is_ordered) == 1.0 if order == "left_to_right" else 0.3 < np.mean(is_ordered) < 0.7

    def test_a_counted_group_is_ordered_by_its_first_object(self):
        found = [
            caption
            for seed in range(53)
            for caption in captions(STARS.objects, np.random.default_rng(seed), order="left_to_right")
            if "two" in caption and " and " in caption
        ]
        assert len(found) > 20
        # The red stars are the first and the second, the small ones the first and the last.
        assert all(caption.index("two") < caption.index(" and ") for caption in found)

    @pytest.mark.parametrize(("options", "message"), [({"order": "up"}, "'up'"), ({"num_references": 0}, "0")])
    def test_invalid_settings_are_refused(self, options, message):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}={message}"):
            CaptionSampler(**{"order": "random", "num_references": 1} | options)


GRAMMATICAL = """
a red circle|A red circle .|There is a small circle , a large shape and a blue square.|two red circles
there are two large shapes and a star|i see four crosses|a red circle and three small white stars
a small red circle left of a cross|a small red circle is to the left of a cross
the picture shows a red shape under a cross|above a cyan star there is a red circle|to the right of a star is a circle
"""
UNGRAMMATICAL = """
.|two|a|a red|a shape|three shapes|red circle|a circle red|a red small circle|a red circles|two red circle
four four circles|there are a red circle|there is two circles|a circle a square|a circle, a square|a circle and
and a circle|a circle and a square and a star|a circle, and a square|a circle left a square|a circle left of
left of a circle|left of a circle a square|a circle above of a square|two circles above a square
there is a circle is above a square|a circle above a square above a star|a circle..|i see i see a circle
a <unk> circle|colorless green ideas|a circle\N{COMBINING ACUTE ACCENT}|\ud800 \0
"""


class TestGrammar:
    def test_grammatical_captions(self):
        for caption in re.split(r"[|\n]", GRAMMATICAL.strip()):
            assert TWO.scores(caption)["grammatical"] == 1.0, caption

    def test_ungrammatical_captions_score_zero(self):
        for caption in ["", *re.split(r"[|\n]", UNGRAMMATICAL.strip())]:
            assert parse(caption) is None, caption
            assert set(TWO.scores(caption).values()) == {0.0}
            assert {"spice", "spice_precision", "spice_recall", "spice_precision/color"} <= TWO.scores(caption).keys()
            assert TWO.mentions(caption) == []

    def test_long_texts_are_not_parsed(self):
        for phrases in range(1, 101):
            caption = f"{', '.join(['a circle'] * phrases)} and a small square"
            assert (parse(caption) is None) == (len(split_words(caption)) > MAX_WORDS)
        assert parse("four circles, " * 20_000) is None

    def test_a_word_tokenizer_changes_nothing(self, captioned):
        tokenizer = WordTokenizer(vocab_size=211, max_length=31, lowercase=True, min_frequency=1)
        tokenizer.train(caption for _, found in captioned for caption in found)
        for objects, (caption, *_) in captioned:
            graph = facts(*objects)
            for text in (tokenizer.decode(tokenizer.encode(caption).tolist()), caption.upper(), f"{caption} ."):
                assert graph.scores(text) == graph.scores(caption)
                assert graph.mentions(text) == graph.mentions(caption)


class TestSpice:
    @pytest.mark.parametrize(
        ("caption", "expected"),
        [
            ("a red circle", {"color": 1, "shape": 1}),
            ("a green star", {"color": 0, "shape": 0}),
            ("a small blue square and a red circle", {"size": 0, "color": 1, "shape": 1}),
            # Phrases are matched to different objects.
            ("a red circle and a red circle", {"color": 1 / 2, "shape": 1 / 2}),
            ("a small red shape and a circle", {"size": 1, "color": 1, "shape": 0}),
            ("a circle and a small red shape", {"size": 1, "color": 1, "shape": 0}),
            # More phrases than objects.
            ("a circle, a square and a star", {"object": 2 / 3, "shape": 2 / 3}),
            ("a circle, a square, a circle and a square", {"object": 1 / 2, "shape": 1 / 2}),
            ("two circles", {"shape": 1 / 2, "count": 0}),
            ("a red circle above a square", {"color": 1, "shape": 1, "relation": 1}),
            ("a square above a red circle", {"color": 1, "shape": 1, "relation": 0}),
            ("under a red circle is a square", {"color": 1, "shape": 1, "relation": 1}),
            ("a circle left of a circle", {"shape": 1 / 2, "relation": 1}),
            # Equally good matchings have equal weights.
            ("a blue circle", {"color": 1 / 2, "shape": 1 / 2}),
            ("a large red circle and a large blue circle", {"size": 1 / 2, "color": 1, "shape": 1 / 2}),
        ],
    )
    def test_precision_by_kind(self, caption, expected):
        assert precisions(TWO, caption) == pytest.approx({"object": 1} | expected)

    @pytest.mark.parametrize(
        ("caption", "true", "stated"),
        [
            ("a small red circle and a large blue square", 8, 8),
            ("a small red circle and a square", 6, 6),
            ("a red circle left of a blue square", 7, 7),
            ("a small shape", 2, 2),
            ("a large red star and a circle", 4, 6),
        ],
    )
    def test_f_precision_and_recall(self, caption, true, stated):
        """Two objects that are ordered along both axes have 8 + 2 propositions."""
        scores = TWO.scores(caption)
        precision, recall = true / stated, true / 10
        assert scores["spice_precision"] == pytest.approx(precision)
        assert scores["spice_recall"] == pytest.approx(recall)
        assert scores["spice"] == pytest.approx(2 * precision * recall / (precision + recall))

    def test_recall_of_counts_and_of_kinds_that_are_not_stated(self):
        three = STARS.scores("three stars")  # of a graph with one count and three relations
        assert three["spice_precision"] == three["spice/count"] == 1.0
        assert three["spice_recall"] == pytest.approx((3 + 3 + 1) / (3 * 4 + 1 + 3))
        two = STARS.scores("two red stars")  # true, but not the count of a shape
        assert (two["spice_precision/count"], two["spice_recall/count"]) == (1.0, 0.0)
        circle = TWO.scores("a circle")
        assert circle["spice/color"] == circle["spice_recall/size"] == 0.0
        assert "spice_precision/color" not in circle

    def test_against_brute_force_over_all_matchings(self):
        tried = 0
        crossed = list(pairwise(scenes(211, alike=True)))
        for (objects, _), (others, random) in crossed:
            for caption in captions(others, random, 3):
                slots = parse(caption).slots
                if parse(caption).relation:
                    continue
                padded = [*objects, *[None] * max(len(slots) - len(objects), 0)]
                true = []
                for matched in permutations(padded, len(slots)):
                    counts = Counter(object=sum(one is not None for one in matched))
                    for slot, one in zip(slots, matched, strict=True):
                        names = (n for n, (value, _) in slot.attributes.items() if one and one.attributes[n] == value)
                        counts.update(names)
                    true.append(counts)
                best = [counts for counts in true if counts.total() == max(map(Counter.total, true))]
                for kind, number in Counter(k for slot in slots for k in ("object", *slot.attributes)).items():
                    tried += 1
                    expected = np.mean([counts[kind] for counts in best]) / number
                    assert precisions(facts(*objects), caption)[kind] == pytest.approx(expected)
                assert facts(*objects).scores(caption) == pytest.approx(facts(*objects[::-1]).scores(caption))
        assert tried > 100

    def test_no_caption_of_a_scene_is_a_better_constant(self):
        found = list(scenes(101))
        graphs = [facts(*objects) for objects, _ in found]
        constant = constant_caption([objects for objects, _ in found])
        score = np.mean([graph.spice(constant) for graph in graphs])
        for objects, random in found[:17]:
            for caption in captions(objects, random, 3):
                assert np.mean([graph.spice(caption) for graph in graphs]) <= score
        with_constant = ShapeFacts(graphs[0].objects, SIDE, constant)
        assert with_constant.scores("nonsense")["spice_constant"] == with_constant.scores(constant)["spice"]

    @pytest.mark.parametrize(
        ("caption", "expected"),
        [
            # A number is exact, an article is not.
            *((text, True) for text in ("three stars", "two red stars", "two small shapes", "a star", "a red shape")),
            *((text, False) for text in ("two stars", "four stars", "three red stars", "two large shapes")),
            ("two red stars and a cyan star", True),
            ("two red stars and a red star", False),
            # A greedy matching would give the large red star to the first phrase.
            ("a red star and a large star", True),
            ("a large star and a red star", True),
            # A relation may be true of any pair that fits.
            ("a small star right of a red star", True),
            ("a large star right of a small star", True),
            ("a cyan star left of a star", False),
            ("a star above a star", False),
        ],
    )
    def test_truth_of_counts_and_relations(self, caption, expected):
        assert is_true(STARS, caption) == expected

    def test_partial_truth_of_counts_and_relations(self):
        assert STARS.scores("two stars and two red shapes")["spice_precision/count"] == 1 / 2
        for relation in ("left of", "above"):
            found = precisions(facts(RED_CIRCLE), f"a circle {relation} a circle")
            assert (found["relation"], found["shape"]) == (0.0, 1 / 2)


class TestMentions:
    @pytest.mark.parametrize(
        ("graph", "caption", "expected"),
        [
            (TWO, "i see a small red circle and a square", "small size 0|red color 0|circle shape 0|square shape 1"),
            (TWO, "a blue square and a red shape", "blue color 1|square shape 1|red color 0"),
            # What is false refers to nothing.
            (TWO, "a large red circle and two blue stars", "red color 0|circle shape 0|blue color 1"),
            (TWO, "a circle to the left of a square", "circle shape 0|left relation 0 1|square shape 1"),
            (TWO, "a square left of a circle", "square shape 1|circle shape 0"),
            (TWO, "under a circle there is a blue shape", "under relation 1 0|circle shape 0|blue color 1"),
            (STARS, "there are two small stars", "two count 0 2|small size 0 2|stars shape 0 2"),
            (STARS, "four stars", "stars shape 0 1 2"),
        ],
    )
    def test_words_refer_to_objects(self, graph, caption, expected):
        words = split_words(caption)
        boxes = [one.box(SIDE) for one in graph.objects]
        found = [
            " ".join([words[one.word], one.kind, *(str(boxes.index(box)) for box in one.boxes)])
            for one in graph.mentions(caption)
        ]
        assert found == expected.split("|")

    def test_all_words_of_true_captions_refer_to_objects_with_that_attribute(self, captioned):
        contents = {*COLORS, *SHAPES, *SIZES, *COUNTS, *RELATIONS, *PLURALS.values()} - {"shapes"}
        for objects, found in captioned:
            graph = pickle.loads(pickle.dumps(facts(*objects)))
            for caption in found:
                words, mentions = split_words(caption), graph.mentions(caption)
                assert [words[one.word] for one in mentions] == [word for word in words if word in contents]
                for mention in mentions:
                    assert mention.boxes
                    for box in mention.boxes:
                        (one,) = (one for one in objects if one.box(SIDE) == box)
                        value = one.attributes.get(mention.kind)
                        assert value is None or words[mention.word] in (value, PLURALS.get(value))

    def test_boxes_are_in_pixels_and_labeled_by_shape(self):
        (mention,) = ShapeFacts([RED_CIRCLE], 100).mentions("a circle")
        assert (mention.word, mention.kind) == (1, "shape")
        (box,) = mention.boxes
        assert (box.label, box.modality) == (SHAPES.index("circle"), "image")
        assert box.ranges["x"] == pytest.approx((13, 27))
        assert box.ranges["y"] == pytest.approx((23, 37))
