"""Files are read as the published models read them: pixels and token ids are those of transformers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import perceiver
from perceiver.data.readers.center_crop import CenterCropReader
from perceiver.runtime.errors import ConfigError
from perceiver.tasks.tagging import Tagging
from perceiver.tokenizer import PerceiverTokenizer
from tests.pretrained.small import CONV, SEQUENCE, small

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


def saved(folder, hf_class=CONV, **settings):
    """A model with a preprocessor, of which some settings are changed."""
    hf_model = small(hf_class)
    hf_model.save_pretrained(folder)
    processor = transformers.PerceiverImageProcessor(**settings)
    processor.save_pretrained(folder)
    return hf_model, processor


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.7, 1.1]},
        {"size": {"height": 29, "width": 37}, "crop_size": {"height": 41, "width": 41}},
    ],
    ids=lambda settings: next(iter(settings)),
)
@torch.no_grad()
def test_settings_of_the_preprocessor_are_followed(tmp_path, settings):
    hf_model, processor = saved(tmp_path, **settings)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 53, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    expected = hf_model(processor(image, return_tensors="pt").pixel_values).logits[0].softmax(dim=0)
    (found,) = perceiver.load(tmp_path).predict(tmp_path / "image.png", top=7)
    assert [one["probability"] for one in found] == pytest.approx(expected.sort(descending=True)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("do_resize", False), ("do_center_crop", False), ("do_rescale", False), ("do_pad", True)),
        *(("rescale_factor", 1 / 128), ("resample", 2), ("image_mean", [0.5, 0.5]), ("image_std", [1.0, 0.0, 1.0])),
        *(("image_mean", "imagenet"), ("image_std", [1.0, float("nan"), 1.0])),
        *(("size", {"height": 29, "width": 37.5}), ("crop_size", {"height": 223, "width": 223})),
        *(("crop_size", {"height": 256, "width": 257}), ("size", "large")),
        *(("size", {}), ("size", {"longest_edge": 256}), ("crop_size", {"shortest_edge": 256, "longest_edge": 301})),
        *(("size", {"height": 29}), ("crop_size", {"height": None, "width": None})),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(tmp_path, key, value):
    saved(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ConfigError, match=f"{tmp_path}.*{key}=.*preprocessor_config.json"):
        perceiver.load(tmp_path)


def test_several_classes_may_apply_to_a_sample_and_other_outputs_are_refused(tmp_path):
    hf_model, config = small(SEQUENCE), tmp_path / "config.json"
    hf_model.config.problem_type = "multi_label_classification"
    hf_model.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("naïve")
    loaded = perceiver.load(tmp_path)
    assert isinstance(loaded.run.parts.task, Tagging)
    ids = transformers.PerceiverTokenizer()("naïve", return_tensors="pt").input_ids
    expected = hf_model(ids).logits[0].sigmoid().sort(descending=True)[0]
    (found,) = loaded.predict(tmp_path / "text.txt", top=7)
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-5)
    config.write_text(json.dumps({**json.loads(config.read_text()), "problem_type": "regression"}))
    with pytest.raises(ConfigError, match=f"{tmp_path}: problem_type=regression"):
        perceiver.load(tmp_path)


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
