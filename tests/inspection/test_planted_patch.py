"""In a model that must find one patch, maps must find it, too."""

import pytest
import torch

from perceiver.inspection.faithfulness import faithfulness
from tests.inspection.planted import COLOURS, COLUMNS, ROWS, trained
from tests.models import logits

METHODS = pytest.mark.parametrize("method", ["rollout", "relevance"])


def pointing_game(maps: torch.Tensor, places: torch.Tensor) -> float:
    return float((maps.argmax(dim=-1) == places).float().mean())


def test_the_model_has_learned_it():
    explainer, batch, _ = trained()
    with torch.no_grad():
        found = logits(explainer.model, batch.inputs).argmax(dim=1)
    assert (found == batch.targets["label"]).float().mean() > 0.95


@METHODS
def test_the_brightest_cell_is_the_patch(method):
    explainer, batch, places = trained()
    maps = explainer.explain(batch).maps[method]
    assert pointing_game(maps[:, 0], places) > 0.8
    assert pointing_game(maps[:, 0].roll(1, dims=0), places) < 0.15, "the map of another image is no better than chance"
    assert pointing_game(torch.rand(len(places), ROWS * COLUMNS), places) < 0.15


def test_the_patch_is_more_relevant_for_its_own_class():
    explainer, batch, places = trained()
    explanation = explainer.explain(batch)
    at_patch = explanation.relevance.gather(2, places[:, None, None].expand(-1, len(COLOURS), 1))[..., 0]
    labels = batch.targets["label"].tolist()
    own = [
        [answer.label for answer in row].index(label) for row, label in zip(explanation.answers, labels, strict=True)
    ]
    assert (at_patch.argmax(dim=1) == torch.tensor(own)).float().mean() > 0.8


def test_masking_what_maps_mark_lowers_the_answer_more_than_chance():
    explainer, batch, _ = trained()
    found = faithfulness(explainer, explainer.explain(batch), seed=0).summary
    for method in ("rollout", "relevance"):
        assert found["areas"][method]["mean"] > 3 * found["areas"][method]["error"] > 0
    assert found["num_samples"] >= len(batch) / 2
