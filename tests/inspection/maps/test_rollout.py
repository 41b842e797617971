import re
from dataclasses import replace
from itertools import count

import pytest
import torch

from perceiver import Perceiver
from perceiver.attention import CrossBlock, SelfBlock
from perceiver.inspection.maps.capture import Capture
from perceiver.inspection.maps.rollout import mean_of_queries, rollout
from perceiver.roles import LATENTS, OUTPUTS, TOKENS
from tests.inspection.models import (
    CROSS_HEADS,
    NUM_WORDS,
    direct_text,
    forward_record,
    perceiver,
    perceiver_io,
    perceiver_pooled_io,
    perceiver_text,
    some_masks,
)
from tests.models import NUM_CLASSES, small_inputs

MODELS = pytest.mark.parametrize(
    ("make", "num_outputs"),
    [(perceiver, 1), (perceiver_io, NUM_CLASSES), (perceiver_pooled_io, 1), (perceiver_text, NUM_WORDS)],
    ids=["perceiver", "perceiver_io", "pooled_io", "text"],
)


def naive_rollout(captured: Capture, shares: float | dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """One matrix over tokens and latents for each layer, multiplied (Abnar & Zuidema 2020, eq. 1).

    Args:
        captured: the forward pass.
        shares: of attention in each layer, by query.

    Returns:
        The shares of the tokens, and of all latents.
    """
    layers, batch, num_tokens = captured.layers, *captured.tokens.values.shape[:2]
    size = num_tokens + max(
        [layer.num_queries for layer in layers.values() if layer.role.queries == LATENTS], default=0
    )
    places = {TOKENS: slice(0, num_tokens), LATENTS: slice(num_tokens, size)}
    flow = torch.eye(size, dtype=torch.float64).repeat(batch, 1, 1)
    for name, part in layers.items():
        if part.role.queries == OUTPUTS:
            continue
        rows, columns = places[part.role.queries], places[next(iter(captured.key_parts(part)))]
        share = shares[name][:, :, None].double() if isinstance(shares, dict) else shares
        attention = torch.eye(size, dtype=torch.float64).repeat(batch, 1, 1)
        attention[:, rows] *= 1 - share
        attention[:, rows, columns] += share * part.weights().mean(dim=1)
        flow = attention @ flow
    memory = flow[:, places[captured.memory]]
    reads = [layers[name].weights().mean(dim=1) for name in captured.decode_layers]
    outputs = torch.stack(reads).mean(dim=0).double() @ memory if reads else memory.mean(dim=1, keepdim=True)
    return outputs[..., :num_tokens].float(), outputs[..., num_tokens:].sum(dim=-1).float()


def measured_shares(model: Perceiver, inputs, masks, queries=None) -> dict[str, torch.Tensor]:
    """What attention adds to each latent, over that and what there is of it, from what blocks are given."""
    norms = []

    def measure(block, args, kwargs, output):
        queries = args[0]
        if isinstance(block, CrossBlock):
            added = block.attention(block.query_norm(queries), block.input_norm(args[1]), mask=kwargs["mask"])
            norms.append(("cross", queries if block.residual is not None else torch.zeros_like(queries), added))
        else:
            normed = block.norm(queries)
            norms.append(("self", queries, block.attention(normed, normed)))

    blocks = [module for module in model.memory.modules() if isinstance(module, CrossBlock | SelfBlock)]
    hooks = [block.register_forward_hook(measure, with_kwargs=True) for block in blocks]
    with torch.no_grad():
        model(inputs, masks, queries)
    for hook in hooks:
        hook.remove()
    numbers = {"cross": count(), "self": count()}
    return {
        f"{role}{next(numbers[role])}": added.norm(dim=-1) / (kept.norm(dim=-1) + added.norm(dim=-1))
        for role, kept, added in norms
    }


@pytest.mark.parametrize(
    ("make", "alpha", "masks"),
    [
        (perceiver, 0.3, None),
        (perceiver, "norm", some_masks()),
        (perceiver_io, "norm", None),
        (perceiver_pooled_io, 0.5, some_masks()),
        (perceiver_text, "norm", some_masks()),
        (direct_text, 0.3, None),
        (direct_text, 0.5, some_masks()),
    ],
)
def test_reverse_rollout_is_the_product_of_the_full_matrices(make, alpha, masks):
    model, inputs = make(), small_inputs()
    captured = forward_record(model, inputs, masks)
    traced = captured.rollout(alpha=alpha)
    shares = measured_shares(model, inputs, masks, captured.queries) if alpha == "norm" else alpha
    expected, residual = naive_rollout(captured, shares)
    torch.testing.assert_close(traced.inputs, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(traced.residual, residual, rtol=0, atol=1e-5)
    assert list(traced.latents) == captured.input_layers
    if make is direct_text:
        torch.testing.assert_close(sum(traced.latents.values()), torch.eye(NUM_WORDS).expand(3, -1, -1))
        assert (traced.residual == 0).all()
    else:
        parts = [part @ captured.layers[name].weights().mean(dim=1) for name, part in traced.latents.items()]
        torch.testing.assert_close(sum(parts), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("alpha", "masks"), [(0.3, some_masks()), ("norm", None)], ids=["0.3, masked", "norm"])
def test_where_queries_have_no_residual_attention_is_all_that_goes_on(alpha, masks):
    model, inputs = perceiver(cross_attention=replace(CROSS_HEADS, query_residual=False)), small_inputs()
    captured = forward_record(model, inputs, masks)
    shares = measured_shares(model, inputs, masks)
    if alpha != "norm":
        shares = {name: torch.full_like(share, alpha) for name, share in shares.items()}
        shares |= {name: torch.ones_like(shares[name]) for name in captured.input_layers}
    traced = captured.rollout(alpha=alpha)
    expected, _ = naive_rollout(captured, shares)
    torch.testing.assert_close(traced.inputs, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(traced.residual, torch.zeros(3, 1))
    torch.testing.assert_close(traced.inputs.sum(dim=-1), torch.ones(3, 1))
    assert traced.latents["cross0"].abs().max() == 0, "replaced by what was read last"


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "mean", "0.5"])
def test_an_invalid_alpha_is_refused(alpha):
    captured = forward_record(perceiver())
    for function in (captured.rollout, captured.statistics):
        with pytest.raises(ValueError, match=re.escape(f"rollout_alpha={alpha} must be norm, or a number from 0 to 1")):
            function(alpha=alpha)
    for valid in (0, 1.0):
        torch.testing.assert_close(captured.rollout(alpha=valid).residual, torch.full((3, 1), 1.0 - valid))


def test_under_autocast_the_rollout_is_as_exact_as_without():
    captured = forward_record(perceiver_io())
    expected = captured.rollout()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = captured.rollout()
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.residual, expected.residual)


@pytest.mark.parametrize(("alpha", "query_residual"), [(0.5, False), (0.5, True), ("norm", False)])
def test_a_sample_without_any_real_input_depends_on_the_latents_alone(alpha, query_residual):
    masks = {"image": torch.tensor([True, False, True]), "depth": torch.tensor([True, False, False])}
    model = perceiver(cross_attention=replace(CROSS_HEADS, query_residual=query_residual))
    traced = rollout(forward_record(model, masks=masks), alpha=alpha)
    assert (traced.inputs[1] == 0).all()
    torch.testing.assert_close(traced.residual[1], torch.ones(1))
    torch.testing.assert_close(traced.inputs.sum(dim=-1) + traced.residual, torch.ones(3, 1))
    traced = rollout(forward_record(direct_text(), masks=masks), alpha=alpha)
    assert traced.inputs[1].sum() == traced.residual.sum() == 0, "without latents it depends on nothing"
    torch.testing.assert_close(traced.inputs[[0, 2]].sum(dim=-1), torch.ones(2, NUM_WORDS))


@MODELS
def test_mixtures_of_queries_have_the_mixture_of_their_rollouts(make, num_outputs):
    captured = forward_record(make(), masks=some_masks())
    readers = torch.rand(3, 5, num_outputs)
    readers /= readers.sum(dim=-1, keepdim=True)
    if num_outputs == 1:
        readers = readers[:, :1]  # there is one map
    each, found = rollout(captured, alpha=0.3), rollout(captured, alpha=0.3, query_weights=readers)
    torch.testing.assert_close(found.inputs, readers @ each.inputs)
    torch.testing.assert_close(found.residual, (readers @ each.residual[..., None])[..., 0])
    torch.testing.assert_close(found.inputs.sum(dim=-1) + found.residual, torch.ones(readers.shape[:2]))


def test_readers_are_means_of_their_queries_and_zero_where_a_sample_has_fewer():
    readers = mean_of_queries([[(3,), (0, 2, 5)], [], [(6, 1)]], NUM_WORDS)
    third, half = 1 / 3, 1 / 2
    expected = [
        [[0, 0, 0, 1, 0, 0, 0], [third, 0, third, 0, 0, third, 0]],
        [[0] * 7, [0] * 7],
        [[0, half, 0, 0, 0, 0, half], [0] * 7],
    ]
    torch.testing.assert_close(readers, torch.tensor(expected))
    traced = rollout(forward_record(perceiver_text()), query_weights=readers)
    assert (traced.inputs.sum(dim=-1) > 0).tolist() == [[True, True], [False, False], [True, False]]
    assert mean_of_queries([[], []], NUM_WORDS).shape == (2, 0, NUM_WORDS)
