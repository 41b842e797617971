"""Models with every mechanism are captured, explained, tested by deletion and insertion, and shown."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from torch.testing import assert_close

from perceiver import Perceiver
from perceiver.inspection.drawing.figures import contact_sheets
from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.inspection.explorer.page import page_event
from perceiver.inspection.report import report
from tests.inspection.explanations import arrays_of, explain, explainer
from tests.inspection.maps.test_relevance import naive_relevance
from tests.inspection.models import (
    CROSS_HEADS,
    capture_relevance,
    forward_record,
    perceiver_io,
    some_masks,
    text_decoder,
)
from tests.mechanisms.parts import NAMES, OVER_QUERIES, factory
from tests.models import SELF, small_inputs

HARD = ["straight_through", "hard"]
every_mechanism = pytest.mark.parametrize("name", NAMES)


def model_with(name: str) -> Perceiver:
    """Tokens, latents and words attend to each other by a mechanism; words by another one where they cannot by it."""
    mechanism = factory(name)
    decoder = text_decoder(mechanism=factory("dot_product" if name == OVER_QUERIES else name))
    attention = {"cross_attention": CROSS_HEADS, "self_attention": SELF}
    specs = {key: replace(spec, mechanism=mechanism) for key, spec in attention.items()}
    return perceiver_io(decoder=decoder, **specs).eval()


@every_mechanism
def test_its_maps_are_its_weights_and_rollouts_have_all_mass(name):
    record = forward_record(model_with(name), masks=some_masks())
    assert {layer.role.name for layer in record.layers.values()} == {"cross", "self", "decode", "decode_self"}
    for key, layer in record.layers.items():
        weights = layer.mechanism.weights(layer.q, layer.k, layer.mask, layer.causal).detach()
        assert_close(record.map(key, head=1, queries=[3, 0]), weights[:, 1, [3, 0]])
        assert_close(weights.sum(dim=-1).amin(), weights.new_ones(()))
    rollout = record.rollout()
    assert_close(rollout.inputs.sum(dim=-1) + rollout.residual, rollout.residual.new_ones(rollout.residual.shape))
    assert (rollout.inputs.masked_select(~record.token_mask[:, None]) == 0).all()
    statistics = record.statistics()
    assert statistics.keys() >= {"cross0/entropy", "self0/top1_mass", "decode1/head_redundancy", "cross0/coverage"}
    if name in HARD:
        assert statistics["cross0/top1_mass"] == 1.0
        assert statistics["cross0/entropy"] == 0.0


@pytest.mark.parametrize("name", sorted({*NAMES} - {*HARD}))
def test_relevance_is_that_of_gradients_of_its_weights(monkeypatch, name):
    model, inputs, masks = model_with(name), small_inputs(), some_masks()
    found = capture_relevance(model, inputs, masks)[1]
    expected = naive_relevance(monkeypatch, model, inputs, masks)
    assert expected.max() > 0
    assert_close(found / expected.max(), expected / expected.max(), rtol=0, atol=1e-5)


@every_mechanism
def test_it_is_explained_tested_and_shown_or_it_is_said_why_not(name):
    model = model_with(name)
    explanation = explain(model, small_inputs(), some_masks())
    has_relevance = name not in HARD
    assert ("relevance" in explanation.maps) == has_relevance
    evaluator = Evaluator(num_samples=3, num_orders=1, rivals=False, randomize=False)
    evaluation = evaluator.evaluate(explainer(model), [explanation], with_localization=True, with_faithfulness=True)
    if evaluation.faithfulness["num_samples"]:
        assert ("insertion/relevance" in evaluation.scores) == has_relevance
    arrays = arrays_of(explanation)
    assert ("relevance/inputs" in arrays) == has_relevance
    (maps, *_) = page_event(arrays).maps.values()
    assert [method["name"] for method in maps["methods"]] == [*(["relevance"] if has_relevance else []), "rollout"]
    cross = next(layer for layer in maps["layers"] if layer["name"] == "cross0")
    assert (cross["scores"] is not None) == (name not in {*HARD, "sparse", OVER_QUERIES})
    assert contact_sheets(explanation, {}, num_latents=2).keys() >= {"caption/words", "image/cross0"}
    console = Console(file=io.StringIO(), width=200)
    for part in report("run", explanation, arrays, texts={}, num_tested=0):
        console.print(part)
    shown = console.file.getvalue()
    if has_relevance:
        assert maps["note"] == explanation.no_relevance == ""
    else:
        assert "Relevance has no meaning here: the outputs of cross0, " in maps["note"]
        assert maps["note"] in " ".join(shown.split())
        with pytest.raises(ValueError, match="cross0"):
            capture_relevance(model, small_inputs())
