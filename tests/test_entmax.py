import pytest
import torch
from scipy.optimize import brentq
from torch.testing import assert_close

from perceiver.entmax import entmax


@pytest.mark.parametrize("alpha", [1.01, 1.3, 1.5, 2.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_it_is_the_distribution_of_the_threshold_with_which_it_sums_to_one(alpha, scale):
    logits = scale * torch.randn(5, 17, dtype=torch.float64)
    found = entmax(logits, alpha)
    for row, weights in zip(logits.numpy(), found, strict=True):
        z = (alpha - 1) * row

        def total(threshold, z=z):
            return ((z - threshold).clip(min=0.0) ** (1 / (alpha - 1))).sum() - 1.0

        threshold = brentq(total, z.max() - 1.0, z.max(), xtol=1e-15)
        expected = (z - threshold).clip(min=0.0) ** (1 / (alpha - 1))
        assert_close(weights, torch.from_numpy(expected), atol=1e-9, rtol=1e-6)
    assert_close(entmax(logits.float(), alpha), found.float(), atol=1e-5, rtol=1e-3)


def test_sparsemax_is_the_projection_onto_the_simplex():
    """Martins & Astudillo 2016, algorithm 1."""
    logits = 2 * torch.randn(7, 13)
    ordered = logits.sort(dim=1, descending=True).values
    counts = torch.arange(1, 14)
    size = (1 + counts * ordered > ordered.cumsum(dim=1)).sum(dim=1, keepdim=True)
    threshold = (ordered.cumsum(dim=1).gather(1, size - 1) - 1) / size
    assert_close(entmax(logits, 2.0), (logits - threshold).clamp_min(0.0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0])
def test_gradients_are_those_of_finite_differences(alpha):
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entmax(x, alpha), logits, eps=1e-7, atol=1e-5)


def test_shifts_and_excluded_classes_change_nothing():
    logits = torch.randn(3, 7)
    lowest = torch.full((3, 2), torch.finfo(torch.float32).min)
    assert_close(
        entmax(torch.cat([logits + 1e3, lowest], dim=1), 1.5)[:, :7], entmax(logits, 1.5), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("alpha", [1.0, 0.0, 2.5])
def test_other_parameters_are_named(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        entmax(torch.randn(3, 5), alpha)
