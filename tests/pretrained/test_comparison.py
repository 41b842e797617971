"""Inputs of ours give the same outputs in transformers, of every architecture."""

import pytest
import torch

from perceiver.pretrained import from_transformers, to_transformers
from perceiver.pretrained.comparison import outputs_of_transformers
from tests.pretrained.small import CLASSES, MULTIMODAL, all_places, case, small


@pytest.mark.parametrize("hf_class", CLASSES, ids=lambda hf_class: hf_class.__name__)
@torch.no_grad()
def test_outputs_are_the_same(hf_class):
    model, given = from_transformers(small(hf_class)), case(hf_class)
    if hf_class is MULTIMODAL:
        given.queries = {"image": all_places(2, 2, 8, 12), "audio": all_places(2, 10)}
    found = outputs_of_transformers(to_transformers(model), model, given.inputs, given.masks)
    expected = given.found(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=0.0)
