"""The text decoder: what a place may see, and that token by token gives what all at once does."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.text import TextDecoder
from perceiver.queries.text import Text
from perceiver.tokenizer import PAD
from perceiver.types import Memory

ROWS, NUM_LATENTS, DIM, VOCAB, MAX_LENGTH = 5, 7, 13, 31, 19
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def text_decoder(**overrides) -> TextDecoder:
    sizes = {"vocab_size": VOCAB, "max_length": MAX_LENGTH, "dim": 17}
    queries = Text(**{name: overrides.pop(name, size) for name, size in sizes.items()})
    blocks = {
        "self_attention": BlockSpec(num_heads=3, qk_dim=21, v_dim=33, widening=2),
        "cross_attention": BlockSpec(num_heads=2, qk_dim=22, v_dim=26),
    }
    defaults = {"dim": DIM, "queries": queries, "num_layers": 3, "dropout": 0.0, "tied": True}
    decoder = TextDecoder(**(defaults | blocks | overrides)).eval()
    for weights in (queries.embedding.weight, queries.positions, decoder.head.bias):
        torch.nn.init.normal_(weights)  # as after training: at first all tokens are much alike
    return decoder


def latents_and_words(length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, NUM_LATENTS, DIM), torch.randint(VOCAB, (ROWS, length))


def read(decoder: TextDecoder, latents: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return decoder(Memory(latents), {"logits": words})["logits"]


def begun(decoder: TextDecoder, latents: torch.Tensor):
    return decoder.incremental_decoder(Memory(latents), "logits")


class TestAllAtOnce:
    def test_there_is_one_logit_per_word_for_each_place(self):
        latents, words = latents_and_words()
        assert read(text_decoder(), latents, words).shape == (ROWS, 11, VOCAB)
        assert read(text_decoder(), latents, words[:, :1]).shape == (ROWS, 1, VOCAB)
        assert read(text_decoder(), latents[:, :1], words).shape == (ROWS, 11, VOCAB)

    @pytest.mark.parametrize("place", [0, 1, 5, 10])
    def test_a_word_changes_nothing_before_it_and_all_from_it_on(self, place):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        other = words.clone()
        other[:, place] = (words[:, place] + 1) % VOCAB
        before, after = read(decoder, latents, words), read(decoder, latents, other)
        assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=0)
        assert ((after - before)[:, place:].abs() > 1e-3).any(dim=-1).all()

    def test_padding_behind_changes_nothing_before_it(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        padded = torch.nn.functional.pad(words, (0, 7), value=PAD)
        assert_close(read(decoder, latents, padded)[:, :11], read(decoder, latents, words), **CLOSE)

    def test_the_order_of_the_latents_does_not_matter_and_what_they_hold_does(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        logits = read(decoder, latents, words)
        assert_close(read(decoder, latents[:, torch.randperm(NUM_LATENTS)], words), logits, **CLOSE)
        assert ((read(decoder, latents.roll(1, dims=0), words) - logits).abs() > 1e-3).any(dim=-1).all()

    def test_the_order_of_the_words_does_matter(self):
        decoder, latents = text_decoder(), torch.randn(1, NUM_LATENTS, DIM)
        last = [read(decoder, latents, torch.tensor([order]))[0, -1] for order in ([3, 5, 7], [5, 3, 7])]
        assert not torch.allclose(*last, atol=1e-3)

    def test_every_text_is_decoded_by_itself(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        alone = [read(decoder, latents[row : row + 1], words[row : row + 1]) for row in range(ROWS)]
        assert_close(torch.cat(alone), read(decoder, latents, words), **CLOSE)

    @pytest.mark.parametrize("tied", [True, False])
    def test_every_parameter_gets_a_gradient(self, tied):
        decoder = text_decoder(tied=tied)
        read(decoder, *latents_and_words(MAX_LENGTH)).square().sum().backward()
        for name, parameter in decoder.named_parameters():
            # A key bias shifts all logits of a query alike, which the softmax does not see.
            assert name.endswith("key.bias") or (parameter.grad != 0).any(), name

    def test_tied_weights_are_one(self):
        tied, untied = text_decoder(tied=True), text_decoder(tied=False)
        assert tied.head.weight is tied.queries.embedding.weight
        assert untied.head.weight is not untied.queries.embedding.weight
        count = {one: sum(p.numel() for p in one.parameters()) for one in (tied, untied)}
        assert count[untied] - count[tied] == VOCAB * 17
        state = {name: value + 1.0 for name, value in tied.state_dict().items()}
        tied.load_state_dict(state)
        assert tied.head.weight is tied.queries.embedding.weight

    @pytest.mark.parametrize("where", ["words", "self_attention", "cross_attention"])
    def test_dropout_acts_in_training_only(self, where):
        options = (
            {"dropout": 0.5}
            if where == "words"
            else {where: BlockSpec(num_heads=1, qk_dim=5, attention_dropout=0.3, residual_dropout=0.3)}
        )
        decoder, inputs = text_decoder(**options), latents_and_words()
        assert_close(read(decoder, *inputs), read(decoder, *inputs), atol=0, rtol=0)
        decoder.train()
        assert not torch.allclose(read(decoder, *inputs), read(decoder, *inputs), atol=1e-3)


class TestSeveralTexts:
    """As many texts of each sample, one behind the other, as if each had its own latents."""

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_they_are_decoded_as_one_by_one(self, count):
        decoder, latents = text_decoder(), torch.randn(ROWS, NUM_LATENTS, DIM)
        words = torch.randint(VOCAB, (ROWS, count, 11))
        together = read(decoder, latents, words.flatten(0, 1))
        assert together.shape == (ROWS * count, 11, VOCAB)
        for row in range(ROWS):
            for place in range(count):
                alone = read(decoder, latents[row : row + 1], words[row, place][None])
                assert_close(together[row * count + place], alone[0], **CLOSE)

    def test_no_text_reads_another_of_the_same_sample(self):
        decoder, latents = text_decoder(), torch.randn(ROWS, NUM_LATENTS, DIM)
        words = torch.randint(VOCAB, (ROWS, 3, 11))
        other = words.clone()
        other[:, 1] = (words[:, 1] + 1) % VOCAB
        before, after = (read(decoder, latents, w.flatten(0, 1)).unflatten(0, (ROWS, 3)) for w in (words, other))
        assert_close(after[:, [0, 2]], before[:, [0, 2]], atol=1e-6, rtol=0)
        assert ((after - before)[:, 1].abs() > 1e-3).any(dim=-1).all()

    def test_the_latents_get_the_gradients_of_all_of_them(self):
        decoder, latents = text_decoder(), torch.randn(ROWS, NUM_LATENTS, DIM, requires_grad=True)
        words = torch.randint(VOCAB, (ROWS, 3, 11))
        (together,) = torch.autograd.grad(read(decoder, latents, words.flatten(0, 1)).square().mean(), latents)
        alone = [torch.autograd.grad(read(decoder, latents, words[:, n]).square().mean(), latents)[0] for n in range(3)]
        assert_close(together, torch.stack(alone).mean(dim=0), **CLOSE)


class TestTokenByToken:
    """A decoder of several layers that keeps keys and values gives the logits of one that reads all anew."""

    def test_it_gives_the_logits_of_all_at_once(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        writing, whole = begun(decoder, latents), read(decoder, latents, words)
        for place, ids in enumerate(words.T):
            assert_close(writing.next(ids), whole[:, place], **CLOSE)

    def test_texts_that_are_reordered_and_repeated_go_on_with_their_own_tokens_and_latents(self):
        decoder, (latents, words) = text_decoder(), latents_and_words(1)
        writing = begun(decoder, latents)
        writing.next(words[:, 0])
        for rows in ([4, 2, 0, 1, 3], [1, 1, 1, 0, 4], [2, 0], [0, 1, 1, 0, 0, 1, 1], [3]):
            writing.select(torch.tensor(rows))
            more = torch.randint(VOCAB, (len(rows),))
            latents, words = latents[rows], torch.cat([words[rows], more[:, None]], dim=1)
            assert_close(writing.next(more), read(decoder, latents, words)[:, -1], **CLOSE)

    def test_rows_may_be_selected_before_anything_is_generated(self):
        decoder, (latents, words) = text_decoder(), latents_and_words(1)
        writing = begun(decoder, latents)
        writing.select(torch.tensor([3, 3, 0]))
        expected = read(decoder, latents[[3, 3, 0]], words[:3])[:, -1]
        assert_close(writing.next(words[:3, 0]), expected, **CLOSE)

    def test_two_texts_that_are_generated_at_once_do_not_touch_each_other(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        one, other = begun(decoder, latents), begun(decoder, latents.flip(0))
        for ids, flipped in zip(words.T, words.flip(1).T, strict=True):
            last = one.next(ids)
            other.next(flipped)
        assert_close(last, read(decoder, latents, words)[:, -1], **CLOSE)

    def test_in_low_precision_it_stays_close(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        whole = read(decoder, latents, words)
        with torch.autocast("cpu", torch.bfloat16):
            writing = begun(decoder, latents)
            steps = [writing.next(ids) for ids in words.T]
            lowered = read(decoder, latents, words)
        assert steps[0].dtype == torch.bfloat16
        error = (torch.stack(steps, dim=1).float() - whole).abs()
        assert error.mean() < 0.02 * whole.std()
        assert error.mean() < 2 * (lowered.float() - whole).abs().mean()

    def test_a_text_may_have_the_greatest_length_and_no_token_more(self):
        decoder, (latents, words) = text_decoder(), latents_and_words(MAX_LENGTH)
        writing = begun(decoder, latents)
        steps = [writing.next(ids) for ids in words.T]
        assert_close(read(decoder, latents, words)[:, -1], steps[-1], **CLOSE)
        with pytest.raises(ValueError, match=r"max_length=19 .* 20"):
            writing.next(words[:, 0])
        with pytest.raises(ValueError, match=r"max_length=19 .* 20"):
            read(decoder, latents, torch.cat([words, words[:, :1]], dim=1))


class TestMaskedMemory:
    """What is not real in the memory is not read: all at once, token by token, and of rows in a new order."""

    def test_it_changes_nothing(self):
        decoder, (latents, words) = text_decoder(), latents_and_words()
        mask = torch.arange(NUM_LATENTS) < torch.tensor([7, 3, 1, 5, 2])[:, None]
        memory = Memory(latents.masked_fill(~mask[..., None], 1e3), mask)
        whole = decoder(memory, {"logits": words})["logits"]
        for row, count in enumerate(mask.sum(dim=1)):
            assert_close(whole[row], read(decoder, latents[row : row + 1, :count], words[row : row + 1])[0], **CLOSE)
        rows = torch.tensor([4, 1, 1])
        writing = decoder.incremental_decoder(memory, "logits")
        writing.next(words[:, 0])
        writing.select(rows)
        assert_close(writing.next(words[rows, 1]), whole[rows, 1], **CLOSE)


@pytest.mark.parametrize("queries", [None, {}, {"text": torch.zeros(ROWS, 3, dtype=torch.long)}], ids=str)
def test_without_token_ids_the_output_that_lacks_them_is_named(queries):
    with pytest.raises(ValueError, match="'logits'"):
        text_decoder()(Memory(latents_and_words()[0]), queries)


def test_the_output_that_it_generates_is_its_own_alone():
    assert text_decoder().needs_target_tokens == ("logits",)
    with pytest.raises(ValueError, match="TextDecoder generates no output 'text'"):
        text_decoder().incremental_decoder(Memory(latents_and_words()[0]), "text")


@pytest.mark.parametrize("name", ["vocab_size", "max_length", "num_layers"])
def test_sizes_that_cannot_be_are_named(name):
    with pytest.raises(ValueError, match=rf"^{name}=0 must be at least 1"):
        text_decoder(**{name: 0})
