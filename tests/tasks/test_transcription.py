"""Error rates are those of jiwer over the corpus; CTC is checked by enumeration of all alignments."""

import itertools
import math
import random

import jiwer
import pytest
import torch

from perceiver.tasks.ctc import CTC, token_places
from perceiver.tasks.ctc_decoding import best_path, prefix_beam_search
from perceiver.tasks.edit_distance import edits
from perceiver.tasks.gathered import TextMetrics
from perceiver.tasks.generation import BeamSearch
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tasks.transcription import Transcription, TranscriptMetrics
from perceiver.tokenizer import PAD, WordTokenizer
from perceiver.types import Batch, UnsuitableError

MEASURE = TranscriptMetrics(lowercase=True, punctuation=False)


def words() -> WordTokenizer:
    made = WordTokenizer(vocab_size=11, max_length=13, lowercase=True, min_frequency=1)
    made.train(["one two three"])
    return made


def ctc(**options) -> CTC:
    defaults = {"tokenizer": words(), "measure": MEASURE, "num_outputs": 5, "num_beams": 1, "monitor": "WER"}
    return CTC(**(defaults | options))


def random_texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(["ab", "b", "abc", "c"], k=draw.randint(1, 7))) for _ in range(count)]


def test_error_rates_are_those_of_jiwer_over_the_corpus():
    references, texts = random_texts(3, 101), [*random_texts(5, 100), ""]
    metric = TextMetrics(MEASURE)
    for text, reference in zip(texts, references, strict=True):  # batch by batch
        metric.update([ScoredText(text, [reference], {}, "")])
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = jiwer.process_words(references, texts)
    assert found["WER"] == pytest.approx(expected.wer)
    assert found["CER"] == pytest.approx(jiwer.cer(references, texts))
    assert found["substitutions"] + found["insertions"] + found["deletions"] == pytest.approx(found["WER"])
    length = sum(len(text.split()) for text in references)
    difference = expected.insertions - expected.deletions  # the same in all minimal edits
    assert (found["insertions"] - found["deletions"]) * length == pytest.approx(difference, abs=1e-3)


@pytest.mark.parametrize("seed", range(7))
def test_edits_are_the_fewest_by_recursion(seed):
    reference, found = random_texts(seed, 1)[0].split(), random_texts(seed + 50, 1)[0].split()

    def distance(one: list[str], other: list[str]) -> int:
        if not one or not other:
            return len(one) + len(other)
        return min(
            distance(one[1:], other[1:]) + (one[0] != other[0]),
            distance(one[1:], other) + 1,
            distance(one, other[1:]) + 1,
        )

    counts = edits(reference, found)
    assert counts.total == distance(reference, found)
    assert counts.insertions - counts.deletions == len(found) - len(reference)
    assert counts.length == len(reference)


def test_silence_and_noise_do_not_please():
    silent = MEASURE([ScoredText("", ["one two"], {}, "")])
    assert silent["WER"] == silent["CER"] == silent["deletions"] == 1.0
    assert MEASURE([ScoredText("one one one two", ["one"], {}, "")])["WER"] == 3.0
    assert MEASURE([ScoredText("a", [""], {}, "")])["WER"] == math.inf


@pytest.mark.parametrize(
    ("text", "normal"),
    [("It’s ‘well-known’, 3.5 - she said.", "it's well-known 3 5 she said"), ("<unk> a_b", "unk a b")],
)
def test_texts_are_compared_without_case_and_punctuation(text, normal):
    assert MEASURE.normalized(text) == normal
    exact = TranscriptMetrics(lowercase=False, punctuation=True)
    assert exact([ScoredText("Yes.", ["yes"], {}, "")])["WER"] == 1.0
    assert MEASURE([ScoredText("yes", ["no", "Yes."], {}, "")])["exact_match"] == 1.0


def test_a_recording_in_several_windows_is_refused():
    batch = Batch({"audio": torch.zeros(2, 1, 7)}, {"caption": ["one"]}, ["long.wav"], windows=[("a", "b")])
    generation = BeamSearch(num_beams=1, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0)
    attention = Transcription(
        tokenizer=words(), measure=MEASURE, label_smoothing=0.0, monitor="WER", generation=generation
    )
    for task in (ctc(), attention):
        assert task.monitor_mode == "min"
        with pytest.raises(UnsuitableError, match=r"long\.wav: .*2 windows"):
            task.prepare(batch, train=False)


def texts_of_paths(logs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of each text, by enumeration of all alignments."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        text = tuple(id for id, _ in itertools.groupby(path) if id != PAD)
        found[text] = found.get(text, 0.0) + math.exp(sum(float(logs[place, id]) for place, id in enumerate(path)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_beams_find_the_likeliest_texts_and_the_best_path_its_own(seed):
    logs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(dim=1)
    by_text = texts_of_paths(logs)
    ranked = sorted(by_text, key=lambda text: -by_text[text])
    assert [tuple(text) for text in prefix_beam_search(logs, len(by_text))] == ranked
    path = logs.argmax(dim=1).tolist()
    assert best_path(logs) == [id for id, _ in itertools.groupby(path) if id != PAD]


def logits_of(task: CTC, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, task.num_outputs, task.tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_all_alignments_for_each_token():
    task = ctc()
    first, *rest = ["one two one", "two"]
    batch = Batch({}, {"caption": [first, *rest]}, ["a", "b"])
    logits = logits_of(task, 2)
    num_ids = task.tokenizer.num_ids
    logs = logits[..., :num_ids].log_softmax(dim=-1)
    expected = sum(
        -math.log(texts_of_paths(logs[row])[tuple(task.tokenizer.encode(text)[1:-1].tolist())])
        for row, text in enumerate([first, *rest])
    )
    assert task.num_terms(batch) == 4
    assert float(task.loss({"logits": logits}, batch)) == pytest.approx(expected / 4, rel=1e-4)
    losses, terms = task.sample_losses({"logits": logits}, batch)
    assert float((losses * terms).sum() / terms.sum()) == pytest.approx(expected / 4, rel=1e-4)


@pytest.mark.parametrize(("text", "needed"), [("one two one two one two", 6), ("one one one two", 6)])
def test_a_text_that_needs_more_outputs_is_an_error(text, needed):
    task = ctc()
    batch = Batch({}, {"caption": ["two", text]}, ["a", "b"])
    with pytest.raises(UnsuitableError, match=f"^b: .*needs {needed} outputs.*are 5.*num_outputs"):
        task.loss({"logits": logits_of(task, 2)}, batch)
    assert ctc(num_outputs=6).loss({"logits": logits_of(ctc(num_outputs=6), 2)}, batch).isfinite()


def test_words_are_given_by_the_outputs_of_their_likeliest_alignment():
    task = ctc(num_outputs=7)
    one, two = task.tokenizer.encode("one two")[1:-1].tolist()
    path = [PAD, one, one, PAD, one, two, PAD]
    assert token_places(torch.eye(11)[path].mul(9).log_softmax(dim=1), [one, one, two]) == [[1, 2], [4], [5]]
    batch = Batch({"audio": torch.zeros(1, 1, 3)}, {}, ["a"])
    outputs = {"logits": 9 * torch.eye(11)[path][None]}
    answers = task.answers(outputs, task.queries(batch), batch, [])[0]
    assert [(answer.name, answer.queries, answer.ids) for answer in answers] == [
        ("one", (1, 2), (one, one)),
        ("one", (4,), (one,)),
        ("two", (5,), (two,)),
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_predictions_are_texts_with_the_probability_of_all_their_alignments(num_beams):
    task = ctc(num_beams=num_beams)
    logits = logits_of(task)
    batch = Batch({"audio": torch.zeros(1, 1, 3)}, {}, ["a"])
    found = task.predictions(lambda *_: {"logits": logits}, batch, [], 2)[0]
    by_text = texts_of_paths(logits[0, :, : task.tokenizer.num_ids].log_softmax(dim=1))
    assert len(found) == 2
    for one in found:
        ids = tuple(task.tokenizer.encode(one["transcript"])[1:-1].tolist())
        assert math.exp(one["log_probability"]) == pytest.approx(by_text[ids], rel=1e-4)


@pytest.mark.parametrize("name", ["num_outputs", "num_beams"])
def test_invalid_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}=0"):
        ctc(**{name: 0})
