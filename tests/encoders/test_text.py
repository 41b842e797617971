"""The text encoder: ids in, tokens out, and what is padded or missing changes nothing."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.encoders.text import TextEncoder
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.tokenizer import ByteTokenizer
from perceiver.types import Sample
from tests.models import image_encoder, logits, small_perceiver

VOCAB, DIM, MAX_LENGTH = 262, 13, 29
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def text_encoder(**overrides) -> TextEncoder:
    positions = LearnedPositions(shape=(MAX_LENGTH,), dim=DIM, init_std=1.0, anchored=True)
    encoder = TextEncoder(**({"vocab_size": VOCAB, "dim": DIM, "positions": positions} | overrides))
    torch.nn.init.normal_(encoder.embedding.weight)  # as after training
    return encoder


def ids(batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, 1, length))


class TestTokens:
    def test_each_id_is_a_token_that_is_its_vector_and_that_of_its_place(self):
        encoder, raw = text_encoder(), ids()
        tokens = encoder(raw)
        assert tokens.values.shape == (3, 11, DIM)
        assert tokens.mask is None
        expected = encoder.embedding.weight[raw[:, 0]] + encoder.positions.embedding[:11]
        assert_close(tokens.values, expected, atol=0, rtol=0)

    def test_positions_can_be_concatenated(self):
        positions = FourierPositions(num_bands=3, max_resolution=(MAX_LENGTH,), anchored=True)
        encoder, raw = text_encoder(positions=positions, combine="concat"), ids()
        tokens = encoder(raw)
        assert tokens.values.shape == (3, 11, DIM + 7)
        assert_close(tokens.values[..., :DIM], encoder.embedding.weight[raw[:, 0]], atol=0, rtol=0)
        assert_close(tokens.values[1, :, DIM:], positions((11,)), atol=0, rtol=0)

    def test_the_grid_counts_places(self):
        grid = text_encoder()(ids()).grid
        assert grid.shape == (11,)
        (axis,) = grid.axes
        assert (axis.name, axis.start, axis.stop) == ("place", 0.0, 11.0)

    @pytest.mark.parametrize("length", [1, 2, 11, MAX_LENGTH])
    def test_a_place_is_the_same_in_texts_of_any_length(self, length):
        encoder, raw = text_encoder(), ids(length=MAX_LENGTH)
        assert_close(encoder(raw[..., :length]).values, encoder(raw).values[:, :length], atol=0, rtol=0)

    def test_a_mask_goes_through(self):
        mask = torch.rand(3, 11) < 0.5
        assert text_encoder()(ids(), mask).mask is mask

    def test_its_example_is_one_that_it_takes(self):
        encoder = text_encoder()
        tokens = encoder(encoder.example_input())
        assert tokens.values.shape[1] == tokens.grid.num_tokens
        assert encoder.picture(encoder.example_input()) is None
        assert encoder.sound(encoder.example_input()) is None

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    def test_ids_may_be_of_any_kind_of_whole_number_that_an_embedding_takes(self, dtype):
        encoder, raw = text_encoder(), ids() % 199
        if dtype == torch.uint8:
            with pytest.raises(ValueError, match=r"text inputs .* not torch\.uint8"):
                encoder(raw.to(dtype))
        else:
            assert_close(encoder(raw.to(dtype)).values, encoder(raw).values, atol=0, rtol=0)


class TestInAModel:
    """Texts of several lengths, and none, beside images."""

    @pytest.fixture
    def model(self):
        return small_perceiver(encoders={"image": image_encoder(), "text": text_encoder()})

    @pytest.fixture
    def samples(self):
        tokenizer = ByteTokenizer(vocab_size=VOCAB, max_length=MAX_LENGTH)
        texts = ["a red star", None, "", "a text that is longer than it may be, and so it is cut"]
        given = [{} if text is None else {"text": tokenizer.encode(text)[None]} for text in texts]
        pictures = [{} if row == 2 else {"image": torch.rand(3, 11, 13)} for row in range(4)]
        return [
            Sample(text | picture, {}, str(row))
            for row, (text, picture) in enumerate(zip(given, pictures, strict=True))
        ]

    def test_a_batch_gives_what_its_samples_give_one_by_one_whatever_they_lack(self, model, samples):
        batch = collate(samples)
        assert batch.inputs["text"].shape == (4, 1, MAX_LENGTH)
        alone = torch.cat(
            [logits(model, {name: raw[None] for name, raw in sample.inputs.items()}) for sample in samples]
        )
        assert_close(logits(model, batch.inputs, batch.masks), alone, **CLOSE)

    def test_what_padding_holds_changes_nothing(self, model, samples):
        batch = collate(samples)
        before = logits(model, batch.inputs, batch.masks)
        junk = batch.inputs["text"].masked_fill(~batch.masks["text"][:, None], 97)
        assert_close(logits(model, batch.inputs | {"text": junk}, batch.masks), before, **CLOSE)
        assert not torch.allclose(logits(model, batch.inputs | {"text": junk}), before, **CLOSE)

    def test_the_order_of_the_words_does_matter(self, model):
        raw = ids(1)
        assert not torch.allclose(logits(model, {"text": raw}), logits(model, {"text": raw.flip(2)}), atol=1e-4)

    def test_every_parameter_gets_a_gradient(self, model, samples):
        batch = collate(samples)
        logits(model.train(), batch.inputs, batch.masks).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert name.endswith("key.bias") or (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (torch.zeros(3, 1, 11), r"whole numbers \[batch, 1, length\], not torch.float32 \[3, 1, 11\]"),
        (torch.zeros(3, 11, dtype=torch.long), r"not torch.int64 \[3, 11\]"),
        (torch.zeros(3, 2, 11, dtype=torch.long), r"not torch.int64 \[3, 2, 11\]"),
        (torch.zeros(3, 1, 0, dtype=torch.long), r"not torch.int64 \[3, 1, 0\]"),
        (torch.zeros(3, 1, 11, dtype=torch.bool), r"not torch.bool \[3, 1, 11\]"),
        (torch.zeros(3, 1, MAX_LENGTH + 1, dtype=torch.long), r"shape=\[29\]: no positions .* \[30\]"),
    ],
    ids=["fractions", "no channel", "channels", "no ids", "truths", "too long"],
)
def test_inputs_that_are_no_ids_are_named_in_the_error(raw, named):
    with pytest.raises(ValueError, match=named):
        text_encoder()(raw)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 7}, "combine=add needs equal widths; features have 7, positions 13"),
    ],
)
def test_sizes_that_cannot_be_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        text_encoder(**wrong)
