"""What holds for every mechanism of conf."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import Attention, BlockSpec, CrossBlock, KeyValueCache, SelfBlock
from perceiver.roles import DECODE, ENCODE
from tests.mechanisms.parts import (
    BATCH,
    KEYS,
    NAMES,
    OVER_QUERIES,
    QUERIES,
    SEQUENTIAL,
    build,
    factory,
    key_mask,
    qkv,
)

SMOOTH = [name for name in NAMES if name not in ("straight_through", "hard")]

every_mechanism = pytest.mark.parametrize("name", NAMES)
every_sequential = pytest.mark.parametrize("name", SEQUENTIAL)


def options(name: str) -> list[dict]:
    found = [{}, {"mask": key_mask()}, {"causal": True}, {"mask": key_mask(), "causal": True}]
    return found[:2] if name == OVER_QUERIES else found


@every_mechanism
@pytest.mark.parametrize("num_queries", [5, 17])
def test_outputs_are_weights_times_values_and_rows_sum_to_one_over_the_allowed_keys(name, num_queries):
    mechanism, (q, k, v) = build(name), qkv(num_queries)
    for given in options(name):
        weights = mechanism.weights(q, k, **given)
        assert_close(weights @ v, mechanism(q, k, v, **given), atol=1e-6, rtol=1e-5)
        allowed = given.get("mask", torch.ones(BATCH, KEYS, dtype=torch.bool))[:, None, None]
        if given.get("causal"):
            allowed = allowed & torch.ones(num_queries, KEYS, dtype=torch.bool).tril(KEYS - num_queries)
        assert (weights >= 0).all()
        assert (weights.masked_fill(allowed, 0.0) == 0).all()
        assert_close(weights.sum(dim=-1), allowed.any(dim=-1).float().expand(weights.shape[:3]))
        chosen = [4, 0, 3]
        assert_close(mechanism.weights(q, k, **given, queries=chosen), weights[:, :, chosen])
        assert weights.dtype == mechanism.weights(q.bfloat16(), k.bfloat16(), **given).dtype == torch.float32


@every_mechanism
def test_what_is_masked_changes_nothing_and_gets_no_gradient(name):
    mechanism, (q, k, v), mask = build(name).train(), [x.requires_grad_() for x in qkv()], key_mask()
    hidden = ~mask[:, None, :, None]
    outs = []
    for junk in (0.0, 1e3):
        torch.manual_seed(7)
        outs.append(mechanism(q, k.masked_fill(hidden, junk), v.masked_fill(hidden, junk), mask=mask))
    assert torch.equal(*outs)
    (mechanism(q, k, v, mask=mask) * torch.randn(())).square().sum().backward()
    for x in (k, v):
        assert x.grad is None or (x.grad.masked_fill(~hidden, 0.0) == 0).all()
    assert (v.grad != 0).any()
    assert q.grad is None or (q.grad[-1] == 0).all()


@every_mechanism
def test_padding_between_keys_leaves_outputs_and_positions(name):
    mechanism, (q, k, v) = build(name), qkv()
    places = torch.tensor([0, 1, 3, 4, 5, 8, 9, 11, 12, 13, 15])
    mask = torch.zeros(BATCH, 17, dtype=torch.bool).index_fill(1, places, True)
    padded = [torch.randn(*x.shape[:2], 17, x.shape[3]).index_copy(2, places, x) for x in (k, v)]
    assert_close(mechanism(q, *padded, mask=mask), mechanism(q, k, v), atol=1e-6, rtol=1e-5)


@every_sequential
def test_a_causal_query_depends_on_no_later_key_and_not_on_other_queries(name):
    mechanism, (q, k, v) = build(name), qkv()
    out = mechanism(q, k, v, causal=True)
    for query in range(QUERIES):
        last = query + KEYS - QUERIES + 1
        alone = mechanism(q[:, :, query : query + 1], k[:, :, :last], v[:, :, :last], causal=True)
        assert_close(out[:, :, query : query + 1], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_gradients_are_those_of_finite_differences(name, masked):
    mechanism = build(name).double()
    q, k, v = (x[:2, :, :3].clone().requires_grad_() for x in qkv(3, 5, torch.float64))
    mask = torch.tensor([[True, False, True], [False, True, True]]) if masked else None
    parameters = list(mechanism.parameters())
    assert torch.autograd.gradcheck(lambda *_: mechanism(q, k, v, mask=mask), (q, k, v, *parameters), atol=1e-5)


@every_mechanism
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_chunks_change_neither_outputs_nor_gradients(monkeypatch, name, training):
    if training and name == "hard":
        pytest.skip("draws of its chunks are others")
    results = []
    for chunk in (2**25, 2 * BATCH * 2 * KEYS * 7):
        monkeypatch.setattr("perceiver.kernels.CHUNK", chunk)
        mechanism = build(name).train(training)
        torch.manual_seed(7)
        inputs, mask = [x.requires_grad_() for x in qkv()], key_mask()
        out = mechanism(*inputs, mask=mask)
        out.square().sum().backward()
        gradients = [x.grad for x in (*inputs, *mechanism.parameters()) if x.grad is not None]
        results.append((out, mechanism.weights(*inputs[:2], mask=mask, queries=slice(1, 5)), *gradients))
    assert_close(*results, atol=1e-5, rtol=1e-5)


@every_sequential
@pytest.mark.parametrize("sizes", [[1] * 7, [3, 1, 3]], ids=str)
def test_cached_steps_are_the_full_pass(name, sizes):
    spec = BlockSpec(num_heads=3, mechanism=factory(name))
    causal, cross = SelfBlock(dim=15, spec=spec).eval(), CrossBlock(query_dim=15, input_dim=9, spec=spec).eval()
    x, inputs, mask = torch.randn(BATCH, 7, 15), torch.randn(BATCH, 11, 9), key_mask()
    cache, memory = KeyValueCache(grows=True), KeyValueCache(grows=False)
    steps = [causal(part, causal=True, cache=cache) for part in x.split(sizes, dim=1)]
    assert_close(torch.cat(steps, dim=1), causal(x, causal=True), atol=1e-5, rtol=1e-5)
    steps = [cross(part, inputs, mask=mask, cache=memory) for part in x.split(sizes, dim=1)]
    assert_close(torch.cat(steps, dim=1), cross(x, inputs, mask=mask), atol=1e-5, rtol=1e-5)


@every_mechanism
def test_blocks_share_no_weight_and_every_parameter_learns(name):
    spec = BlockSpec(num_heads=3, mechanism=factory(name), attention_dropout=0.1)
    blocks = [SelfBlock(dim=15, spec=spec, role=ENCODE) for _ in range(2)]
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    x = torch.randn(BATCH, 7, 15)
    loss = blocks[1](blocks[0](x)).square().mean(dim=(1, 2))
    auxiliary = [part for block in blocks for part in block.modules() if hasattr(part, "auxiliary_loss")]
    assert len(auxiliary) == (2 if name == "hard" else 0)
    total = loss.sum() + sum(part.auxiliary_loss(loss.detach(), torch.ones(BATCH)) for part in auxiliary)
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)


@every_sequential
def test_without_projections_it_reads_the_states_themselves(name):
    spec = BlockSpec(num_heads=3, mechanism=factory(name), projections=False)
    attention = Attention(query_dim=15, input_dim=15, spec=spec, role=DECODE).eval()
    queries, inputs = torch.randn(BATCH, 5, 15), torch.randn(BATCH, 11, 15)
    q, k = (x.unflatten(2, (3, 5)).transpose(1, 2) for x in (queries, inputs))
    expected = attention.mechanism.weights(q, k) @ k
    assert_close(attention(queries, inputs), expected.transpose(1, 2).flatten(2))


def test_queries_that_compete_are_refused_where_they_must_not_depend_on_each_other():
    with pytest.raises(ValueError, match=r"OverQueries.*decoder"):
        factory(OVER_QUERIES)(num_heads=1, dim=3, dropout=0.0, role=DECODE)
    with pytest.raises(ValueError, match=r"OverQueries.*causal"):
        build(OVER_QUERIES)(*qkv(), causal=True)


def test_scores_that_do_not_fit_into_memory_are_refused_with_their_size():
    q, k, v = (torch.empty(16, 8, length, 64, device="meta") for length in (512, 50_176, 50_176))
    for name, least in (("additive", "841.8 GB, 1.6 GB"), (OVER_QUERIES, "13.2 GB, 13.2 GB")):
        problem = f"512 queries, 50,176 keys, 16 samples and 8 heads would take {least} of them at a time"
        with pytest.raises(ValueError, match=problem):
            build(name, heads=8, dim=64).to("meta")(q, k, v)
    assert build("dot_product", heads=8, dim=64)(q, k, v).shape == q.shape
