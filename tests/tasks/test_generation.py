"""Generation from a table of next-token probabilities, against exhaustive search, and from a text decoder."""

import itertools
import math
from collections import Counter
from functools import cache

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.text import TextDecoder
from perceiver.queries.text import Text
from perceiver.tasks.generation import NEVER_GENERATED, BeamSearch, Generation, Sampling, Texts, length_factor
from perceiver.tokenizer import BOS, EOS, PAD, UNKNOWN
from perceiver.types import Memory

CPU = torch.device("cpu")
VOCAB = 7
WORDS = [id for id in range(VOCAB) if id not in NEVER_GENERATED]
"""EOS and three words."""
MAX_LENGTH = 5
BATCH = 3
EXHAUSTIVE = len(WORDS) ** (MAX_LENGTH - 1)
"""So many beams hold every text."""


@cache
def following(sample: int, before: tuple[int, ...], vocab: int = VOCAB, sharpness: float = 2.0) -> torch.Tensor:
    """Log-probabilities of the next token: another random distribution for each beginning of each sample."""
    seed = hash((sample, before, vocab)) % 2**31
    logits = sharpness * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(dim=0)


def rarely_ending(sample: int, before: tuple[int, ...]) -> torch.Tensor:
    return (following(sample, before) - 5.0 * (torch.arange(VOCAB) == EOS)).log_softmax(dim=0)


def sharp(sample: int, before: tuple[int, ...]) -> torch.Tensor:
    """With most tokens nearly certain, so that a longer text is hardly less likely."""
    return following(sample, before, sharpness=7.0)


class TableDecoder:
    """A decoder that is a function of the whole text so far, which it keeps as a real one keeps keys and values."""

    def __init__(self, width: int, samples: list[int], model=following):
        self.samples = [sample for sample in samples for _ in range(width)]
        self.width, self.model = width, model
        self.texts: list[tuple[int, ...]] = [()] * len(self.samples)

    def next(self, ids):
        assert ids.shape == (len(self.samples),)
        self.texts = [(*text, id) for text, id in zip(self.texts, ids.tolist(), strict=True)]
        return torch.stack([self.model(*row) for row in zip(self.samples, self.texts, strict=True)])

    def select(self, rows):
        samples = [row // self.width for row in rows.tolist()]
        assert samples == [row // self.width for row in range(len(self.samples))], "rows of another sample"
        self.texts = [self.texts[row] for row in rows.tolist()]


def generated(
    generation: Generation, *, samples=tuple(range(BATCH)), num_texts=1, max_length=MAX_LENGTH, model=following
) -> Texts:
    def make(width):
        return TableDecoder(width, list(samples), model)

    sizes = {"batch_size": len(samples), "num_texts": num_texts, "max_length": max_length}
    return generation(make, **sizes, device=CPU)


RULES = {"presence_penalty": 0.0, "no_repeat_ngram_size": 0}


def beam(num_beams=1, length_penalty=0.0, **rules) -> BeamSearch:
    return BeamSearch(num_beams=num_beams, length_penalty=length_penalty, **(RULES | rules))


def sampling(temperature=1.0, top_k=0, top_p=1.0, **rules) -> Sampling:
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, **(RULES | rules))


def texts_in(texts: Texts) -> list[list[tuple[int, ...]]]:
    """Each text of each sample without padding."""
    return [
        [
            tuple(itertools.takewhile(lambda id: id != PAD, row))
            for row, value in zip(rows, values, strict=True)
            if math.isfinite(value)
        ]
        for rows, values in zip(texts.ids.tolist(), texts.log_probabilities.tolist(), strict=True)
    ]


def log_probability(sample: int, text: tuple[int, ...], model=following) -> float:
    return sum(float(model(sample, text[:place])[text[place]]) for place in range(1, len(text)))


def all_texts(max_length=MAX_LENGTH) -> list[tuple[int, ...]]:
    words = [word for word in WORDS if word != EOS]
    ended = [(*inner, EOS) for count in range(max_length - 1) for inner in itertools.product(words, repeat=count)]
    return [(BOS, *text) for text in (*ended, *itertools.product(words, repeat=max_length - 1))]


def best_texts(sample: int, length_penalty: float, max_length: int) -> list[tuple[int, ...]]:
    """All texts, best first."""

    def score(text):
        return log_probability(sample, text) / length_factor(len(text) - 1, length_penalty)

    return sorted(all_texts(max_length), key=score, reverse=True)


def searched_texts(sample: int, num_beams: int, length_penalty: float, max_length: int, model) -> list[tuple[int, ...]]:
    """The texts of a beam search without early stopping, best first."""
    live, done = [((BOS,), 0.0)], []
    for length in range(1, max_length):
        grown = [((*text, word), value + float(model(sample, text)[word])) for text, value in live for word in WORDS]
        grown.sort(key=lambda one: one[1], reverse=True)
        ends = [one for one in grown[:num_beams] if one[0][-1] == EOS or length == max_length - 1]
        done += [(text, value / length_factor(length, length_penalty)) for text, value in ends]
        live = [one for one in grown if one[0][-1] != EOS][:num_beams]
    return [text for text, _ in sorted(done, key=lambda one: one[1], reverse=True)]


EVERY = {
    "greedy": beam(),
    "long beam": beam(3, length_penalty=1.0),
    "beam without repeats": beam(3, no_repeat_ngram_size=1, presence_penalty=0.5),
    "nucleus": sampling(temperature=0.7, top_k=3, top_p=0.9),
    "sampling without repeats": sampling(no_repeat_ngram_size=2, presence_penalty=0.5),
}
every_generation = pytest.mark.parametrize("generation", EVERY.values(), ids=EVERY)


@every_generation
class TestTexts:
    @pytest.mark.parametrize("num_texts", [1, 5])
    def test_they_begin_end_and_have_the_log_probabilities_of_the_model(self, generation, num_texts):
        texts = generated(generation, samples=range(23), num_texts=num_texts, max_length=11)
        assert texts.ids.shape[:2] == texts.log_probabilities.shape == (23, num_texts)
        assert texts.ids.shape[2] <= 11
        for row, value in zip(texts.ids.flatten(0, 1).tolist(), texts.log_probabilities.flatten(), strict=True):
            if value.isfinite():
                end = row.index(EOS) if EOS in row else len(row) - 1
                assert row[0] == BOS
                assert {PAD, BOS, UNKNOWN, EOS}.isdisjoint(row[1:end])
                assert set(row[end + 1 :]) <= {PAD}
                assert EOS in row or len(row) == 11
        if generation.presence_penalty == 0.0:
            for sample, found in enumerate(texts_in(texts)):
                expected = torch.tensor([log_probability(sample, text) for text in found])
                assert_close(texts.log_probabilities[sample][: len(found)], expected, atol=1e-4, rtol=0)

    def test_none_is_longer_than_allowed(self, generation):
        def endless(sample, before):
            return following(sample, before).index_fill(0, torch.tensor(EOS), -1e4)

        for max_length in (2, 5):
            texts = generated(generation, max_length=max_length, model=endless)
            assert all(len(text) <= max_length for found in texts_in(texts) for text in found)
            if not generation.no_repeat_ngram_size:
                assert texts.ids.shape[2] == max_length
                assert not (texts.ids == EOS).any()

    def test_an_end_at_once_is_a_text_and_may_be_the_only_one(self, generation):
        texts = generated(generation, model=lambda *_: torch.full((VOCAB,), -1e4).index_fill(0, torch.tensor(EOS), 0.0))
        assert texts_in(texts) == [[(BOS, EOS)]] * BATCH
        assert_close(texts.log_probabilities, torch.zeros(BATCH, 1))
        texts = generated(generation, num_texts=2, model=lambda *row: following(*row, vocab=4))
        assert {text for found in texts_in(texts) for text in found} == {(BOS, EOS)}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_they_are_where_the_decoder_is(self, generation):
        class OnGPU(TableDecoder):
            def next(self, ids):
                return super().next(ids.cpu()).cuda()

        sizes = {"batch_size": 3, "num_texts": 2, "max_length": 5}
        texts = generation(lambda width: OnGPU(width, [0, 1, 2]), **sizes, device=torch.device("cuda"))
        assert texts.ids.device.type == texts.log_probabilities.device.type == "cuda"


class TestGreedy:
    def test_it_takes_the_likeliest_token_at_each_place_whatever_the_length_penalty(self):
        for penalty in (0.0, 3.0):
            found = texts_in(generated(beam(length_penalty=penalty), samples=range(29), max_length=11))
            for sample, (text,) in enumerate(found):
                assert len(text) == 11 or text[-1] == EOS
                for place in range(1, len(text)):
                    chances = following(sample, text[:place])
                    assert text[place] == max(WORDS, key=lambda word, chances=chances: float(chances[word]))

    @pytest.mark.parametrize(
        "generation", [sampling(top_k=1), sampling(top_p=1e-6), sampling(temperature=1e-3), sampling(temperature=1e-42)]
    )
    def test_sampling_from_the_likeliest_alone_is_the_same(self, generation):
        plain, sampled = (generated(one, samples=range(29), max_length=11) for one in (beam(), generation))
        assert texts_in(sampled) == texts_in(plain)
        assert_close(sampled.log_probabilities, plain.log_probabilities)


class TestBeamSearch:
    @pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
    @pytest.mark.parametrize("max_length", [3, 5])
    def test_with_room_for_all_it_finds_the_best_texts_of_all(self, length_penalty, max_length):
        generation = beam(len(WORDS) ** (max_length - 1), length_penalty)
        texts = generated(generation, num_texts=11, max_length=max_length)
        assert texts_in(texts) == [best_texts(sample, length_penalty, max_length)[:11] for sample in range(BATCH)]

    @pytest.mark.parametrize(("num_beams", "length_penalty"), [(2, 3.0), (3, 0.0), (5, 1.0)])
    @pytest.mark.parametrize("model", [following, sharp])
    def test_with_room_for_a_few_it_finds_what_a_search_without_early_stopping_finds(
        self, model, num_beams, length_penalty
    ):
        generation, samples = beam(num_beams, length_penalty), range(17)
        # One by one, since a batch goes on until its last text is finished.
        texts = [texts_in(generated(generation, samples=[one], max_length=9, model=model))[0] for one in samples]
        assert texts == [searched_texts(one, num_beams, length_penalty, 9, model)[:1] for one in samples]
        assert len({len(text) for (text,) in texts}) > 2

    def test_more_texts_than_there_are_have_no_probability(self):
        texts = generated(beam(EXHAUSTIVE), samples=[0], num_texts=len(all_texts()) + 7)
        assert sorted(texts_in(texts)[0]) == sorted(all_texts())
        assert torch.logsumexp(texts.log_probabilities[0], dim=0) <= 1e-6

    @pytest.mark.parametrize("length_penalty", [0.0, 0.6])
    def test_candidates_differ_come_best_first_and_take_as_many_beams(self, length_penalty):
        texts = generated(beam(5, length_penalty), samples=range(17), num_texts=5, max_length=7)
        for sample, found in enumerate(texts_in(texts)):
            assert len(set(found)) == len(found) == 5
            scores = [log_probability(sample, one) / length_factor(len(one) - 1, length_penalty) for one in found]
            assert scores == sorted(scores, reverse=True)
        assert texts_in(generated(beam(2), num_texts=5)) == texts_in(generated(beam(5), num_texts=5))

    def test_a_larger_length_penalty_gives_longer_texts(self):
        lengths = [
            sum(len(text) for (text,) in texts_in(generated(beam(7, penalty), samples=range(53), max_length=7)))
            for penalty in (0.0, 1.0, 3.0)
        ]
        assert lengths == sorted(set(lengths))

    def test_texts_of_a_batch_are_those_of_its_samples_alone(self):
        generation = beam(3, length_penalty=0.6, no_repeat_ngram_size=2)
        together = generated(generation, samples=range(7), num_texts=3, max_length=11)
        for sample in range(7):
            alone = generated(generation, samples=[sample], num_texts=3, max_length=11)
            assert texts_in(alone) == texts_in(together)[sample : sample + 1]
            assert_close(alone.log_probabilities[0], together.log_probabilities[sample])


def truncated_by_hand(scores: torch.Tensor, generation: Sampling) -> torch.Tensor:
    """Probabilities of the tokens that are drawn from, by sorting lists."""
    chances = {word: math.exp(float(scores[word]) / generation.temperature) for word in WORDS}
    kept = sorted(chances, key=chances.__getitem__, reverse=True)[: generation.top_k or None]
    total, mass, nucleus = sum(chances[word] for word in kept), 0.0, []
    for word in kept:
        if mass < generation.top_p * total:
            nucleus.append(word)
        mass += chances[word]
    share = sum(chances[word] for word in nucleus)
    return torch.tensor([chances[word] / share if word in nucleus else 0.0 for word in range(VOCAB)])


class TestSampling:
    COUNT = 20_011

    @pytest.mark.parametrize(
        "generation", [sampling(), sampling(temperature=0.5), sampling(temperature=3.0, top_k=2), sampling(top_p=0.8)]
    )
    def test_tokens_are_drawn_as_often_as_they_are_likely(self, generation):
        texts = generated(generation, samples=[0], num_texts=self.COUNT, max_length=2)
        counts = texts.ids[0, :, 1].bincount(minlength=VOCAB)
        expected = truncated_by_hand(following(0, (BOS,)), generation)
        assert (counts[expected == 0] == 0).all()
        drawn = expected > 0
        chi_squared = ((counts - self.COUNT * expected)[drawn] ** 2 / (self.COUNT * expected)[drawn]).sum()
        # With at most three degrees of freedom, one of a million draws is beyond 30.7.
        assert chi_squared < 30.7

    def test_the_distribution_is_truncated_as_by_hand(self):
        for temperature, top_k, top_p in itertools.product((0.3, 2.0), (0, 1, 3, 99), (0.05, 0.5, 0.9, 1.0)):
            generation = sampling(temperature, top_k, top_p)
            for sample in range(7):
                scores = following(sample, (BOS,))
                allowed = generation.constrain(scores[None], torch.tensor([[BOS]]))
                truncated = generation.truncate(allowed)[0].softmax(dim=0)
                assert_close(truncated, truncated_by_hand(scores, generation))

    def test_the_seed_decides_and_the_likeliest_text_comes_first(self):
        texts = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found = generated(sampling(), samples=range(13), num_texts=3, max_length=11)
            assert found.log_probabilities.equal(found.log_probabilities.sort(dim=1, descending=True).values)
            texts.append(texts_in(found))
        assert texts[0] == texts[1] != texts[2]


class TestRules:
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("kind", [beam, lambda **rules: beam(5, **rules), sampling])
    def test_no_ngram_occurs_twice_and_a_penalty_makes_repeats_rarer(self, kind, size):
        long = {"samples": range(17), "max_length": 17, "num_texts": 3, "model": rarely_ending}
        free, ruled = (texts_in(generated(kind(no_repeat_ngram_size=n), **long)) for n in (0, size))
        assert most_repeats(free, size) > 1
        assert most_repeats(ruled, size) == 1
        repeats = [
            sum(
                len(text) - len(set(text))
                for (text,) in texts_in(generated(kind(presence_penalty=penalty), samples=range(53), max_length=13))
            )
            for penalty in (0.0, 1.0, 50.0)
        ]
        assert repeats == sorted(set(repeats), reverse=True)

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 5])
    def test_only_what_would_occur_twice_is_forbidden(self, size):
        ids = torch.tensor([[BOS, 4, 5, 4, 5, 6, 4, 5], [BOS, 4, 4, 4, 4, 4, 4, 4], [BOS, 6, 5, 4, EOS, PAD, PAD, PAD]])
        scores = torch.randn(3, VOCAB).log_softmax(dim=1)
        allowed = beam(no_repeat_ngram_size=size).constrain(scores, ids)
        for row, text in enumerate(ids.tolist()):
            ngrams = {tuple(text[place : place + size]) for place in range(len(text) - size + 1)}
            for word in WORDS:
                repeated = size > 0 and word != EOS and (*text[len(text) - size + 1 :], word) in ngrams
                assert allowed[row, word] == (-math.inf if repeated else scores[row, word])
        assert allowed[:, list(NEVER_GENERATED)].isinf().all()

    def test_a_penalty_is_subtracted_once_for_each_token_that_is_present(self):
        ids, scores = torch.tensor([[BOS, 4, 4, 5], [BOS, 6, EOS, PAD]]), torch.randn(2, VOCAB)
        difference = scores - beam(presence_penalty=0.75).constrain(scores, ids)
        assert_close(difference[:, WORDS], torch.tensor([[0.0, 0.75, 0.75, 0.0], [0.75, 0.0, 0.0, 0.75]]))


def most_repeats(texts: list[list[tuple[int, ...]]], size: int) -> int:
    """The count of the most frequent n-gram in a text."""
    return max(
        count
        for found in texts
        for text in found
        for count in Counter(zip(*(text[place:] for place in range(size)), strict=False)).values()
    )


class LogProbabilities:
    """An incremental decoder of a `TextDecoder`, in log-probabilities."""

    def __init__(self, decoder, latents, width):
        self.texts = decoder.incremental_decoder(Memory(latents).repeat(width), "logits")
        self.select = self.texts.select

    def next(self, ids):
        return self.texts.next(ids).log_softmax(dim=1)


@torch.no_grad()
@pytest.mark.parametrize("generation", [beam(), beam(5, length_penalty=0.6), sampling(top_p=0.9)])
def test_log_probabilities_of_a_text_decoder_are_those_of_teacher_forcing(generation):
    block = BlockSpec(num_heads=1, qk_dim=11, v_dim=13)
    queries, blocks = Text(vocab_size=23, max_length=17, dim=19), {"self_attention": block, "cross_attention": block}
    decoder = TextDecoder(dim=7, queries=queries, num_layers=2, dropout=0.0, tied=False, **blocks).eval()
    for weights in decoder.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    latents = torch.randn(5, 3, 7)

    def texts_about(latents):
        sizes = {"batch_size": len(latents), "num_texts": 3, "max_length": 17}
        return generation(lambda width: LogProbabilities(decoder, latents, width), **sizes, device=CPU)

    texts = texts_about(latents)
    for place in range(3):
        ids = texts.ids[:, place]
        logs = decoder(Memory(latents), {"logits": ids[:, :-1]})["logits"].log_softmax(dim=-1)
        each = logs.gather(2, ids[:, 1:, None])[..., 0].masked_fill(ids[:, 1:] == PAD, 0.0)
        assert_close(texts.log_probabilities[:, place], each.sum(dim=1), atol=1e-4, rtol=0)
    if isinstance(generation, BeamSearch):
        alone = [texts_in(texts_about(latents[row : row + 1]))[0] for row in range(5)]
        assert texts_in(texts) == alone


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((beam, "num_beams", 0), (beam, "length_penalty", -0.1)),
        *((sampling, "temperature", 0.0), (sampling, "temperature", -1.0), (sampling, "top_k", -1)),
        *((sampling, "top_p", 0.0), (sampling, "top_p", 1.1)),
        *((kind, "presence_penalty", -0.1) for kind in (beam, sampling)),
        *((kind, "no_repeat_ngram_size", -1) for kind in (beam, sampling)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} must be"):
        kind(**{name: value})
