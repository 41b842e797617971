"""Contrasts of one answer with another, and evidence against an answer."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from perceiver.decoders.base import LOGITS
from perceiver.inspection import watch
from perceiver.inspection.explorer.page import page_event
from perceiver.inspection.maps.capture import capture
from perceiver.inspection.maps.contrast import NUM_FOILS, SECOND, choose_foils
from tests.inspection.explanations import (
    CLASS_NAMES,
    arrays_of,
    captions,
    explainer,
    image_and_sound,
    labelled,
    unpacked,
)
from tests.inspection.foreign import images, timm_vit
from tests.inspection.models import of_class, perceiver_io, perceiver_joint, perceiver_text, without_end, word
from tests.models import audio_encoder, image_encoder, logits, small_inputs


def by_hand(model: torch.nn.Module, inputs: dict[str, Tensor], own: Tensor, other: Tensor) -> Tensor:
    """Relevance for and against some classes rather than others, from the scores of each sample."""
    with capture(model, gradients=True) as record:
        rows, scores = torch.arange(len(own)), logits(model, inputs)
        return record.evidence((scores[rows, own] - scores[rows, other])[:, None])[:, 0]


def one_sample() -> dict[str, Tensor]:
    return {name: raw[:1] for name, raw in small_inputs().items()}


def test_evidence_against_is_the_relevance_of_minus_the_score():
    model, inputs = perceiver_io(), small_inputs()
    with capture(model, gradients=True) as record:
        scores = logits(model, inputs)[:, [3, 7]]
        both, reverse = record.evidence(scores), record.evidence(-scores)
        torch.testing.assert_close(record.relevance(scores), both[:, :, 0])
    assert (both >= 0).all()
    assert both.sum(dim=(0, 1, 3)).min() > 0
    torch.testing.assert_close(both.flip(2), reverse)
    assert not torch.allclose(both[:, :, 0], both[:, :, 1])


def test_a_contrast_is_the_relevance_of_the_difference_of_the_logits():
    torch.manual_seed(5)
    model = perceiver_io(encoders={"image": image_encoder(), "audio": audio_encoder()})
    inputs = image_and_sound()
    explanation = explainer(model).explain(labelled(inputs), foil="class 3")
    contrasts = explanation.contrasts
    for slot in range(2):
        for number in range(NUM_FOILS):
            own, other = (
                torch.tensor([row[slot].label for row in explanation.answers]),
                torch.tensor([row[slot][number].label for row in contrasts.foils]),
            )
            expected = by_hand(model, inputs, own, other)
            torch.testing.assert_close(contrasts.relevance[:, slot, number], expected[:, 0])
            torch.testing.assert_close(contrasts.against[:, slot, number], expected[:, 1])
            torch.testing.assert_close(by_hand(model, inputs, other, own), expected.flip(1))
            probability = explanation.record.outputs[LOGITS].softmax(dim=-1)[torch.arange(3), other]
            torch.testing.assert_close(contrasts.probability[:, slot, number], probability)
    for row, foils in zip(explanation.answers, contrasts.foils, strict=True):
        for answer, own in zip(row, foils, strict=True):
            assert len(own) == NUM_FOILS
            assert answer.name not in [foil.name for foil in own]
            assert (own[0].name == "class 3") == (answer.name != "class 3")
    assert explainer(model).explain(labelled(inputs)).contrasts is None


def test_foils_are_the_likeliest_others_and_a_word_differs_in_its_first_token():
    values = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.35, 0.3, 0.1]]])
    names = {LOGITS: ["p", "q", "r", "s"]}
    (found,) = choose_foils([[word([0, 1], [3, 1])]], {LOGITS: values}, names, num_foils=2)
    assert [(foil.name, foil.ids, foil.queries) for foil in found[0]] == [("r", (2, 1), (0, 1)), ("q", (1, 1), (0, 1))]
    (found,) = choose_foils([[of_class(1)]], {LOGITS: values[:, 0]}, names, foil="p")
    assert [(foil.name, foil.label, foil.queries) for foil in found[0]] == [
        ("p", 0, (0,)),
        ("s", 3, (3,)),
        ("r", 2, (2,)),
    ]
    assert choose_foils([[of_class(1)]], {LOGITS: values[:, 0]}, {}) == [[[]]]
    with pytest.raises(ValueError, match=r"foil=t: .*p, q, r, s.*second"):
        choose_foils([[of_class(1)]], {LOGITS: values[:, 0]}, names, foil="t")


def test_words_are_contrasted_with_tokens_at_their_position():
    model, inputs = without_end(perceiver_text()), one_sample()
    made = explainer(model)
    explanation = made.explain(captions(inputs), foil=SECOND)
    pieces = made.task.tokenizer.pieces(range(made.task.tokenizer.num_ids))
    probabilities = made.task.probabilities(explanation.record.outputs)[LOGITS]
    for row, (answers, foils) in enumerate(zip(explanation.answers, explanation.contrasts.foils, strict=True)):
        for answer, own in zip(answers, foils, strict=True):
            ranked = probabilities[row, answer.queries[0]].argsort(descending=True).tolist()
            ranked.remove(answer.ids[0])
            assert [foil.name for foil in own] == [pieces[id] for id in ranked[:NUM_FOILS]]
    assert explanation.contrasts.relevance.sum() > 0


def test_answers_of_several_outputs_have_foils_of_their_own():
    model = without_end(perceiver_joint())
    explanation = explainer(model).explain(captions(one_sample(), label=torch.arange(1)), foil="class 1")
    for answers, foils in zip(explanation.answers, explanation.contrasts.foils, strict=True):
        for answer, own in zip(answers, foils, strict=True):
            assert {foil.output for foil in own} == {answer.output}
            assert answer.is_word or answer.name == "class 1" or own[0].name == "class 1"


def test_the_page_has_contrasts_with_their_exact_mass():
    torch.manual_seed(5)
    model = perceiver_io(encoders={"image": image_encoder(), "audio": audio_encoder()})
    explanation = explainer(model).explain(labelled(image_and_sound()), foil=SECOND)
    arrays = arrays_of(explanation)
    names = json.loads(str(arrays["contrast/foils"]))
    assert [foil["name"] for foil in names[1][0]] == [foil.name for foil in explanation.contrasts.foils[1][0]]
    maps = page_event(arrays, max_values=10**6).maps["s/1"]
    relevance = next(method for method in maps["methods"] if method["name"] == "relevance")
    balance = explanation.relevance.sum(-1) / (explanation.relevance + explanation.against).sum(-1)
    np.testing.assert_allclose(relevance["balance"], balance[1], atol=1e-3)
    against = unpacked(relevance["against"])
    np.testing.assert_allclose(sum(part.sum(axis=(1, 2)) for part in against.values()), 1, atol=1e-2)
    contrast = relevance["contrast"]
    assert contrast["foils"] == names[1]
    found = unpacked(contrast["maps"])
    for name, span in explanation.record.spans.items():
        shares = explanation.contrasts.relevance[1] / explanation.contrasts.relevance[1].sum(-1, keepdim=True)
        masses = shares[..., span.start : span.stop].sum(-1)
        np.testing.assert_allclose(found[name].sum(axis=(2, 3)), masses, atol=1e-2)
    without = page_event(arrays_of(explainer(model).explain(labelled(image_and_sound())))).maps["s/1"]
    assert all("contrast" not in method for method in without["methods"])


def test_a_watched_model_has_contrasts():
    model, x = timm_vit().eval(), images(24)
    with watch(model) as attention:
        output = model(x)
    explanation = attention.explain(class_names=CLASS_NAMES, foil="class 1")
    best = [row[0].label for row in explanation.answers]
    first = [row[0][0].label for row in explanation.contrasts.foils]
    assert all(foil == 1 or own == 1 for own, foil in zip(best, first, strict=True))
    rows = torch.arange(len(x))
    expected = attention.evidence((output[rows, best] - output[rows, first])[:, None])[:, 0]
    torch.testing.assert_close(explanation.contrasts.relevance[:, 0, 0], expected[:, 0])
    torch.testing.assert_close(explanation.contrasts.against[:, 0, 0], expected[:, 1])
