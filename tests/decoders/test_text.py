"""The text decoder is causal, and token by token it gives what all at once does."""

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


def latents_and_ids(length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, NUM_LATENTS, DIM), torch.randint(VOCAB, (ROWS, length))


def read(decoder: TextDecoder, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return decoder(Memory(latents), {"logits": ids})["logits"]


def incremental(decoder: TextDecoder, latents: torch.Tensor):
    return decoder.incremental_decoder(Memory(latents), "logits")


class TestAllAtOnce:
    @pytest.mark.parametrize("place", [0, 1, 5, 10])
    def test_a_token_changes_the_logits_from_its_place_on_and_none_before(self, place):
        decoder, (latents, ids) = text_decoder(), latents_and_ids()
        other = ids.clone()
        other[:, place] = (ids[:, place] + 1) % VOCAB
        before, after = read(decoder, latents, ids), read(decoder, latents, other)
        assert before.shape == (ROWS, 11, VOCAB)
        assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=0)
        assert ((after - before)[:, place:].abs() > 1e-3).any(dim=-1).all()
        padded = torch.nn.functional.pad(ids, (0, 7), value=PAD)
        assert_close(read(decoder, latents, padded)[:, :11], before, **CLOSE)

    def test_the_order_of_the_latents_does_not_matter_that_of_the_ids_and_the_latents_themselves_do(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids()
        logits = read(decoder, latents, ids)
        assert_close(read(decoder, latents[:, torch.randperm(NUM_LATENTS)], ids), logits, **CLOSE)
        assert ((read(decoder, latents.roll(1, dims=0), ids) - logits).abs() > 1e-3).any(dim=-1).all()
        last = [read(decoder, latents[:1], torch.tensor([order]))[0, -1] for order in ([3, 5, 7], [5, 3, 7])]
        assert not torch.allclose(*last, atol=1e-3)

    @pytest.mark.parametrize("tied", [True, False])
    def test_every_parameter_gets_a_gradient_and_tied_weights_are_one(self, tied):
        decoder = text_decoder(tied=tied)
        read(decoder, *latents_and_ids(MAX_LENGTH)).square().sum().backward()
        for name, parameter in decoder.named_parameters():
            # A key bias shifts all logits of a query alike, which the softmax does not see.
            assert name.endswith("key.bias") or (parameter.grad != 0).any(), name
        decoder.load_state_dict({name: value + 1.0 for name, value in decoder.state_dict().items()})
        assert (decoder.head.weight is decoder.queries.embedding.weight) == tied

    @pytest.mark.parametrize("where", ["ids", "self_attention", "cross_attention"])
    def test_dropout_acts_in_training_only(self, where):
        block = BlockSpec(num_heads=1, qk_dim=5, attention_dropout=0.3, residual_dropout=0.3)
        decoder = text_decoder(**({"dropout": 0.5} if where == "ids" else {where: block}))
        inputs = latents_and_ids()
        assert_close(read(decoder, *inputs), read(decoder, *inputs), atol=0, rtol=0)
        decoder.train()
        assert not torch.allclose(read(decoder, *inputs), read(decoder, *inputs), atol=1e-3)

    @pytest.mark.parametrize("count", [1, 3])
    def test_several_texts_of_each_sample_give_what_each_gives_alone(self, count):
        decoder, latents = text_decoder(), torch.randn(ROWS, NUM_LATENTS, DIM, requires_grad=True)
        ids = torch.randint(VOCAB, (ROWS, count, 11))
        together = read(decoder, latents, ids.flatten(0, 1))
        alone = torch.stack([read(decoder, latents, ids[:, number]) for number in range(count)], dim=1)
        assert_close(together, alone.flatten(0, 1), **CLOSE)
        rows = torch.cat([read(decoder, latents[row : row + 1], ids[row]) for row in range(ROWS)])
        assert_close(rows, together, **CLOSE)
        gradients = [torch.autograd.grad(out.square().mean(), latents)[0] for out in (together, alone)]
        assert_close(*gradients, **CLOSE)


class TestTokenByToken:
    """With cached keys and values, a decoder of several layers gives the logits of the whole forward pass."""

    def test_it_gives_the_logits_of_all_at_once_also_of_two_generations_at_a_time(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids()
        one, other, whole = (
            incremental(decoder, latents),
            incremental(decoder, latents.flip(0)),
            read(decoder, latents, ids),
        )
        for place, (of_one, of_other) in enumerate(zip(ids.T, ids.flip(1).T, strict=True)):
            assert_close(one.next(of_one), whole[:, place], **CLOSE)
            other.next(of_other)

    def test_selected_rows_continue_with_their_own_tokens_and_latents(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids(1)
        texts = incremental(decoder, latents)
        texts.select(torch.tensor([3, 3, 0, 1, 2]))  # before anything is generated
        latents, ids = latents[[3, 3, 0, 1, 2]], ids[:5]
        assert_close(texts.next(ids[:, 0]), read(decoder, latents, ids)[:, -1], **CLOSE)
        for rows in ([4, 2, 0, 1, 3], [1, 1, 1, 0, 4], [2, 0], [0, 1, 1, 0, 0, 1, 1], [3]):
            texts.select(torch.tensor(rows))
            more = torch.randint(VOCAB, (len(rows),))
            latents, ids = latents[rows], torch.cat([ids[rows], more[:, None]], dim=1)
            assert_close(texts.next(more), read(decoder, latents, ids)[:, -1], **CLOSE)

    def test_in_low_precision_it_stays_close(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids()
        whole = read(decoder, latents, ids)
        with torch.autocast("cpu", torch.bfloat16):
            texts = incremental(decoder, latents)
            steps = [texts.next(column) for column in ids.T]
            lowered = read(decoder, latents, ids)
        assert steps[0].dtype == torch.bfloat16
        error = (torch.stack(steps, dim=1).float() - whole).abs()
        assert error.mean() < 0.02 * whole.std()
        assert error.mean() < 2 * (lowered.float() - whole).abs().mean()

    def test_a_text_may_have_the_greatest_length_and_no_token_more(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids(MAX_LENGTH)
        texts = incremental(decoder, latents)
        steps = [texts.next(column) for column in ids.T]
        assert_close(read(decoder, latents, ids)[:, -1], steps[-1], **CLOSE)
        with pytest.raises(ValueError, match=r"max_length=19 .* 20"):
            texts.next(ids[:, 0])
        with pytest.raises(ValueError, match=r"max_length=19 .* 20"):
            read(decoder, latents, torch.cat([ids, ids[:, :1]], dim=1))

    def test_what_is_masked_in_the_memory_is_not_read(self):
        decoder, (latents, ids) = text_decoder(), latents_and_ids()
        mask = torch.arange(NUM_LATENTS) < torch.tensor([7, 3, 1, 5, 2])[:, None]
        memory = Memory(latents.masked_fill(~mask[..., None], 1e3), mask)
        whole = decoder(memory, {"logits": ids})["logits"]
        for row, count in enumerate(mask.sum(dim=1)):
            assert_close(whole[row], read(decoder, latents[row : row + 1, :count], ids[row : row + 1])[0], **CLOSE)
        rows, texts = torch.tensor([4, 1, 1]), decoder.incremental_decoder(memory, "logits")
        texts.next(ids[:, 0])
        texts.select(rows)
        assert_close(texts.next(ids[rows, 1]), whole[rows, 1], **CLOSE)


@pytest.mark.parametrize("queries", [None, {}, {"text": torch.zeros(ROWS, 3, dtype=torch.long)}], ids=str)
def test_without_token_ids_the_output_that_lacks_them_is_named(queries):
    with pytest.raises(ValueError, match="'logits'"):
        text_decoder()(Memory(latents_and_ids()[0]), queries)


def test_the_output_that_it_generates_is_its_own_alone():
    assert text_decoder().needs_queries == {"logits": "token_ids"}
    with pytest.raises(ValueError, match="TextDecoder generates no output 'text'"):
        text_decoder().incremental_decoder(Memory(latents_and_ids()[0]), "text")


@pytest.mark.parametrize("name", ["vocab_size", "max_length", "num_layers"])
def test_sizes_that_cannot_be_are_named(name):
    with pytest.raises(ValueError, match=rf"^{name}=0 must be at least 1"):
        text_decoder(**{name: 0})
