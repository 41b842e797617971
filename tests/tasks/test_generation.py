"""Texts from a model of the next word, against what can be told without cleverness: all texts, or word by word."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.text import TextDecoder
from perceiver.queries.text import Text
from perceiver.tasks.generation import NEVER, Texts, length_factor
from perceiver.tokenizer import BOS, EOS, PAD, UNKNOWN
from perceiver.types import Memory
from tests.tasks.writers import (
    BATCH,
    CPU,
    EXHAUSTIVE,
    MAX_LENGTH,
    VOCAB,
    WORDS,
    TableWriter,
    beam,
    following,
    log_probability,
    sampling,
    sure,
    texts_of,
    written,
)


def all_texts(max_length=MAX_LENGTH) -> list[tuple[int, ...]]:
    """Every text that can be written."""
    words = [word for word in WORDS if word != EOS]
    ended = [(*inner, EOS) for count in range(max_length - 1) for inner in itertools.product(words, repeat=count)]
    return [(BOS, *text) for text in (*ended, *itertools.product(words, repeat=max_length - 1))]


def best_texts(sample: int, length_penalty: float, max_length=MAX_LENGTH) -> list[tuple[int, ...]]:
    """All texts, best first."""

    def score(text):
        return log_probability(sample, text) / length_factor(len(text) - 1, length_penalty)

    return sorted(all_texts(max_length), key=score, reverse=True)


def searched_texts(sample: int, num_beams: int, length_penalty: float, max_length: int, model) -> list[tuple[int, ...]]:
    """What a beam search that never ends early finds, best first."""
    live, done = [((BOS,), 0.0)], []
    for length in range(1, max_length):
        grown = [((*text, word), value + float(model(sample, text)[word])) for text, value in live for word in WORDS]
        grown.sort(key=lambda one: one[1], reverse=True)
        ends = [one for one in grown[:num_beams] if one[0][-1] == EOS or length == max_length - 1]
        done += [(text, value / length_factor(length, length_penalty)) for text, value in ends]
        live = [one for one in grown if one[0][-1] != EOS][:num_beams]
    return [text for text, _ in sorted(done, key=lambda one: one[1], reverse=True)]


def greedy_text(sample: int, max_length=MAX_LENGTH) -> tuple[int, ...]:
    text = (BOS,)
    while len(text) < max_length and text[-1] != EOS:
        chances = following(sample, text)
        text = (*text, max(WORDS, key=lambda word: float(chances[word])))
    return text


EVERY = {
    "greedy": beam(),
    "beam": beam(3),
    "long beam": beam(3, length_penalty=1.0),
    "beam without repeats": beam(3, no_repeat_ngram_size=1, presence_penalty=0.5),
    "sampling": sampling(),
    "nucleus": sampling(temperature=0.7, top_k=3, top_p=0.9),
    "sampling without repeats": sampling(no_repeat_ngram_size=2, presence_penalty=0.5),
}
every_generation = pytest.mark.parametrize("generation", EVERY.values(), ids=EVERY)


class TestTexts:
    @every_generation
    @pytest.mark.parametrize("num_texts", [1, 5])
    def test_they_begin_end_and_hold_only_words(self, generation, num_texts):
        texts = written(generation, samples=range(23), num_texts=num_texts, max_length=11)
        assert texts.ids.shape[:2] == texts.log_probabilities.shape == (23, num_texts)
        assert texts.ids.shape[2] <= 11
        for row, value in zip(texts.ids.flatten(0, 1).tolist(), texts.log_probabilities.flatten(), strict=True):
            if value.isfinite():
                end = row.index(EOS) if EOS in row else len(row) - 1
                assert row[0] == BOS
                assert {PAD, BOS, UNKNOWN, EOS}.isdisjoint(row[1:end])
                assert set(row[end + 1 :]) <= {PAD}
                assert EOS in row or len(row) == 11

    @every_generation
    def test_their_log_probabilities_are_those_of_the_model(self, generation):
        samples = range(11)
        texts = written(generation, samples=samples, num_texts=5, max_length=7)
        if generation.presence_penalty == 0.0:
            for sample, found in zip(samples, texts_of(texts), strict=True):
                expected = torch.tensor([log_probability(sample, text) for text in found])
                assert_close(texts.log_probabilities[sample][: len(found)], expected, atol=1e-4, rtol=0)

    @every_generation
    def test_none_is_longer_than_allowed(self, generation):
        def endless(sample, before):
            return following(sample, before).index_fill(0, torch.tensor(EOS), -1e4)

        for max_length in (2, 3, 5):
            texts = written(generation, max_length=max_length, model=endless)
            assert all(len(text) <= max_length for found in texts_of(texts) for text in found)
            if not generation.no_repeat_ngram_size:
                assert texts.ids.shape[2] == max_length
                assert not (texts.ids == EOS).any()

    @every_generation
    def test_an_end_at_once_is_a_text(self, generation):
        def ending(sample, before):
            return torch.full((VOCAB,), -1e4).index_fill(0, torch.tensor(EOS), 0.0)

        texts = written(generation, model=ending)
        assert texts_of(texts) == [[(BOS, EOS)]] * BATCH
        assert_close(texts.log_probabilities, torch.zeros(BATCH, 1))

    @every_generation
    def test_where_only_the_end_may_be_written_there_is_one_text(self, generation):
        texts = written(generation, num_texts=2, model=lambda sample, before: following(sample, before, vocab=4))
        assert {text for found in texts_of(texts) for text in found} == {(BOS, EOS)}

    @every_generation
    def test_where_there_is_one_word_it_is_said_until_the_end(self, generation):
        texts = written(generation, max_length=5, model=lambda sample, before: following(sample, before, vocab=5))
        assert {word for (text,) in texts_of(texts) for word in text} <= {BOS, 4, EOS}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    @every_generation
    def test_they_are_where_the_writer_is(self, generation):
        class OnGPU(TableWriter):
            def next(self, words):
                return super().next(words.cpu()).cuda()

        device = torch.device("cuda")
        texts = generation(
            lambda width: OnGPU(width, [0, 1, 2]), batch_size=3, num_texts=2, max_length=5, device=device
        )
        assert texts.ids.device.type == texts.log_probabilities.device.type == "cuda"


class TestGreedy:
    def test_it_takes_the_likeliest_word_at_each_place(self):
        texts = written(beam(), samples=range(29), max_length=11)
        assert texts_of(texts) == [[greedy_text(sample, 11)] for sample in range(29)]

    def test_the_length_penalty_means_nothing(self):
        plain, penalised = (written(beam(length_penalty=penalty), samples=range(13)) for penalty in (0.0, 3.0))
        assert texts_of(penalised) == texts_of(plain)

    @pytest.mark.parametrize(
        "generation", [sampling(top_k=1), sampling(top_p=1e-6), sampling(temperature=1e-3), sampling(temperature=1e-42)]
    )
    def test_sampling_from_the_likeliest_alone_is_the_same(self, generation):
        plain, sampled = (written(one, samples=range(29), max_length=11) for one in (beam(), generation))
        assert texts_of(sampled) == texts_of(plain)
        assert_close(sampled.log_probabilities, plain.log_probabilities)


class TestBeamSearch:
    @pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
    @pytest.mark.parametrize("max_length", [3, 4, 5])
    def test_with_room_for_all_it_finds_the_best_texts_of_all(self, length_penalty, max_length):
        generation = beam(len(WORDS) ** (max_length - 1), length_penalty)
        texts = written(generation, num_texts=11, max_length=max_length)
        expected = [best_texts(sample, length_penalty, max_length)[:11] for sample in range(BATCH)]
        assert texts_of(texts) == expected

    @pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
    @pytest.mark.parametrize("num_beams", [2, 3, 5])
    @pytest.mark.parametrize("model", [following, sure], ids=["any", "sure"])
    def test_with_room_for_a_few_it_finds_what_a_search_without_an_early_end_finds(
        self, model, num_beams, length_penalty
    ):
        generation, samples = beam(num_beams, length_penalty), range(31)
        # One by one, since a batch goes on until its last text is done.
        texts = [texts_of(written(generation, samples=[one], max_length=9, model=model))[0] for one in samples]
        expected = [searched_texts(one, num_beams, length_penalty, 9, model)[:1] for one in samples]
        assert texts == expected
        assert len({len(text) for (text,) in texts}) > 2

    def test_more_texts_than_there_are_have_no_probability(self):
        texts = written(beam(EXHAUSTIVE), samples=[0], num_texts=len(all_texts()) + 7)
        (found,) = texts_of(texts)
        assert sorted(found) == sorted(all_texts())
        assert torch.logsumexp(texts.log_probabilities[0], dim=0) <= 1e-6

    @pytest.mark.parametrize("length_penalty", [0.0, 0.6])
    def test_candidates_differ_and_come_best_first(self, length_penalty):
        samples = range(17)
        texts = written(beam(5, length_penalty), samples=samples, num_texts=5, max_length=7)
        for sample, found in zip(samples, texts_of(texts), strict=True):
            assert len(set(found)) == len(found) == 5
            lengths = [len(text) - 1 for text in found]
            scores = [
                log_probability(sample, text) / length_factor(length, length_penalty)
                for text, length in zip(found, lengths, strict=True)
            ]
            assert scores == sorted(scores, reverse=True)

    def test_more_candidates_than_beams_take_as_many_beams(self):
        few, many = written(beam(2), num_texts=5), written(beam(5), num_texts=5)
        assert texts_of(few) == texts_of(many)

    def test_it_is_no_worse_than_greedy_where_nothing_is_pruned_and_hardly_ever_where_something_is(self):
        samples = range(211)
        greedy = written(beam(), samples=samples).log_probabilities
        whole = written(beam(EXHAUSTIVE), samples=range(7)).log_probabilities
        assert (whole >= greedy[:7] - 1e-5).all()
        searched = written(beam(3), samples=samples).log_probabilities
        assert (searched >= greedy - 1e-5).float().mean() > 0.97
        assert (searched > greedy + 1e-5).any()

    def test_a_larger_length_penalty_gives_longer_texts(self):
        lengths = [
            sum(len(text) for (text,) in texts_of(written(beam(7, penalty), samples=range(97), max_length=7)))
            for penalty in (0.0, 1.0, 3.0)
        ]
        assert lengths == sorted(set(lengths))

    def test_texts_written_together_are_those_written_one_by_one(self):
        generation = beam(3, length_penalty=0.6, no_repeat_ngram_size=2)
        together = written(generation, samples=range(13), num_texts=3, max_length=11)
        for sample in range(13):
            alone = written(generation, samples=[sample], num_texts=3, max_length=11)
            assert texts_of(alone) == texts_of(together)[sample : sample + 1]
            assert_close(alone.log_probabilities[0], together.log_probabilities[sample])


class LogProbabilities:
    """What a text decoder generates about latents, in log-probabilities."""

    def __init__(self, decoder, latents, width):
        self.texts = decoder.incremental_decoder(Memory(latents).repeat(width), "logits")
        self.select = self.texts.select

    def next(self, ids):
        return self.texts.next(ids).log_softmax(dim=1)


def read(decoder, latents, ids):
    return decoder(Memory(latents), {"logits": ids})["logits"]


class TestWithADecoder:
    """What keeps keys and values writes what reading all anew each time would."""

    @pytest.fixture
    def decoder(self):
        block = BlockSpec(num_heads=1, qk_dim=11, v_dim=13)
        decoder = TextDecoder(
            dim=7,
            queries=Text(vocab_size=23, max_length=17, dim=19),
            num_layers=2,
            self_attention=block,
            cross_attention=block,
            dropout=0.0,
            tied=False,
        )
        for weights in decoder.parameters():
            torch.nn.init.normal_(weights, std=0.5)
        return decoder.eval()

    @torch.no_grad()
    def test_greedy_takes_the_likeliest_word_of_a_whole_forward_pass(self, decoder):
        latents = torch.randn(5, 3, 7)
        for row, text in enumerate(self.texts(decoder, latents, beam()).ids[:, 0].tolist()):
            words, expected = [id for id in range(23) if id not in NEVER], [BOS]
            while expected[-1] != EOS and len(expected) < 17:
                logits = read(decoder, latents[row : row + 1], torch.tensor([expected]))[0, -1]
                expected.append(max(words, key=lambda word, logits=logits: float(logits[word])))
            assert text[: len(expected)] == expected

    @torch.no_grad()
    @pytest.mark.parametrize("generation", [beam(), beam(5, length_penalty=0.6), sampling(top_p=0.9)])
    def test_log_probabilities_are_those_of_teacher_forcing(self, decoder, generation):
        latents = torch.randn(5, 3, 7)
        texts = self.texts(decoder, latents, generation, num_texts=3)
        for place in range(3):
            words = texts.ids[:, place]
            logits = read(decoder, latents, words[:, :-1]).log_softmax(dim=-1)
            each = logits.gather(2, words[:, 1:, None])[..., 0]
            expected = each.masked_fill(words[:, 1:] == PAD, 0.0).sum(dim=1)
            assert_close(texts.log_probabilities[:, place], expected, atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_texts_written_together_are_those_written_one_by_one(self, decoder):
        latents, generation = torch.randn(5, 3, 7), beam(3, length_penalty=0.6)
        together = texts_of(self.texts(decoder, latents, generation, num_texts=2))
        alone = [texts_of(self.texts(decoder, latents[row : row + 1], generation, num_texts=2)) for row in range(5)]
        assert together == [found for (found,) in alone]
        assert len({text for found in together for text in found}) > 5

    def texts(self, decoder, latents, generation, num_texts=1) -> Texts:
        return generation(
            lambda width: LogProbabilities(decoder, latents, width),
            batch_size=len(latents),
            num_texts=num_texts,
            max_length=17,
            device=CPU,
        )


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((beam, wrong) for wrong in ({"num_beams": 0}, {"length_penalty": -0.1})),
        *((sampling, wrong) for wrong in ({"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1})),
        *((sampling, wrong) for wrong in ({"top_p": 0.0}, {"top_p": 1.1})),
        *((kind, wrong) for kind in (beam, sampling) for wrong in ({"presence_penalty": -0.1},)),
        *((kind, wrong) for kind in (beam, sampling) for wrong in ({"no_repeat_ngram_size": -1},)),
    ],
)
def test_settings_that_cannot_be_are_named(kind, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}={value} must be"):
        kind(**wrong)
