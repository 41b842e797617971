"""Decoders over classes: the mean of the memory, and learned queries."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.queries.learned import Learned
from perceiver.types import Memory

BATCH, LENGTH, DIM, NUM_CLASSES = 3, 11, 13, 5


def query_decoder(num_queries: int) -> QueryDecoder:
    decoder = QueryDecoder(
        dim=DIM,
        num_classes=NUM_CLASSES,
        queries=Learned(num_queries=num_queries, dim=17),
        attention=BlockSpec(num_heads=2, qk_dim=6, v_dim=14),
    )
    torch.nn.init.normal_(decoder.queries.array)
    return decoder


DECODERS = {
    "pooled": lambda: PooledDecoder(dim=DIM, num_classes=NUM_CLASSES),
    "one query": lambda: query_decoder(1),
    "query per class": lambda: query_decoder(NUM_CLASSES),
}
every_decoder = pytest.mark.parametrize("make_decoder", DECODERS.values(), ids=DECODERS)


def decoded(decoder, values, mask=None) -> torch.Tensor:
    return decoder(Memory(values, mask))["logits"]


@every_decoder
def test_samples_are_decoded_separately_whatever_the_length_and_order_of_the_memory(make_decoder):
    decoder, values = make_decoder(), torch.randn(BATCH, LENGTH, DIM)
    assert decoder.needs_queries == {}
    found = decoded(decoder, values)
    assert found.shape == decoded(decoder, values[:, :1]).shape == (BATCH, NUM_CLASSES)
    assert_close(decoded(decoder, values[:, torch.randperm(LENGTH)]), found)
    assert_close(torch.cat([decoded(decoder, sample[None]) for sample in values]), found)
    with pytest.raises(ValueError, match="Decoder generates no output 'logits'"):
        decoder.incremental_decoder(Memory(values), "logits")


@every_decoder
def test_what_is_masked_in_the_memory_changes_nothing(make_decoder):
    """Each sample has another number of real elements, the last one none."""
    decoder, values = make_decoder(), torch.randn(BATCH, LENGTH, DIM)
    real = (7, 2, 0)
    mask = torch.arange(LENGTH) < torch.tensor(real)[:, None]
    found = decoded(decoder, values, mask)
    assert_close(decoded(decoder, values.masked_fill(~mask[..., None], 1e3), mask), found)
    for row, count in enumerate(real[:2]):
        assert_close(found[row], decoded(decoder, values[row : row + 1, :count])[0])
    assert found.isfinite().all()
    assert_close(decoded(decoder, values, torch.ones_like(mask)), decoded(decoder, values))


def test_pooled_is_the_mean_over_what_is_real_whatever_else_is_there():
    decoder, values = DECODERS["pooled"](), torch.randn(BATCH, LENGTH, DIM)
    expected = torch.stack([sum(sample) / LENGTH for sample in values]) @ decoder.head.weight.T
    assert_close(decoded(decoder, values), expected + decoder.head.bias)
    mask = torch.rand(BATCH, LENGTH) < 0.5
    mask[0] = False
    found = decoded(decoder, values.masked_fill(~mask[..., None], float("nan")), mask)
    assert_close(found[0], decoder.head.bias)
    assert_close(
        found[1], values[1][mask[1]].sum(dim=0) / max(int(mask[1].sum()), 1) @ decoder.head.weight.T + found[0]
    )


def test_queries_are_one_altogether_or_one_per_class():
    with pytest.raises(ValueError, match=f"num_queries=3 .*1 or num_classes={NUM_CLASSES}"):
        query_decoder(3)
    with pytest.raises(ValueError, match="num_queries=0"):
        query_decoder(0)


def test_with_a_query_per_class_each_logit_depends_on_its_own_query_only():
    decoder = query_decoder(NUM_CLASSES)
    logits = decoded(decoder, torch.randn(BATCH, LENGTH, DIM)).sum(dim=0)
    for label, logit in enumerate(logits):
        (gradient,) = torch.autograd.grad(logit, decoder.queries.array, retain_graph=True)
        assert (gradient != 0).any(dim=1).tolist() == [label == other for other in range(NUM_CLASSES)]
