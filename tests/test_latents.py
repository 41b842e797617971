"""The latent array: order of blocks and shared weights."""

from itertools import product

import pytest
import torch

from perceiver.attention import CrossBlock, SelfBlock
from perceiver.latents import LatentArray, Schedule
from perceiver.positions import SharedAxis, SharedPositions
from perceiver.types import Axis, Grid, JoinedTokens, Span, Tokens
from tests.models import CROSS, DIM, PERCEIVER, PERCEIVER_IO, SELF

INPUT_DIM = 31
SHARING = ["none", "all", "all_but_first"]


def latent_array(num_latents=11, *, num_self_attends=1, shared_positions=None, sharpness=1.0, **schedule):
    return LatentArray(
        shared_positions=shared_positions,
        sharpness=sharpness,
        num_latents=num_latents,
        dim=DIM,
        input_dim=INPUT_DIM,
        cross_attention=CROSS,
        self_attention=SELF,
        schedule=Schedule(num_self_attends=num_self_attends, **schedule),
    )


def tokens():
    return JoinedTokens(torch.randn(2, 13, INPUT_DIM), None, {})


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def order_of_blocks(latents):
    """The blocks in the order they run: c1 is the second cross block, s0.1 the second layer of the first group."""
    order = []
    names = {f"c{i}": block for i, block in enumerate(latents.cross_blocks)} | {
        f"s{i}.{j}": block for i, group in enumerate(latents.self_blocks) for j, block in enumerate(group)
    }
    for name, block in names.items():
        block.register_forward_hook(lambda *_, name=name: order.append(name))
    latents(tokens())
    return " ".join(order)


@pytest.mark.parametrize(("cross_sharing", "block_sharing"), [*product(SHARING, SHARING)])
def test_sharing_leaves_the_documented_number_of_weights(cross_sharing, block_sharing):
    unique = {"none": lambda count: count, "all": lambda _: 1, "all_but_first": lambda count: min(count, 2)}
    cross = num_parameters(CrossBlock(query_dim=DIM, input_dim=INPUT_DIM, spec=CROSS))
    self_attend = num_parameters(SelfBlock(dim=DIM, spec=SELF))
    for num_cross, num_blocks, num_self in ((1, 1, 1), (1, 3, 2), (2, 3, 1), (4, 5, 2), (3, 3, 0)):
        counts = {"num_cross_attends": num_cross, "num_blocks": num_blocks, "num_self_attends": num_self}
        latents = latent_array(**counts, cross_sharing=cross_sharing, block_sharing=block_sharing)
        assert num_parameters(latents) == (
            11 * DIM
            + unique[cross_sharing](num_cross) * cross
            + unique[block_sharing](num_blocks) * num_self * self_attend
        )


@pytest.mark.parametrize(
    ("schedule", "order"),
    [
        (PERCEIVER, "c0 s0.0 s0.1 c1 s0.0 s0.1 c1 s0.0 s0.1"),
        (PERCEIVER_IO, "c0 s0.0 s0.1 s0.0 s0.1 s0.0 s0.1"),
        ({"num_cross_attends": 2, "num_blocks": 3}, "c0 s0.0 s0.1 c1 s1.0 s1.1 s2.0 s2.1"),
        (
            {"num_cross_attends": 2, "num_blocks": 3, "cross_sharing": "all", "block_sharing": "all_but_first"},
            "c0 s0.0 s0.1 c0 s1.0 s1.1 s1.0 s1.1",
        ),
    ],
    ids=["Perceiver", "Perceiver IO", "nothing shared", "mixed"],
)
def test_blocks_run_in_the_order_of_the_schedule(schedule, order):
    assert order_of_blocks(latent_array(num_self_attends=2, **schedule)) == order


@pytest.mark.parametrize(("num_latents", "num_self_attends"), [(1, 1), (11, 0), (1, 0)])
def test_one_latent_and_no_self_attends_work(num_latents, num_self_attends):
    memory = latent_array(num_latents, num_self_attends=num_self_attends, **PERCEIVER)(tokens())
    assert memory.values.shape == (2, num_latents, DIM)
    assert memory.values.isfinite().all()
    assert memory.mask is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_self_attends": -1}, "num_self_attends=-1"),
        ({"num_cross_attends": 0}, "num_cross_attends=0"),
        ({"num_cross_attends": 4}, "num_cross_attends=4 .*num_blocks=3"),
        ({"num_latents": 0}, "num_latents=0"),
        ({"reads": [["image"], ["text"]]}, r"reads=.*num_cross_attends=3"),
        ({"reads": [["image"], [], ["text"]]}, r"reads=.*num_cross_attends=3"),
    ],
)
def test_counts_out_of_range_are_named_in_the_error(wrong, named):
    with pytest.raises(ValueError, match=named):
        latent_array(**(PERCEIVER | wrong))


def test_a_cross_attend_reads_its_modalities_only():
    grid = Grid((5,), (Axis("place", "", 0.0, 5.0),))
    spans = {"image": Span(0, 5, grid), "text": Span(5, 10, grid), "audio": Span(10, 15, grid)}
    values, mask = torch.randn(2, 15, INPUT_DIM), torch.rand(2, 15) < 0.7
    mask[:, ::5] = True
    latents = latent_array(num_cross_attends=2, num_blocks=2, reads=[["image"], ["audio", "text"]])
    reads: list[torch.Tensor] = []
    for block in latents.cross_blocks:
        block.attention.register_forward_hook(lambda *args: reads.append(args[-1]))

    def first_and_second(values, mask=mask, spans=spans):
        reads.clear()
        latents(JoinedTokens(values, mask, spans))
        return list(reads)

    first, second = first_and_second(values)
    assert torch.equal(first_and_second(values + torch.arange(15).ge(5)[:, None])[0], first)
    assert not torch.equal(first_and_second(values + torch.arange(15).lt(5)[:, None])[0], first)
    # The second depends on all through the latents: with the image unchanged, on text and audio.
    for start in (5, 10):
        other = values.clone()
        other[:, start : start + 5] += 1.0
        assert not torch.equal(first_and_second(other)[1], second)
    # A missing modality is a masked one.
    there = torch.arange(15) < 10
    masked = first_and_second(values, mask & there)[1]
    torch.testing.assert_close(first_and_second(values[:, :10], mask[:, :10], dict(list(spans.items())[:2]))[1], masked)


def test_with_shared_positions_latents_start_at_places_and_prefer_tokens_there():
    positions = SharedPositions({"time": SharedAxis(start=0.0, stop=7.0, num_bands=6, resolution=14)})
    # Two latents for each of seven times; at each time three tokens of other modalities.
    grid = Grid((7, 3), (Axis("time", "s", 0.0, 7.0), Axis("y", "px", 0.0, 3.0)))
    placed = positions.of_tokens(Tokens(torch.zeros(1, 21, 1), None, grid))
    values = torch.cat([placed, torch.randn(1, 21, INPUT_DIM - positions.dim)], dim=-1)
    own, uniform = [], []
    for _ in range(7):  # the mean over random weights
        latents = latent_array(14, shared_positions=positions, sharpness=3.0, **PERCEIVER_IO)
        attention, block = latents.cross_blocks[0].attention, latents.cross_blocks[0]
        queries, keys = attention.query(block.query_norm(latents.array)), attention.key(block.input_norm(values[0]))
        at_time = (queries @ keys.T / keys.shape[-1] ** 0.5).softmax(dim=-1).unflatten(1, (7, 3)).sum(dim=2)
        own.append(at_time[range(14), [latent // 2 for latent in range(14)]].mean())
        uniform.append(at_time.mean())
    assert sum(own) > 3 * sum(uniform)


def test_places_of_latents_are_not_changed_before_training():
    positions = SharedPositions({"time": SharedAxis(start=0.0, stop=7.0, num_bands=2, resolution=14)})
    latents = latent_array(5, shared_positions=positions, **PERCEIVER_IO)
    tokens = JoinedTokens(torch.randn(2, 7, INPUT_DIM), None, {})
    found = latents(tokens).values
    torch.testing.assert_close(found[..., : positions.dim], positions.spread(5).expand(2, -1, -1))
    assert not found[..., positions.dim :].isclose(latents.array[:, positions.dim :]).any()


def test_a_latent_that_is_too_narrow_for_its_place_is_an_error():
    positions = SharedPositions({"time": SharedAxis(num_bands=11, resolution=14)})
    with pytest.raises(ValueError, match=f"dim={DIM} .* {positions.dim} "):
        latent_array(shared_positions=positions, **PERCEIVER_IO)
