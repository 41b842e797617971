"""Outcomes of samples: losses and probabilities by hand, and the same for a text that is its own truth."""

import math

import pytest
import torch

from perceiver.tasks.classification import Classification
from perceiver.tasks.ctc import CTC
from perceiver.tasks.joint import JointTask
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tasks.transcription import TranscriptMetrics
from perceiver.types import Batch, cell_centers
from tests.tasks.captioners import SENTENCES, captioning, word_tokenizer

NAMES = ["ant", "bee", "cat"]


def classification(output="logits", **loss) -> Classification:
    return Classification(num_classes=3, loss=LossSpec(**loss), mixup=0.0, cutmix=0.0, output=output)


def tagging(output="logits", *, multi_label=True) -> Tagging:
    return Tagging(num_classes=3, multi_label=multi_label, loss=LossSpec(), mixup=0.0, output=output)


def batch_of(count, **targets) -> Batch:
    return Batch({"x": torch.zeros(count, 1)}, targets, [f"s{row}" for row in range(count)])


def logits_of(probabilities) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_a_class_is_as_wrong_as_its_probability_exceeds_that_of_the_true_one():
    logits = logits_of([[0.7, 0.2, 0.1], [0.9, 0.09, 0.01], [0.3, 0.3, 0.4]])
    batch = batch_of(3, label=torch.tensor([0, 2, 1]))
    found = classification(class_weights=[1.0, 5.0, 7.0]).outcomes({"logits": logits}, batch, {}, NAMES)["logits"]
    assert [one.loss for one in found] == pytest.approx([-math.log(p) for p in (0.7, 0.01, 0.3)], rel=1e-5)
    assert [one.confidence for one in found] == pytest.approx([0.7, 0.9, 0.4])
    assert [one.wrongness for one in found] == pytest.approx([0.0, 0.89, 0.1], abs=1e-6)
    assert [(one.answer, one.truth) for one in found] == [("ant", "ant"), ("ant", "cat"), ("cat", "bee")]
    assert [(one.predicted, one.true) for one in found] == [((0,), (0,)), ((0,), (2,)), ((2,), (1,))]


def test_tags_are_as_sure_as_the_geometric_mean_of_their_decisions():
    odds = torch.tensor([[4.0, 0.25, 1.5], [1 / 9, 1 / 9, 1 / 9]])  # probabilities 0.8, 0.2, 0.6; 0.1, 0.1, 0.1
    batch = batch_of(2, tags=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    first, second = tagging().outcomes({"logits": odds.log()}, batch, {}, NAMES)["logits"]
    assert first.predicted == (0, 2)
    assert (first.answer, first.truth) == ("ant; cat", "ant")
    assert first.confidence == pytest.approx((0.8 * 0.8 * 0.6) ** (1 / 3))
    assert first.truth_probability == pytest.approx((0.8 * 0.8 * 0.4) ** (1 / 3))
    assert first.loss == pytest.approx(-math.log(first.truth_probability))
    assert (second.answer, second.predicted, second.wrongness) == ("", (), 0.0)
    assert second.confidence == pytest.approx(0.9)


def test_of_several_classes_that_apply_any_is_right():
    logits = logits_of([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    batch = batch_of(2, tags=torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    right, without = tagging(multi_label=False).outcomes({"logits": logits}, batch, {}, NAMES)["logits"]
    assert (right.wrongness, right.true) == (0.0, (0, 1))
    assert without.wrongness == without.confidence == pytest.approx(0.5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_text_that_is_the_truth_has_its_probability(label_smoothing):
    """The generated text gets the probability of its tokens, and so does the target, whatever the loss smooths."""
    task = captioning(label_smoothing=label_smoothing)
    batch = task.prepare(batch_of(2, caption=SENTENCES[:2], references=[[text] for text in SENTENCES[:2]]), train=False)
    ids = batch.targets["token_ids"][:, 0]
    logits = 2 * torch.randn(2, ids.shape[1] - 1, task.tokenizer.vocab_size)
    logs = logits[..., : task.tokenizer.num_ids].log_softmax(dim=-1)
    for row, own in enumerate(found_in(task, logits, batch)):
        length = int((ids[row] != 0).sum())
        expected = math.exp(float(logs[row, range(length - 1), ids[row, 1:length]].mean()))
        assert own.truth_probability == pytest.approx(expected, rel=1e-5)
        assert own.answer == own.truth == SENTENCES[row]
        assert (own.loss == pytest.approx(-math.log(expected), rel=1e-5)) == (label_smoothing == 0.0)


def found_in(task, logits, batch):
    texts = {"logits": [ScoredText(text, [text], {}, "", 0.5) for text in batch.targets["caption"]]}
    found = task.outcomes({"logits": logits}, batch, texts, [])["logits"]
    assert [one.confidence for one in found] == [0.5, 0.5]
    return found


class Fixed:
    """A model with fixed outputs."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, inputs, masks=None, queries=None, hidden=None):
        return {"logits": self.logits}


def test_a_decoded_transcript_that_is_the_truth_is_not_wrong_at_all():
    tokenizer = word_tokenizer()
    task = CTC(
        tokenizer=tokenizer,
        measure=TranscriptMetrics(lowercase=True, punctuation=False),
        num_outputs=13,
        num_beams=1,
        monitor="loss",
    )
    torch.manual_seed(3)
    model = Fixed(torch.randn(2, 13, tokenizer.vocab_size))
    unknown = batch_of(2, caption=["blue"] * 2, references=[["blue"]] * 2)
    texts = [one.text for one in task.generated(model, unknown)["logits"]]
    assert all(texts)
    batch = task.prepare(batch_of(2, caption=texts, references=[[text] for text in texts]), train=False)
    assert task.queries(batch)["logits"].shape == cell_centers((13,)).expand(2, -1, -1).shape
    found = task.outcomes(model({}), batch, task.generated(model, batch), [])["logits"]
    assert [one.wrongness for one in found] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(0 < one.confidence < 1 for one in found)


def test_each_of_several_tasks_has_its_own_outcomes():
    parts = {"label": classification("a"), "tags": tagging("b"), "caption": captioning(output="c")}
    task = JointTask(tasks=parts, weights={"tags": 3.0}, monitor="loss")
    captions = {"caption": SENTENCES[:2], "references": [[text] for text in SENTENCES[:2]]}
    batch = batch_of(2, label=torch.tensor([0, 2]), tags=torch.eye(3)[:2], **captions)
    batch = task.prepare(batch, train=False)
    length = word_tokenizer().encode_batch(SENTENCES[:2]).shape[1] - 1
    outputs = {"a": torch.randn(2, 3), "b": torch.randn(2, 3), "c": torch.randn(2, length, 41)}
    texts = {"c": [ScoredText(text, [text], {}, "", 0.5) for text in SENTENCES[:2]]}
    found = task.outcomes(outputs, batch, texts, NAMES)
    assert list(found) == ["a", "b", "c"]
    for name, output in (("label", "a"), ("tags", "b"), ("caption", "c")):
        assert found[output] == parts[name].outcomes(outputs, batch, texts, NAMES)[output]
    assert task.as_predictions({}) is None
    (first, _) = task.as_predictions(texts)
    assert [(one["task"], one["answer"]) for one in first] == [("caption", SENTENCES[0])]
