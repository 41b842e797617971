"""Captions of anything: what is written about images, sounds and texts, seen in one window or several."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.model import Perceiver
from perceiver.tasks.captioning import Captioning
from perceiver.tokenizer import BOS, EOS, PAD, ByteTokenizer, WordTokenizer
from perceiver.types import Batch, Box, Sample
from tests.models import audio_encoder, image_encoder, named
from tests.tasks.captioners import (
    DIRECT,
    LATENTS,
    NUM_IDS,
    SENTENCES,
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


class TestViews:
    def test_the_outputs_of_views_become_the_mean_of_their_probabilities(self):
        task, batch = captioning(), captioned(*SENTENCES[:3], windows=(3, 1, 2))
        outputs = 3 * torch.randn(6, 5, NUM_IDS)
        each = outputs.double().softmax(dim=-1)
        expected = torch.stack([each[:3].mean(dim=0), each[3], each[4:].mean(dim=0)])
        assert_close(
            task.average_windows(named(outputs), batch)["logits"].double().softmax(dim=-1),
            expected,
            atol=1e-6,
            rtol=1e-4,
        )

    def test_without_views_outputs_stay_as_they_are(self):
        outputs = named(torch.randn(3, 5, NUM_IDS)) | {"other": torch.randn(3, 2)}
        assert_close(captioning().average_windows(outputs, captioned(*SENTENCES[:3])), outputs, atol=0, rtol=0)

    def test_a_batch_with_views_is_measured_by_sample(self):
        task, model = captioning(), lively(model_of({"image": image_encoder()}))
        samples = [image_sample(SENTENCES[0], 2), image_sample(SENTENCES[1]), image_sample(SENTENCES[2], 3)]
        batch = collate(samples)
        outputs = task.outputs(model, batch)
        length = task.tokenizer.encode_batch(SENTENCES[:3]).shape[1] - 1
        assert task.get_output(outputs).shape == (6, length, NUM_IDS)
        windows = [window for sample in samples for window in sample.split()]
        alone = collate(windows)
        assert_close(outputs, task.outputs(model, alone), atol=1e-5, rtol=1e-5)
        merged = task.average_windows(outputs, batch)
        assert task.loss(merged, batch).isfinite()
        task.update("val", merged, task.loss(merged, batch), batch)

    @pytest.mark.parametrize("generation", [beam(), beam(3)])
    @torch.no_grad()
    def test_equal_views_write_what_one_writes(self, generation):
        task, model = captioning(generation=generation), lively(model_of({"image": image_encoder()}))
        samples = [image_sample(text) for text in SENTENCES[:5]]
        doubled = [
            Sample({"image": one.inputs["image"].expand(count, -1, -1, -1)}, one.targets, one.id, ("",) * count)
            for count, one in zip((2, 3, 2, 5, 2), samples, strict=True)
        ]
        one, several = (task.generate(model, collate(given), 3) for given in (samples, doubled))
        assert several.ids.equal(one.ids)
        assert_close(several.log_probabilities, one.log_probabilities, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("generation", [beam(), beam(3)])
    @torch.no_grad()
    def test_different_views_write_one_text_by_their_mean(self, generation):
        task, model = captioning(generation=generation), lively(model_of({"image": image_encoder()}))
        batch = collate([image_sample(SENTENCES[0], 3), image_sample(SENTENCES[1]), image_sample(SENTENCES[2], 2)])
        texts = task.generate(model, batch, 2)
        assert texts.ids.shape[:2] == (3, 2)
        for place in range(2):
            words = texts.ids[:, place]
            rows = words[torch.tensor([0, 0, 0, 1, 2, 2])]
            outputs = model(batch.inputs, batch.masks, named(rows[:, :-1]))
            merged = task.get_output(task.average_windows(outputs, batch)).log_softmax(dim=-1)
            each = merged.gather(2, words[:, 1:, None])[..., 0].masked_fill(words[:, 1:] == PAD, 0.0)
            assert_close(texts.log_probabilities[:, place], each.sum(dim=1), atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_texts_are_in_the_order_of_the_samples_however_many_views_each_has(self):
        task, model = captioning(generation=beam(3)), lively(model_of({"image": image_encoder()}))
        samples = [image_sample(text, windows) for text, windows in zip(SENTENCES[:4], (1, 3, 0, 2), strict=True)]
        together = task.predictions(model, collate(samples), [], 2)
        alone = [task.predictions(model, collate([sample]), [], 2)[0] for sample in samples]
        assert [[one["caption"] for one in row] for row in together] == [
            [one["caption"] for one in row] for row in alone
        ]


class TestAnswers:
    @torch.no_grad()
    def test_predictions_are_texts_best_first_with_their_log_probabilities(self):
        task, model, batch = captioning(generation=beam(3)), lively(model_of({"image": image_encoder()})), images()
        found = task.predictions(model, batch, [], 3)
        texts = task.generate(model, batch, 3)
        for row, of_sample in enumerate(found):
            assert [one["caption"] for one in of_sample] == [task.tokenizer.decode(w) for w in texts.ids[row].tolist()]
            values = [one["log_probability"] for one in of_sample]
            assert values == sorted(values, reverse=True)
            assert {(type(one["caption"]), type(one["log_probability"])) for one in of_sample} == {(str, float)}
        assert task.num_answers == 1

    @torch.no_grad()
    def test_texts_that_there_are_not_are_left_out(self):
        tokenizer = WordTokenizer(vocab_size=5, max_length=3, lowercase=True, min_frequency=1)
        tokenizer.train(["a"])
        task = captioning(tokenizer=tokenizer, generation=beam())
        model = lively(model_of({"image": image_encoder()}, vocab_size=5))
        for of_sample in task.predictions(model, images(3), [], 7):
            assert sorted(one["caption"] for one in of_sample) == ["", "a", "a a"]

    @torch.no_grad()
    def test_each_word_is_an_answer_of_the_places_that_said_it(self):
        task, model, batch = captioning(), lively(model_of({"image": image_encoder()})), images()
        boxes = [Box(row, "image", {"x": (0.0, 1.0)}) for row in range(2)]
        batch.targets["facts"] = [KnownFacts(boxes), *[None] * 4]
        queries = task.answer_queries(model, batch)
        outputs = model(batch.inputs, batch.masks, queries)
        answers = task.answers(outputs, queries, batch, [])
        words, logits = queries["logits"], outputs["logits"]
        predicted = task.predictions(model, batch, [], 1)
        assert task.answer_queries(model, batch, predicted)["logits"].equal(words)
        assert [len(row) > 1 for row in answers].count(True) > 1
        for row, of_row in enumerate(answers):
            ids = words[row].tolist()
            content = [id for id in ids if id not in (PAD, BOS, EOS)]
            assert [answer.name for answer in of_row] == task.tokenizer.decode(content).split()
            for answer in of_row:
                (query,) = answer.queries
                said = int(logits[row, query, 4:NUM_IDS].argmax()) + 4
                assert task.tokenizer.decode([ids[query + 1]]) == answer.name == task.tokenizer.decode([said])
                assert answer.label is None
                assert answer.output == "logits"
                assert answer.ids == (said,)
        known = [(answer.kind, answer.boxes) for answer in answers[0]]
        assert known[:2] == [("colour", (boxes[0],)), ("colour", (boxes[1],))]
        assert {*known[2:], *((a.kind, a.boxes) for row in answers[1:] for a in row)} <= {("", ())}


def sound(number: int) -> torch.Tensor:
    """Tones of a height of their own."""
    time = torch.arange(601) / 4001
    return 0.3 * torch.sin(2 * math.pi * (150 + 230 * number) * time)[None]


TOKENIZER = word_tokenizer()
FROM = {
    "image": (image_encoder, lambda number: torch.rand(3, 11, 13)),
    "audio": (audio_encoder, sound),
    "text": (text_encoder, lambda number: TOKENIZER.encode(" ".join(reversed(SENTENCES[number].split())))[None]),
}
"""Modality -> its encoder, and something of it by number."""
TASK = captioning(tokenizer=TOKENIZER)


class TestAnyModality:
    """One task, that knows of no modality, learns from all."""

    @pytest.mark.parametrize(
        ("name", "memory"),
        [*((name, LATENTS) for name in FROM), ("text", DIRECT)],
        ids=[*FROM, "text, without bottleneck"],
    )
    def test_a_small_model_learns_to_say_the_right_thing_of_each(self, name, memory):
        encoder, something = FROM[name]
        samples = [
            Sample({name: something(number)}, {"caption": text, "references": [text]}, text)
            for number, text in enumerate(SENTENCES)
        ]
        model, batch = model_of({name: encoder()}, memory=memory), collate(samples)
        loss = learn(TASK, model, batch)
        assert loss < 0.1
        found = TASK.predictions(model.eval(), batch, [], 1)
        assert [one["caption"] for (one,) in found] == SENTENCES
        with torch.no_grad():
            TASK.update_generated("val", model, batch)
        assert float(TASK.metrics("val")["texts"].compute()["exact_match"]) == 1.0
        TASK.metrics("val").reset()

    def test_samples_that_lack_a_modality_are_learned_from_what_they_have(self):
        samples = [
            Sample({name: FROM[name][1](number) for name in names}, {"caption": SENTENCES[number]}, SENTENCES[number])
            for number, names in enumerate(
                (["image"], ["text"], ["audio", "text"], ["image", "audio", "text"], ["audio"])
            )
        ]
        model, batch = model_of({name: encoder() for name, (encoder, _) in FROM.items()}), collate(samples)
        assert learn(TASK, model, batch) < 0.1
        assert [one["caption"] for (one,) in TASK.predictions(model.eval(), batch, [], 1)] == SENTENCES[:5]

    @pytest.mark.slow
    def test_bytes_will_do_as_well(self):
        task = captioning(tokenizer=ByteTokenizer(vocab_size=262, max_length=41))
        model, batch = model_of({"image": image_encoder()}, vocab_size=262, max_length=41), images(5)
        assert learn(task, model, batch, steps=240) < 0.1
        assert [one["caption"] for (one,) in task.predictions(model.eval(), batch, [], 1)] == SENTENCES[:5]


def learn(task: Captioning, model: Perceiver, batch: Batch, steps: int = 150) -> float:
    """Train on one batch; the loss in the end."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(task.outputs(model, batch), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return float(loss.detach())
