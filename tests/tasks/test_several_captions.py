"""Several captions of a sample at once: which are drawn, and that they count as each would alone."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.tasks.captioning import Captioning
from perceiver.tokenizer import PAD
from perceiver.training.module import TrainingModule
from perceiver.types import Batch
from tests.models import image_encoder, named
from tests.tasks.captioners import (
    NUM_IDS,
    SENTENCES,
    captioned,
    captioning,
    image_sample,
    images,
    lively,
    model_of,
)

REFERENCES = [SENTENCES[:5], SENTENCES[5:], SENTENCES[2:3], SENTENCES]
"""Of four samples: five, two, one and seven."""
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def referenced(batch: Batch) -> Batch:
    """The first samples of a batch with the references above."""
    references = REFERENCES[: len(batch)]
    return replace(batch, targets={"caption": [texts[0] for texts in references], "references": references})


def described(windows: tuple[int, ...] = ()) -> Batch:
    """Four samples without any input."""
    return referenced(captioned(*SENTENCES[:4], windows=windows))


def pictures() -> Batch:
    return referenced(images(4))


def pictures_in_views() -> Batch:
    return referenced(collate([image_sample(SENTENCES[0], 2) for _ in range(3)]))


def every(batch: Batch) -> list[str]:
    """All captions that are learned, those of one sample behind each other."""
    return [text for texts in batch.targets["captions"] for text in texts]


def place(batch: Batch, number: int) -> Batch:
    """The batch with one caption of each sample alone."""
    texts = [texts[number] for texts in batch.targets["captions"]]
    return replace(batch, targets={"caption": texts, "references": batch.targets["references"]})


def num_words(task: Captioning, texts: list[str]) -> int:
    return int((task.tokenizer.encode_batch(texts)[:, 1:] != PAD).sum())


class TestDraw:
    def test_one_is_the_caption_of_the_sample(self):
        batch = captioning().prepare(pictures(), train=True)
        assert "captions" not in batch.targets
        assert batch.targets["token_ids"].shape[:2] == (4, 1)

    @pytest.mark.parametrize("count", [2, 3, 5, 11])
    def test_captions_are_the_references_from_the_first_on_and_from_the_first_again(self, count):
        captions = captioning(captions_per_sample=count).prepare(described(), train=True).targets["captions"]
        for texts, references in zip(captions, REFERENCES, strict=True):
            assert texts == [references[number % len(references)] for number in range(count)]

    def test_nothing_is_drawn_so_that_the_number_of_processes_does_not_matter(self):
        before = torch.get_rng_state()
        captioning(captions_per_sample=3).prepare(described(), train=True)
        assert torch.equal(torch.get_rng_state(), before)

    def test_all_else_of_a_batch_stays_and_the_batch_that_was_given_is_not_changed(self):
        batch = pictures()
        before = dict(batch.targets)
        drawn = captioning(captions_per_sample=3).prepare(batch, train=True)
        assert batch.targets == before
        assert {name: drawn.targets[name] for name in before} == before
        assert drawn.targets.keys() == {*before, "captions", "token_ids"}
        assert replace(drawn, targets=batch.targets) == batch

    @pytest.mark.parametrize("count", [1, 3])
    def test_ids_are_made_once_and_are_those_of_the_captions(self, count, monkeypatch):
        task = captioning(captions_per_sample=count)
        batch = task.prepare(pictures(), train=True)
        texts = every(batch) if count > 1 else batch.targets["caption"]
        assert torch.equal(batch.targets["token_ids"].flatten(0, 1), task.tokenizer.encode_batch(texts))
        assert int(task.num_terms(batch)) == num_words(task, texts)
        monkeypatch.setattr(type(task.tokenizer), "encode_batch", None)
        task.loss(task.outputs(lively(model_of({"image": image_encoder()})), batch), batch)

    def test_a_batch_of_which_nothing_could_be_read_stays_empty(self):
        batch = Batch({}, {}, [])
        assert captioning(captions_per_sample=3).prepare(batch, train=True) is batch

    def test_samples_without_captions_are_named_as_such(self):
        task, batch = (
            captioning(captions_per_sample=3),
            Batch({"x": torch.rand(1, 1)}, {"label": torch.tensor([3])}, ["a"]),
        )
        with pytest.raises(ValueError, match=r"^the samples have no captions"):
            task.outputs(torch.nn.Linear(1, 1), task.prepare(batch, train=True))

    @pytest.mark.parametrize("count", [0, -1])
    def test_numbers_that_cannot_be_are_named(self, count):
        with pytest.raises(ValueError, match=rf"^captions_per_sample={count} must be at least 1"):
            captioning(captions_per_sample=count)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [2, 3, 7])
class TestLoss:
    def test_it_is_the_mean_of_those_of_the_captions_alone_by_their_words(self, count, label_smoothing):
        task = captioning(captions_per_sample=count, label_smoothing=label_smoothing)
        model = lively(model_of({"image": image_encoder()}))
        batch = task.prepare(pictures(), train=True)
        memory = model.encode(batch.inputs, batch.masks)
        total, words = torch.tensor(0.0), 0
        for row, texts in enumerate(batch.targets["captions"]):
            for text in texts:
                ids = task.tokenizer.encode_batch([text])[:, :-1]
                outputs = model.decoder(memory.select(torch.tensor([row])), named(ids))
                weight = num_words(task, [text])
                total = total + weight * task.loss(outputs, captioned(text))
                words += weight
        loss = task.loss(task.outputs(model, batch), batch)
        assert_close(loss, total / words, **CLOSE)
        parameters = list(model.parameters())
        for found, expected in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(total / words, parameters), strict=True
        ):
            assert_close(found, expected, **CLOSE)

    def test_each_sample_is_read_once(self, count, label_smoothing):
        task = captioning(captions_per_sample=count, label_smoothing=label_smoothing)
        model, batch = lively(model_of({"image": image_encoder()})), task.prepare(pictures(), train=True)
        read = []
        model.encoders["image"].register_forward_hook(lambda module, inputs, tokens: read.append(len(tokens.values)))
        assert len(task.get_output(task.outputs(model, batch))) == 4 * count
        assert read == [4]


def test_copies_of_a_single_reference_lose_what_it_loses():
    model, batch = lively(model_of({"image": image_encoder()})), images(5)
    losses = []
    for count in (1, 3):
        task = captioning(captions_per_sample=count)
        drawn = task.prepare(batch, train=True)
        losses.append(task.loss(task.outputs(model, drawn), drawn))
    assert_close(losses[1], losses[0], **CLOSE)


class TestViews:
    @pytest.mark.parametrize("windows", [(2, 2, 2, 2), (3, 1, 2, 1)], ids=str)
    def test_outputs_become_the_mean_of_the_probabilities_of_the_views_for_each_caption(self, windows):
        task = captioning(captions_per_sample=3)
        batch = task.prepare(described(windows), train=True)
        length = task.tokenizer.encode_batch(every(batch)).shape[1] - 1
        outputs = 3 * torch.randn(3 * sum(windows), length, NUM_IDS)
        merged_outputs = task.average_windows(named(outputs), batch)
        merged = task.get_output(merged_outputs)
        assert merged.shape == (4 * 3, length, NUM_IDS)
        chances = outputs.double().softmax(dim=-1)
        first = 0
        for sample, count in enumerate(windows):
            for number in range(3):
                rows = [chances[3 * view + number] for view in range(first, first + count)]
                found = merged[3 * sample + number].double().softmax(dim=-1)
                assert_close(found, torch.stack(rows).mean(dim=0), atol=1e-6, rtol=1e-4)
            first += count
        assert task.loss(merged_outputs, batch).isfinite()

    def test_without_views_outputs_stay_as_they_are(self):
        task = captioning(captions_per_sample=3)
        outputs = named(torch.randn(4 * 3, 5, NUM_IDS))
        assert_close(task.average_windows(outputs, task.prepare(described(), train=True)), outputs, atol=0, rtol=0)

    def test_each_caption_is_held_against_all_views_of_its_sample(self):
        task, model = captioning(captions_per_sample=3), lively(model_of({"image": image_encoder()}))
        batch = task.prepare(pictures_in_views(), train=True)
        outputs = task.outputs(model, batch)
        assert len(task.get_output(outputs)) == 3 * 2 * 3
        merged, total = task.average_windows(outputs, batch), torch.tensor(0.0)
        for number in range(3):
            one = place(batch, number)
            alone = task.average_windows(task.outputs(model, one), one)
            of_one = task.get_output(merged).unflatten(0, (3, 3))[:, number, : task.get_output(alone).shape[1]]
            assert_close(of_one, task.get_output(alone), **CLOSE)
            total = total + num_words(task, one.targets["caption"]) * task.loss(alone, one)
        assert_close(task.loss(merged, batch), total / num_words(task, every(batch)), **CLOSE)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric TextMetrics was called before")
class TestMetrics:
    def test_all_captions_count_in_training(self):
        several, one = captioning(captions_per_sample=3), captioning()
        for _ in range(2):
            batch = several.prepare(described(), train=True)
            alike = captioned(*every(batch))
            logits = 3 * torch.randn(12, several.tokenizer.encode_batch(every(batch)).shape[1] - 1, NUM_IDS)
            for task, given in ((several, batch), (one, alike)):
                task.update("train", named(logits), task.loss(named(logits), given), given)
        found = several.metrics("train").compute()
        assert_close(found, one.metrics("train").compute())
        assert float(found["perplexity"]) == pytest.approx(float(found["loss"].exp()), rel=1e-5)

    def test_their_words_are_the_weight_of_a_batch(self):
        task = captioning(captions_per_sample=2)
        batches = [task.prepare(described(), train=True) for _ in range(2)]
        weights = [num_words(task, every(batch)) for batch in batches]
        for batch, loss in zip(batches, (3.0, 5.0), strict=True):
            length = task.tokenizer.encode_batch(every(batch)).shape[1] - 1
            task.update("train", named(torch.randn(8, length, NUM_IDS)), torch.tensor(loss), batch)
        expected = (3.0 * weights[0] + 5.0 * weights[1]) / sum(weights)
        assert float(task.metrics("train")["loss"].compute()) == pytest.approx(expected)

    @torch.no_grad()
    def test_an_evaluation_is_of_the_caption_alone(self):
        model, batch, found = lively(model_of({"image": image_encoder()})), pictures(), []
        for count in (1, 5):
            task = captioning(captions_per_sample=count)
            parts = {"model": model, "task": task, "optimizer": None, "schedule": None, "description": {}}
            TrainingModule(**parts, decay_embeddings=False, on_nonfinite="stop").validation_step(batch, 0)
            found.append(task.metrics("val").compute())
        assert_close(found[1], found[0], atol=0, rtol=0)
        only = captioned(*batch.targets["caption"])
        outputs = task.outputs(model, replace(batch, targets=only.targets))
        assert_close(found[1]["loss"], task.loss(outputs, only))
