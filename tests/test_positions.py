from itertools import product
from math import cos, pi, sin

import pytest
import torch
from torch.testing import assert_close

from perceiver.positions import FourierPositions, LearnedPositions

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


@pytest.mark.parametrize("shape", GRIDS + OTHER_GRIDS, ids=str)
def test_fourier_features_have_the_documented_values_order_and_width(shape):
    max_resolution, num_bands = GRIDS[len(shape) - 1], 4
    positions = FourierPositions(num_bands=num_bands, max_resolution=max_resolution)
    features = positions(shape)
    assert positions.dim == features.shape[1] == len(shape) * (2 * num_bands + 1)
    assert_close(features, slow_fourier(shape, max_resolution, num_bands), atol=1e-5, rtol=0)


@trained_and_other
def test_coordinates_span_the_same_range_and_corners_have_the_same_features_at_any_resolution(trained, other):
    positions = FourierPositions(num_bands=3, max_resolution=trained)

    def corners(shape):
        return positions(shape).unflatten(0, shape)[tuple(slice(None, None, size - 1) for size in shape)]

    coordinates = positions(other)[:, : len(other)]
    assert_close(coordinates.amin(dim=0), -torch.ones(len(other)))
    assert_close(coordinates.amax(dim=0), torch.ones(len(other)))
    assert_close(corners(other), corners(trained))


@trained_and_other
def test_anchored_the_trained_grid_is_what_it_is_without(trained, other):
    anchored = FourierPositions(num_bands=3, max_resolution=trained, anchored=True)
    assert_close(anchored(trained), FourierPositions(num_bands=3, max_resolution=trained)(trained))
    assert anchored.dim == anchored(other).shape[1]


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
        ((7,), (5,), (11,)),
        ((1,), (1,), (3,)),
        ((5, 7), (2, 7), (3, 11)),
        ((5, 7), (5, 3), (5, 7)),
        ((1, 7), (1, 1), (5, 2)),
        ((3, 5, 7), (2, 3, 5), (5, 7, 11)),
    ],
    ids=str,
)
def test_anchored_the_first_cells_of_a_longer_grid_are_those_of_a_shorter_one(make, trained, shorter, longer):
    positions = make(trained)
    first = positions(longer).unflatten(0, longer)[tuple(slice(size) for size in shorter)]
    assert_close(first.flatten(0, -2), positions(shorter), atol=1e-5, rtol=0)


def test_anchored_coordinates_go_on_in_equal_steps_beyond_the_trained_ones():
    positions = FourierPositions(num_bands=2, max_resolution=(5, 3), anchored=True)
    coordinates = positions((7, 2))[:, :2].unflatten(0, (7, 2))
    assert_close(coordinates[:, 1, 0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]))
    assert_close(coordinates[3, :, 1], torch.tensor([-1.0, 0.0]))
    frequencies = torch.tensor([[1.0, 5 / 2], [1.0, 3 / 2]])
    angles = (pi * coordinates[..., None] * frequencies).flatten(2)
    assert_close(
        positions((7, 2))[:, 2:], torch.cat([angles.sin(), angles.cos()], dim=2).flatten(0, 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("trained", "smaller"), [((7,), (5,)), ((5, 7), (5, 3)), ((3, 5, 7), (2, 5, 3))], ids=str)
@pytest.mark.parametrize("project_dim", [None, 19])
def test_anchored_learned_positions_are_the_first_of_the_embedding(trained, smaller, project_dim):
    positions = LearnedPositions(shape=trained, dim=17, project_dim=project_dim, anchored=True)
    first = positions.embedding[tuple(slice(size) for size in smaller)]
    assert_close(positions(smaller), positions.projection(first.flatten(0, -2)), atol=0, rtol=0)
    unanchored = LearnedPositions(shape=trained, dim=17, project_dim=project_dim)
    unanchored.load_state_dict(positions.state_dict())
    assert_close(positions(trained), unanchored(trained), atol=0, rtol=0)


def test_anchored_learned_positions_have_none_for_a_longer_grid():
    positions = LearnedPositions(shape=(5, 7), dim=17, anchored=True)
    for longer in ((5, 11), (11, 3)):
        with pytest.raises(ValueError, match=rf"shape=\[5, 7\].*\[{longer[0]}, {longer[1]}\]"):
            positions(longer)


def test_fourier_positions_take_one_band_and_an_axis_of_one_cell():
    features = FourierPositions(num_bands=1, max_resolution=(5, 7))((1, 3))
    assert features.shape == (3, 6)
    assert features.isfinite().all()


@pytest.mark.parametrize("anchored", [False, True])
def test_a_change_of_precision_does_not_round_fourier_positions(anchored):
    positions = FourierPositions(num_bands=5, max_resolution=(211,), anchored=anchored)
    exact = positions((13,))
    assert_close(positions.bfloat16()((13,)), exact, atol=0, rtol=0)


def test_fourier_positions_have_nothing_to_learn_or_to_save():
    positions = FourierPositions(num_bands=3, max_resolution=(5, 7))
    assert not list(positions.parameters())
    assert not positions.state_dict()


@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_learned_positions_at_the_trained_grid_are_the_embedding_in_row_major_order(shape):
    positions = LearnedPositions(shape=shape, dim=17)
    features = positions(shape)
    for number, cell in enumerate(product(*(range(size) for size in shape))):
        assert_close(features[number], positions.embedding[cell], atol=0, rtol=0)


@trained_and_other
@pytest.mark.parametrize("project_dim", [None, 19])
def test_learned_positions_have_one_vector_per_cell_at_another_grid(trained, other, project_dim):
    positions = LearnedPositions(shape=trained, dim=17, project_dim=project_dim)
    assert positions.dim == (project_dim or 17)
    assert positions(other).shape == (torch.Size(other).numel(), positions.dim)


@trained_and_other
def test_interpolation_keeps_a_constant_embedding_constant(trained, other):
    positions = LearnedPositions(shape=trained, dim=17)
    constant = torch.randn(17)
    positions.embedding.data.copy_(constant)
    assert_close(positions(other), constant.expand_as(positions(other)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("trained", "other"), [((5, 7), (11, 3)), ((3, 5, 7), (2, 11, 13))], ids=str)
def test_interpolation_keeps_what_varies_along_the_first_axis_only_constant_along_the_others(trained, other):
    positions = LearnedPositions(shape=trained, dim=17)
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
    ("make", "named"),
    [
        (lambda: FourierPositions(num_bands=0, max_resolution=(5,)), "num_bands=0"),
        (lambda: FourierPositions(num_bands=2, max_resolution=(5, 0)), r"max_resolution=\[5, 0\]"),
        (lambda: FourierPositions(num_bands=2, max_resolution=()), r"max_resolution=\[\]"),
        (lambda: LearnedPositions(shape=(5, 0), dim=3), "shape=0"),
        (lambda: LearnedPositions(shape=(5,), dim=0), "dim=0"),
        (lambda: LearnedPositions(shape=(5,), dim=3, project_dim=0), "project_dim=0"),
    ],
)
def test_sizes_that_make_no_positions_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=f"^{named} "):
        make()


def test_learned_positions_over_four_axes_are_an_error():
    with pytest.raises(ValueError, match=r"shape=\[2, 3, 5, 7\]"):
        LearnedPositions(shape=(2, 3, 5, 7), dim=3)
