"""Knock-out: the change of answers by silencing parts, compared with models changed by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perceiver import Perceiver
from perceiver.attention import Attention, BlockSpec, CrossBlock, Residual, SelfBlock
from perceiver.decoders.base import LOGITS
from perceiver.decoders.text import TextDecoder
from perceiver.inspection import watch
from perceiver.inspection.evaluation import knockout
from perceiver.inspection.evaluation.knockout import KINDS, KnockOut, knock_out
from perceiver.inspection.maps.answers import answer_scores
from perceiver.inspection.maps.explanation import Explanation
from perceiver.latents import Schedule
from perceiver.roles import LATENTS
from tests.inspection.explanations import captions, explainer, labelled
from tests.inspection.foreign import FOREIGN, images, timm_vit
from tests.inspection.models import (
    ForeignModel,
    captioning,
    direct_text,
    perceiver,
    perceiver_io,
    perceiver_pooled_io,
    perceiver_text,
    without_end,
)
from tests.models import PERCEIVER_IO, small_inputs, small_perceiver


def found_in(model: Perceiver, inputs: dict[str, Tensor], *kinds: str) -> tuple[Explanation, dict[str, KnockOut]]:
    made = explainer(model)
    explanation = made.explain(captions(inputs) if isinstance(model.decoder, TextDecoder) else labelled(inputs))
    return explanation, {one.kind: one for one in knock_out(made, explanation, kinds)}


def check(explanation: Explanation, change: Tensor, outputs: dict[str, Tensor]) -> None:
    """The change is that of the probabilities in these outputs, of the ids that a tokenizer has."""
    num_ids = captioning().tokenizer.num_ids if outputs[LOGITS].ndim == 3 else None
    logs = {LOGITS: outputs[LOGITS].detach()[..., :num_ids].log_softmax(dim=-1)}
    expected = answer_scores(logs, explanation.answers).exp() - explanation.probability
    for row, of_row in enumerate(explanation.answers):
        torch.testing.assert_close(change[row, : len(of_row)], expected[row, : len(of_row)], atol=1e-5, rtol=1e-3)
        assert change[row, len(of_row) :].isnan().all()


@pytest.mark.parametrize("make", [perceiver, perceiver_pooled_io, perceiver_text], ids=lambda make: make.__name__)
def test_a_silent_latent_is_a_model_without_it(make):
    """Latents have no order, so that a model of fewer latents has the same outputs."""
    model, inputs = without_end(make().eval()), small_inputs()
    explanation, found = found_in(model, inputs, "latents")
    count = len(model.memory.array)
    assert found["latents"].names == [*map(str, range(count))]
    model.memory.array = torch.nn.Parameter(model.memory.array[[one for one in range(count) if one != 3]])
    check(explanation, found["latents"].change[..., 3], model(inputs, None, explanation.record.queries))
    assert found["latents"].change.nan_to_num().abs().max() > 1e-5


def test_a_silent_modality_is_an_input_without_it():
    model, inputs = perceiver_io().eval(), small_inputs()
    explanation, found = found_in(model, inputs, "modalities")
    for number, name in enumerate(found["modalities"].names):
        rest = {other: raw for other, raw in inputs.items() if other != name}
        check(explanation, found["modalities"].change[..., number], model(rest))


def test_a_silent_head_writes_nothing():
    """Its part of the output projection is zero; layers with a single head, or shared weights, are other cases."""
    model, inputs = perceiver_io().eval(), small_inputs()
    explanation, found = found_in(model, inputs, "heads")
    layers = explanation.record.layers
    mechanisms = [layer.mechanism for layer in layers.values()]
    attentions = {module.mechanism: module for module in model.modules() if isinstance(module, Attention)}
    unique = [name for name, layer in layers.items() if mechanisms.count(layer.mechanism) == 1]
    assert {"cross0", "decode0"} <= set(unique)
    for name in unique:
        attention, change = attentions[layers[name].mechanism], found["heads"].change
        weight, size = attention.out.weight.data.clone(), attention.out.in_features // attention.num_heads
        attention.out.weight.data[:, size : 2 * size] = 0.0
        check(explanation, change[..., found["heads"].names.index(f"{name}/1")], model(inputs))
        attention.out.weight.data = weight


def test_a_silent_single_head_leaves_no_bias_of_its_values():
    """Keys and values of a single head are otherwise not projected, and a bias is added to what was read."""
    schedule = Schedule(num_self_attends=1, **PERCEIVER_IO)
    model, inputs = small_perceiver(cross_attention=BlockSpec(num_heads=1), schedule=schedule).eval(), small_inputs()
    (block,) = model.memory.cross_blocks
    torch.nn.init.normal_(block.attention.value.bias)
    explanation, found = found_in(model, inputs, "heads")
    block.attention.out.weight.data.zero_()
    check(explanation, found["heads"].change[..., found["heads"].names.index("cross0/0")], model(inputs))


class Nothing(Residual):
    """A residual to which attention adds nothing."""

    def forward(self, queries: Tensor, read: Tensor) -> Tensor:
        return queries


@pytest.mark.parametrize("make", [perceiver_io, direct_text], ids=lambda make: make.__name__)
def test_a_silent_layer_keeps_its_queries(make):
    model, inputs = without_end(make().eval()), small_inputs()
    explanation, found = found_in(model, inputs, "layers", "latents")
    assert found["layers"].names == list(explanation.record.layers)
    assert ("latents" in found) == (LATENTS in {layer.role.queries for layer in explanation.record.layers.values()})
    (block,) = [block for block in model.modules() if isinstance(block, CrossBlock | SelfBlock)][-1:]
    block.residual = Nothing()
    check(explanation, found["layers"].change[..., -1], model(inputs, None, explanation.record.queries))


def test_cases_in_parts_are_the_same_and_the_model_stays_as_it_was(monkeypatch):
    model, inputs = perceiver().eval(), small_inputs()
    made = explainer(model)
    explanation = made.explain(labelled(inputs))
    before, hooks = model(inputs)[LOGITS], sum(len(module._forward_hooks) for module in model.modules())
    expected = knock_out(made, explanation)
    assert [one.kind for one in expected] == list(KINDS)
    monkeypatch.setattr(knockout, "TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(knockout, "MAX_LATENTS", 2)
    for one, other in zip(knock_out(made, explanation), expected, strict=True):
        places = [other.names.index(name) for name in one.names]
        torch.testing.assert_close(one.change, other.change[..., places])
        assert one.kind != "latents" or len(one.names) == 2
    assert torch.equal(model(inputs)[LOGITS], before)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all("is_linear" not in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match=r"knockout=neurons.*latents"):
        knock_out(made, explanation, ["neurons"])


def test_effects_are_means_over_answers_then_samples():
    change = torch.tensor([[[0.5, -0.1], [-0.1, 0.1]], [[0.2, 0.9], [torch.nan, torch.nan]]])
    found = KnockOut("heads", ["a", "b"], change)
    torch.testing.assert_close(found.effect.float(), torch.tensor([0.25, 0.5]))
    assert found.ranking == [1, 0]
    assert replace(found, change=torch.full((1, 2, 2), torch.nan)).ranking == [0, 1]


def test_a_model_that_is_no_perceiver_is_silenced_by_roles():
    torch.manual_seed(0)
    model = ForeignModel().eval()
    made = explainer(model)
    inputs = {"signal": torch.randn(2, 5, 22)}
    explanation = made.explain(labelled(inputs))
    found = {one.kind: one for one in knock_out(made, explanation)}
    assert found.keys() == {"modalities", "heads", "layers"}
    model.layers[1].residual = Nothing()
    check(explanation, found["layers"].change[..., 1], model(inputs))


def test_parts_of_a_watched_model_are_silent():
    model, x = timm_vit().eval(), images(24)
    with watch(model, inputs={"image": x}) as attention:
        model(x)
    explanation = attention.explain()
    found = {one.kind: one for one in attention.knock_out(explanation)}
    assert {kind: one.names for kind, one in found.items() if kind != "heads"} == {
        "modalities": ["image_special", "image"],
        "layers": ["encode0", "encode1"],
    }
    with torch.no_grad():
        heads = model.blocks[1].attn
        weight = heads.proj.weight.clone()
        heads.proj.weight[:, 4:8] = 0.0
        check(explanation, found["heads"].change[..., 3 + 1], {LOGITS: model(x)})
        heads.proj.weight.zero_()
        check(explanation, found["layers"].change[..., 1], {LOGITS: model(x)})
        heads.proj.weight.copy_(weight)


def test_latents_of_a_watched_model_are_silent():
    foreign = FOREIGN["q_former"]
    torch.manual_seed(0)
    model = foreign.make().eval()
    with watch(model, roles=foreign.roles) as attention:
        foreign.call(model)
    explanation = attention.explain(foreign.logits)
    found = {one.kind: one for one in attention.knock_out(explanation, ["latents", "modalities"])}
    assert all(one.change.isfinite().all() and one.effect.max() > 0 for one in found.values())
