"""Captions of anything: losses and metrics by hand, several captions and windows, and the texts that are generated."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.model import Perceiver
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.generation import Sampling
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tokenizer import BOS, EOS, PAD, ByteTokenizer, WordTokenizer
from perceiver.training.freezing import Freezing
from perceiver.training.module import TrainingModule
from perceiver.types import Batch, Box, Sample
from tests.models import audio_encoder, image_encoder, named
from tests.tasks.captioners import (
    DIRECT,
    LATENTS,
    NUM_IDS,
    SENTENCES,
    VOCAB,
    KnownFacts,
    beam,
    captioned,
    captioning,
    image_sample,
    images,
    lively,
    model_of,
    text_encoder,
    word_tokenizer,
)

REFERENCES = [SENTENCES[:5], SENTENCES[5:], SENTENCES[2:3], SENTENCES]
"""Of four samples: five, two, one and seven."""
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SAMPLING = Sampling(temperature=1.0, top_k=0, top_p=1.0, presence_penalty=0.0, no_repeat_ngram_size=0)
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")


def captioner() -> Perceiver:
    return lively(model_of({"image": image_encoder()}))


def referenced(batch: Batch) -> Batch:
    """The first samples of a batch with the references above."""
    references = REFERENCES[: len(batch)]
    return replace(batch, targets={"caption": [texts[0] for texts in references], "references": references})


def captions_of(batch: Batch) -> list[str]:
    """All captions that are learned, those of one sample next to each other."""
    return [text for texts in batch.targets["captions"] for text in texts]


def token_ids(texts: list[str]) -> torch.Tensor:
    """What is predicted of the texts, padded."""
    return word_tokenizer().encode_batch(texts)[:, 1:]


def num_tokens(texts: list[str]) -> int:
    return int((token_ids(texts) != PAD).sum())


def random_logits(texts: list[str]) -> torch.Tensor:
    return 3 * torch.randn(*token_ids(texts).shape, NUM_IDS)


class TestLoss:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
    def test_it_is_the_mean_smoothed_cross_entropy_over_all_tokens(self, label_smoothing):
        task, logits, ids = captioning(label_smoothing=label_smoothing), random_logits(SENTENCES), token_ids(SENTENCES)
        each = F.cross_entropy(logits[ids != PAD], ids[ids != PAD], label_smoothing=label_smoothing)
        assert_close(task.loss(named(logits), captioned(*SENTENCES)), each)
        after_the_end = logits.masked_fill((ids == PAD)[..., None], 1e4)
        assert_close(task.loss(named(after_the_end), captioned(*SENTENCES)), each)
        low = logits.bfloat16()
        loss = task.loss(named(low), captioned(*SENTENCES))
        assert loss.dtype == torch.float32
        assert_close(loss, task.loss(named(low.float()), captioned(*SENTENCES)))

    def test_a_longer_caption_in_the_batch_changes_no_loss_of_another(self):
        task, model, batch = captioning(label_smoothing=0.1), captioner(), images(7)
        total = count = 0.0
        for row, text in enumerate(batch.targets["caption"]):
            one = Batch({"image": batch.inputs["image"][row : row + 1]}, {"caption": [text]}, [text])
            total += num_tokens([text]) * float(task.loss(task.outputs(model, one), one).detach())
            count += num_tokens([text])
        whole = task.loss(task.outputs(model, batch), batch)
        assert float(whole.detach()) == pytest.approx(total / count, rel=1e-5)

    def test_each_token_is_predicted_from_those_before_it(self):
        calls = []

        def model(inputs, masks, queries, hidden):
            calls.append(queries["caption/logits"])
            return {"caption/logits": torch.zeros(*calls[0].shape, VOCAB)}

        task, batch = captioning(output="caption/logits"), replace(images(7), targets=captioned(*SENTENCES).targets)
        assert task.given_queries == {"caption/logits": "token_ids"}
        outputs = task.outputs(model, batch)
        assert calls[0].equal(word_tokenizer().encode_batch(SENTENCES)[:, :-1])
        assert float(task.loss(outputs, batch)) == pytest.approx(math.log(NUM_IDS), abs=1e-5)

    @pytest.mark.parametrize("count", [1, 3])
    def test_samples_without_captions_are_an_error_and_an_empty_batch_is_not(self, count):
        task, batch = captioning(captions_per_sample=count), Batch({"x": torch.rand(1, 1)}, {"label": [3]}, ["a"])
        with pytest.raises(ValueError, match=r"^the samples have no captions"):
            task.outputs(nn.Linear(1, 1), task.prepare(batch, train=True))
        empty = Batch({}, {}, [])
        assert task.prepare(empty, train=True) is empty

    @pytest.mark.parametrize(
        ("name", "value"), [("label_smoothing", 1.0), ("captions_per_sample", 0), ("captions_per_sample", -1)]
    )
    def test_settings_out_of_range_are_refused_by_name(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name}={value} must be"):
            captioning(**{name: value})


class TestSeveralCaptions:
    @pytest.mark.parametrize("count", [2, 3, 11])
    def test_they_are_the_references_in_turn_in_training_only(self, count):
        task, batch = captioning(captions_per_sample=count), referenced(images(4))
        before, state = dict(batch.targets), torch.get_rng_state()
        prepared = task.prepare(batch, train=True)
        for texts, references in zip(prepared.targets["captions"], REFERENCES, strict=True):
            assert texts == [references[number % len(references)] for number in range(count)]
        assert torch.equal(torch.get_rng_state(), state), "the number of processes does not matter"
        assert batch.targets == before
        assert prepared.targets.keys() == {*before, "captions", "token_ids"}
        evaluated = task.prepare(batch, train=False)
        assert evaluated.targets.keys() == {*before, "token_ids"}
        assert evaluated.targets["token_ids"].shape[:2] == (4, 1)

    @pytest.mark.parametrize(("count", "train"), [(1, True), (3, True), (3, False)])
    def test_captions_are_tokenized_and_texts_scored_once(self, count, train, monkeypatch):
        task, model, batch = captioning(captions_per_sample=count), captioner(), referenced(images(4))
        facts = [KnownFacts([]) for _ in range(4)]
        batch.targets["facts"], calls = facts, []
        batch = task.prepare(batch, train=train)
        texts = captions_of(batch) if count > 1 and train else batch.targets["caption"]
        assert batch.targets["token_ids"].flatten(0, 1).equal(word_tokenizer().encode_batch(texts))
        assert int(task.num_terms(batch)) == num_tokens(texts)
        monkeypatch.setattr(type(task.tokenizer), "encode_batch", None)
        monkeypatch.setattr(KnownFacts, "scores", lambda self, text: calls.append(text) or {"length": 0.5})
        with torch.no_grad():
            outputs = task.outputs(model, batch)
            task.update("val", outputs, task.loss(outputs, batch), batch)
            (rows,) = task.table_rows(outputs, batch, task.generated(model, batch), []).values()
        assert calls == [row.values["caption"] for row in rows]
        assert [row.values["length"] for row in rows] == [0.5] * 4

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("count", [2, 7])
    def test_loss_and_gradients_are_the_mean_of_those_of_the_captions_by_their_tokens(self, count, label_smoothing):
        task, model = captioning(captions_per_sample=count, label_smoothing=label_smoothing), captioner()
        batch, reads = task.prepare(referenced(images(4)), train=True), []
        memory = model.encode(batch.inputs, batch.masks)
        total = torch.tensor(0.0)
        for row, texts in enumerate(batch.targets["captions"]):
            for text in texts:
                ids = task.tokenizer.encode_batch([text])[:, :-1]
                outputs = model.decoder(memory.select(torch.tensor([row])), named(ids))
                total = total + num_tokens([text]) * task.loss(outputs, captioned(text))
        expected = total / num_tokens(captions_of(batch))
        model.encoders["image"].register_forward_hook(lambda module, inputs, tokens: reads.append(len(tokens.values)))
        loss, parameters = task.loss(task.outputs(model, batch), batch), list(model.parameters())
        assert reads == [4], "each sample is read once"
        assert_close(loss, expected, **CLOSE)
        found, of_each = (torch.autograd.grad(one, parameters) for one in (loss, expected))
        assert_close(found, of_each, **CLOSE)

    def test_all_count_in_training_with_their_tokens_as_the_weight_of_a_batch(self):
        several, one = captioning(captions_per_sample=3), captioning()
        for loss in (3.0, 5.0):
            batch = several.prepare(referenced(captioned(*SENTENCES[:4])), train=True)
            logits = named(random_logits(captions_of(batch)))
            for task, given in ((several, batch), (one, captioned(*captions_of(batch)))):
                task.update("train", logits, torch.tensor(loss), given)
        found = several.metrics("train").compute()
        assert_close(found, one.metrics("train").compute())
        assert float(found["loss"]) == pytest.approx(4.0)

    @torch.no_grad()
    def test_an_evaluation_is_of_the_caption_alone(self):
        model, batch, found = captioner(), referenced(images(4)), []
        for count in (1, 5):
            task = captioning(captions_per_sample=count)
            parts = {"model": model, "task": task, "optimizer": None, "schedule": None, "description": {}}
            TrainingModule(**parts, freezing=Freezing(), on_nonfinite="stop").validation_step(batch, 0)
            found.append(task.metrics("val").compute())
        assert_close(found[1], found[0], atol=0, rtol=0)


class TestWindows:
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("windows", [(2, 2, 2, 2), (3, 1, 2, 1)], ids=str)
    def test_outputs_become_the_mean_of_the_probabilities_for_each_caption(self, windows, count):
        task = captioning(captions_per_sample=count)
        batch = task.prepare(referenced(captioned(*SENTENCES[:4], windows=windows)), train=True)
        length = batch.targets["token_ids"].shape[2] - 1
        outputs = 3 * torch.randn(sum(windows), count, length, NUM_IDS)
        found = task.average_windows(named(outputs.flatten(0, 1)), batch)
        parts = outputs.double().softmax(dim=-1).split(windows)
        expected = torch.stack([part.mean(dim=0) for part in parts]).flatten(0, 1)
        assert_close(found["logits"].double().softmax(dim=-1), expected, atol=1e-6, rtol=1e-4)
        assert task.loss(found, batch).isfinite()
        batch.windows = []
        alone = named(outputs[:4].flatten(0, 1)) | {"other": torch.randn(3, 2)}
        assert_close(task.average_windows(alone, batch), alone, atol=0, rtol=0)

    def test_a_batch_with_windows_is_measured_by_sample(self):
        task, model = captioning(), captioner()
        samples = [image_sample(SENTENCES[0], 2), image_sample(SENTENCES[1]), image_sample(SENTENCES[2], 3)]
        batch, alone = collate(samples), collate([window for sample in samples for window in sample.split()])
        outputs = task.outputs(model, batch)
        assert_close(outputs, task.outputs(model, alone), **CLOSE)
        found = task.average_windows(outputs, batch)
        task.update("val", found, task.loss(found, batch), batch)
        assert len(found["logits"]) == 3

    @pytest.mark.parametrize("generation", [beam(), beam(3)])
    @torch.no_grad()
    def test_equal_windows_give_the_text_of_one(self, generation):
        task, model = captioning(generation=generation), captioner()
        samples = [image_sample(text) for text in SENTENCES[:3]]
        repeated = [
            Sample({"image": one.inputs["image"].expand(count, -1, -1, -1)}, one.targets, one.id, ("",) * count)
            for count, one in zip((2, 3, 5), samples, strict=True)
        ]
        one, several = (task.generate(model, collate(given), 3) for given in (samples, repeated))
        assert several.ids.equal(one.ids)
        assert_close(several.log_probabilities, one.log_probabilities, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("generation", [beam(), beam(3)])
    @torch.no_grad()
    def test_different_windows_give_one_text_by_their_mean_in_the_order_of_the_samples(self, generation):
        task, model = captioning(generation=generation), captioner()
        samples = [image_sample(text, count) for text, count in zip(SENTENCES[:3], (3, 0, 2), strict=True)]
        batch = collate(samples)
        texts = task.generate(model, batch, 2)
        assert texts.ids.shape[:2] == (3, 2)
        for place in range(2):
            ids = texts.ids[:, place]
            outputs = model(batch.inputs, batch.masks, named(ids[[0, 0, 0, 1, 2, 2], :-1]))
            logs = task.get_output(task.average_windows(outputs, batch)).log_softmax(dim=-1)
            each = logs.gather(2, ids[:, 1:, None])[..., 0].masked_fill(ids[:, 1:] == PAD, 0.0)
            assert_close(texts.log_probabilities[:, place], each.sum(dim=1), atol=1e-4, rtol=0)
        for row, sample in zip(task.predictions(model, batch, [], 2), samples, strict=True):
            (alone,) = task.predictions(model, collate([sample]), [], 2)
            assert [one["caption"] for one in row] == [one["caption"] for one in alone]


class TestMetrics:
    @pytest.mark.parametrize("stage", ["train", "val"])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_they_are_those_by_hand_over_all_tokens_of_all_batches(self, stage, label_smoothing):
        task = captioning(label_smoothing=label_smoothing)
        logs, hits, losses = [], [], []
        for texts in (SENTENCES[:2], SENTENCES[2:3], SENTENCES[3:]):
            logits, batch, ids = random_logits(texts), captioned(*texts), token_ids(texts)
            loss = task.loss(named(logits), batch)
            task.update(stage, named(logits), loss, batch)
            real = ids != PAD
            logs.append(logits.log_softmax(dim=-1)[real].gather(1, ids[real][:, None])[:, 0])
            hits.append(logits.argmax(dim=-1)[real] == ids[real])
            losses += [float(loss)] * int(real.sum())
        found = {name: float(value) for name, value in task.metrics(stage).compute().items()}
        assert found["perplexity"] == pytest.approx(float((-torch.cat(logs).mean()).exp()), rel=1e-5)
        assert found["token_accuracy"] == pytest.approx(float(torch.cat(hits).float().mean()), abs=1e-6)
        assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)

    @pytest.mark.parametrize(
        ("monitor", "mode"), [("loss", "min"), ("perplexity", "min"), ("token_accuracy", "max"), ("CIDEr-D", "max")]
    )
    def test_the_better_direction_follows_from_the_metric(self, monitor, mode):
        task = captioning(monitor=monitor)
        assert (task.monitor, task.monitor_mode) == (monitor, mode)

    @torch.no_grad()
    def test_generated_texts_are_compared_with_references_facts_and_groups_in_evaluation(self, monkeypatch):
        task, model, batch = captioning(), captioner(), images(5)
        facts = [KnownFacts([]), None, KnownFacts([]), KnownFacts([]), None]
        batch.targets |= {"facts": facts, "group": ["", "unseen", "", "unseen", ""]}
        found = task.generated(model, batch)["logits"]
        task.update_generated("val", {"logits": found})
        texts = [task.tokenizer.decode(row) for row in task.generate(model, batch, 1).ids[:, 0].tolist()]
        assert len(set(texts)) > 1
        assert [replace(one, confidence=0.0) for one in found] == [
            ScoredText(text, [SENTENCES[row]], {} if one is None else one.scores(text), group, confidence=0.0)
            for row, (text, one, group) in enumerate(zip(texts, facts, batch.targets["group"], strict=True))
        ]
        prepared = task.prepare(batch, train=False)
        (rows,) = task.table_rows(task.outputs(model, prepared), prepared, {"logits": found}, []).values()
        assert [row.values["group"] for row in rows] == batch.targets["group"]
        task.update_generated("test", task.generated(model, images(3)))  # without facts and groups
        keys = {stage: task.metrics(stage).compute().keys() for stage in ("train", "val", "test")}
        assert {"CIDEr-D", "unseen_BLEU-4", "lengths", "ROUGE-L", "exact_match"} <= keys["val"]
        assert "distinct_captions" in keys["test"]
        assert keys["train"] == {"loss", "perplexity", "token_accuracy"}


class TestSmallerVocabulary:
    """The model has room for more words than the tokenizer has learned."""

    def test_logits_beyond_it_never_count(self):
        task, model, batch = captioning(), captioner(), images()
        before = task.get_output(task.outputs(model, batch))
        with torch.no_grad():
            model.decoder.head.bias[NUM_IDS:] = 1e4
        after = task.outputs(model, batch)
        assert task.get_output(after).shape[-1] == NUM_IDS < VOCAB
        assert_close(task.get_output(after), before, atol=0, rtol=0)
        found = task.probabilities({"logits": after["logits"].bfloat16()})["logits"]
        assert found.dtype == torch.float32
        assert_close(found.sum(dim=-1), torch.ones(found.shape[:-1]))
        task.loss(after, batch).backward()
        assert (model.decoder.head.bias.grad[NUM_IDS:] == 0).all()

    @pytest.mark.parametrize("generation", [beam(), beam(3), SAMPLING], ids=["greedy", "beam", "sampling"])
    @torch.no_grad()
    def test_ids_beyond_it_are_never_generated(self, generation):
        task, model = captioning(generation=generation), captioner()
        model.decoder.head.bias[NUM_IDS:] = 1e4
        texts = task.generate(model, images(), 3)
        assert int(texts.ids.max()) < NUM_IDS
        assert (texts.log_probabilities > -1e3).all()


class TestAnswers:
    @torch.no_grad()
    def test_predictions_are_texts_best_first_with_their_log_probabilities(self):
        task, model, batch = captioning(generation=beam(3)), captioner(), images()
        texts = task.generate(model, batch, 3)
        for row, found in enumerate(task.predictions(model, batch, [], 3)):
            assert [one["caption"] for one in found] == [task.tokenizer.decode(w) for w in texts.ids[row].tolist()]
            values = [one["log_probability"] for one in found]
            assert values == sorted(values, reverse=True)

    @torch.no_grad()
    def test_there_are_no_more_predictions_than_texts(self):
        tokenizer = WordTokenizer(vocab_size=5, max_length=3, lowercase=True, min_frequency=1)
        tokenizer.train(["a"])
        task, model = captioning(tokenizer=tokenizer), lively(model_of({"image": image_encoder()}, vocab_size=5))
        for found in task.predictions(model, images(3), [], 7):
            assert sorted(one["caption"] for one in found) == ["", "a", "a a"]

    @torch.no_grad()
    def test_each_word_is_an_answer_of_the_places_that_predict_it(self):
        task, model, batch = captioning(), captioner(), images()
        boxes = [Box(row, "image", {"x": (0.0, 1.0)}) for row in range(2)]
        batch.targets["facts"] = [KnownFacts(boxes), *[None] * 4]
        queries = task.answer_queries(model, batch)
        outputs = model(batch.inputs, batch.masks, queries)
        answers, ids = task.answers(outputs, queries, batch, []), queries["logits"]
        predicted = task.predictions(model, batch, [], 1)
        assert task.answer_queries(model, batch, predicted)["logits"].equal(ids)
        assert [len(row) > 1 for row in answers].count(True) > 1
        for row, of_row in enumerate(answers):
            content = [id for id in ids[row].tolist() if id not in (PAD, BOS, EOS)]
            assert [answer.name for answer in of_row] == task.tokenizer.decode(content).split()
            for answer in of_row:
                (query,) = answer.queries
                best = int(outputs["logits"][row, query, 4:NUM_IDS].argmax()) + 4
                assert answer.ids == (best,) == (int(ids[row, query + 1]),)
                assert (answer.label, answer.output) == (None, "logits")
        places = [[(answer.kind, answer.boxes) for answer in row] for row in answers]
        assert places[0][:2] == [("color", (boxes[0],)), ("color", (boxes[1],))]
        assert {place for row in (places[0][2:], *places[1:]) for place in row} <= {("", ())}


def sound(number: int) -> torch.Tensor:
    """A tone, another one for each number."""
    time = torch.arange(601) / 4001
    return 0.3 * torch.sin(2 * math.pi * (150 + 230 * number) * time)[None]


TASK = captioning()
FROM = {
    "image": (image_encoder, lambda number: torch.rand(3, 11, 13)),
    "audio": (audio_encoder, sound),
    "text": (text_encoder, lambda number: TASK.tokenizer.encode(" ".join(reversed(SENTENCES[number].split())))[None]),
}
"""Modality -> its encoder, and an input by number."""


@pytest.mark.parametrize(
    ("names", "memory"), [([], LATENTS), (["text"], DIRECT)], ids=["some of three", "text, without bottleneck"]
)
def test_a_small_model_learns_the_captions_of_any_modality(names, memory):
    """Of samples that have some of three modalities, or all have a text."""
    some = (["image"], ["text"], ["audio", "text"], ["image", "audio", "text"], ["audio"])
    samples = [
        Sample({name: FROM[name][1](number) for name in names or given}, {"caption": text, "references": [text]}, text)
        for number, (text, given) in enumerate(zip(SENTENCES, some, strict=False))
    ]
    model, batch = model_of({name: FROM[name][0]() for name in names or FROM}, memory=memory), collate(samples)
    assert learn(TASK, model, batch) < 0.1
    assert [one["caption"] for (one,) in TASK.predictions(model.eval(), batch, [], 1)] == SENTENCES[: len(samples)]


@pytest.mark.slow
def test_bytes_will_do_as_well():
    task = captioning(tokenizer=ByteTokenizer(vocab_size=262, max_length=41))
    model, batch = model_of({"image": image_encoder()}, vocab_size=262, max_length=41), images(5)
    assert learn(task, model, batch, steps=240) < 0.1
    assert [one["caption"] for (one,) in task.predictions(model.eval(), batch, [], 1)] == SENTENCES[:5]


def learn(task: Captioning, model: Perceiver, batch: Batch, steps: int = 150) -> float:
    """Train on one batch; the last loss."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(task.outputs(model, batch), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return float(loss.detach())
