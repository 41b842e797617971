from contextlib import suppress
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from perceiver import Perceiver
from perceiver.attention import BlockSpec, CrossBlock, SelfBlock
from perceiver.decoders.base import Decoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.maps.capture import Capture, capture
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.rollout import rollout
from perceiver.latents import LatentArray, Schedule
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from tests.inspection.models import (
    MODELS_AND_MASKS,
    NUM_WORDS,
    IdentityEncoder,
    beams,
    captioning,
    captions,
    capture_relevance,
    computed_weights,
    forward_record,
    perceiver,
    perceiver_io,
    perceiver_joint,
    perceiver_text,
    some_scores,
)
from tests.kills import in_fork
from tests.models import DIM, NUM_CLASSES, latents, logits, small_inputs

DROPPING = BlockSpec(num_heads=1, attention_dropout=0.3, residual_dropout=0.2)


def assert_same(found: Capture, expected: Capture) -> None:
    """Two forward passes have the same attention and outputs."""
    assert list(found.layers) == list(expected.layers)
    assert found.spans == expected.spans
    for name, layer in expected.layers.items():
        torch.testing.assert_close(found.map(name), expected.map(name))
        torch.testing.assert_close(found.layers[name].attention_share, layer.attention_share)
    torch.testing.assert_close(found.outputs, expected.outputs)


@MODELS_AND_MASKS
def test_weights_times_values_are_the_outputs_of_the_fused_kernel(make, masks):
    captured, _ = capture_relevance(make(), small_inputs(), masks)
    for layer in captured.layers.values():
        torch.testing.assert_close(layer.weights() @ layer.v, torch.cat(layer.outs, dim=2), rtol=0, atol=1e-5)
        one = layer.sample(1)
        assert one.v is None
        assert not one.outs
        torch.testing.assert_close(one.weights(), layer.weights()[1:2])


@pytest.mark.parametrize("make", [perceiver, perceiver_text])
def test_gradients_do_not_change_the_record(make):
    model, inputs = make(), small_inputs()
    expected = forward_record(model, inputs)
    assert_same(capture_relevance(model, inputs)[0], expected)
    assert all(layer.v is None and not layer.outs for layer in expected.layers.values())
    assert not any(output.requires_grad for output in expected.outputs.values())


@pytest.mark.parametrize(
    ("error", "name", "options", "named"),
    [
        (KeyError, "cross1", {}, ["cross1", "cross0", "decode0"]),
        (IndexError, "cross0", {"head": 3}, ["cross0", "0 to 2", "3"]),
        (IndexError, "self2", {"head": -1}, ["self2", "0 to 1", "-1"]),
        (IndexError, "decode0", {"queries": [0, 19]}, ["decode0", "0 to 18", "19"]),
        (IndexError, "cross0", {"queries": [0, -1]}, ["cross0", "0 to 10", "-1"]),
    ],
)
def test_layers_heads_and_queries_that_do_not_exist_raise_with_those_that_do(error, name, options, named):
    with pytest.raises(error) as raised:
        forward_record(perceiver_io()).map(name, **options)
    assert all(part in str(raised.value) for part in named)


def test_a_second_forward_replaces_the_first():
    model, inputs = perceiver(), small_inputs()
    with capture(model) as captured:
        model(small_inputs(batch=2))
        model({"image": inputs["image"]})
    assert_same(captured, forward_record(model, {"image": inputs["image"]}))
    with capture(model, gradients=True) as captured:
        model(small_inputs(batch=2))
        found = captured.relevance(some_scores(model(inputs)))
    torch.testing.assert_close(found, capture_relevance(model, inputs)[1])


@pytest.mark.parametrize(
    ("kinds", "make", "frozen"),
    [((CrossBlock, SelfBlock), perceiver, True), ((LatentArray, Decoder), perceiver_text, False)],
    ids=["blocks", "parts"],
)
def test_recomputation_by_checkpointing_is_not_recorded(kinds, make, frozen):
    model, inputs = make().requires_grad_(not frozen), small_inputs()
    expected, relevance = capture_relevance(model, inputs)
    wrapper = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    calls = []
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrapper, check_fn=lambda module: isinstance(module, kinds)
    )
    for module in model.modules():
        if isinstance(module, ScaledDotProduct):
            module.register_forward_hook(lambda *_: calls.append(1))
    with capture(model) as captured:
        model(inputs, None, expected.queries)
    assert list(captured.layers) == list(expected.layers)
    calls.clear()
    with capture(model, gradients=True) as captured:
        outputs = model(inputs, None, expected.queries)
        found = captured.relevance(some_scores(outputs))
    assert len(calls) > len(expected.layers), "some ran again"
    assert_same(captured, expected)
    assert captured.outputs is outputs
    torch.testing.assert_close(found, relevance)


def test_recomputation_of_a_complete_model_is_not_recorded():
    model, inputs = perceiver_io(), small_inputs()
    expected, relevance = capture_relevance(model, inputs)
    with capture(model, gradients=True) as captured:
        found = captured.relevance(some_scores(checkpoint(model, inputs, use_reentrant=False)))
    assert list(captured.layers) == list(expected.layers)
    assert all(output.requires_grad for output in captured.outputs.values()), "those of the first run"
    torch.testing.assert_close(found, relevance)


@pytest.mark.parametrize("make", [perceiver, perceiver_text])
def test_frozen_models_give_the_same_relevance_and_stay_frozen(make):
    model, inputs = make(), small_inputs()
    expected = capture_relevance(model, inputs)[1]
    model.requires_grad_(False)
    next(block for block in model.modules() if isinstance(block, CrossBlock)).requires_grad_(True)
    torch.testing.assert_close(capture_relevance(model, inputs)[1], expected)
    model.requires_grad_(False)
    torch.testing.assert_close(capture_relevance(model, inputs)[1], expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("fails", "gradients"), [(False, True), (True, False)])
def test_modes_random_state_compilation_and_hooks_are_restored(fails, gradients):
    model, compilations = perceiver(), []
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 5 != 0)
    needed = [parameter.requires_grad for parameter in model.parameters()]
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    try:
        with capture(model, gradients=gradients) as captured:
            assert not any(module.training for module in model.modules())
            assert torch.is_grad_enabled() == gradients
            torch.rand(7)
            outputs = logits(model, small_inputs())
            if gradients:
                captured.relevance(outputs[:, :2])
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def backend(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3))
    assert len(compilations) == 1


def break_off(model, inputs):
    with suppress(ZeroDivisionError), capture(model, gradients=True):
        logits(model, inputs).sum()
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("inspect", "precision"),
    [(forward_record, torch.float32), (capture_relevance, torch.bfloat16), (break_off, torch.float32)],
    ids=["record", "relevance", "interrupted"],
)
def test_training_goes_on_bit_for_bit_as_without_a_capture(inspect, precision):
    losses, weights = [], []
    for looking in (False, True):
        torch.manual_seed(0)
        model = perceiver(self_attention=DROPPING, cross_attention=DROPPING, modality_dropout=0.3).train()
        optimizer = torch.optim.AdamW(model.parameters())
        inputs = small_inputs()
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
                if looking:
                    inspect(model, inputs)
                loss = logits(model, inputs).square().mean()
            loss.backward()
            if looking:
                inspect(model, inputs)
            optimizer.step()
            losses.append(loss.item())
        weights.append(model.state_dict())
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_compiled_models_give_the_same_maps_and_are_not_compiled_again():
    # In a process of its own: the compiler starts threads with which later tests could not be forked.
    assert in_fork(_look_at_a_compiled_model) == 0


def _look_at_a_compiled_model() -> None:
    model = perceiver_io(schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1)).train()
    inputs, eager = small_inputs(), deepcopy(model)
    eager(inputs)  # what einops learns of tensors at its first call would have the model compiled again
    model.compile(backend="aot_eager")
    torch._dynamo.reset()
    logits(model, inputs).mean().backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert_same(forward_record(model, inputs), forward_record(eager, inputs))
    torch.testing.assert_close(capture_relevance(model, inputs)[1], capture_relevance(eager, inputs)[1])
    logits(model, inputs).mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_module_that_holds_the_model_can_be_captured():
    model, inputs = perceiver_io(), small_inputs()
    with capture(nn.ModuleDict({"net": model}), gradients=True) as captured:
        found = captured.relevance(some_scores(model(inputs)))
    torch.testing.assert_close(found, capture_relevance(model, inputs)[1])
    assert_same(captured, forward_record(model, inputs))


def test_a_map_of_few_latents_never_holds_the_whole_map(monkeypatch):
    tokens, num_latents, heads = 5003, 61, 4
    model = Perceiver(
        encoders={"tokens": IdentityEncoder(8)},
        memory=latents(
            num_latents=num_latents,
            cross_attention=BlockSpec(num_heads=heads),
            schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=0),
        ),
        decoder=PooledDecoder(dim=DIM, num_classes=NUM_CLASSES),
    )
    largest = computed_weights(monkeypatch)
    with capture(model) as captured:
        model({"tokens": torch.randn(1, tokens, 8)})
    assert largest == [], "nothing is computed before it is requested"
    few = captured.map("cross0", queries=[3, 59, 3])
    one_head = captured.map("cross0", queries=[3, 59, 7], head=2)
    assert largest == [3 * heads * tokens] * 2
    assert captured.map("cross0", queries=[]).shape == (1, 0, tokens)
    monkeypatch.setattr("perceiver.inspection.maps.record.MAX_WEIGHTS", 5 * heads * tokens)
    whole = captured.map("cross0")
    assert max(largest) == 5 * heads * tokens
    torch.testing.assert_close(few, whole[:, [3, 59, 3]])
    torch.testing.assert_close(one_head, captured.layers["cross0"].weights()[:, 2, [3, 59, 7]])


def test_of_generation_only_the_forward_pass_over_its_result_is_recorded():
    model, inputs, task = perceiver_text(), small_inputs(), captioning(beams(3))
    with capture(model) as captured:
        words = task.generate(model, captions(inputs), 1).ids[:, 0]
        assert not captured.layers
    found = Explainer(model, task, [], 0.5).explain(captions(inputs))
    alone = forward_record(model, inputs, words=words)
    assert_same(found.record, alone)
    assert any(found.answers)
    queries = {query for row in found.answers for answer in row for query in answer.queries}
    assert queries <= set(range(alone.num_outputs))


def test_rollout_of_a_model_with_several_outputs_needs_a_choice():
    captured = forward_record(perceiver_joint())
    for output in (None, "label"):
        with pytest.raises(ValueError, match=f"output={output}: .*label/logits, caption/logits"):
            captured.rollout(output=output)
    with pytest.raises(IndexError):
        captured.rollout([NUM_CLASSES], output="label/logits")
    for output, num_queries in (("label/logits", NUM_CLASSES), ("caption/logits", NUM_WORDS)):
        found = captured.rollout([3, 1], output=output, alpha=0.3)
        expected = rollout(captured.for_output(output), alpha=0.3)
        assert expected.inputs.shape[1] == num_queries
        for name in ("inputs", "residual"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name)[:, [3, 1]])
