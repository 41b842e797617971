"""Over the captions in $PERCEIVER_DATA (see its MANIFEST.md); skipped without it."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.sources.clotho import Clotho
from perceiver.data.sources.coco_captions import CocoCaptions
from perceiver.data.sources.flickr8k import Flickr8k
from perceiver.data.sources.karpathy import Karpathy
from perceiver.data.sources.text_pairs import TextPairs
from perceiver.tokenizer import ByteTokenizer, WordTokenizer
from tests.data.caption_trees import samples
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")
FRACTIONS = {"val_fraction": 0.14, "test_fraction": 0.125}

pytestmark = [
    pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data"),
    pytest.mark.filterwarnings("error"),
]


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(os.environ["PERCEIVER_DATA"])


@pytest.fixture(scope="module")
def of_three_forms(root) -> dict[str, Dataset]:
    """The same 500 images, as three forms of tables list them."""
    folder = str(root / "captions" / "flickr8k")
    return {
        "Kaggle": dataset(Flickr8k, "image", root=folder, **FRACTIONS),
        "COCO": dataset(CocoCaptions, "image", root=folder, year=None),
        "Karpathy": dataset(Karpathy, "image", root=folder, table=None, restval=True),
    }


def test_three_forms_of_flickr8k_say_the_same_of_the_same_images(of_three_forms, caplog):
    found = {
        form: {stage: dict(data.source.captions(stage).references) for stage in STAGES}
        for form, data in of_three_forms.items()
    }
    assert found["Kaggle"] == found["COCO"] == found["Karpathy"]
    assert {stage: len(files) for stage, files in found["COCO"].items()} == {"train": 400, "val": 50, "test": 50}
    assert {len(texts) for files in found["COCO"].values() for texts in files.values()} == {5}
    assert len({name for files in found["COCO"].values() for name in files}) == 500
    quoted = found["Kaggle"]["train"] | found["Kaggle"]["val"] | found["Kaggle"]["test"]
    assert any(' " Kiss " ' in text for texts in quoted.values() for text in texts)
    assert caplog.messages == []


def test_three_forms_of_flickr8k_show_the_same_images(of_three_forms):
    splits = {form: {stage: data.split(stage) for stage in STAGES} for form, data in of_three_forms.items()}
    for stage in STAGES:
        by_id = [
            {sample.id: sample.inputs["image"] for sample in samples(splits[form][stage])} for form in of_three_forms
        ]
        assert by_id[0].keys() == by_id[1].keys() == by_id[2].keys()
        assert all(id.startswith("Images/") for id in by_id[0])
        for id, image in by_id[0].items():
            assert torch.equal(image, by_id[1][id])
            assert torch.equal(image, by_id[2][id])
            assert image.std() > 0.02  # a picture, not a blank


def test_without_lists_the_500_images_are_split_in_proportion(root, tmp_path):
    for name in ("captions.txt", "Images"):
        (tmp_path / name).symlink_to(root / "captions" / "flickr8k" / name)
    data = dataset(Flickr8k, "image", root=str(tmp_path), **FRACTIONS)
    sizes = {stage: len(data.split(stage)) for stage in STAGES}
    assert sum(sizes.values()) == 500
    assert sizes == {
        stage: pytest.approx(size, rel=0.3) for stage, size in {"train": 376, "val": 61, "test": 63}.items()
    }


def test_a_tokenizer_learns_from_the_captions(of_three_forms):
    data = of_three_forms["COCO"]
    words = WordTokenizer(vocab_size=1009, max_length=31, lowercase=True, min_frequency=5)
    words.train(data.texts())
    assert 300 < words.num_ids < 1009
    text = data.split("val")[0].targets["caption"]
    assert words.decode(words.encode(text).tolist()).split()[0] == text.lower().split()[0]


def test_clotho(root):
    clips = {"sample_rate": 16000, "seconds": 30.0, "hop_seconds": 15.0}
    data = dataset(Clotho, "audio", root=str(root / "captions" / "clotho"), **clips)
    test = samples(data.split("test"))
    assert {Path(sample.id).name: len(sample.targets["references"]) for sample in test} == {
        "Tenerife_bazaar_2.wav": 5,
        "Flipping Pages.wav": 5,
        "01 barreau bunker original.wav": 5,
    }
    for sample in test:
        assert 15 * 16000 <= sample.inputs["audio"].shape[-1] <= 30 * 16000
        assert sample.windows == ()
    assert test[0].targets["caption"] == "A group of people are talking and people are also laughing."
    assert data.split("val") is None
    with pytest.raises(FileNotFoundError, match=r"there is no clotho_captions_development\.csv in it"):
        data.split("train")


def text_pairs(path: Path, **options) -> Dataset:
    tokenizer = ByteTokenizer(vocab_size=262, max_length=509)
    return dataset(TextPairs, "text", root=str(path), tokenizer=tokenizer, **({"endings": None} | options))


def test_english_and_french_sentences(root):
    data = text_pairs(root / "translation" / "eng-fra.txt")
    splits = {stage: samples(data.split(stage)) for stage in STAGES}
    ids = Counter(sample.id for split in splits.values() for sample in split)
    assert ids == Counter(f"eng-fra.txt:{line}" for line in range(1, 2001))
    found = {sample.id: sample for split in splits.values() for sample in split}
    third = found["eng-fra.txt:3"]
    assert (
        data.readers["text"].tokenizer.decode(third.inputs["text"][0].tolist()) == "Two men are removing tree branches."
    )
    assert third.targets == {"caption": "Deux hommes enlèvent des branches d'arbre."} | {
        "references": ["Deux hommes enlèvent des branches d'arbre."]
    }


def test_english_and_german_sentences_in_aligned_files(root):
    data = text_pairs(root / "translation" / "multi30k", endings=("en", "de"), test_fraction=0.0)
    train, val = data.split("train"), data.split("val")
    assert len(train) + len(val) == 5000
    assert data.split("test") is None
    assert train[0].id.startswith("train.en:")
