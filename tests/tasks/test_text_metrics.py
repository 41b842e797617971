"""Text metrics are those of the COCO caption evaluation, by sample, group and process."""

import json
import math
import random
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torchmetrics import MetricCollection

from perceiver.tasks.gathered import TextMetrics
from perceiver.tasks.text_metrics import (
    ScoredText,
    bleu,
    caption_metrics,
    caption_words,
    cider_d,
    distinct_captions,
    exact_match,
    rouge_l,
    vocabulary_used,
)

BLEU = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
NAMES = {*BLEU, "ROUGE-L", "CIDEr-D", "exact_match", "distinct_captions", "vocabulary_used"}

# Samples, a line each (hypothesis: reference | reference), and what pycocoevalcap 1.2 gives for them: BLEU-1 to BLEU-4,
# ROUGE-L, CIDEr-D.
PHOTOGRAPHS = """
a man rides a brown horse on the beach: a man is riding a horse on the beach | a man rides his brown horse along the sea
two dogs play with a ball in the park: two dogs play with a red ball in the park | dogs are playing in a park | two dogs
a plate of food on a table: a white plate with food on a wooden table
a cat sleeps: a black cat is sleeping on the sofa | a cat sleeps on a sofa in the sun
people people walk down the street with umbrellas on the street: people walk down a wet street with umbrellas
"""
EXTREMES = """
: a bird sits on a branch | the bird sings
a a a a a bird sits on a a branch: a bird sits on a branch
the boat: the boat | a boat sails by the shore at night
"""
DRAWINGS = """
a green square is left of a red circle: a green square is left of a red circle | left of a red circle is a green square
a large blue circle is above a small red square: a large blue triangle is above a small red square
"""


def read(lines: str) -> dict[str, list[str]]:
    samples = [line.split(":") for line in lines.strip("\n").split("\n")]
    return {hypothesis: texts.split("|") for hypothesis, texts in samples}


def split(samples: dict[str, list[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [text.split() for text in samples], [[text.split() for text in texts] for texts in samples.values()]


def drawn(num_samples: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Hypotheses that know something of their 1 to 5 references."""
    draw = random.Random(num_samples)

    def changed(text: list[str]) -> list[str]:
        return [draw.choice("abcdefghijk") if draw.random() < 0.2 else word for word in text if draw.random() < 0.9]

    texts = [draw.choices("abcdefghijk", k=draw.randint(0, 13)) for _ in range(num_samples)]
    return [changed(text) for text in texts], [[changed(text) for _ in range(draw.randint(1, 5))] for text in texts]


def metrics_of(hypotheses: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    return [*bleu(hypotheses, references).values(), rouge_l(hypotheses, references), cider_d(hypotheses, references)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (PHOTOGRAPHS, (0.7443386203, 0.6359399019, 0.5280141241, 0.3832892574, 0.7239960276, 2.6997028685)),
        (EXTREMES, (0.6153846153, 0.5793654595, 0.4818678837, 0.4089601472, 0.5818058384, 1.8066531718)),
        (DRAWINGS, (0.9473684210, 0.9142829499, 0.8744810637, 0.8248739650, 0.9500000000, 7.4484126984)),
    ],
)
def test_it_is_what_the_coco_evaluation_says(lines, expected):
    # Its BLEU divides by 1e-9 more n-grams than there are.
    assert metrics_of(*split(read(lines))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("hypothesis", "references", "expected"),
    [
        # `the` counts twice at most (Papineni et al. 2002, section 2.1); of the lengths 6 and 7, 7 is the closest
        ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"], (2 / 7, 0, 0, 0)),
        ("a b c d", ["a b c d e f"], (math.exp(1 - 6 / 4),) * 4),  # all is there, but 4 words are held against 6
        ("a b c", ["a b c d", "a b"], (1, 1, 1, 0)),  # 2 and 4 are equally close to 3: the shorter, so nothing is lost
        ("a b x d e", ["a b c d e"], (4 / 5, math.sqrt(4 / 5 * 2 / 4), 0, 0)),  # 4 of 5 words, 2 of 4 pairs: a b, d e
        ("a b", ["a x", "x b"], (1, 0, 0, 0)),  # each word in another reference
        ("", ["a b"], (0, 0, 0, 0)),
    ],
)
def test_bleu_by_hand(hypothesis, references, expected):
    assert bleu(*split({hypothesis: references})) == pytest.approx(dict(zip(BLEU, expected, strict=True)))


@pytest.mark.parametrize(
    ("hypothesis", "references", "expected"),
    [
        # a c d: 3 of 4 words, 3 of 5; F = 2.44 PR / (R + 1.44 P)
        ("a c x d", ["a b c d e"], 2.44 * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)),
        ("a b", ["a b c d e f", "b"], 1.0),  # precision 2/2 by the first, recall 1/1 by the second
        ("c b a", ["a b c"], 1 / 3),  # of 3 words 1 is in order
        ("", ["a"], 0.0),
        ("a", [""], 0.0),
        ("", [""], 1.0),
    ],
)
def test_rouge_l_by_hand(hypothesis, references, expected):
    assert rouge_l(*split({hypothesis: references})) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        # Both samples have `a`, so it weighs 0; all else weighs log 2. Words and pairs are at cosine 1, triples and
        # quadruples there are none: 10 (1 + 1 + 0 + 0) / 4 for the first sample. For the second:
        ("a c", 5.0),
        ("c", 2.5 * math.exp(-1 / 72)),  # only words, and no pair against one: exp(-1 / (2 * 36))
        ("c c", 1.25),  # `c` twice against once: clipped, the cosine is 1 * 1 / (2 * 1)
        ("a", 0.0),
        ("", 0.0),
    ],
)
def test_cider_d_by_hand(hypothesis, expected):
    assert cider_d(*split({"a b": ["a b"], hypothesis: ["a c"]})) == pytest.approx((5.0 + expected) / 2)


def test_cider_d_counts_samples_rather_than_references_and_takes_the_mean_over_references():
    # `b` is in one sample of two, so it weighs log 2 however many references have it. At cosine 1 to both, but there is
    # no pair against one: 10 / 4 for the first, and exp(-1 / 72) of that for the other. The second sample gives 0.
    with_both = (2.5 + 2.5 * math.exp(-1 / 72)) / 2
    assert cider_d(*split({"b": ["b", "b b"], "": ["c"]})) == pytest.approx(with_both / 2)
    assert cider_d(*split({"b": ["b", "d"], "": ["c"]})) == pytest.approx(2.5 / 2 / 2)


@pytest.mark.parametrize("num_samples", [1, 7])
def test_cider_d_is_0_where_all_samples_are_the_same(num_samples):
    hypotheses, _ = drawn(num_samples)
    assert cider_d(hypotheses, [[["a", "b", "c", "d", "e"]]] * num_samples) == 0.0
    assert cider_d([["a", "b", "c"]] * num_samples, [[["a", "b", "c"]]] * num_samples) == 0.0


def test_neither_the_order_of_samples_nor_that_of_references_matters():
    hypotheses, references = drawn(53)
    backwards = hypotheses[::-1], [texts[::-1] for texts in references[::-1]]
    assert metrics_of(*backwards) == pytest.approx(metrics_of(hypotheses, references), abs=1e-14)


def test_bleu_grows_with_what_is_right_and_the_only_reference_is_perfect():
    references = [[[*text, *"wxyz"]] for text in drawn(53)[0]]
    assert metrics_of([texts[0] for texts in references], references)[:5] == pytest.approx([1.0] * 5)
    right = list("abcdefghijk")
    grades = [list(bleu([[*right[:count], *"?" * (11 - count)]], [[right]]).values()) for count in range(12)]
    assert all(before <= after for grade in zip(*grades, strict=True) for before, after in pairwise(grade))
    assert grades[0] == [0.0] * 4


@pytest.mark.parametrize("length", [1, 7, 71])
def test_rouge_l_finds_the_longest_common_subsequence(length):
    draw = random.Random(length)
    first, second = draw.choices("abc", k=length), draw.choices("abcd", k=length)
    longest = [[0] * (length + 1) for _ in range(length + 1)]
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            longest[i + 1][j + 1] = longest[i][j] + 1 if word == other else max(longest[i][j + 1], longest[i + 1][j])
    assert rouge_l([first], [[second]]) == pytest.approx(longest[-1][-1] / length)  # of equal lengths, F is either


def test_shares_by_hand():
    hypotheses, references = split({"a b": ["a", "a b"], "a": ["a b"], "a c": ["c a"], "": ["a"]})
    assert exact_match(hypotheses, references) == 1 / 4
    assert vocabulary_used(hypotheses, references) == 3 / 3
    assert vocabulary_used(hypotheses[:1], [[["a"]]]) == 2 / 1
    assert vocabulary_used([["a"]], [[[]]]) == 1.0
    assert distinct_captions([["a"], ["a", "b"], ["a"], ["a"], []]) == 3 / 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # what the PTB tokenizer of pycocoevalcap 1.2 makes of them, too
        ("A man's T-shirt, isn't it?", "a man 's t-shirt is n't it"),
        ("It’s a “quoted” word…", "it 's a quoted word"),
        ("two dogs' toys: 'old' ones", "two dogs toys old ones"),
        ("black-and-white cat -- sits - here...", "black-and-white cat sits here"),
        ("shouldn't've I'd we'll they're I've I'm can't", "should n't 've i 'd we 'll they 're i 've i 'm ca n't"),
        ("Straße & café; 50% o'clock!", "straße & café 50 % o'clock"),
        ("a <unk> dog", "a <unk> dog"),
        (" \n ", ""),
        # and where that makes something else
        ("(loud) [here] {there}", "loud here there"),
        ("at 10:30 in the U.S.", "at 10 30 in the u s"),
    ],
)
def test_words(text, words):
    assert caption_words(text) == words.split()


def records() -> list[ScoredText]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(["Rot", "grün\n", "«blau»", '"e"', "\u2028d", "\\n", "🦊", "a", "b"], k=7)) + "."

    return [
        ScoredText(
            text=text(),
            references=[text() for _ in range(1 + number % 3)],
            scores={name: draw.random() for name in ("colors", "shapes") if draw.random() < 0.7},
            group=("", "", "held_out", "färben\n")[number % 4],
        )
        for number in range(29)
    ]


def measured(records: list[ScoredText]) -> dict[str, float]:
    metric = TextMetrics(caption_metrics)
    metric.update(records)
    return values(metric)


def values(metric: TextMetrics) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        computed = metric.compute()
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in computed.values())
    return {name: value.item() for name, value in computed.items()}


def test_each_group_is_measured_for_itself():
    metrics = measured(records())
    expected = {}
    for group, prefix in (("", ""), ("held_out", "held_out_"), ("färben\n", "färben\n_")):
        alone = measured([replace(record, group="") for record in records() if record.group == group])
        expected |= {f"{prefix}{name}": value for name, value in alone.items()}
    assert metrics == expected
    assert metrics.keys() >= NAMES | {"colors", "shapes", "held_out_BLEU-1", "held_out_colors"}


def test_its_metrics_are_those_of_the_words():
    cat = ScoredText("A cat isn't here!", ["a cat IS N'T here.", "cat"], {}, "")
    metrics = measured([cat, ScoredText("a", ["A. No"], {}, "")])
    words = split({"a cat is n't here": ["a cat is n't here", "cat"], "a": ["a no"]})
    expected = dict(zip([*BLEU, "ROUGE-L", "CIDEr-D"], metrics_of(*words), strict=True))
    assert metrics == pytest.approx(expected | {"exact_match": 1 / 2, "distinct_captions": 1, "vocabulary_used": 5 / 6})


def test_scores_by_facts_are_averaged_over_the_texts_that_have_them():
    scores = [{"colors": 1.0}, {}, {"colors": 0.0, "shapes": 0.25}, {"colors": 0.5}]
    metrics = measured([ScoredText("a", ["a"], one, "") for one in scores])
    assert (metrics["colors"], metrics["shapes"]) == (0.5, 0.25)


def test_without_records_there_are_no_metrics_and_without_references_no_records():
    assert measured([ScoredText("a", ["a"], {}, "new")]).keys() == {f"new_{name}" for name in NAMES}
    assert measured([]) == {}
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert TextMetrics(caption_metrics).compute() == {}
    with pytest.raises(ValueError, match="'a dog' has no references"):
        ScoredText("a dog", [], {}, "")


def test_two_metrics_merge_into_one():
    here, there = TextMetrics(caption_metrics), TextMetrics(caption_metrics)
    here.update(records()[:13])
    there.update(records()[13:])
    here.merge_state(there)
    assert values(here) == pytest.approx(measured(records()))


@pytest.mark.parametrize("here", [0, 13, 29])
def test_processes_gather_all_records_unchanged_even_where_one_has_none(here):
    there = TextMetrics(caption_metrics)
    there.update(records()[here:])

    def gather(tensor: torch.Tensor, group: object) -> list[torch.Tensor]:
        assert (tensor.dtype, tensor.ndim) == (torch.uint8, 1)
        return [tensor, torch.cat([tensor[:0], *there.lines])]

    metric = TextMetrics(caption_metrics)
    metric.dist_sync_fn, metric.distributed_available_fn = gather, lambda: True
    metric.update(records()[:here])
    before = [line.tolist() for line in metric.lines]
    assert values(metric) == pytest.approx(measured(records()))
    assert [line.tolist() for line in metric.lines if len(line)] == before
    lines = [bytes(line.tolist()) for line in (*metric.lines, *there.lines) if len(line)]
    assert [ScoredText(*json.loads(line)) for line in lines] == records()
    assert [line.count(b"\n") for line in lines] == [1] * 29


def test_in_a_collection_its_names_have_no_prefix_and_a_reset_forgets_the_records():
    collection = MetricCollection({"text": TextMetrics(caption_metrics)}, compute_groups=False)
    collection["text"].update([ScoredText("a", ["a"], {"colors": 1.0}, "")])
    assert collection.compute().keys() == NAMES | {"colors"}
    assert collection.state_dict() == {}
    collection.reset()
    collection["text"].update([])
    assert collection.compute() == {}
