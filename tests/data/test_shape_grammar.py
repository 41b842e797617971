"""The grammar of shapes: what is said is understood and judged, and words point at what they mean."""

import pickle
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest

from perceiver.data.synthetic.scene_graph import KINDS, ShapeFacts, constant_caption
from perceiver.data.synthetic.shape_grammar import COUNTS, PLURALS, WORDS, captions, parsed
from perceiver.data.synthetic.shape_scene import COLOURS, RELATIONS, SHAPES, Thing, things_of
from perceiver.tokenizer import WordTokenizer, split_words
from perceiver.types import Box

SIZES = {"small": (0.14, 0.2), "large": (0.28, 0.38)}
SIDE = 64


def thing(name, x=0.5, y=0.5):
    size, colour, shape = name.split()
    return Thing(size, colour, shape, x, y, SIZES[size][0], COLOURS[colour])


def facts(*things):
    return ShapeFacts(things, SIDE)


RED_CIRCLE, BLUE_SQUARE = thing("small red circle", 0.2, 0.3), thing("large blue square", 0.7, 0.65)
TWO = facts(RED_CIRCLE, BLUE_SQUARE)
THREE_STARS = facts(thing("small red star", 0.1), thing("large red star", 0.5), thing("small cyan star", 0.9))


def scenes(number, *, most=4, alike=False):
    """Random scenes, each with a generator to say something of it; if `alike`, of few kinds of things."""
    for seed in range(number):
        rng = np.random.default_rng(seed)
        colours, shapes = (list(COLOURS)[:2], SHAPES[:2]) if alike else (list(COLOURS), SHAPES)
        count = int(rng.integers(1, most + 1))
        kinds = [(colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))]) for _ in range(count)]
        yield things_of(rng, kinds, SIZES if most < 5 else SIZES | {"large": (0.25, 0.3)}), rng


def said(things, rng, count=5, left_to_right=False):
    return captions(things, rng, count=count, left_to_right=left_to_right)


def truth(facts, caption):
    """Whether all that a caption states is true."""
    return float(facts.scores(caption)["spice_precision"] == pytest.approx(1.0))


class TestCaptions:
    @pytest.mark.parametrize("left_to_right", [False, True])
    @pytest.mark.parametrize(("most", "alike"), [(4, False), (4, True), (6, True)])
    def test_every_caption_is_understood_and_true(self, most, alike, left_to_right):
        for things, rng in scenes(1009, most=most, alike=alike):
            for caption in said(things, rng, left_to_right=left_to_right):
                assert truth(ShapeFacts(things, SIDE), caption) == 1.0, (caption, things)
                assert len(split_words(caption)) <= 24
                assert set(split_words(caption)) <= set(WORDS)

    def test_captions_of_a_scene_differ_and_say_it_in_all_ways(self):
        texts = []
        for things, rng in scenes(401):
            found = said(things, rng, 7)
            assert len(set(found)) == len(found) == 7
            texts += found
        starts = (
            "^there is",
            "^there are",
            "^the picture shows",
            "^i see",
            "^(a|two) ",
            "^(left|right) of",
            "^to the ",
        )
        rests = (" is (right|left|to)", "[^s] (left|right) of", " a \\w+ shape", "^(above|below).* is ", ", .* and ")
        for way in (*starts, *rests):
            assert sum(bool(re.search(way, text)) for text in texts) > 20, way

    def test_most_captions_speak_of_several_things_where_there_are_several(self):
        for things, rng in scenes(211):
            if len(things) > 1:
                for caption in said(things, rng):
                    assert sum(phrase.count for phrase in parsed(caption).phrases) >= 2

    def test_as_many_as_there_are_is_enough(self):
        assert said([RED_CIRCLE], np.random.default_rng(0), 1000) != []

    def test_the_same_generator_says_the_same(self):
        for things, _ in scenes(7):
            first, again, other = (said(things, np.random.default_rng(seed)) for seed in (3, 3, 4))
            assert first == again != other

    def test_from_left_to_right_what_is_left_comes_first_or_what_is_above(self):
        """Looked up by where the words point, where that is told without doubt."""
        random_order = []
        for left_to_right in (True, False):
            for things, rng in scenes(307):
                for caption in said(things, rng, left_to_right=left_to_right):
                    statement = parsed(caption)
                    if statement.relation:
                        axis = RELATIONS[statement.relation[0]][0]
                        # The relation's word in front of both phrases turns them round.
                        mentions = ShapeFacts(things, SIDE).mentions(caption)
                        (boxes,) = (mention.boxes for mention in mentions if mention.kind == "relation")
                        if len(boxes) > 2:  # several things are alike
                            continue
                        middles = [sum(box.ranges[axis]) / 2 for box in boxes]
                        if statement.relation[1] < min(phrase.word for phrase in statement.phrases):
                            middles.reverse()
                    else:
                        full = [phrase for phrase in statement.phrases if len(phrase.said) == 3 and phrase.count == 1]
                        fitting = [[one.x for one in things if phrase.fits(one) == 3] for phrase in full]
                        middles = [xs[0] for xs in fitting if len(xs) == 1]
                    if left_to_right:
                        assert middles == sorted(middles), (caption, things)
                    elif len(middles) > 1:
                        random_order.append(middles == sorted(middles))
        assert 0.3 < np.mean(random_order) < 0.7

    def test_what_is_counted_comes_where_its_first_thing_is(self):
        found = [
            caption
            for seed in range(101)
            for caption in said(THREE_STARS.things, np.random.default_rng(seed), left_to_right=True)
            if "two" in caption and "and" in caption
        ]
        assert len(found) > 50
        # The red stars are the first and the second, the small ones the first and the last.
        assert all(caption.index("two") < caption.index(" and ") for caption in found)


class TestGrammar:
    @pytest.mark.parametrize(
        "caption",
        [
            "a red circle",
            "A red circle .",
            "There is a small circle , a large shape and a blue square.",
            "two red circles",
            "there are two large shapes and a star",
            "i see four crosses",
            "a red circle and three small white stars",
            "a small red circle left of a cross",
            "a small red circle is to the left of a cross",
            "the picture shows a red shape under a cross",
            "above a cyan star there is a red circle",
            "to the right of a star is a circle",
        ],
    )
    def test_sentences(self, caption):
        assert TWO.scores(caption)["grammatical"] == 1.0

    @pytest.mark.parametrize(
        "caption",
        [
            "",
            ".",
            "two",
            "a",
            "a red",
            "a shape",
            "three shapes",
            "red circle",
            "a circle red",
            "a red small circle",
            "a red circles",
            "two red circle",
            "four four circles",
            "there are a red circle",
            "there is two circles",
            "a circle a square",
            "a circle, a square",
            "a circle and",
            "and a circle",
            "a circle and a square and a star",
            "a circle, and a square",
            "a circle left a square",
            "a circle left of",
            "left of a circle",
            "left of a circle a square",
            "a circle above of a square",
            "two circles above a square",
            "there is a circle is above a square",
            "a circle above a square above a star",
            "a circle..",
            "i see i see a circle",
            "a <unk> circle",
            "colourless green ideas",
            "a circle\N{COMBINING ACUTE ACCENT}",
            "\ud800 \0",
        ],
    )
    def test_anything_else_is_no_sentence_and_nothing_in_it_is_true(self, caption):
        assert parsed(caption) is None
        assert set(TWO.scores(caption).values()) == {0.0}
        assert {"spice", "spice_precision", "spice_recall", "spice_precision/colour"} <= TWO.scores(caption).keys()
        assert TWO.mentions(caption) == []

    def test_very_long_texts_take_no_time(self):
        begin = time.monotonic()
        for text in (
            "a" * 100_000,
            "a " * 50_000,
            "a red circle " * 20_000,
            "a red circle, " * 20_000,
            f"{'a red circle, ' * 199}a red circle and a red circle",
            f"{'four red circles, ' * 199}a red circle and",
            "two " * 30_000,
        ):
            assert truth(TWO, text) == 0.0
            TWO.mentions(text)
        assert time.monotonic() - begin < 10

    def test_a_word_tokenizer_changes_nothing(self):
        all_said = [(things, caption) for things, rng in scenes(101) for caption in said(things, rng)]
        tokenizer = WordTokenizer(vocab_size=211, max_length=31, lowercase=True, min_frequency=1)
        tokenizer.train(caption for _, caption in all_said)
        for things, caption in all_said:
            told = ShapeFacts(things, SIDE)
            for text in (tokenizer.decode(tokenizer.encode(caption).tolist()), caption.upper(), f"{caption} ."):
                assert told.scores(text) == told.scores(caption)
                assert told.mentions(text) == told.mentions(caption)


def precisions(facts, caption):
    scores = facts.scores(caption)
    names = {kind: f"spice_precision/{kind}" for kind in KINDS}
    return {kind: scores[name] for kind, name in names.items() if name in scores}


class TestSpice:
    @pytest.mark.parametrize(
        ("caption", "wanted"),
        [
            ("a red circle", {"colour": 1, "shape": 1}),
            ("a green star", {"colour": 0, "shape": 0}),
            ("a small blue square and a red circle", {"size": 0, "colour": 1, "shape": 1}),
            # Phrases mean different things.
            ("a red circle and a red circle", {"colour": 1 / 2, "shape": 1 / 2}),
            ("a small red shape and a circle", {"size": 1, "colour": 1, "shape": 0}),
            ("a circle and a small red shape", {"size": 1, "colour": 1, "shape": 0}),
            # Whatever goes beyond the things there are is false.
            ("a circle, a square and a star", {"object": 2 / 3, "shape": 2 / 3}),
            ("a circle, a square, a circle and a square", {"object": 1 / 2, "shape": 1 / 2}),
            ("two circles", {"shape": 1 / 2, "count": 0}),
            ("a red circle above a square", {"colour": 1, "shape": 1, "relation": 1}),
            ("a square above a red circle", {"colour": 1, "shape": 1, "relation": 0}),
            ("under a red circle is a square", {"colour": 1, "shape": 1, "relation": 1}),
            ("a circle left of a circle", {"shape": 1 / 2, "relation": 1}),
            # Equally good matchings count alike.
            ("a blue circle", {"colour": 1 / 2, "shape": 1 / 2}),
            ("a large red circle and a large blue circle", {"size": 1 / 2, "colour": 1, "shape": 1 / 2}),
        ],
    )
    def test_precision_by_kind(self, caption, wanted):
        wanted = {"object": 1} | wanted
        assert precisions(TWO, caption) == pytest.approx(wanted)
        weights = {"object": 2, "size": 2, "colour": 2, "shape": 2}  # of two phrases that state as much
        if caption == "a large red circle and a large blue circle":
            overall = sum(weights[kind] * share for kind, share in wanted.items()) / 8
            assert TWO.scores(caption)["spice_precision"] == pytest.approx(overall)

    def test_against_a_count_of_all_propositions_by_hand(self):
        """Two things that are ordered along both axes: eight propositions of the things, two of their order."""
        for caption, true, stated, found in [
            ("a small red circle and a large blue square", 8, 8, 8),
            ("a small red circle and a square", 6, 6, 6),
            ("a red circle left of a blue square", 7, 7, 7),
            ("a small shape", 2, 2, 2),
            ("a large red star and a circle", 4, 6, 4),
        ]:
            scores = TWO.scores(caption)
            precision, recall = true / stated, found / 10
            assert scores["spice_precision"] == pytest.approx(precision)
            assert scores["spice_recall"] == pytest.approx(recall)
            assert scores["spice"] == pytest.approx(2 * precision * recall / (precision + recall))
        counted = THREE_STARS.scores("three stars")  # of which the graph has one count, and three orders along x
        assert counted["spice_precision"] == counted["spice/count"] == 1.0
        assert counted["spice_recall"] == pytest.approx((3 + 3 + 1) / (3 * 4 + 1 + 3))
        # True, but not a count of all things of a shape.
        partly = THREE_STARS.scores("two red stars")
        assert (partly["spice_precision/count"], partly["spice_recall/count"]) == (1.0, 0.0)

    def test_silence_lowers_recall_and_f(self):
        full, less, least = "a small red circle and a large blue square", "a red circle and a square", "a circle"
        for score in ("spice", "spice_recall"):
            assert TWO.scores(full)[score] > TWO.scores(less)[score] > TWO.scores(least)[score] > 0.0
        assert TWO.scores(least)["spice/colour"] == TWO.scores(least)["spice_recall/size"] == 0.0
        assert "spice_precision/colour" not in TWO.scores(least)

    def test_against_brute_force_over_all_matchings(self):
        """Mean over all matchings of phrases to things that make most propositions true; relations apart."""
        tried = 0
        for (things, _), (_, rng) in pairwise(scenes(211, alike=True)):
            others = [one for one, _ in scenes(7, alike=True)]
            for caption in said(others[int(rng.integers(7))], rng):
                slots = parsed(caption).slots
                if parsed(caption).relation:
                    continue
                padded = [*things, *[None] * max(len(slots) - len(things), 0)]
                truths = []
                for meant in permutations(padded, len(slots)):
                    by_kind = Counter(object=sum(one is not None for one in meant))
                    for slot, one in zip(slots, meant, strict=True):
                        by_kind.update(kind for kind, (v, _) in slot.said.items() if one and one.attributes[kind] == v)
                    truths.append(by_kind)
                best = [of for of in truths if of.total() == max(truth.total() for truth in truths)]
                stated = Counter(kind for slot in slots for kind in ("object", *slot.said))
                for kind, number in stated.items():
                    tried += 1
                    wanted = np.mean([of[kind] for of in best]) / number
                    assert precisions(ShapeFacts(things, SIDE), caption)[kind] == pytest.approx(wanted)
        assert tried > 100

    def test_the_order_of_things_and_of_phrases_makes_no_difference(self):
        for (things, _), (_, rng) in pairwise(scenes(101, alike=True)):
            for caption in said(next(scenes(1))[0], rng):
                one, other = ShapeFacts(things, SIDE), ShapeFacts(things[::-1], SIDE)
                assert one.scores(caption) == pytest.approx(other.scores(caption))
        assert TWO.scores("a blue star and a circle") == pytest.approx(TWO.scores("a circle and a blue star"))

    def test_no_caption_of_a_scene_is_a_better_constant_than_the_constant(self):
        everything = list(scenes(101))
        graphs = [ShapeFacts(things, SIDE) for things, _ in everything]
        constant = constant_caption([things for things, _ in everything])
        score = np.mean([graph.spice(constant) for graph in graphs])
        for things, rng in everything[:53]:
            for caption in said(things, rng, 3):
                assert np.mean([graph.spice(caption) for graph in graphs]) <= score
        told = ShapeFacts(everything[0][0], SIDE, constant)
        assert told.scores("nonsense")["spice_constant"] == told.scores(constant)["spice"]

    def test_a_number_means_exactly_so_many_and_an_article_at_least_one(self):
        true = (
            "three stars",
            "two red stars",
            "two small shapes",
            "a star",
            "a red shape",
            "two red stars and a cyan star",
        )
        false = ("two stars", "four stars", "three red stars", "two red stars and a red star", "two large shapes")
        assert [truth(THREE_STARS, caption) for caption in true] == [1.0] * len(true)
        assert [truth(THREE_STARS, caption) for caption in false] == [0.0] * len(false)
        assert THREE_STARS.scores("two stars and two red shapes")["spice_precision/count"] == 1 / 2

    def test_the_best_choice_counts_not_the_first(self):
        """A greedy choice would give the large red star to the first phrase."""
        for caption in ("a red star and a large star", "a large star and a red star"):
            assert truth(THREE_STARS, caption) == 1.0

    def test_a_relation_picks_those_of_several_things_that_have_it(self):
        assert truth(THREE_STARS, "a small star right of a red star") == 1.0
        assert truth(THREE_STARS, "a large star right of a small star") == 1.0
        assert truth(THREE_STARS, "a cyan star left of a star") == 0.0
        assert truth(THREE_STARS, "a star above a star") == 0.0

    def test_of_a_single_thing_no_relation_is_true(self):
        for relation in ("left of", "above"):
            judged = facts(RED_CIRCLE).scores(f"a circle {relation} a circle")
            assert judged["spice_precision/relation"] == 0.0
            assert judged["spice_precision/shape"] == 1 / 2

    def test_with_colours_exchanged_what_names_one_is_false(self):
        tried = 0
        for things, rng in scenes(401):
            one, other = things[0], things[-1]
            if len({thing.colour for thing in things}) < len(things) or len(things) < 2:
                continue
            changed = [replace(one, colour=other.colour), *things[1:-1], replace(other, colour=one.colour)]
            for caption in said(things, rng):
                for phrase in parsed(caption).phrases:
                    named = one.colour in phrase.said.get("colour", ())
                    if named and "shape" in phrase.said and one.shape != other.shape:
                        tried += 1
                        assert truth(ShapeFacts(changed, SIDE), caption) == 0.0
        assert tried > 100

    def test_in_the_mirror_left_is_right(self):
        tried = 0
        for things, rng in scenes(401):
            mirrored = ShapeFacts([replace(one, x=1 - one.x) for one in things], SIDE)
            for caption in said(things, rng):
                relation = parsed(caption).relation
                if relation is None or relation[0] not in ("left", "right"):
                    assert truth(mirrored, caption) == 1.0
                    continue
                tried += 1
                other = {"left": "right", "right": "left"}[relation[0]]
                assert truth(mirrored, caption.replace(relation[0], other)) == 1.0
                if len(things) == 2 and all(len(phrase.said) == 3 for phrase in parsed(caption).phrases):
                    same = len({tuple(one.attributes.values()) for one in things}) == 1
                    assert truth(mirrored, caption) == float(same)
        assert tried > 100

    def test_a_caption_of_another_scene_is_mostly_false(self):
        every = [(ShapeFacts(things, SIDE), said(things, rng)) for things, rng in scenes(401)]
        crossed = [truth(one, caption) for (one, _), (_, texts) in pairwise(every) for caption in texts]
        assert np.mean(crossed) < 0.05

    def test_counts_off_by_one_are_false(self):
        tried = 0
        for things, rng in scenes(401, alike=True):
            for caption in said(things, rng):
                for count, number in COUNTS.items():
                    others = [word for word, other in COUNTS.items() if abs(other - number) == 1]
                    if re.search(rf"\b{count}\b", caption):
                        tried += 1
                        wrong = [re.sub(rf"\b{count}\b", other, caption) for other in others]
                        assert not any(truth(ShapeFacts(things, SIDE), text) for text in wrong)
        assert tried > 100

    def test_each_wrong_word_makes_a_full_caption_of_one_thing_false(self):
        for things, _ in scenes(101, most=1):
            told, (one,) = ShapeFacts(things, SIDE), things
            for kind, names in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)):
                for name in names:
                    caption = " ".join(["a", *(one.attributes | {kind: name}).values()])
                    right = name == one.attributes[kind]
                    assert truth(told, caption) == precisions(told, caption)[kind] == right


class TestMentions:
    @staticmethod
    def pointed(told, caption):
        words = split_words(caption)
        return [(words[mention.word], mention.kind, mention.boxes) for mention in told.mentions(caption)]

    def test_each_word_points_at_its_thing(self):
        circle, square = RED_CIRCLE.box(SIDE), BLUE_SQUARE.box(SIDE)
        assert self.pointed(TWO, "i see a small red circle and a square") == [
            ("small", "size", [circle]),
            ("red", "colour", [circle]),
            ("circle", "shape", [circle]),
            ("square", "shape", [square]),
        ]
        assert self.pointed(TWO, "a blue square and a red shape") == [
            ("blue", "colour", [square]),
            ("square", "shape", [square]),
            ("red", "colour", [circle]),
        ]

    def test_what_is_false_points_nowhere(self):
        circle = RED_CIRCLE.box(SIDE)
        assert self.pointed(TWO, "a large red circle and two blue stars") == [
            ("red", "colour", [circle]),
            ("circle", "shape", [circle]),
            ("blue", "colour", [BLUE_SQUARE.box(SIDE)]),
        ]

    def test_a_relation_points_at_both_and_an_inverted_one_too(self):
        circle, square = RED_CIRCLE.box(SIDE), BLUE_SQUARE.box(SIDE)
        assert self.pointed(TWO, "a circle to the left of a square")[1] == ("left", "relation", [circle, square])
        assert self.pointed(TWO, "under a circle there is a blue shape") == [
            ("under", "relation", [square, circle]),
            ("circle", "shape", [circle]),
            ("blue", "colour", [square]),
        ]
        assert [kind for _, kind, _ in self.pointed(TWO, "a square left of a circle")] == ["shape", "shape"]

    def test_a_count_and_its_words_point_at_all_of_them(self):
        boxes = [one.box(SIDE) for one in THREE_STARS.things]
        assert self.pointed(THREE_STARS, "there are two small stars") == [
            ("two", "count", [boxes[0], boxes[2]]),
            ("small", "size", [boxes[0], boxes[2]]),
            ("stars", "shape", [boxes[0], boxes[2]]),
        ]
        assert [word for word, _, _ in self.pointed(THREE_STARS, "four stars")] == ["stars"]

    def test_all_words_of_all_true_captions_point_at_things_of_which_they_are_true(self):
        for things, rng in scenes(307, alike=True):
            told = ShapeFacts(things, SIDE)
            for caption in said(things, rng):
                content = [w for w in split_words(caption) if w in {*COLOURS, *SHAPES, *SIZES, *COUNTS, *RELATIONS}]
                plural = [w for w in split_words(caption) if w in PLURALS.values() and w != "shapes"]
                pointed = self.pointed(told, caption)
                assert len(pointed) == len(content) + len(plural)
                for word, kind, boxes in pointed:
                    for box in boxes:
                        (one,) = (one for one in things if one.box(SIDE) == box)
                        assert box.ranges["x"][0] < one.x * SIDE < box.ranges["x"][1]
                        assert box.ranges["y"][0] < one.y * SIDE < box.ranges["y"][1]
                        if kind in ("colour", "size"):
                            assert one.attributes[kind] == word
                        if kind == "shape":
                            assert word in (one.shape, PLURALS[one.shape])

    def test_boxes_are_in_pixels_and_labelled_by_shape(self):
        (mention,) = ShapeFacts([RED_CIRCLE], 100).mentions("a circle")
        assert (mention.word, mention.kind) == (1, "shape")
        (box,) = mention.boxes
        assert (box.label, box.modality) == (SHAPES.index("circle"), "image")
        assert isinstance(box, Box)
        assert box.ranges["x"] == pytest.approx((13, 27))
        assert box.ranges["y"] == pytest.approx((23, 37))

    def test_facts_can_be_sent_to_another_process(self):
        for things, rng in scenes(7):
            told = ShapeFacts(things, SIDE)
            copy = pickle.loads(pickle.dumps(told))
            for caption in said(things, rng):
                assert copy.mentions(caption) == told.mentions(caption)


def test_every_word_is_said_sooner_or_later():
    counts = Counter(
        word
        for alike in (True, False)
        for things, rng in scenes(1009, alike=alike)
        for caption in said(things, rng)
        for word in split_words(caption)
    )
    assert set(counts) == set(WORDS)
