from dataclasses import replace

import numpy as np
import pytest
import torch

from perceiver.inspection.explorer.events import event_arrays
from perceiver.inspection.explorer.page import page_sinks
from perceiver.inspection.maps.sinks import MIN_SAMPLES, ROLLOUT, SinkCriterion, find_sinks, sink_arrays
from perceiver.inspection.report import sink_parts
from tests.inspection.explanations import explain
from tests.inspection.models import perceiver
from tests.models import audio_encoder, image_encoder

SAMPLES = 5
PLANTED = 7
"""Number among all tokens, of which the image has 20."""


def explanation_of(key_of_sink: float, samples: int = SAMPLES, masks=None):
    """Of a model whose weights do not depend on the tokens, but for one key with the given score."""
    torch.manual_seed(2)
    model = perceiver(encoders={"image": image_encoder(), "audio": audio_encoder()})
    inputs = {"image": torch.rand(samples, 3, 11, 13), "audio": 0.1 * torch.randn(samples, 1, 4001)}
    explanation = explain(model, inputs, masks)
    for name in explanation.record.input_layers:
        layer = explanation.record.layers[name]
        q, k = torch.ones_like(layer.q), torch.zeros_like(layer.k)
        k[:, :, PLANTED] = key_of_sink / q.shape[-1] ** 0.5
        explanation.record.layers[name] = replace(layer, q=q, k=k)
    return replace(explanation, rollout=rollout_of(explanation))


def rollout_of(explanation):
    return explanation.record.rollout([0])


def test_a_token_that_always_draws_attention_is_found_and_uniform_attention_has_none():
    explanation = explanation_of(6.0)
    sinks = find_sinks(explanation, SinkCriterion())
    layers = [*explanation.record.input_layers, ROLLOUT]
    assert [(sink.layer, sink.modality, sink.token, sink.sample_share) for sink in sinks.found] == [
        (layer, "image", PLANTED, 1.0) for layer in layers
    ]
    num_tokens = explanation.record.tokens.values.shape[1]
    expected = np.exp(6) / (np.exp(6) + num_tokens - 1)
    assert sinks.statistics == pytest.approx({f"stat/{layer}/sink_mass": expected for layer in layers})
    uniform = explanation_of(0.0)
    layer = uniform.record.layers["cross0"]  # which shall read the image alone
    mask = (torch.arange(layer.num_keys) < uniform.record.spans["image"].stop).expand(SAMPLES, -1)
    uniform.record.layers["cross0"] = replace(layer, mask=mask)
    uniform = find_sinks(replace(uniform, rollout=rollout_of(explanation_of(0.0))), SinkCriterion(times_uniform=1.001))
    assert uniform.found == []
    assert set(uniform.mass.values()) == {0.0}


def test_thresholds_masks_and_few_samples():
    explanation = explanation_of(6.0)
    times = float(find_sinks(explanation, SinkCriterion()).found[0].weight) * explanation.record.tokens.values.shape[1]
    assert find_sinks(explanation, SinkCriterion(times_uniform=0.99 * times)).found
    assert not find_sinks(explanation, SinkCriterion(times_uniform=1.01 * times)).found
    has_image = torch.tensor([True, True, True, False, False])
    masked = explanation_of(6.0, masks={"image": has_image})
    assert {sink.sample_share for sink in find_sinks(masked, SinkCriterion()).found} == {3 / SAMPLES}
    assert not find_sinks(masked, SinkCriterion(sample_share=3 / SAMPLES)).found
    few = find_sinks(explanation_of(6.0, MIN_SAMPLES - 1), SinkCriterion())
    assert few.found == []
    assert few.statistics == {}
    for wrong in ({"times_uniform": 0.5}, {"times_uniform": "x"}, {"sample_share": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SinkCriterion(**wrong)


def test_the_page_and_the_report_have_the_place_of_a_sink():
    explanation = explanation_of(6.0)
    sinks = sink_arrays(find_sinks(explanation, SinkCriterion()))
    found = page_sinks(event_arrays(explanation, max_megabytes=1) | sinks)
    columns = explanation.record.spans["image"].grid.shape[1]
    assert {(one["row"], one["column"]) for one in found["found"]} == {divmod(PLANTED, columns)}
    (table,) = sink_parts(found, explanation.record.spans)
    assert len(table.rows) == len(found["found"]) == len(explanation.record.input_layers) + 1
    assert "image" in next(iter(table.columns[1].cells))
