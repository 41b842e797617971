"""The weights of the published models by name and shape: each has its place, and there is a weight for each place."""

import json
from pathlib import Path

import pytest
import torch

from perceiver.pretrained.architectures import ARCHITECTURES, model_node
from perceiver.pretrained.nodes import build
from perceiver.pretrained.transformers import load_weights

PUBLISHED = sorted((Path(__file__).parent / "published").glob("*.json"))
MODELS = {path.stem: json.loads(path.read_text()) for path in PUBLISHED}
every_model = pytest.mark.parametrize("published", MODELS.values(), ids=MODELS)


def test_there_are_six():
    assert len(MODELS) == 6


@every_model
@pytest.mark.parametrize("variant", ["transformers", "deepmind"])
def test_every_weight_has_its_place_and_goes_back(published, variant):
    (name,), shapes = published["config"]["architectures"], published["weights"]
    with torch.device("meta"):
        model = build(model_node(name, published["config"], shapes, variant))
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_weights(model, name, weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == published["parameters"]
    ours = {key: value for key, value in model.state_dict().items() if key not in model.ties}
    back = ARCHITECTURES[name].table.to_theirs(ours, published["config"]["num_self_attends_per_block"])
    assert {key: list(value.shape) for key, value in back.items()} == shapes


@every_model
def test_they_are_those_of_transformers(published):
    transformers = pytest.importorskip("transformers")
    (name,), classes = published["config"]["architectures"], {"vision": 1000, "multimodal": 700}
    config = transformers.PerceiverConfig(**published["config"])
    config.num_labels = classes["multimodal" if name.endswith("Autoencoding") else "vision"]
    with torch.device("meta"):
        hf_model = getattr(transformers, name)(config)
    found = {key: list(value.shape) for key, value in hf_model.state_dict().items()}
    assert found == published["weights"]
    assert list(found) == list(published["weights"])
