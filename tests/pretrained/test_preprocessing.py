"""Files are read as the published models read them: pixels and token ids are those of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.readers.center_crop import CenterCropReader
from perceiver.tokenizer import PerceiverTokenizer

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("size", [(224, 224), (301, 463), (97, 53), (1, 7), (256, 256)])
def test_images_have_the_pixels_of_transformers(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    reader = CenterCropReader(image_size=224, channels=3, augment=None, max_value=None, eval_crop=224 / 256)
    found = reader.read(tmp_path / "image.png", train=False).values
    processor = transformers.PerceiverImageProcessor(do_normalize=False)
    if min(size) < 2:  # nothing is left of it there
        assert found.shape == (3, 224, 224)
        return
    expected = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("text", ["", "plain", "naïve 🙂", "some [MASK][MASK] are [PAD], not [mask] or [SEP", "x" * 50])
def test_texts_have_the_ids_of_transformers(text):
    tokenizer = PerceiverTokenizer(vocab_size=262, max_length=41)
    expected = transformers.PerceiverTokenizer(model_max_length=41)(text, truncation=True).input_ids
    assert tokenizer.encode(text).tolist() == expected
    assert PerceiverTokenizer(vocab_size=262, max_length=41, ends=False).encode(text).tolist()[:39] == expected[1:-1]


def test_special_ids_are_named_and_not_part_of_a_decoded_text():
    tokenizer = PerceiverTokenizer(vocab_size=262, max_length=41)
    ids = tokenizer.encode("a[MASK]b").tolist()
    assert tokenizer.pieces(ids) == ["[CLS]", "a", "[MASK]", "b", "[SEP]"]
    assert tokenizer.decode(ids) == "ab"
