"""Fourier and learned positions of grids of any shape, anchored or stretched."""

from itertools import product
from math import cos, pi, sin

import pytest
import torch
from torch.testing import assert_close

from perceiver.positions import FourierPositions, LearnedPositions, SharedAxis, SharedPositions
from perceiver.types import Axis, Grid, Tokens

GRIDS = [(7,), (5, 7), (3, 5, 7)]
OTHER_GRIDS = [(11,), (11, 3), (2, 11, 13)]

trained_and_other = pytest.mark.parametrize(("trained", "other"), [*zip(GRIDS, OTHER_GRIDS, strict=True)], ids=str)


def slow_fourier(shape, max_resolution, num_bands):
    """The module's docstring, one number at a time."""

    def angles(cell):
        for x, resolution in zip(coordinates(cell), max_resolution, strict=True):
            for band in range(num_bands):
                yield pi * x * (1 + (resolution / 2 - 1) * band / (num_bands - 1))

    def coordinates(cell):
        return [-1 + 2 * index / (size - 1) for index, size in zip(cell, shape, strict=True)]

    cells = product(*(range(size) for size in shape))
    return torch.tensor(
        [[*coordinates(cell), *(sin(a) for a in angles(cell)), *(cos(a) for a in angles(cell))] for cell in cells]
    )


@trained_and_other
def test_fourier_features_have_the_documented_values_order_and_width_at_any_resolution(trained, other):
    positions = FourierPositions(num_bands=4, max_resolution=trained)
    for shape in (trained, other):
        assert positions.dim == positions(shape).shape[1] == len(shape) * (2 * 4 + 1)
        assert_close(positions(shape), slow_fourier(shape, trained, 4), atol=1e-5, rtol=0)
    anchored = FourierPositions(num_bands=4, max_resolution=trained, anchored=True)
    assert_close(anchored(trained), positions(trained))


def test_fourier_positions_take_one_band_and_an_axis_of_one_cell_and_have_nothing_to_learn_or_save():
    positions = FourierPositions(num_bands=1, max_resolution=(5, 7))
    assert positions((1, 3)).shape == (3, 6)
    assert positions((1, 3)).isfinite().all()
    assert not list(positions.parameters())
    assert not positions.state_dict()


@pytest.mark.parametrize("anchored", [False, True])
def test_a_change_of_precision_does_not_round_fourier_positions(anchored):
    positions = FourierPositions(num_bands=5, max_resolution=(211,), anchored=anchored)
    exact = positions((13,))
    assert_close(positions.bfloat16()((13,)), exact, atol=0, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda trained: FourierPositions(num_bands=3, max_resolution=trained, anchored=True),
        lambda trained: LearnedPositions(shape=[11] * len(trained), dim=17, project_dim=19, anchored=True),
    ],
    ids=["fourier", "learned"],
)
@pytest.mark.parametrize(
    ("trained", "shorter", "longer"),
    [
        *(((7,), (5,), (11,)), ((1,), (1,), (3,)), ((5, 7), (2, 7), (3, 11))),
        *(((5, 7), (5, 3), (5, 7)), ((1, 7), (1, 1), (5, 2)), ((3, 5, 7), (2, 3, 5), (5, 7, 11))),
    ],
    ids=str,
)
def test_anchored_the_first_cells_of_a_longer_grid_are_those_of_a_shorter_one(make, trained, shorter, longer):
    positions = make(trained)
    first = positions(longer).unflatten(0, longer)[tuple(slice(size) for size in shorter)]
    assert_close(first.flatten(0, -2), positions(shorter), atol=1e-5, rtol=0)


def test_anchored_coordinates_continue_in_equal_steps_beyond_the_trained_ones():
    positions = FourierPositions(num_bands=2, max_resolution=(5, 3), anchored=True)
    coordinates = positions((7, 2))[:, :2].unflatten(0, (7, 2))
    assert_close(coordinates[:, 1, 0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]))
    assert_close(coordinates[3, :, 1], torch.tensor([-1.0, 0.0]))
    frequencies = torch.tensor([[1.0, 5 / 2], [1.0, 3 / 2]])
    angles = (pi * coordinates[..., None] * frequencies).flatten(2)
    expected = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(0, 1)
    assert_close(positions((7, 2))[:, 2:], expected, atol=1e-5, rtol=0)


@trained_and_other
@pytest.mark.parametrize("project_dim", [None, 19])
def test_learned_positions_are_the_embedding_in_row_major_order_and_one_vector_per_cell(trained, other, project_dim):
    positions = LearnedPositions(shape=trained, dim=17, project_dim=project_dim)
    expected = positions.projection(positions.embedding.flatten(0, -2))
    assert_close(positions(trained), expected, atol=0, rtol=0)
    assert positions.dim == (project_dim or 17)
    assert positions(other).shape == (torch.Size(other).numel(), positions.dim)
    anchored = LearnedPositions(shape=trained, dim=17, project_dim=project_dim, anchored=True)
    anchored.load_state_dict(positions.state_dict())
    smaller = tuple(size - 1 for size in trained)
    first = positions.embedding[tuple(slice(size) for size in smaller)]
    assert_close(anchored(smaller), positions.projection(first.flatten(0, -2)), atol=0, rtol=0)
    assert_close(anchored(trained), expected, atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"shape=.*no positions"):
        anchored(tuple(size + 4 for size in trained))


@trained_and_other
def test_interpolation_keeps_an_embedding_constant_along_the_axes_where_it_is(trained, other):
    positions = LearnedPositions(shape=trained, dim=17)
    constant = torch.randn(17)
    positions.embedding.data.copy_(constant)
    assert_close(positions(other), constant.expand_as(positions(other)), atol=1e-5, rtol=0)
    positions.embedding.data.copy_(torch.randn(trained[0], *[1] * (len(trained) - 1), 17))
    rows = positions(other).unflatten(0, (other[0], -1))
    assert_close(rows, rows[:, :1].expand_as(rows), atol=1e-5, rtol=0)
    assert not torch.allclose(rows[0], rows[-1])


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: FourierPositions(num_bands=2, max_resolution=(5, 7), **options),
        lambda **options: LearnedPositions(shape=(5, 7), dim=3, **options),
    ],
    ids=["fourier", "learned"],
)
def test_a_grid_with_another_number_of_axes_is_an_error_that_names_both(make, anchored):
    with pytest.raises(ValueError, match=r"\[5, 7\].*\[3, 5, 7\]"):
        make(anchored=anchored)((3, 5, 7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FourierPositions(num_bands=0, max_resolution=(5,)), "num_bands=0 "),
        (lambda: FourierPositions(num_bands=2, max_resolution=(5, 0)), r"max_resolution=\[5, 0\] "),
        (lambda: FourierPositions(num_bands=2, max_resolution=()), r"max_resolution=\[\] "),
        (lambda: LearnedPositions(shape=(5, 0), dim=3), "shape=0 "),
        (lambda: LearnedPositions(shape=(5,), dim=0), "dim=0 "),
        (lambda: LearnedPositions(shape=(5,), dim=3, project_dim=0), "project_dim=0 "),
        (lambda: LearnedPositions(shape=(2, 3, 5, 7), dim=3), r"shape=\[2, 3, 5, 7\]"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


TIME = {"time": SharedAxis(start=0.5, stop=3.5, num_bands=3, resolution=11)}
IN_IMAGE = {"y": SharedAxis(num_bands=2, resolution=5), "x": SharedAxis(num_bands=3, resolution=7)}


def tokens_on(shape, axes, mask=None, batch=2):
    grid = Grid(shape, tuple(Axis(name, "", *ends) for name, ends in axes.items()))
    return Tokens(torch.randn(batch, grid.num_tokens, 3), mask, grid)


class TestSharedPositions:
    def test_features_of_a_cell_are_those_of_its_center_in_units_of_the_axis(self):
        features = SharedPositions(TIME).of_tokens(tokens_on((2, 5), {"y": (0.0, 2.0), "time": (1.0, 2.0)}))
        for cell in range(5):
            x = 2 * (1.0 + (cell + 0.5) / 5 - 0.5) / 3.0 - 1
            angles = [pi * x * frequency for frequency in (1.0, 3.25, 5.5)]
            expected = torch.tensor([x, *map(sin, angles), *map(cos, angles), 0.0])
            for row in range(2):
                assert_close(features[:, 5 * row + cell], expected.expand(2, -1))

    def test_equal_times_have_equal_features_in_the_same_columns_of_all_modalities(self):
        positions = SharedPositions(TIME | IN_IMAGE)
        sound = positions.of_tokens(tokens_on((6,), {"time": (0.0, 3.0)}))
        video = positions.of_tokens(tokens_on((2, 5, 7), {"time": (0.0, 3.0), "y": (0, 5), "x": (0, 7)}))
        thirds = positions.of_tokens(tokens_on((2,), {"time": (0.0, 3.0)}))
        width = TIME["time"].dim
        assert_close(thirds[..., :width], video.unflatten(1, (2, 35))[:, :, 0, :width])
        assert_close(sound[:, 1::3, :width], thirds[..., :width])  # cells 1 and 4 have the same centers
        # What has no place on an axis resembles no place on it, but itself as much as places do themselves.
        assert_close(sound[..., width:] @ video[..., width:].mT, torch.zeros(2, 6, 70))
        assert_close(sound[..., width:].square().sum(dim=-1), torch.full((2, 6), 2.0 + 3.0))

    def test_a_graph_takes_batches_of_any_size(self):
        class Features(torch.nn.Module):
            def forward(self, values):
                grid = Grid((7,), (Axis("time", "s", 0.0, 3.0),))
                mask = torch.ones_like(values[..., 0], dtype=torch.bool)
                return shared.of_tokens(Tokens(values, mask, grid))

        shared = SharedPositions(axes={"time": SharedAxis(num_bands=2, resolution=5, start=0.0, stop=3.0)})
        axes = ({0: torch.export.Dim("batch")},)
        graph = torch.export.export(Features(), (torch.zeros(2, 7, 3),), dynamic_shapes=axes).module()
        assert_close(graph(torch.zeros(5, 7, 3)), Features()(torch.zeros(5, 7, 3)))

    def test_latents_start_at_the_cells_of_grids_and_then_cover_the_axes(self):
        grids = [{"y": 2, "x": 3}, {"time": 5}, {}]
        positions = SharedPositions(TIME | IN_IMAGE, grids)
        picture = positions.of_tokens(tokens_on((2, 3), {"y": (0, 1), "x": (0, 1)}, batch=1))[0]
        sound = positions.of_tokens(tokens_on((5,), {"time": (0.5, 3.5)}, batch=1))[0]
        label = positions.of_tokens(tokens_on((1,), {"label": (0, 1)}, batch=1))[0]
        spread = positions.spread(17)
        assert_close(spread[:12], torch.cat([picture, sound, label]))
        assert_close(spread[12:], SharedPositions(TIME | IN_IMAGE).spread(5))
        with pytest.raises(ValueError, match="12 places, more than 11 latents"):
            positions.spread(11)

    def test_an_axis_without_a_range_spans_the_real_cells_of_each_sample(self):
        positions, axes = SharedPositions(IN_IMAGE), {"y": (0.0, 9.0), "x": (0.0, 9.0)}
        mask = torch.zeros(2, 3, 5, dtype=torch.bool)
        mask[0, :2, :3], mask[1] = True, True
        padded = positions.of_tokens(tokens_on((3, 5), axes, mask.flatten(1))).unflatten(1, (3, 5))
        alone = positions.of_tokens(tokens_on((2, 3), axes)).unflatten(1, (2, 3))
        assert_close(padded[0, :2, :3], alone[0])
        assert_close(padded[1], positions.of_tokens(tokens_on((3, 5), axes)).unflatten(1, (3, 5))[1])

    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (lambda: SharedAxis(num_bands=0, resolution=3), "num_bands=0"),
            (lambda: SharedAxis(num_bands=2, resolution=1), "resolution=1"),
            (lambda: SharedAxis(num_bands=2, resolution=3, start=1.0), "stop=None"),
            (lambda: SharedAxis(num_bands=2, resolution=3, start=1.0, stop=1.0), "start=1.0"),
            (lambda: SharedPositions({}), "axes"),
            (lambda: SharedPositions(TIME, [{"y": 2}]), "'y': 2"),
            (lambda: SharedPositions(TIME, [{"time": 0}]), "'time': 0"),
        ],
    )
    def test_wrong_axes_are_refused_by_name(self, make, named):
        with pytest.raises(ValueError, match=named):
            make()
