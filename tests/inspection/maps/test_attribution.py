"""Rival methods: closed forms on sums of tokens, and their defining properties on a Perceiver."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from perceiver.inspection.maps.answers import answer_scores
from perceiver.inspection.maps.attribution import NUM_STEPS, rival_maps
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Rollout
from perceiver.types import Batch
from tests.inspection.explanations import classification, explain, explainer
from tests.inspection.models import of_class, perceiver, some_masks
from tests.inspection.sums import SumOfTokens, record_of
from tests.models import small_inputs

BATCH, NUM_TOKENS, NUM_CLASSES = 5, 7, 3


def explained(power: int, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rival maps of all classes of a power of the sum of tokens; of the last sample only the last class."""
    answers = [[of_class(label) for label in range(NUM_CLASSES)]] * (BATCH - 1) + [[of_class(NUM_CLASSES - 1)]]
    empty = torch.zeros(BATCH, NUM_CLASSES, NUM_TOKENS)
    explanation = Explanation(
        batch=Batch({}, {}, ["s"] * BATCH),
        record=record_of(tokens, mask),
        answers=answers,
        num_classes=NUM_CLASSES,
        probability=empty[..., 0],
        alpha=0.5,
        rollout=Rollout(empty, empty[..., 0], {}),
        relevance=empty,
    )
    model = SumOfTokens(power)
    made = Explainer(model=model, task=classification(NUM_CLASSES), class_names=["a", "b", "c"], alpha=0.5)
    return rival_maps(made, explanation)


@pytest.mark.parametrize("power", [1, 2])
def test_on_sums_they_have_closed_forms(monkeypatch, power):
    monkeypatch.setattr("perceiver.inspection.maps.attribution.TOKENS_AT_ONCE", 2 * NUM_TOKENS)
    mask = torch.rand(BATCH, NUM_TOKENS) < 0.7
    tokens = torch.randn(BATCH, NUM_TOKENS, NUM_CLASSES).masked_fill(~mask[..., None], 0.0)
    own, total = tokens.transpose(1, 2), tokens.sum(dim=1)[..., None]
    expected = {"gradient_input": own, "integrated_gradients": own, "occlusion": own}
    if power == 2:
        quadratic = {"gradient_input": 2 * total * own, "integrated_gradients": total * own}
        expected = quadratic | {"occlusion": total**2 - (total - own) ** 2}
    for name, maps in explained(power, tokens, mask).items():
        assert_close(maps[:-1], expected[name][:-1], rtol=0.01, atol=1e-5)
        assert_close(maps[-1, 0], expected[name][-1, -1], rtol=0.01, atol=1e-5)
        assert (maps[-1, 1:] == 0).all(), "padding of answers"


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 4])
def test_they_are_those_of_captum(monkeypatch, power):
    captum = pytest.importorskip("captum.attr")
    monkeypatch.setattr("perceiver.inspection.maps.attribution.POWER", power)
    model, inputs = perceiver(), small_inputs()
    explanation = explain(model, inputs, {})
    maps, tokens = rival_maps(explainer(model), explanation), explanation.record.tokens
    real = explanation.record.real_tokens
    assert real.all()
    labels = torch.tensor([answers[0].label for answers in explanation.answers])

    def logits(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.forward_tokens(replace(tokens, values=values, mask=mask))["logits"]

    def of_values(values: torch.Tensor) -> torch.Tensor:
        return logits(values, torch.ones(values.shape[:2], dtype=torch.bool))

    def of_visible(visible: torch.Tensor) -> torch.Tensor:
        visible = visible.bool()
        return logits(tokens.values.masked_fill(~visible[..., None], 0.0), visible)

    values = tokens.values.detach()
    found = captum.InputXGradient(of_values).attribute(values.clone().requires_grad_(), target=labels)
    assert_close(maps["gradient_input"][:, 0], found.sum(dim=-1), rtol=1e-4, atol=1e-6)
    found = captum.IntegratedGradients(of_values).attribute(
        values, torch.zeros_like(values), labels, n_steps=NUM_STEPS if power == 1 else 300, method="riemann_middle"
    )
    # The same points; with the fourth power of these, the same integral.
    largest = float(found.sum(dim=-1).abs().max())
    precision = 1e-5 if power == 1 else 0.05
    assert_close(maps["integrated_gradients"][:, 0], found.sum(dim=-1), rtol=0, atol=precision * largest)
    found = captum.Occlusion(of_visible).attribute(real.float(), (1,), target=labels)
    assert_close(maps["occlusion"][:, 0], found, rtol=1e-4, atol=1e-6)


def test_on_a_perceiver_they_are_differences_of_scores():
    model, inputs, masks = perceiver(), small_inputs(), some_masks()
    explanation = explain(model, *({name: one[1:] for name, one in part.items()} for part in (inputs, masks)))
    maps, tokens = rival_maps(explainer(model), explanation), explanation.record.tokens
    assert all(parameter.grad is None for parameter in model.parameters())
    real = explanation.record.real_tokens

    def scores(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            outputs = model.forward_tokens(replace(tokens, values=values, mask=mask))
        return answer_scores(outputs, explanation.answers)

    whole = scores(tokens.values, real)
    difference = whole - scores(torch.zeros_like(tokens.values), real)
    assert_close(
        maps["integrated_gradients"].sum(dim=-1), difference, rtol=0, atol=0.02 * float(difference.abs().max())
    )
    assert (maps["occlusion"].masked_select(~real[:, None]) == 0).all()
    for token in (0, 31):
        left = real.clone()
        left[:, token] = False
        assert_close(maps["occlusion"][..., token], whole - scores(tokens.values, left), rtol=1e-3, atol=1e-5)
