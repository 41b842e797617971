"""Noise of synthetic data is normal and independent, and a function of its generator."""

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from perceiver.data.synthetic.noise import normal


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 5, 7), (0,)])
def test_values_have_the_shape_and_follow_from_the_generator(shape):
    first, again = (np.random.default_rng(3) for _ in range(2))
    values = normal(first, *shape)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert np.array_equal(values, normal(again, *shape))
    if values.size:
        assert not np.isin(normal(first, *shape), values).any()
        assert np.isfinite(values).all()


def test_values_are_standard_normal_also_in_the_tails():
    values = normal(np.random.default_rng(5), 200_003)
    assert kstest(values.astype(float), "norm").pvalue > 0.01
    for limit, probability in ((2.0, 0.0455), (3.0, 0.0027), (4.0, 6.33e-5)):
        expected = probability * len(values)
        assert abs((np.abs(values) > limit).sum() - expected) < 4 * np.sqrt(expected)


def test_values_are_independent_of_each_other():
    """The spectrum is that of white noise; the two values of a pair, half an array apart, are not related."""
    values = normal(np.random.default_rng(7), 100_003).astype(float)
    power = np.abs(np.fft.rfft(values))[1:] ** 2 / len(values)  # each exponential, of mean 1
    for part in np.array_split(power, 11):
        assert 0.001 < chi2.cdf(2 * part.sum(), 2 * len(part)) < 0.999
    first, second = np.split(values[:-1], 2)
    for one, other in ((first, second), (first**2, second**2), (np.abs(first), second), (first, values[1:50_002])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_the_largest_and_the_smallest_number_that_can_be_drawn_give_finite_values():
    class Extreme:
        def random(self, shape, dtype):
            return np.stack([np.resize(np.array([0.0, 1.0 - 2.0**-24], dtype), shape[1])] * 2)

    values = normal(Extreme(), 8)
    assert np.isfinite(values).all()
    assert np.abs(values).max() == pytest.approx(5.768, abs=1e-3)
