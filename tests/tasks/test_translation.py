"""Translations are scored by sacrebleu, and links along words become boxes along tokens."""

import logging

import pytest
import sacrebleu
import torch

from perceiver.tasks.generation import BeamSearch
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tasks.translation import Translation
from perceiver.tokenizer import BPETokenizer, WordTokenizer
from perceiver.types import Batch, Box

TEXTS = [
    ("je t'aime.", ["Je t'aime.", "je vous aime."]),
    ("le chat noir dort dans la maison.", ["le chat noir dort sous la maison."]),
    ("elle voit deux oiseaux.", ["Elle voit deux oiseaux."]),
]


def words(*texts: str, elision: bool = False) -> WordTokenizer:
    made = WordTokenizer(vocab_size=97, max_length=23, lowercase=True, min_frequency=1, elision=elision)
    made.train(texts)
    return made


def translation(**overrides) -> Translation:
    defaults = {
        "tokenizer": words(*(text for _, texts in TEXTS for text in texts), elision=True),
        "input_tokenizer": words("I do not love you."),
        "modality": "text",
        "label_smoothing": 0.0,
        "lowercase": True,
        "monitor": "BLEU",
        "generation": BeamSearch(num_beams=1, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0),
    }
    return Translation(**(defaults | overrides))


@pytest.mark.parametrize("lowercase", [True, False])
def test_metrics_are_those_of_sacrebleu_over_the_corpus_of_each_group(lowercase, caplog):
    task = translation(lowercase=lowercase)
    metric = task.metrics("val")["texts"]
    with caplog.at_level(logging.INFO):
        for text, references in TEXTS:  # batch by batch
            metric.update([ScoredText(text, references, {}, group) for group in ("", "unseen")])
        found = {name: float(value) for name, value in metric.compute().items()}
    hypotheses = [text for text, _ in TEXTS]
    references = [[texts[0] for _, texts in TEXTS], [texts[-1] if texts[1:] else None for _, texts in TEXTS]]
    expected = {
        "BLEU": sacrebleu.corpus_bleu(hypotheses, references, lowercase=lowercase).score,
        "chrF": sacrebleu.CHRF(lowercase=lowercase).corpus_score(hypotheses, references).score,
        "exact_match": 2 / 3 if lowercase else 0.0,
    }
    assert found == pytest.approx(expected | {f"unseen_{name}": value for name, value in expected.items()})
    assert f"case:{'lc' if lowercase else 'mixed'}" in caplog.text
    assert "tok:13a" in caplog.text
    assert task.monitor_mode == "max"


def test_links_along_words_are_boxes_along_the_tokens_of_each_word():
    pieces = BPETokenizer(vocab_size=260, max_length=61, lowercase=True)
    pieces.train(["unused"])
    boxes = (Box(0, "text", {"word": (3.0, 4.0)}), Box(0, "text", {"word": (4.0, 5.0)}))
    for tokenizer, expected in ((words("I do not love you."), [(4, 5), (5, 6)]), (pieces, [(10, 14), (15, 18)])):
        task = translation(input_tokenizer=tokenizer)
        ids = tokenizer.encode("I do not love you.")[None]
        padded = torch.nn.functional.pad(ids, (0, 5))
        found = task.located(boxes, Batch({"text": padded[None]}, {}, ["a"]), 0)
        assert [box.ranges for box in found] == [{"place": pair} for pair in expected]
    assert task.located(boxes, Batch({}, {}, ["a"]), 0) == boxes
