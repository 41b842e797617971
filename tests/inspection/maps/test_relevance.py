from functools import partial

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from perceiver import Perceiver
from perceiver.attention import CrossBlock
from perceiver.inspection.maps.capture import capture
from tests.inspection.models import (
    capture_relevance,
    direct_text,
    forward_record,
    perceiver,
    perceiver_io,
    perceiver_pooled_io,
    perceiver_text,
    query_decoder,
    some_masks,
    some_scores,
)
from tests.models import logits, small_inputs

NUM_TOKENS, NUM_LATENTS = 4 * 5 + 5 * 7, 11


def perceiver_asked_once() -> Perceiver:
    """One query gives the logits of all classes."""
    return perceiver(decoder=query_decoder(1))


MODELS = pytest.mark.parametrize(
    "make",
    [perceiver, perceiver_io, perceiver_pooled_io, perceiver_asked_once, perceiver_text, direct_text],
    ids=lambda make: make.__name__,
)


def naive_relevance(monkeypatch, model: Perceiver, inputs, masks) -> torch.Tensor:
    """Weights with gradients of their own, and one matrix over tokens, latents and queries for each (Chefer, eq. 6)."""
    kept = []

    def attend(_, q, k, v, mask=None, causal=False, start=0):
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        if causal:
            logits = logits.masked_fill(torch.ones(logits.shape[2:]).triu(diagonal=1).bool(), -torch.inf)
        kept.append(logits.softmax(dim=-1))
        kept[-1].retain_grad()
        return kept[-1] @ v

    def attend_explicitly(self, q, k, v, mask=None, causal=False, start=0):
        kept.append(self.weights(q, k, mask, causal, start=start))
        kept[-1].retain_grad()
        return kept[-1] @ v

    captured = forward_record(model, inputs, masks)
    layers = captured.layers.values()
    with monkeypatch.context() as patch:
        patch.setattr("perceiver.mechanisms.scaled_dot_product.ScaledDotProduct.forward", attend)
        patch.setattr("perceiver.mechanisms.explicit.Explicit.forward", attend_explicitly)
        scores = some_scores(model(inputs, masks, captured.queries))
    num_queries = captured.num_outputs if captured.decode_layers else 0
    places = {
        "tokens": slice(0, NUM_TOKENS),
        "latents": slice(NUM_TOKENS, NUM_TOKENS + NUM_LATENTS),
        "outputs": slice(NUM_TOKENS + NUM_LATENTS, NUM_TOKENS + NUM_LATENTS + num_queries),
    }
    # Whose row of R is that of an answer.
    if captured.queries:
        decoder_queries = [{1: 1.0, 2: 1.0}, {5: 1.0}]
    elif num_queries > 1:
        decoder_queries = [{3: 1.0}, {7: 1.0}]
    else:
        decoder_queries = [{0: 1.0}] * 2
    found = torch.zeros(3, 2, NUM_TOKENS)
    for sample in range(3):
        for reader in range(2):
            gradients = torch.autograd.grad(scores[sample, reader], kept, retain_graph=True)
            size = NUM_TOKENS + NUM_LATENTS + num_queries
            through = torch.eye(size, dtype=torch.float64)
            for layer, weights, gradient in zip(layers, kept, gradients, strict=True):
                mean = torch.zeros(size, size, dtype=torch.float64)
                rows, columns = places[layer.role.queries], places[next(iter(captured.key_parts(layer)))]
                mean[rows, columns] = (gradient[sample] * weights[sample]).clamp(min=0).mean(dim=0).double()
                through = through + mean @ through
            if num_queries:
                row = sum(share * through[places["outputs"]][query] for query, share in decoder_queries[reader].items())
            else:
                row = through[places["latents"]].mean(dim=0)
            found[sample, reader] = row[places["tokens"]].float()
    return found


@MODELS
@pytest.mark.parametrize("masks", [None, some_masks()], ids=["whole", "masked"])
def test_it_is_the_sum_over_all_ways_through_the_full_matrices(monkeypatch, make, masks):
    model, inputs = make(), small_inputs()
    captured, found = capture_relevance(model, inputs, masks)
    expected = naive_relevance(monkeypatch, model, inputs, masks)
    scale = expected.max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    assert not found.requires_grad
    if masks is not None:
        assert (found.masked_select(~captured.token_mask[:, None]) == 0).all()


def test_under_bfloat16_it_is_float32_and_close():
    model, inputs = perceiver_io(), small_inputs()
    expected = capture_relevance(model, inputs)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = capture_relevance(model, inputs)[1]
    assert found.dtype == torch.float32
    most = expected.sum(dim=-1).amax(dim=1, keepdim=True)  # zeros may be rounded up
    assert ((found - expected).abs().sum(dim=-1) <= 0.1 * most).all()
    with capture(model, gradients=True) as captured:
        scores = some_scores(model(inputs))
        expected = captured.relevance(scores)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(captured.relevance(scores), expected)


def test_without_scores_there_is_nothing_to_explain():
    model = perceiver()
    with capture(model, gradients=True) as captured:
        assert captured.relevance(logits(model, small_inputs())[:, :0]).shape == (3, 0, NUM_TOKENS)
        assert captured.relevance(torch.zeros(3, 0)).shape == (3, 0, NUM_TOKENS)


@pytest.mark.parametrize(
    ("gradients", "scores"),
    [
        (True, lambda model, earlier, outputs: model.memory.array.sum().expand(3, 1)),
        (True, lambda model, earlier, outputs: outputs.detach()),
        (True, lambda model, earlier, outputs: torch.zeros(3, 1, requires_grad=True)),
        (True, lambda model, earlier, outputs: earlier),
        (False, lambda model, earlier, outputs: outputs),
    ],
    ids=["other weights", "detached", "leaf", "earlier forward pass", "capture without gradients"],
)
def test_scores_that_do_not_depend_on_the_forward_pass_raise(gradients, scores):
    model = perceiver()
    with capture(model, gradients=gradients) as captured:
        earlier, outputs = logits(model, small_inputs()), logits(model, small_inputs())
        with pytest.raises(ValueError, match=r"capture\(model, gradients=True\)"):
            captured.relevance(scores(model, earlier, outputs))


def test_checkpointing_that_keeps_no_graph_is_refused_rather_than_explained_by_nothing():
    model = perceiver()
    wrapper = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT)
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrapper, check_fn=lambda module: isinstance(module, CrossBlock)
    )
    with capture(model, gradients=True) as captured, pytest.raises((ValueError, RuntimeError)):
        captured.relevance(logits(model, small_inputs()))
