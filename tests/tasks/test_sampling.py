"""What is drawn as often as it is likely, and what must not be written at all."""

import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from perceiver.tasks.generation import NEVER, Sampling, Texts
from perceiver.tokenizer import BOS, EOS, PAD
from tests.tasks.writers import VOCAB, WORDS, beam, following, sampling, talkative, texts_of, written


class TestSampling:
    COUNT = 20_011

    def drawn(self, generation: Sampling) -> torch.Tensor:
        """How often each word was drawn as the first."""
        texts = written(generation, samples=[0], num_texts=self.COUNT, max_length=2)
        return texts.ids[0, :, 1].bincount(minlength=VOCAB)

    @pytest.mark.parametrize(
        "generation",
        [sampling(), sampling(temperature=0.5), sampling(temperature=3.0), sampling(top_k=2), sampling(top_p=0.8)],
    )
    def test_words_are_drawn_as_often_as_they_are_likely(self, generation):
        expected = narrowed_by_hand(following(0, (BOS,)), generation)
        counts = self.drawn(generation)
        assert (counts[expected == 0] == 0).all()
        there = expected > 0
        chi_squared = ((counts - self.COUNT * expected)[there] ** 2 / (self.COUNT * expected)[there]).sum()
        # With at most three degrees of freedom, one of a million draws is beyond 30.7.
        assert chi_squared < 30.7

    @pytest.mark.parametrize("top_k", [0, 1, 2, 3, 4, 99])
    @pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
    def test_what_is_drawn_from_is_narrowed_as_by_hand(self, temperature, top_k, top_p):
        generation = sampling(temperature, top_k, top_p)
        for sample in range(7):
            scores = following(sample, (BOS,))
            allowed = generation.constrain(scores[None], torch.tensor([[BOS]]))
            truncated = generation.truncate(allowed)[0].softmax(dim=0)
            assert_close(truncated, narrowed_by_hand(scores, generation))

    def test_the_seed_decides(self):
        texts = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            texts.append(texts_of(written(sampling(), samples=range(13), num_texts=3, max_length=11)))
        assert texts[0] == texts[1] != texts[2]

    def test_candidates_come_likeliest_first(self):
        texts = written(sampling(), samples=range(5), num_texts=7)
        values = texts.log_probabilities
        assert values.equal(values.sort(dim=1, descending=True).values)
        assert len(set(texts_of(texts)[0])) > 1


def narrowed_by_hand(scores: torch.Tensor, generation: Sampling) -> torch.Tensor:
    """Probabilities of the words that are drawn from, by sorting lists."""
    chances = {word: math.exp(float(scores[word]) / generation.temperature) for word in WORDS}
    kept = sorted(chances, key=chances.__getitem__, reverse=True)[: generation.top_k or None]
    total, mass, nucleus = sum(chances[word] for word in kept), 0.0, []
    for word in kept:
        if mass < generation.top_p * total:
            nucleus.append(word)
        mass += chances[word]
    share = sum(chances[word] for word in nucleus)
    return torch.tensor([chances[word] / share if word in nucleus else 0.0 for word in range(VOCAB)])


class TestRules:
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("kind", [beam, lambda **rules: beam(5, **rules), sampling])
    def test_no_sequence_of_words_comes_twice(self, kind, size):
        long = {"samples": range(31), "max_length": 17, "num_texts": 3, "model": talkative}
        free, ruled = written(kind(), **long), written(kind(no_repeat_ngram_size=size), **long)
        assert most_repeats(free, size) > 1
        assert most_repeats(ruled, size) == 1

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_only_what_would_come_twice_is_forbidden(self, size):
        words = torch.tensor(
            [[BOS, 4, 5, 4, 5, 6, 4, 5], [BOS, 4, 4, 4, 4, 4, 4, 4], [BOS, 6, 5, 4, EOS, PAD, PAD, PAD]]
        )
        scores = torch.randn(3, VOCAB).log_softmax(dim=1)
        allowed = beam(no_repeat_ngram_size=size).constrain(scores, words)
        for row, text in enumerate(words.tolist()):
            there = {tuple(text[place : place + size]) for place in range(len(text) - size + 1)}
            for word in WORDS:
                repeated = word != EOS and (*text[len(text) - size + 1 :], word) in there
                assert allowed[row, word] == (-math.inf if repeated else scores[row, word])
        assert allowed[:, list(NEVER)].isinf().all()

    def test_a_penalty_is_taken_off_each_word_that_is_there_once(self):
        words, scores = torch.tensor([[BOS, 4, 4, 5], [BOS, 6, EOS, PAD]]), torch.randn(2, VOCAB)
        allowed = beam(presence_penalty=0.75).constrain(scores, words)
        assert_close(
            scores - allowed,
            torch.tensor([[0.0, 0, 0, 0, 0.75, 0.75, 0], [0, 0, 0.75, 0, 0, 0, 0.75]]).where(
                torch.tensor([id in WORDS for id in range(VOCAB)]), torch.tensor(math.inf)
            ),
        )

    @pytest.mark.parametrize("kind", [beam, lambda **rules: beam(3, **rules), sampling])
    def test_a_penalty_makes_repeats_rarer(self, kind):
        repeats = [
            sum(
                len(text) - len(set(text))
                for (text,) in texts_of(written(kind(presence_penalty=penalty), samples=range(97), max_length=13))
            )
            for penalty in (0.0, 1.0, 50.0)
        ]
        assert repeats == sorted(set(repeats), reverse=True)

    def test_rules_that_are_off_change_nothing_but_what_is_never_written(self):
        scores = torch.randn(5, VOCAB)
        allowed = beam().constrain(scores, torch.full((5, 3), 4))
        assert allowed[:, WORDS].equal(scores[:, WORDS])
        assert allowed[:, list(NEVER)].isinf().all()


def most_repeats(texts: Texts, size: int) -> int:
    """How often the most frequent sequence of so many words is in a text."""
    return max(
        count
        for found in texts_of(texts)
        for text in found
        for count in Counter(zip(*(text[place:] for place in range(size)), strict=False)).values()
    )
