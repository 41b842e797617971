import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder

BATCH, NUM_LATENTS, DIM, NUM_CLASSES = 3, 11, 13, 5


def query_decoder(query_per_class):
    attention = BlockSpec(num_heads=2, qk_dim=6, v_dim=14)
    decoder = QueryDecoder(
        dim=DIM, num_classes=NUM_CLASSES, query_dim=17, attention=attention, query_per_class=query_per_class
    )
    torch.nn.init.normal_(decoder.queries)
    return decoder


DECODERS = {
    "pooled": lambda: PooledDecoder(dim=DIM, num_classes=NUM_CLASSES),
    "one query": lambda: query_decoder(False),
    "query per class": lambda: query_decoder(True),
}
every_decoder = pytest.mark.parametrize("make_decoder", DECODERS.values(), ids=DECODERS)


@every_decoder
def test_there_is_one_logit_per_class_for_any_number_of_latents(make_decoder):
    decoder = make_decoder()
    for num_latents in (1, NUM_LATENTS):
        assert decoder(torch.randn(BATCH, num_latents, DIM)).shape == (BATCH, NUM_CLASSES)


@every_decoder
def test_the_order_of_the_latents_does_not_matter(make_decoder):
    decoder, latents = make_decoder(), torch.randn(BATCH, NUM_LATENTS, DIM)
    assert_close(decoder(latents[:, torch.randperm(NUM_LATENTS)]), decoder(latents))


@every_decoder
def test_every_sample_is_decoded_by_itself(make_decoder):
    decoder, latents = make_decoder(), torch.randn(BATCH, NUM_LATENTS, DIM)
    assert_close(torch.cat([decoder(sample[None]) for sample in latents]), decoder(latents))


def test_pooled_is_the_mean_over_latents_then_a_linear_layer():
    decoder, latents = PooledDecoder(dim=DIM, num_classes=NUM_CLASSES), torch.randn(BATCH, NUM_LATENTS, DIM)
    expected = torch.stack([sum(sample) / NUM_LATENTS for sample in latents]) @ decoder.head.weight.T
    assert_close(decoder(latents), expected + decoder.head.bias)


@pytest.mark.parametrize(("query_per_class", "num_queries"), [(False, 1), (True, NUM_CLASSES)])
def test_queries_are_one_altogether_or_one_per_class(query_per_class, num_queries):
    assert query_decoder(query_per_class).queries.shape == (num_queries, 17)


def test_with_a_query_per_class_each_logit_depends_on_its_own_query_only():
    decoder = query_decoder(True)
    logits = decoder(torch.randn(BATCH, NUM_LATENTS, DIM)).sum(dim=0)
    for label, logit in enumerate(logits):
        (gradient,) = torch.autograd.grad(logit, decoder.queries, retain_graph=True)
        assert (gradient != 0).any(dim=1).tolist() == [label == other for other in range(NUM_CLASSES)]
