from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.attention import (
    MLP,
    Attention,
    BlockSpec,
    CrossBlock,
    KeyValueCache,
    Residual,
    SelfBlock,
    run_block,
)
from perceiver.kernels import Kept, MatrixProducts, allowed_pairs, normalized, recomputed
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from tests.models import small_perceiver

attend = ScaledDotProduct()
attention_weights = attend.weights
BATCH = 3
LENGTHS = {"square": (7, 7), "fewer queries": (5, 11), "more queries": (11, 5)}
WIDTHS = {"equal": (8, 8), "qk wider": (13, 5), "v wider": (5, 13), "odd": (261, 261)}

every_length = pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS.values(), ids=LENGTHS)


def qkv(num_queries=5, num_keys=11, heads=2, qk_dim=13, v_dim=17):
    return (
        torch.randn(BATCH, heads, num_queries, qk_dim),
        torch.randn(BATCH, heads, num_keys, qk_dim),
        torch.randn(BATCH, heads, num_keys, v_dim),
    )


def key_mask(num_keys=11, *, empty_sample=None):
    """Random, with a real key in every sample (the second, so that causal rows may be empty) but `empty_sample`."""
    mask = torch.rand(BATCH, num_keys) < 0.6
    mask[:, 0], mask[:, 1] = False, True
    if empty_sample is not None:
        mask[empty_sample] = False
    return mask


@every_length
@pytest.mark.parametrize(("qk_dim", "v_dim"), WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_fused_attention_equals_the_explicit_weights_times_the_values(
    num_queries, num_keys, qk_dim, v_dim, causal, masked
):
    q, k, v = qkv(num_queries, num_keys, 3, qk_dim, v_dim)
    options = {"mask": key_mask(num_keys) if masked else None, "causal": causal}
    out = attend(q, k, v, **options)
    assert_close(out, attention_weights(q, k, **options) @ v, atol=1e-5, rtol=1e-5)
    if masked:
        junk = ~options["mask"][:, None, :, None]
        assert_close(attend(q, k.masked_fill(junk, 1e6), v.masked_fill(junk, 1e6), **options), out, atol=1e-6, rtol=0)


@every_length
@pytest.mark.parametrize("chosen", [slice(1, 3), [4, 0]], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_weights_of_chosen_queries_are_those_among_all(num_queries, num_keys, chosen, causal, masked):
    q, k, _ = qkv(num_queries, num_keys)
    options = {"mask": key_mask(num_keys) if masked else None, "causal": causal}
    assert_close(attention_weights(q, k, **options, queries=chosen), attention_weights(q, k, **options)[:, :, chosen])


def test_explicit_weights_are_the_softmax_of_the_papers_in_float32_and_zero_for_masked_keys():
    q, k, _ = qkv(qk_dim=4)
    expected = torch.einsum("bhqd,bhkd->bhqk", q, k).div(2.0).exp()
    assert_close(attention_weights(q, k), expected / expected.sum(dim=-1, keepdim=True))
    mask = key_mask()
    weights = attention_weights(q, k, mask=mask)
    assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert torch.equal(weights > 0, mask[:, None, None].expand_as(weights))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(attention_weights(q, k, mask=mask), weights, atol=0, rtol=0)
        assert attention_weights(q.bfloat16(), k.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("function", ["attend", "attention_weights"])
def test_rows_without_a_real_key_are_exact_zeros_with_zero_gradients(function):
    inputs = [x.requires_grad_() for x in qkv()]
    mask = key_mask(empty_sample=1)
    out = attend(*inputs, mask=mask) if function == "attend" else attention_weights(*inputs[:2], mask=mask)
    assert (out[1] == 0).all()
    assert (out[0] != 0).any()
    out.square().sum().backward()
    for x in inputs if function == "attend" else inputs[:2]:
        assert x.grad.isfinite().all()
        assert (x.grad[1] == 0).all()
        assert (x.grad[0] != 0).any()


def test_permuting_keys_permutes_the_weights_and_leaves_the_output():
    q, k, v = qkv()
    mask = key_mask()
    order = torch.randperm(k.shape[2])
    shuffled = {"q": q, "k": k[:, :, order], "mask": mask[:, order]}
    assert_close(attention_weights(**shuffled), attention_weights(q, k, mask=mask)[..., order])
    assert_close(attend(v=v[:, :, order], **shuffled), attend(q, k, v, mask=mask))


@every_length
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_a_causal_query_sees_exactly_the_keys_up_to_its_place_counted_from_the_end(num_queries, num_keys, masked):
    q, k, _ = qkv(num_queries, num_keys)
    mask = key_mask(num_keys) if masked else torch.ones(BATCH, num_keys, dtype=torch.bool)
    weights = attention_weights(q, k, mask=mask, causal=True)
    for query in range(num_queries):
        last_key = query + num_keys - num_queries
        expected = mask & (torch.arange(num_keys) <= last_key)
        assert ((weights[:, 0, query] > 0) == expected).all()
    assert ((weights[:, 0, -1] > 0) == mask).all()


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_the_module_equals_torchs_multihead_attention_with_the_same_weights(masked, causal):
    dim, heads, length = 15, 3, 7
    reference = nn.MultiheadAttention(dim, heads, batch_first=True)
    nn.init.normal_(reference.in_proj_bias)
    nn.init.normal_(reference.out_proj.bias)
    ours = Attention(query_dim=dim, input_dim=dim, spec=BlockSpec(num_heads=heads))
    weights, biases = reference.in_proj_weight.chunk(3), reference.in_proj_bias.chunk(3)
    for linear, weight, bias in zip((ours.query, ours.key, ours.value), weights, biases, strict=True):
        linear.load_state_dict({"weight": weight, "bias": bias})
    ours.out.load_state_dict(reference.out_proj.state_dict())

    queries, inputs = torch.randn(2, BATCH, length, dim)
    mask = key_mask(length) if masked else torch.ones(BATCH, length, dtype=torch.bool)
    mask[:, 0] = True  # torch makes NaN of a row without keys
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
    expected, _ = reference(queries, inputs, inputs, key_padding_mask=~mask, attn_mask=hidden)
    assert_close(ours(queries, inputs, mask=mask, causal=causal), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["attention_dropout", "residual_dropout"])
@pytest.mark.parametrize("block", ["cross", "self"])
def test_dropout_acts_in_training_only(kind, block):
    def build(spec):
        torch.manual_seed(1)
        return CrossBlock(query_dim=6, input_dim=6, spec=spec) if block == "cross" else SelfBlock(dim=6, spec=spec)

    x = torch.randn(BATCH, 7, 6)
    inputs = (x, x.flip(0)) if block == "cross" else (x,)
    plain, dropping = build(BlockSpec(num_heads=2)), build(BlockSpec(num_heads=2, **{kind: 0.5}))
    assert_close(dropping.eval()(*inputs), plain(*inputs), atol=0, rtol=0)
    dropping.train()
    assert not torch.allclose(dropping(*inputs), dropping(*inputs))


def test_bfloat16_autocast_stays_close_to_float32():
    attention = Attention(query_dim=13, input_dim=17, spec=BlockSpec(num_heads=3, qk_dim=21, v_dim=33))
    queries, inputs, mask = torch.randn(BATCH, 5, 13), torch.randn(BATCH, 11, 17), key_mask(empty_sample=2)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = attention(queries, inputs, mask=mask)
    assert lowered.dtype == torch.bfloat16
    assert_close(lowered.float(), attention(queries, inputs, mask=mask), atol=2e-2, rtol=2e-2)


@every_length
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("workspaces", [(2**19, 2**23), (1, 2**23), (1, 3 * 11)], ids=["whole", "by head", "by query"])
def test_matrix_products_equal_the_fused_kernel_with_exact_gradients(
    monkeypatch, num_queries, num_keys, causal, workspaces
):
    for name, size in zip(("HEADS", "QUERIES"), workspaces, strict=True):
        monkeypatch.setattr(f"perceiver.kernels.{name}_WORKSPACE", size)
    inputs = [x.double().requires_grad_() for x in qkv(num_queries, num_keys)]
    mask = key_mask(num_keys, empty_sample=2)
    allowed = allowed_pairs(*inputs[:2], mask, causal)
    products = lambda *qkv: MatrixProducts.apply(*qkv, allowed, inputs[0].shape[-1] ** -0.5)  # noqa: E731
    exact = products(*inputs)
    assert_close(exact, attend(*inputs, mask=mask, causal=causal))
    assert torch.autograd.gradcheck(products, inputs, fast_mode=True)
    lowered = products(*(x.bfloat16() for x in inputs))
    assert_close(lowered.double(), exact, atol=0.03, rtol=0.03)
    for low, high in zip(*(torch.autograd.grad(x.sin().sum(), inputs) for x in (lowered, exact)), strict=True):
        assert_close(low, high, atol=0.03, rtol=0.03)


def test_second_derivatives_of_matrix_products_are_right_or_refused():
    q, k, v = (x.double() for x in qkv(5, 7))
    assert torch.autograd.gradgradcheck(lambda v: MatrixProducts.apply(q, k, v, None, 0.5), v.requires_grad_())
    (first,) = torch.autograd.grad(
        MatrixProducts.apply(q.requires_grad_(), k, v, None, 0.5).square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="softmax"):
        torch.autograd.grad(first.square().sum(), q)


class TestRecomputed:
    """What the backward pass computes again in bfloat16."""

    def build(self):
        block = SelfBlock(dim=12, spec=BlockSpec(num_heads=3, widening=2))
        return block, torch.randn(BATCH, 7, 12, requires_grad=True), key_mask(7, empty_sample=1)

    def gradients(self, block, x, mask, **options):
        with torch.autocast("cpu", torch.bfloat16):
            out = run_block(block, x, mask=mask, **options)
        return out, torch.autograd.grad(out.square().sum(), [x, *block.parameters()])

    def test_outputs_and_gradients_are_the_same_to_the_bit(self):
        block, x, mask = self.build()
        found = self.gradients(block, x, mask)
        with Kept():
            assert_close(self.gradients(block, x, mask), found, atol=0, rtol=0)
        assert_close(self.gradients(block, x, mask, checkpointing=True), found, atol=0, rtol=0)

    def test_second_derivatives_are_the_same_to_the_bit(self):
        mlp, norm, x = MLP(dim=5, spec=BlockSpec(num_heads=1, widening=3)), nn.LayerNorm(5), torch.randn(BATCH, 7, 5)
        weights, found = [x.requires_grad_(), *mlp.parameters(), *norm.parameters()], []
        for keeping in (nullcontext(), Kept()):
            with torch.autocast("cpu", torch.bfloat16), keeping:
                out = recomputed(norm, x, mlp)
            first = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
            found.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), weights))
        assert_close(found[0], found[1], atol=0, rtol=0)

    def test_norms_and_activation_are_computed_once_more(self):
        block, x, mask = self.build()
        calls = []
        for cheap in (block.norm, block.mlp_norm, block.mlp[1]):
            cheap.register_forward_hook(lambda module, args, out: calls.append((module, out)))
        self.gradients(block, x, mask)
        (forward, backward) = (dict(calls[:3]), dict(calls[3:]))
        assert len(calls) == 6
        for cheap, out in forward.items():
            assert_close(backward[cheap], out, atol=0, rtol=0)
        del calls[:]
        with Kept():
            self.gradients(block, x, mask)
        assert len(calls) == 3

    def test_checkpointed_blocks_may_be_nested_and_differentiated_several_times(self):
        block, x, mask = self.build()
        _, found = self.gradients(block, x, mask)

        class Outer(nn.Module):
            def forward(self, x, mask):
                return run_block(block, x, mask=mask, checkpointing=True)

        with torch.autocast("cpu", torch.bfloat16):
            out = run_block(Outer(), x, mask=mask, checkpointing=True)
        for _ in range(3):
            again = torch.autograd.grad(out.square().sum(), [x, *block.parameters()], retain_graph=True)
            assert_close(again, found, atol=0, rtol=0)

    def test_an_outer_context_stays_active_after_an_inner_one_even_if_it_fails(self):
        block, x, _ = self.build()
        calls, context = [], Kept()
        block.norm.register_forward_hook(lambda *args: calls.append(args))

        def num_calls():
            del calls[:]
            with torch.autocast("cpu", torch.bfloat16):
                recomputed(block.norm, x, block.attention.query).sum().backward()
            return len(calls)

        with context:
            with pytest.raises(ZeroDivisionError), context:
                raise ZeroDivisionError
            assert num_calls() == 1
        assert num_calls() == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointed"])
    def test_a_compiled_block_is_one_graph_and_gives_the_same(self, checkpointing):
        block, x, mask = self.build()
        found = self.gradients(block, x, mask)
        run = torch.compile(run_block, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = run(block, x, mask=mask, checkpointing=checkpointing)
        gradients = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
        assert_close((out, gradients), found, atol=0.01, rtol=0.01)

    @pytest.mark.parametrize("activation", [nn.RReLU(), nn.LeakyReLU(0.5, inplace=True), nn.PReLU()], ids=repr)
    def test_other_activations_keep_their_output(self, activation):
        mlp = MLP(dim=5, spec=BlockSpec(num_heads=1, activation=activation)).train()
        calls = []
        mlp[1].register_forward_hook(lambda *args: calls.append(args))
        with torch.autocast("cpu", torch.bfloat16):
            mlp(torch.randn(BATCH, 5)).sum().backward()
        assert len(calls) == 1


def test_inputs_are_normalized_in_parts(monkeypatch):
    x = 3.0 * torch.randn(BATCH, 11, 13) + 2.0
    whole = F.layer_norm(x, (13,), eps=1e-3).bfloat16()
    monkeypatch.setattr("perceiver.kernels.NORM_WORKSPACE", 5 * BATCH * 13)
    assert torch.equal(normalized(x, 1e-3, torch.bfloat16), whole)
    assert torch.equal(normalized(x.requires_grad_(), 1e-3, torch.bfloat16), whole)


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16], ids=str)
def test_one_head_gives_the_same_with_and_without_keys_and_values(masked, precision):
    attention = Attention(query_dim=7, input_dim=13, spec=BlockSpec(num_heads=1, qk_dim=11, v_dim=17)).double()
    queries = torch.randn(BATCH, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(BATCH, 31, 13, dtype=torch.float64, requires_grad=True)
    mask = key_mask(31, empty_sample=1) if masked else None
    weights = {**dict(attention.named_parameters()), "queries": queries, "inputs": inputs}
    outs, gradients, shapes = [], [], []
    attention.mechanism.register_forward_pre_hook(lambda module, args: shapes.append(args[1].shape))
    for cache in (KeyValueCache(grows=False), None):  # what is cached is projected
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            outs.append(attention(queries, inputs, mask=mask, cache=cache))
        found = torch.autograd.grad(outs[-1].double().square().sum(), list(weights.values()))
        gradients.append(dict(zip(weights, found, strict=True)))
    assert [shape[-1] for shape in shapes] == [11, 13]
    tolerance = {"atol": 1e-10, "rtol": 1e-10} if precision is torch.float64 else {"atol": 0.05, "rtol": 0.05}
    assert_close(outs[1], outs[0], **tolerance)
    for name in weights:
        assert_close(gradients[1][name], gradients[0][name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_without_query_residual_a_block_is_attention_and_mlp_alone():
    block = CrossBlock(query_dim=6, input_dim=5, spec=BlockSpec(num_heads=1, query_residual=False))
    queries, inputs = torch.randn(BATCH, 7, 6), torch.randn(BATCH, 11, 5)
    nn.init.zeros_(block.mlp[-1].weight)
    nn.init.zeros_(block.mlp[-1].bias)
    expected = block.attention(block.query_norm(queries), block.input_norm(inputs))
    assert_close(block(queries, inputs), expected)
    block.residual = Residual()
    assert_close(block(queries, inputs), queries + expected)


def test_blocks_of_one_spec_share_no_weight_even_with_a_learned_activation():
    spec = BlockSpec(num_heads=1, activation=nn.PReLU())
    blocks = [SelfBlock(dim=5, spec=spec), SelfBlock(dim=5, spec=spec)]
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"num_heads": 3, "qk_dim": 7}, "num_heads=3 .*qk_dim=7"),
        ({"num_heads": 3, "qk_dim": 6, "v_dim": 7}, "num_heads=3 .*v_dim=7"),
        ({"num_heads": 2}, "num_heads=2 .*qk_dim=11"),
        ({"num_heads": 0}, "num_heads=0"),
    ],
)
def test_heads_that_do_not_divide_a_width_are_named_in_the_error(sizes, named):
    with pytest.raises(ValueError, match=named):
        Attention(query_dim=5, input_dim=11, spec=BlockSpec(**sizes))


class TestInitialization:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    def test_weights_deviate_by_the_scale_over_the_root_of_the_inputs_and_biases_are_zero(self, scale):
        spec = BlockSpec(num_heads=1, qk_dim=101, v_dim=103, widening=2, init_scale=scale)
        block = CrossBlock(query_dim=97, input_dim=131, spec=spec)
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        assert sorted(linear.in_features for linear in linears) == [97, 97, 103, 131, 131, 194]
        for linear in linears:
            deviation = scale * linear.in_features**-0.5
            weights, count = linear.weight.detach(), linear.weight.numel()
            assert float(weights.std()) == pytest.approx(deviation, rel=5 * (2 * count) ** -0.5)
            assert abs(float(weights.mean())) < 5 * deviation * count**-0.5
            # A normal distribution, cut at two deviations of what it was before the cut.
            assert 2.1 * deviation < float(weights.abs().max()) < 2.28 * deviation
            assert (linear.bias == 0).all()

    def test_a_block_of_scale_1_keeps_the_size_of_what_it_reads(self):
        spec, x = BlockSpec(num_heads=1, init_scale=1.0), torch.randn(101, 7, 307)
        attention = Attention(query_dim=307, input_dim=307, spec=spec)
        for linear in (attention.query, attention.key, attention.value, attention.out):
            assert float(linear(x).detach().std()) == pytest.approx(1.0, abs=0.03)

    @pytest.mark.parametrize("spec", [BlockSpec(num_heads=1), BlockSpec(num_heads=1, init_scale=None)])
    def test_without_a_scale_weights_are_torchs_own(self, spec):
        torch.manual_seed(7)
        attention, mlp = Attention(query_dim=5, input_dim=11, spec=spec), MLP(dim=13, spec=spec)
        torch.manual_seed(7)
        plain = nn.ModuleDict(
            {"query": nn.Linear(5, 11), "key": nn.Linear(11, 11), "value": nn.Linear(11, 11), "out": nn.Linear(11, 5)}
        )
        assert_close(dict(attention.state_dict()), dict(plain.state_dict()), atol=0, rtol=0)
        plain_mlp = nn.Sequential(nn.Linear(13, 13), nn.GELU(), nn.Linear(13, 13))
        assert_close(dict(mlp.state_dict()), dict(plain_mlp.state_dict()), atol=0, rtol=0)

    @pytest.mark.parametrize("scaled", ["cross_attention", "self_attention"])
    def test_it_is_of_the_linear_layers_of_its_own_blocks_alone(self, scaled):
        tiny = BlockSpec(num_heads=1, qk_dim=23, v_dim=29, init_scale=1e-6, activation=nn.PReLU())
        model, expected = small_perceiver(**{scaled: tiny}), set()
        block = CrossBlock if scaled == "cross_attention" else SelfBlock
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                assert (module.weight == 1).all()
                expected.add(f"{name}.bias")
            elif isinstance(module, block):
                linears = [part for part, layer in module.named_modules() if isinstance(layer, nn.Linear)]
                assert len(linears) == 6
                expected |= {f"{name}.{part}.{kind}" for part in linears for kind in ("weight", "bias")}
        assert {name for name, values in model.named_parameters() if values.abs().max() < 1e-5} == expected

    @pytest.mark.parametrize("scale", [0, 0.0, -1.0, float("nan"), float("inf")])
    def test_a_scale_that_cannot_be_is_named(self, scale):
        with pytest.raises(ValueError, match=rf"^init_scale={scale} must be"):
            MLP(dim=5, spec=BlockSpec(num_heads=1, init_scale=scale))


@pytest.mark.parametrize("option", [{"attention_dropout": 1.5}, {"residual_dropout": -0.1}, {"widening": 0}], ids=str)
def test_sizes_of_a_block_that_are_out_of_range_are_named(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=rf"^{name}={value} must be"):
        BlockSpec(num_heads=1, **option)


class TestCache:
    """Inputs that come one after another give what they give together."""

    @pytest.mark.parametrize("sizes", [[1] * 7, [3, 1, 2, 1], [7]], ids=str)
    def test_a_growing_cache_gives_causal_attention_step_by_step(self, sizes):
        block = SelfBlock(dim=15, spec=BlockSpec(num_heads=3, qk_dim=21, v_dim=33)).eval()
        x, cache = torch.randn(BATCH, 7, 15), KeyValueCache(grows=True)
        steps = [block(part, causal=True, cache=cache) for part in x.split(sizes, dim=1)]
        assert_close(torch.cat(steps, dim=1), block(x, causal=True), atol=1e-5, rtol=1e-5)
        assert cache.kept[0].shape == (BATCH, 3, 7, 7)
        assert cache.kept[1].shape == (BATCH, 3, 7, 11)

    def test_a_fixed_cache_projects_its_inputs_once(self):
        block = CrossBlock(query_dim=13, input_dim=17, spec=BlockSpec(num_heads=3, qk_dim=21, v_dim=33)).eval()
        queries, inputs, cache = torch.randn(BATCH, 5, 13), torch.randn(BATCH, 11, 17), KeyValueCache(grows=False)
        calls = []
        block.attention.key.register_forward_hook(lambda *_: calls.append(1))
        steps = [block(part, inputs, cache=cache) for part in queries.split([2, 1, 2], dim=1)]
        assert len(calls) == 1
        assert_close(torch.cat(steps, dim=1), block(queries, inputs), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [2], [0, 0, 2, 2, 1]], ids=str)
    def test_selected_rows_go_on_as_if_they_had_been_alone(self, rows):
        block = SelfBlock(dim=15, spec=BlockSpec(num_heads=3)).eval()
        x, more, cache = torch.randn(BATCH, 5, 15), torch.randn(len(rows), 2, 15), KeyValueCache(grows=True)
        block(x, causal=True, cache=cache)
        cache.select(torch.tensor(rows))
        expected = block(torch.cat([x[rows], more], dim=1), causal=True)[:, 5:]
        assert_close(block(more, causal=True, cache=cache), expected, atol=1e-5, rtol=1e-5)

    def test_an_empty_cache_has_no_rows_to_select(self):
        cache = KeyValueCache(grows=True)
        cache.select(torch.tensor([1, 0]))
        assert cache.kept is None


class TestProjections:
    """Attention on states themselves."""

    def test_without_projections_outputs_are_weighted_means_of_the_inputs(self):
        attention = Attention(query_dim=15, input_dim=15, spec=BlockSpec(num_heads=3, projections=False))
        queries, inputs, mask = torch.randn(BATCH, 5, 15), torch.randn(BATCH, 11, 15), key_mask()
        heads = [x.unflatten(2, (3, 5)).transpose(1, 2) for x in (queries, inputs)]
        expected = attention_weights(*heads, mask=mask) @ heads[1]
        assert_close(attention(queries, inputs, mask=mask), expected.transpose(1, 2).flatten(2))
        assert not list(attention.parameters())

    @pytest.mark.parametrize("sizes", [{"query_dim": 7}, {"qk_dim": 13}, {"v_dim": 13}], ids=str)
    def test_widths_that_differ_are_named(self, sizes):
        (width,) = sizes.values()
        spec = BlockSpec(num_heads=1, projections=False, qk_dim=sizes.get("qk_dim", 11), v_dim=sizes.get("v_dim", 11))
        with pytest.raises(ValueError, match=f"projections=False.*{width}"):
            Attention(query_dim=sizes.get("query_dim", 11), input_dim=11, spec=spec)
