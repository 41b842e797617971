"""Captions of anything: what is lost and measured, by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver.tasks.generation import Sampling
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tokenizer import PAD, Tokenizer
from perceiver.types import Batch
from tests.models import image_encoder, named
from tests.tasks.captioners import (
    NUM_IDS,
    SENTENCES,
    VOCAB,
    KnownFacts,
    beam,
    captioned,
    captioning,
    images,
    lively,
    model_of,
    word_tokenizer,
)


def log_probabilities_of_words(outputs: torch.Tensor, tokenizer: Tokenizer, texts: list[str]) -> list[list[float]]:
    """For each text the log-probabilities of its words and its end."""
    rows = []
    for logits, text in zip(outputs.double(), texts, strict=True):
        words = tokenizer.encode(text).tolist()[1:]
        rows.append([float(logits[place].log_softmax(dim=0)[word]) for place, word in enumerate(words)])
    return rows


def some_outputs(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    length = tokenizer.encode_batch(texts).shape[1] - 1
    return 3 * torch.randn(len(texts), length, tokenizer.num_ids)


def test_probabilities_are_those_of_the_ids_that_there_are():
    """The model has room for more, which are never said."""
    outputs = 3 * torch.randn(2, 5, VOCAB)
    found = captioning().probabilities(named(outputs.bfloat16()))["logits"]
    assert found.dtype == torch.float32
    assert found.shape == (2, 5, NUM_IDS)
    assert_close(found, outputs.bfloat16().float()[..., :NUM_IDS].softmax(dim=-1))


class TestLoss:
    def test_it_is_the_mean_over_all_words_and_ends(self):
        task, outputs = captioning(), some_outputs(word_tokenizer(), SENTENCES)
        each = log_probabilities_of_words(outputs, task.tokenizer, SENTENCES)
        every = [value for row in each for value in row]
        assert float(task.loss(named(outputs), captioned(*SENTENCES))) == pytest.approx(
            -sum(every) / len(every), abs=1e-5
        )

    @pytest.mark.parametrize("label_smoothing", [0.1, 0.7])
    def test_smoothing_spreads_a_share_over_all_words(self, label_smoothing):
        task, outputs = captioning(label_smoothing=label_smoothing), some_outputs(word_tokenizer(), SENTENCES)
        losses = []
        for logits, text in zip(outputs.double(), SENTENCES, strict=True):
            for place, word in enumerate(task.tokenizer.encode(text).tolist()[1:]):
                chances = logits[place].log_softmax(dim=0)
                target = torch.full((NUM_IDS,), label_smoothing / NUM_IDS, dtype=torch.double)
                target[word] += 1 - label_smoothing
                losses.append(-float(target @ chances))
        expected = sum(losses) / len(losses)
        assert float(task.loss(named(outputs), captioned(*SENTENCES))) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    def test_a_longer_caption_in_the_batch_changes_no_loss_of_another(self, label_smoothing):
        task, model = captioning(label_smoothing=label_smoothing), lively(model_of({"image": image_encoder()}))
        batch = images(7)
        whole = task.loss(task.outputs(model, batch), batch)
        total = count = 0.0
        for row, text in enumerate(batch.targets["caption"]):
            one = Batch({"image": batch.inputs["image"][row : row + 1]}, {"caption": [text]}, [text])
            words = len(task.tokenizer.encode(text)) - 1
            total += words * float(task.loss(task.outputs(model, one), one).detach())
            count += words
        assert float(whole.detach()) == pytest.approx(total / count, rel=1e-5)

    def test_what_the_model_says_behind_an_end_does_not_matter(self):
        task, batch, outputs = captioning(), captioned(*SENTENCES), some_outputs(word_tokenizer(), SENTENCES)
        padding = task.tokenizer.encode_batch(SENTENCES)[:, 1:] == PAD
        junk = outputs.masked_fill(padding[..., None], 1e4)
        assert padding.any()
        assert_close(task.loss(named(junk), batch), task.loss(named(outputs), batch), atol=0, rtol=0)

    def test_in_low_precision_it_is_computed_in_full(self):
        task, outputs = captioning(), some_outputs(word_tokenizer(), SENTENCES).bfloat16()
        loss = task.loss(named(outputs), captioned(*SENTENCES))
        assert loss.dtype == torch.float32
        assert_close(loss, task.loss(named(outputs.float()), captioned(*SENTENCES)))

    def test_the_words_go_in_one_place_before_they_come_out(self):
        asked = []

        def model(inputs, masks, queries):
            asked.append(queries["caption/logits"])
            return {"caption/logits": torch.zeros(*asked[0].shape, VOCAB)}

        task, batch = captioning(output="caption/logits"), replace(images(7), targets=captioned(*SENTENCES).targets)
        assert task.needs_target_tokens == ("caption/logits",)
        outputs = task.outputs(model, batch)
        assert asked[0].equal(task.tokenizer.encode_batch(SENTENCES)[:, :-1])
        assert task.get_output(outputs).shape == (7, asked[0].shape[1], NUM_IDS)
        assert float(task.loss(outputs, batch)) == pytest.approx(math.log(NUM_IDS), abs=1e-5)

    def test_samples_without_captions_are_named_as_such(self):
        with pytest.raises(ValueError, match=r"^the samples have no captions"):
            captioning().outputs(nn.Linear(1, 1), Batch({"x": torch.rand(1, 1)}, {"label": torch.tensor([3])}, ["a"]))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric TextMetrics was called before")
class TestMetrics:
    @pytest.mark.parametrize("stage", ["train", "val", "test"])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_they_are_those_by_hand_over_all_words_of_all_batches(self, stage, label_smoothing):
        task = captioning(label_smoothing=label_smoothing)
        values, hits, losses = [], [], []
        for texts in (SENTENCES[:2], SENTENCES[2:3], SENTENCES[3:]):
            outputs, batch = some_outputs(task.tokenizer, texts), captioned(*texts)
            loss = task.loss(named(outputs), batch)
            task.update(stage, named(outputs), loss, batch)
            rows = log_probabilities_of_words(outputs, task.tokenizer, texts)
            values += [value for row in rows for value in row]
            losses += [float(loss)] * sum(map(len, rows))
            for logits, text in zip(outputs, texts, strict=True):
                words = task.tokenizer.encode(text).tolist()[1:]
                hits += [int(logits[place].argmax()) == word for place, word in enumerate(words)]
        found = {name: float(value) for name, value in task.metrics(stage).compute().items()}
        assert found["perplexity"] == pytest.approx(math.exp(-sum(values) / len(values)), rel=1e-5)
        assert found["token_accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
        assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        if not label_smoothing:
            assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-5)

    def test_a_model_that_knows_all_is_perfect(self):
        task, batch = captioning(), captioned(*SENTENCES)
        words = task.tokenizer.encode_batch(SENTENCES)[:, 1:]
        outputs = 50.0 * nn.functional.one_hot(words, NUM_IDS).float()
        task.update("val", named(outputs), task.loss(named(outputs), batch), batch)
        found = task.metrics("val").compute()
        assert float(found["token_accuracy"]) == 1.0
        assert float(found["perplexity"]) == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [("loss", "min"), ("perplexity", "min"), ("token_accuracy", "max"), ("CIDEr-D", "max"), ("BLEU-4", "max")],
    )
    def test_the_better_direction_follows_from_the_metric(self, monitor, mode):
        task = captioning(monitor=monitor)
        assert (task.monitor, task.monitor_mode) == (monitor, mode)

    def test_smoothing_that_cannot_be_is_named(self):
        with pytest.raises(ValueError, match=r"^label_smoothing=1\.0 must be in"):
            captioning(label_smoothing=1.0)


class TestExamine:
    def test_what_the_model_writes_is_held_against_references_facts_and_groups(self, monkeypatch):
        task, model, batch = captioning(), lively(model_of({"image": image_encoder()})), images(5)
        facts = [KnownFacts([]), None, KnownFacts([]), KnownFacts([]), None]
        batch.targets |= {"facts": facts, "group": ["", "unseen", "", "unseen", ""]}
        recorded = []
        monkeypatch.setattr(task.metrics("val")["texts"], "update", recorded.extend)
        with torch.no_grad():
            found = task.update_generated("val", model, batch)
            written = [task.tokenizer.decode(row) for row in task.generate(model, batch, 1).ids[:, 0].tolist()]
        assert len(set(written)) > 1
        assert [one.text for one in found["logits"]] == written
        assert recorded == [
            ScoredText(text, [SENTENCES[row]], {} if one is None else one.scores(text), group)
            for row, (text, one, group) in enumerate(zip(written, facts, batch.targets["group"], strict=True))
        ]

    def test_the_metrics_of_texts_are_among_those_of_an_evaluation_only(self):
        task, model, batch = captioning(), lively(model_of({"image": image_encoder()})), images(5)
        with torch.no_grad():
            for stage in ("train", "val"):
                outputs = task.outputs(model, batch)
                task.update(stage, outputs, task.loss(outputs, batch), batch)
            task.update_generated("val", model, batch)
        in_training, in_validation = task.metrics("train").compute(), task.metrics("val").compute()
        assert in_training.keys() == {"loss", "perplexity", "token_accuracy"}
        assert {*in_training, "CIDEr-D", "BLEU-4", "ROUGE-L", "exact_match"} <= in_validation.keys()
        assert all(value.ndim == 0 for value in in_validation.values())

    def test_without_facts_and_groups_references_are_enough(self):
        task, model = captioning(), lively(model_of({"image": image_encoder()}))
        with torch.no_grad():
            task.update_generated("test", model, images(3))
        assert "distinct_captions" in task.metrics("test")["texts"].compute()


class TestSmallerVocabulary:
    """The model has room for more words than the tokenizer has learned."""

    def test_words_that_are_none_never_count(self):
        task, model, batch = captioning(), lively(model_of({"image": image_encoder()})), images()
        before = task.get_output(task.outputs(model, batch))
        with torch.no_grad():
            model.decoder.head.bias[NUM_IDS:] = 1e4
        after = task.outputs(model, batch)
        assert task.get_output(after).shape[-1] == NUM_IDS < VOCAB
        assert_close(task.get_output(after), before, atol=0, rtol=0)
        task.loss(after, batch).backward()
        assert (model.decoder.head.bias.grad[NUM_IDS:] == 0).all()

    @pytest.mark.parametrize(
        "generation",
        [beam(), beam(3), Sampling(temperature=1.0, top_k=0, top_p=1.0, presence_penalty=0.0, no_repeat_ngram_size=0)],
    )
    def test_words_that_are_none_are_never_written(self, generation):
        task, model = captioning(generation=generation), lively(model_of({"image": image_encoder()}))
        with torch.no_grad():
            model.decoder.head.bias[NUM_IDS:] = 1e4
            texts = task.generate(model, images(), 3)
        assert int(texts.ids.max()) < NUM_IDS
        assert (texts.log_probabilities > -1e3).all()
