"""What a browser unpacks is what was packed."""

import numpy as np
import pytest

from perceiver.inspection.explorer.packing import packed, pooling, sum_pooled
from tests.inspection.explanations import unpacked

EVERYTHING = 10**9
RANDOM = np.random.default_rng(7)
MAPS = {
    "sharp": RANDOM.dirichlet(np.full(143, 0.03), 5),
    "even": np.full((5, 143), 1 / 143),
    "nearly even": RANDOM.uniform(0.9, 1.1, (5, 143)) / 143,
    "one cell": np.eye(143)[[0, 17, 71, 130, 142]],
    "nothing": np.zeros((5, 143)),
    "tiny": RANDOM.integers(0, 7, (5, 143)) * np.finfo(np.float16).smallest_subnormal,
    "wide": 10.0 ** RANDOM.uniform(-7, 0, (5, 143)),
    "some empty": RANDOM.uniform(0, 1, (5, 143)) * np.array([[1], [0], [1], [0], [1]]),
}


@pytest.mark.parametrize(("kind", "dtype"), list(zip(MAPS, 3 * [np.float64, np.float32, np.float16], strict=False)))
def test_the_mass_of_every_map_is_kept_and_its_weights_are_as_exact_as_their_levels(kind, dtype):
    maps = MAPS[kind].astype(dtype).reshape(5, 11, 13)
    found = unpacked(packed({"image": maps}, max_cells=EVERYTHING))["image"]
    assert found.shape == maps.shape
    for values, expected in zip(found, maps.astype(np.float64), strict=True):
        assert values.sum() == pytest.approx(expected.sum(), rel=1e-6)
        if not expected.any():
            assert not values.any()
            continue
        # Next to the brightest cell, the square root of each is off by half a level at most.
        roots, half = np.sqrt(expected / expected.max()), 0.5 / 255
        shares = values / values.max()
        assert (shares <= (roots + half + 1e-9) ** 2).all()
        assert (shares >= np.maximum(roots - half - 1e-9, 0) ** 2).all()
        assert values.max() == pytest.approx(expected.max(), rel=0.03), "weights, too, and not only shares"
        assert (values == values.max())[expected == expected.max()].all()


def test_each_map_of_each_modality_has_a_scale_of_its_own():
    image = RANDOM.uniform(0, 1, (2, 3, 5, 7)) * np.array([1e-6, 1.0])[:, None, None, None]
    sound = RANDOM.uniform(0, 1, (2, 3, 1, 11)) * np.array([1e-3, 1.0, 1e3])[:, None, None]
    found = unpacked(packed({"image": image, "sound": sound}, max_cells=EVERYTHING))
    assert list(found) == ["image", "sound"]
    for name, maps in (("image", image), ("sound", sound)):
        assert found[name].shape == maps.shape
        np.testing.assert_allclose(found[name].sum(axis=(-2, -1)), maps.sum(axis=(-2, -1)), rtol=1e-6)
        np.testing.assert_allclose(found[name], maps, atol=0.005 * 1e3, rtol=0.1)
        relative = found[name] / found[name].max(axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(relative, maps / maps.max(axis=(-2, -1), keepdims=True), atol=0.005)


@pytest.mark.parametrize(
    ("rows", "columns"), [(224, 224), (11, 13), (1, 13), (13, 1), (3, 997), (1, 50_021), (1, 1), (223, 7)]
)
@pytest.mark.parametrize("max_cells", [1, 11, 784, 50_176])
def test_maps_are_pooled_no_more_than_needed_and_as_much_as_that(rows, columns, max_cells):
    def num_cells(factor: int) -> int:
        return -(-rows // min(factor, rows)) * -(-columns // factor)

    down, across = pooling(rows, columns, max_cells)
    assert down == min(across, rows)
    assert num_cells(across) <= max_cells
    assert across == 1 or num_cells(across - 1) > max_cells
    maps = np.broadcast_to(np.float32(1 / (rows * columns)), (2, rows, columns))
    content = packed({"image": maps}, max_cells=max_cells)
    (cells,) = content["cells"]
    assert cells["pooled"] == [down, across]
    assert cells["shape"][0] * cells["shape"][1] == num_cells(across)
    np.testing.assert_allclose(unpacked(content)["image"].sum(axis=(1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("factors", [(1, 1), (2, 3), (1, 5), (7, 11), (19, 23)])
def test_cells_are_sums_over_blocks_the_last_of_which_may_be_smaller(factors):
    values = RANDOM.uniform(0, 1, (3, 2, 11, 13))
    found = sum_pooled(values, factors)
    down, across = factors
    assert found.shape == (3, 2, -(-11 // down), -(-13 // across))
    for row in range(found.shape[-2]):
        for column in range(found.shape[-1]):
            part = values[..., row * down : (row + 1) * down, column * across : (column + 1) * across]
            np.testing.assert_allclose(found[..., row, column], part.sum(axis=(-2, -1)))
    np.testing.assert_allclose(found.sum(axis=(-2, -1)), values.sum(axis=(-2, -1)))
