"""Vectors: one token for each, without positions."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.vector import VectorEncoder


@pytest.mark.parametrize("dim", [None, 7])
def test_each_vector_is_a_token_whatever_the_others(dim):
    encoder, raw = VectorEncoder(channels=5, dim=dim), torch.rand(3, 5, 11)
    tokens = encoder(raw)
    assert tokens.values.shape == (3, 11, encoder.dim)
    assert_close(encoder(raw[..., 4]).values[:, 0], tokens.values[:, 4])
    if dim is None:
        assert_close(tokens.values, raw.mT)


def test_masked_vectors_are_zero_even_if_they_were_not_finite():
    encoder = VectorEncoder(channels=5, dim=None)
    found = encoder(torch.full((2, 5), torch.nan), torch.tensor([True, False]))
    assert found.mask.tolist() == [[True], [False]]
    assert (found.values[1] == 0).all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 0), (2, 5, 3, 1)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="channels=5"):
        VectorEncoder(channels=5, dim=None)(torch.zeros(shape))
