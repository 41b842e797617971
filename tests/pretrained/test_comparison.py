"""Inputs of ours give the same outputs in transformers, of every architecture."""

from math import prod

import pytest
import torch

from perceiver.pretrained import from_transformers, to_transformers
from perceiver.pretrained.comparison import Given, outputs_of_transformers
from tests.pretrained.small import CLASSES, FLOW, MASKED_LM, MULTIMODAL, all_places, case, small


@pytest.mark.parametrize("hf_class", CLASSES, ids=lambda hf_class: hf_class.__name__)
@torch.no_grad()
def test_outputs_are_the_same(hf_class):
    model, given = from_transformers(small(hf_class)), case(hf_class)
    if hf_class is MULTIMODAL:
        given.queries = {"image": all_places(2, 2, 8, 12), "audio": all_places(2, 10)}
    found = outputs_of_transformers(to_transformers(model), model, Given(given.inputs, given.masks, given.queries))
    expected = given.found(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("hf_class", [MASKED_LM, FLOW, MULTIMODAL], ids=lambda hf_class: hf_class.__name__)
@torch.no_grad()
def test_outputs_are_those_of_the_queried_places_in_their_order(hf_class):
    model, given = from_transformers(small(hf_class)), case(hf_class)
    grids = {MASKED_LM: {"logits": [11]}, FLOW: {"logits": [6, 10]}, MULTIMODAL: {"image": [2, 8, 12], "audio": [10]}}
    rows = len(next(iter(given.inputs.values())))
    queries = {
        name: all_places(rows, *shape)[:, torch.randperm(prod(shape))[:5]] for name, shape in grids[hf_class].items()
    }
    hidden = {}
    if hf_class is MASKED_LM:  # where all is hidden, ours reads nothing, and theirs everything
        hidden = {"text": (given.inputs["text"][:, 0] % 3 == 0) & (torch.arange(7) > 0)}
    found = outputs_of_transformers(to_transformers(model), model, Given(given.inputs, given.masks, queries, hidden))
    expected = model(given.inputs, given.masks, queries, hidden)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=0.0)
    with pytest.raises(ValueError, match="hide parts of image"):
        outputs_of_transformers(None, model, Given({}, {}, {}, {"image": torch.ones(rows, 2)}))
