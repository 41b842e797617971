"""Labels as inputs: read from the targets of a sample, embedded, and absent from a user's file."""

import numpy as np
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.readers.array import ArrayReader
from perceiver.data.readers.label import LabelReader
from perceiver.data.sources.base import Item, Source
from perceiver.encoders.label import LabelEncoder

LABELS = [2, 0, 1]


class Arrays(Source):
    """Items with an array each, and some with a label."""

    def __init__(self, labels) -> None:
        super().__init__(num_classes=3)
        self.labels = labels

    def items(self, stage, roles):
        assert list(roles) == ["vector"]  # a label is no file
        targets = [{} if label is None else {"label": label} for label in self.labels]
        return [Item({"vector": torch.rand(5)}, found, str(row)) for row, found in enumerate(targets)]


def dataset(labels=LABELS) -> Dataset:
    readers = {"vector": ArrayReader(shape=[5]), "label": LabelReader()}
    return Dataset(source=Arrays(labels), readers=readers, on_error="raise")


def test_a_label_is_an_input_of_samples_that_have_one():
    split = dataset().split("train")
    assert split.modalities == ["vector", "label"]
    batch = collate([split[row] for row in range(3)])
    assert batch.inputs["label"].tolist() == [[[label]] for label in LABELS]
    assert batch.targets["label"].tolist() == LABELS
    split = dataset([None, None]).split("train")
    assert split.modalities == ["vector"]
    assert split[0].inputs.keys() == {"vector"}


def test_a_file_of_a_user_has_none(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(5))
    assert dataset().read(tmp_path / "x.npy").inputs.keys() == {"vector"}


def test_it_is_embedded():
    encoder, raw = LabelEncoder(num_classes=7, dim=5), torch.randint(7, (3, 1, 2))
    assert_close(encoder(raw).values, encoder.embedding.weight[raw[:, 0]])
