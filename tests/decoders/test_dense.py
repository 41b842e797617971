"""Dense outputs: each depends on its own place alone, whatever else is queried, in whatever chunks."""

import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from perceiver.attention import BlockSpec
from perceiver.decoders.dense import DenseDecoder, HeadSpec
from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.maps.capture import capture
from perceiver.latents import LatentArray, Schedule
from perceiver.mechanisms.choices import Soft
from perceiver.mechanisms.explicit import Explicit
from perceiver.mechanisms.reaches import MonotonicWindow
from perceiver.mechanisms.scores import DotProduct
from perceiver.model import MODALITY_DIM, Perceiver
from perceiver.positions import FourierPositions, SharedAxis, SharedPositions
from perceiver.queries.joined import Joined
from perceiver.queries.learned import Learned
from perceiver.queries.positions import Positions
from perceiver.queries.tokens import InputTokens, TokensOf
from perceiver.roles import DECODE
from perceiver.types import Axis, Grid, JoinedTokens, Memory, Span, Tokens, cell_centers

DIM, CHANNELS, BATCH = 23, 5, 3
ROWS, COLUMNS = 3, 5
SHARED = SharedPositions({"y": SharedAxis(num_bands=2, resolution=7), "x": SharedAxis(num_bands=3, resolution=7)})


def positions(axes="yx", shared=None, dim=11) -> Positions:
    fourier = FourierPositions(num_bands=2, max_resolution=[7] * len(axes))
    return Positions(axes=list(axes), positions=fourier, dim=dim, shared_positions=shared)


def dense(queries, num_channels=CHANNELS, chunk_size=4, input_dim=DIM, **head) -> DenseDecoder:
    decoder = DenseDecoder(
        dim=DIM,
        num_channels=num_channels,
        queries=queries,
        attention=BlockSpec(num_heads=1),
        chunk_size=chunk_size,
        sharpness=0.7,
        head=HeadSpec(**head) if head else None,
    )
    decoder.set_input_dim(input_dim)
    return decoder


def tokens_of(modality) -> TokensOf:
    fourier = FourierPositions(num_bands=2, max_resolution=[7, 7])
    return TokensOf(modality=modality, token_dim=13, axes="yx", positions=fourier, dim=11)


QUERIES = {
    "positions": positions,
    "shared positions": lambda: positions(shared=SHARED),
    "tokens": partial(tokens_of, "photo"),
    "tokens alone": lambda: InputTokens(modality="photo", dim=DIM),
}
every_kind = pytest.mark.parametrize("make", QUERIES.values(), ids=QUERIES)


@pytest.fixture
def memory() -> Memory:
    axes = (Axis("y", "px", 0.0, 6.0), Axis("x", "px", 0.0, 10.0))
    tokens = torch.randn(BATCH, 2 + ROWS * COLUMNS, DIM)
    spans = {
        "sound": Span(0, 2, Grid((2,), (Axis("t", "s", 0.0, 1.0),))),
        "photo": Span(2, 2 + ROWS * COLUMNS, Grid((ROWS, COLUMNS), axes)),
    }
    return Memory(torch.randn(BATCH, 17, DIM), tokens=JoinedTokens(tokens, None, spans))


def some_places(count=13) -> torch.Tensor:
    return torch.rand(BATCH, count, 2)


@every_kind
@pytest.mark.parametrize("chunk_size", [1, 4, 99])
def test_chunks_equal_the_whole(make, memory, chunk_size):
    decoder, places = dense(make(), chunk_size=chunk_size), some_places()
    whole = decoder(memory, {"logits": places})["logits"]  # with gradients there are no chunks
    with torch.no_grad():
        assert_close(decoder(memory, {"logits": places})["logits"], whole.detach())
    assert whole.shape == (BATCH, 13, CHANNELS)


def test_queries_keep_their_positions_in_chunks(memory):
    """A window moves on with the queries (Luong et al. 2015)."""
    window = partial(
        Explicit, score=partial(DotProduct, scaled=True), choice=Soft, reach=partial(MonotonicWindow, width=2.0)
    )
    decoder, places = dense(positions()), some_places()
    decoder.cross_block.attention.mechanism = window(num_heads=1, dim=DIM, dropout=0.0, role=DECODE)
    whole = decoder(memory, {"logits": places})["logits"]
    with torch.no_grad():
        assert_close(decoder(memory, {"logits": places})["logits"], whole.detach())


def test_no_more_than_a_chunk_is_processed_at_a_time(memory):
    decoder, lengths = dense(positions(), chunk_size=4), []
    decoder.cross_block.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        decoder(memory, {"logits": some_places(11)})
    assert lengths == [4, 4, 3]


class Cost(TorchDispatchMode):
    """FLOPs of matrix products, and the most bytes of tensors made within it that exist at the same time.

    Views share the bytes of their storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.references: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.flops = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        }
        made = func(*args, **kwargs or {})
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs or {}, out_val=made)
        for one in tree_leaves(made):
            address = one.untyped_storage().data_ptr() if isinstance(one, torch.Tensor) else 0
            if address and (address in self.sizes or address not in given):
                self.references[address] += 1
                self.sizes[address] = one.untyped_storage().nbytes()
                weakref.finalize(one, self.release, address)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made

    def release(self, address: int) -> None:
        self.references[address] -= 1
        if not self.references[address]:
            self.sizes.pop(address)


@every_kind
def test_operations_are_linear_in_the_number_of_places_and_memory_is_bounded_by_the_chunk(make, memory):
    def cost_of(count, chunk_size, gradients=False):
        torch.manual_seed(1)
        decoder, places = dense(make(), chunk_size=chunk_size).eval(), some_places(count)
        # The operations of the fused kernel of the CPU are not counted.
        with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(gradients), Cost() as cost:
            decoder(memory, {"logits": places})
        return cost.flops, cost.peak

    chunk, one_channel = 31, 4 * BATCH
    (once, _), (twice, few), (fourfold, many) = (cost_of(count * chunk, chunk) for count in (1, 2, 4))
    assert fourfold - twice == 2 * (twice - once)
    assert 0 < twice - once < once  # keys and values are projected for the first chunk only
    # All that remains of a chunk are its outputs, which are concatenated at the end.
    assert many - few <= 2 * (2 * chunk) * CHANNELS * one_channel
    assert cost_of(4 * chunk, 4 * chunk)[1] > 2 * many
    # With gradients there is one chunk, and what does not depend on places is computed once.
    first, second, third = (cost_of(count * chunk, chunk, gradients=True)[0] for count in (1, 2, 3))
    assert third - second == second - first > 0


@every_kind
def test_some_places_have_the_outputs_that_they_have_among_all(make, memory):
    decoder, places = dense(make()), some_places()
    some = torch.stack([torch.randperm(13)[:7] for _ in range(BATCH)])
    chosen = places.gather(1, some[..., None].expand(-1, -1, 2))
    found = decoder(memory, {"logits": places})["logits"].gather(1, some[..., None].expand(-1, -1, CHANNELS))
    assert_close(decoder(memory, {"logits": chosen})["logits"], found)


def test_centers_of_cells_are_those_of_every_third_cell_of_a_grid_three_times_as_fine():
    coarse, fine = cell_centers((2, 5)), cell_centers((6, 15)).reshape(6, 15, 2)
    assert_close(fine[1::3, 1::3].flatten(0, 1), coarse)
    assert_close(
        coarse[:6], torch.tensor([[0.25, 0.1], [0.25, 0.3], [0.25, 0.5], [0.25, 0.7], [0.25, 0.9], [0.75, 0.1]])
    )


def test_queries_of_tokens_have_the_token_whose_cell_contains_the_place(memory):
    queries = tokens_of("photo")
    queries.set_input_dim(DIM)
    places = some_places()
    found = queries(memory, places).values
    assert queries.dim == found.shape[-1] == 11 + 13
    assert_close(found[..., :11], Positions.forward(queries, memory, places).values)
    for row in range(BATCH):
        for number, (y, x) in enumerate(places[row].tolist()):
            token = memory.tokens.values[row, 2 + int(y * ROWS) * COLUMNS + int(x * COLUMNS)]
            assert_close(found[row, number, 11:], queries.token_projection(token))
    at_cells = queries(memory, cell_centers((ROWS, COLUMNS)).expand(BATCH, -1, -1)).values
    assert_close(at_cells[..., 11:], queries.token_projection(memory.tokens.values[:, 2:]))


def test_queries_of_tokens_alone_are_the_tokens(memory):
    queries, centers = InputTokens(modality="photo", dim=DIM), cell_centers((ROWS, COLUMNS)).expand(BATCH, -1, -1)
    assert_close(queries(memory, centers).values, memory.tokens.values[:, 2:], atol=0, rtol=0)
    with pytest.raises(ValueError, match=f"dim={DIM} must be that of the input tokens, 7"):
        queries.set_input_dim(7)


def test_places_choose_among_learned_queries(memory):
    decoder = dense(Learned(num_queries=7, dim=11))
    assert (decoder.needs_queries, decoder.accepts_queries) == ({}, {"logits": "places"})
    chosen = torch.randint(7, (BATCH, 4))
    of_all = decoder(memory)["logits"]
    found = decoder(memory, {"logits": (chosen[..., None] + 0.5) / 7})["logits"]
    assert_close(found, of_all.gather(1, chosen[..., None].expand(-1, -1, CHANNELS)))


def test_positions_may_stand_for_the_starts_of_cells():
    fourier = FourierPositions(num_bands=2, max_resolution=[7, 7])
    queries = Positions(axes="yx", positions=fourier, dim=None, starts_of=[3, 5])
    found = queries(Memory(torch.zeros(1, 1, DIM)), cell_centers((3, 5))[None]).values
    coordinates = torch.tensor([[2 * y / 3 - 1, 2 * x / 5 - 1] for y in range(3) for x in range(5)])
    assert_close(found[0, :, :2], coordinates)
    assert found.shape[-1] == queries.dim == fourier.dim


def test_heads_may_share_a_layer_and_have_a_scale_and_no_norm(memory):
    torch.manual_seed(0)
    places = {"logits": some_places()}
    decoder = dense(positions(), norm=False, hidden_dim=7, scale=0.01)
    read = []
    decoder.cross_block.register_forward_hook(lambda *call: read.append(call[2]))
    found = decoder(memory, places)["logits"]
    assert_close(found, decoder.heads["logits"](decoder.shared_head(read[0])) / 100)
    decoder = dense(positions())
    decoder.cross_block.register_forward_hook(lambda *call: read.append(call[2]))
    assert_close(decoder(memory, places)["logits"], decoder.heads["logits"](decoder.norm(read[1])))


def test_tokens_of_a_modality_that_no_sample_has_are_zero(memory):
    queries = tokens_of("depth")
    queries.set_input_dim(DIM)
    found = queries(memory, some_places()).values[..., 11:]
    assert_close(found, queries.token_projection(torch.zeros(DIM)).expand_as(found))


def test_shared_positions_come_first_and_are_those_of_tokens_at_the_same_places():
    grid = Grid((4, 7), (Axis("y", "px", 0.0, 8.0), Axis("x", "px", 0.0, 14.0)))
    of_tokens = SHARED.of_tokens(Tokens(torch.zeros(1, 28, 3), None, grid))
    found = positions(shared=SHARED)(Memory(torch.zeros(1, 1, DIM)), cell_centers((4, 7))[None]).values
    assert_close(found[..., : SHARED.dim], of_tokens)
    over_time = SharedPositions({**SHARED.axes, "t": SharedAxis(num_bands=2, resolution=7)})
    of_tokens = over_time.of_tokens(Tokens(torch.zeros(1, 28, 3), None, grid))
    found = positions(shared=over_time)(Memory(torch.zeros(1, 1, DIM)), cell_centers((4, 7))[None]).values
    assert_close(found[..., : over_time.dim], of_tokens)


@torch.no_grad()
def test_a_query_starts_by_reading_latents_at_its_place():
    places = cell_centers((3, 3))
    block = BlockSpec(num_heads=1, qk_dim=128, v_dim=128)
    queries = positions(shared=SHARED)
    decoder = DenseDecoder(
        dim=SHARED.dim, num_channels=2, queries=queries, attention=block, chunk_size=9, sharpness=3.0
    )
    latents = SHARED.at({"y": places[:, 0], "x": places[:, 1]})
    attention = decoder.cross_block.attention
    found = queries(Memory(latents[None]), places[None]).values
    found = torch.cat([found[..., : SHARED.dim], torch.zeros_like(found[..., SHARED.dim :])], dim=-1)
    scores = attention.query(found)[0] @ attention.key(latents).mT
    assert scores.argmax(dim=1).tolist() == list(range(9))
    narrow = SHARED.dim - 1
    with pytest.raises(ValueError, match=f"^dim={narrow} is less than the {SHARED.dim} features of shared positions"):
        DenseDecoder(dim=narrow, num_channels=2, queries=queries, attention=block, chunk_size=9, sharpness=3.0)


class TestJoined:
    """Several outputs of one cross-attention."""

    def decoder(self) -> DenseDecoder:
        parts = {"photo": positions(), "sound": positions("t", dim=7), "kind": Learned(num_queries=1, dim=3)}
        return dense(Joined(queries=parts), {"photo": 3, "sound": 1, "kind": 7})

    def test_each_output_is_that_of_its_queries_alone(self, memory):
        decoder = self.decoder()
        assert decoder.needs_queries == {"photo": "places", "sound": "places"}
        places = {"photo": some_places(), "sound": torch.rand(BATCH, 2, 1)}
        found = decoder(memory, places)
        assert {name: tuple(values.shape) for name, values in found.items()} == {
            "photo": (BATCH, 13, 3),
            "sound": (BATCH, 2, 1),
            "kind": (BATCH, 7),
        }
        assert_close(decoder(memory, {"sound": places["sound"]}), {"sound": found["sound"], "kind": found["kind"]})
        again = decoder(memory, {**places, "sound": torch.rand(BATCH, 5, 1)})
        assert_close([again["photo"], again["kind"]], [found["photo"], found["kind"]])
        assert_close(decoder(memory, dict(reversed(places.items()))), found)

    def test_an_output_is_identified_by_a_learned_vector(self, memory):
        decoder = self.decoder()
        places = {"photo": some_places(), "sound": torch.rand(BATCH, 2, 1)}
        before = decoder(memory, places)
        with torch.no_grad():
            decoder.queries.embeddings["sound"] += 1.0
        after = decoder(memory, places)
        assert_close(after["photo"], before["photo"])
        assert not torch.allclose(after["sound"], before["sound"])

    def test_shared_positions_are_those_of_all(self):
        with pytest.raises(ValueError, match="shared_positions"):
            Joined(queries={"photo": positions(shared=SHARED), "sound": positions("t")})
        with pytest.raises(ValueError, match="queries="):
            Joined(queries={})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: positions()(Memory(torch.zeros(1, 1, DIM)), torch.rand(1, 2, 3)), "axes"),
        (lambda: positions()(Memory(torch.zeros(1, 1, DIM))), "axes"),
        (lambda: Positions(axes="y", positions=FourierPositions(num_bands=1, max_resolution=(2, 2)), dim=2), "axes"),
        (lambda: dense(positions(), chunk_size=0), "chunk_size=0"),
        (lambda: dense(positions(), num_channels=0), "num_channels=0"),
        (lambda: dense(positions(), hidden_dim=0), "hidden_dim=0"),
        (lambda: InputTokens(modality="photo", dim=2)(Memory(torch.zeros(1, 1, DIM))), "'photo'"),
        (
            lambda: Positions(
                axes="y", positions=FourierPositions(num_bands=1, max_resolution=[2]), dim=2, starts_of=[2, 2]
            ),
            "starts_of",
        ),
        (lambda: dense(positions(), num_channels={"other": 3}), "num_channels"),
        (lambda: dense(positions())(Memory(torch.zeros(1, 1, DIM)), {"other": torch.rand(1, 2, 2)}), "'logits'"),
    ],
)
def test_errors_name_the_value(change, named):
    with pytest.raises(ValueError, match=named):
        change()


class Cells(nn.Module):
    """An encoder whose tokens are the cells of its input, one of a modality's."""

    def __init__(self, axes) -> None:
        super().__init__()
        self.names, self.dim = axes, DIM - MODALITY_DIM
        self.projection = nn.Linear(2, self.dim)

    def forward(self, raw, mask=None) -> Tokens:
        shape = raw.shape[2:]
        grid = Grid(
            tuple(shape), tuple(Axis(name, "", 0.0, size) for name, size in zip(self.names, shape, strict=True))
        )
        return Tokens(self.projection(raw.flatten(2).mT), None if mask is None else mask.flatten(1), grid)


def model(queries, num_channels=CHANNELS) -> Perceiver:
    torch.manual_seed(0)
    encoders = {"photo": Cells("yx"), "sound": Cells("t")}
    block = BlockSpec(num_heads=1)
    schedule = Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1)
    memory = partial(
        LatentArray, num_latents=7, dim=DIM, cross_attention=block, self_attention=block, schedule=schedule
    )
    decoder = dense(queries, num_channels)
    return Perceiver(encoders=encoders, memory=memory, decoder=decoder).eval()


INPUTS = {"photo": torch.randn(BATCH, 2, ROWS, COLUMNS), "sound": torch.randn(BATCH, 2, 2)}


@every_kind
@torch.no_grad()
def test_the_order_of_modalities_changes_nothing_and_a_missing_one_equals_its_mask(make):
    network, places = model(make()), {"logits": some_places()}
    expected = network(INPUTS, None, places)["logits"]
    assert_close(network(dict(reversed(INPUTS.items())), None, places)["logits"], expected)
    absent = network(INPUTS, {"photo": torch.zeros(BATCH, dtype=torch.bool)}, places)["logits"]
    assert_close(network({"sound": INPUTS["sound"]}, None, places)["logits"], absent)


class TestInspection:
    """An output place is traced back to what was read for it."""

    @pytest.mark.parametrize("decoders", ["one", "joint"])
    def test_chunks_are_captured_as_one_layer(self, decoders):
        network, places = model(positions()), some_places()
        output = "logits"
        if decoders == "joint":
            parts = {"map": network.decoder, "kind": PooledDecoder(dim=DIM, num_classes=2)}
            network.decoder, output = JointDecoder(decoders=parts), "map/logits"
        with capture(network) as found:
            network(INPUTS, None, {output: places})
        record = found.for_output(output)
        assert len(record.decode_layers) == 1
        assert record.num_outputs == 13
        of_all = found.rollout(output=output).inputs
        network.get_submodule("decoder.decoders.map" if decoders == "joint" else "decoder").chunk_size = 99
        with capture(network) as whole:
            network(INPUTS, None, {output: places})
        assert_close(of_all, whole.rollout(output=output).inputs)
        assert_close(
            found.rollout([2, 11], output=output, alpha="norm").inputs,
            whole.rollout(output=output, alpha="norm").inputs[:, [2, 11]],
        )

    def test_an_output_of_several_is_rolled_back_from_its_own_queries(self):
        network = model(
            Joined(queries={"photo": positions(), "sound": positions("t", dim=7)}), {"photo": 3, "sound": 1}
        )
        places = {"photo": some_places(), "sound": torch.rand(BATCH, 2, 1)}
        with capture(network) as found:
            network(INPUTS, None, places)
        (layer,) = (found.layers[name] for name in found.decode_layers)
        assert layer.num_queries == 13 + 2
        for output, queries in (("photo", slice(13)), ("sound", slice(13, 15))):
            part = found.for_output(output)
            (own,) = (part.layers[name] for name in part.decode_layers)
            assert_close(own.weights(), layer.weights()[:, :, queries])
            assert_close(
                found.rollout(output=output).inputs.sum(-1) + found.rollout(output=output).residual,
                torch.ones(BATCH, part.num_outputs),
            )
        with capture(network, gradients=True) as found:
            scores = network(INPUTS, None, places)["sound"].square().sum(dim=2)
            assert found.relevance(scores).sum() > 0
