"""The text encoder: a token for each id, with the position of its place."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.text import TextEncoder
from perceiver.positions import FourierPositions, LearnedPositions
from tests.models import logits, small_perceiver

VOCAB, DIM, MAX_LENGTH = 211, 13, 29


def text_encoder(**overrides) -> TextEncoder:
    positions = LearnedPositions(shape=(MAX_LENGTH,), dim=DIM, init_std=1.0, anchored=True)
    encoder = TextEncoder(**({"vocab_size": VOCAB, "dim": DIM, "positions": positions} | overrides))
    torch.nn.init.normal_(encoder.embedding.weight)  # as after training
    return encoder


def ids(batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, 1, length))


def test_a_token_is_the_vector_of_its_id_plus_that_of_its_place_in_texts_of_any_length():
    encoder, raw, mask = text_encoder(), ids(length=MAX_LENGTH), torch.rand(3, MAX_LENGTH) < 0.5
    tokens = encoder(raw)
    assert tokens.mask is None
    assert encoder(raw, mask).mask is mask
    expected = encoder.embedding.weight[raw[:, 0]] + encoder.positions.embedding
    assert_close(tokens.values, expected, atol=0, rtol=0)
    for length in (1, 11):
        shorter = encoder(raw[..., :length].int())
        assert_close(shorter.values, tokens.values[:, :length], atol=0, rtol=0)
        (axis,) = shorter.grid.axes
        assert (axis.name, axis.start, axis.stop, shorter.grid.shape) == ("place", 0.0, length, (length,))
    assert encoder.picture(raw) is None
    assert encoder.sound(raw) is None


def test_positions_can_be_concatenated():
    positions = FourierPositions(num_bands=3, max_resolution=(MAX_LENGTH,), anchored=True)
    encoder, raw = text_encoder(positions=positions, combine="concat"), ids()
    values = encoder(raw).values
    assert_close(values[..., :DIM], encoder.embedding.weight[raw[:, 0]], atol=0, rtol=0)
    assert_close(values[1, :, DIM:], positions((11,)), atol=0, rtol=0)


def test_in_a_model_the_order_of_the_ids_matters_and_every_weight_gets_a_gradient():
    model, raw = small_perceiver(encoders={"text": text_encoder()}), ids()
    assert not torch.allclose(logits(model, {"text": raw}), logits(model, {"text": raw.flip(2)}), atol=1e-4)
    logits(model.train(), {"text": raw}).square().sum().backward()
    assert all((weight.grad != 0).any() for weight in model.encoders.parameters())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.zeros(3, 1, 11), r"whole numbers \[batch, 1, length\], not torch.float32 \[3, 1, 11\]"),
        *((torch.zeros(3, 1, 11, dtype=dtype), f"not {dtype}") for dtype in (torch.uint8, torch.bool)),
        (torch.zeros(3, 11, dtype=torch.long), r"not torch.int64 \[3, 11\]"),
        (torch.zeros(3, 2, 11, dtype=torch.long), r"not torch.int64 \[3, 2, 11\]"),
        (torch.zeros(3, 1, 0, dtype=torch.long), r"not torch.int64 \[3, 1, 0\]"),
        (torch.zeros(3, 1, MAX_LENGTH + 1, dtype=torch.long), r"shape=\[29\]: no positions .* \[30\]"),
    ],
)
def test_inputs_that_are_no_ids_are_refused_with_what_they_are(raw, message):
    with pytest.raises(ValueError, match=message):
        text_encoder()(raw)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 7}, "combine=add needs equal widths; features have 7, positions 13"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        text_encoder(**wrong)
