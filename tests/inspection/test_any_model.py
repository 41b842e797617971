"""From the forward pass to the page, for models of every shape that the contract allows."""

from functools import partial
from math import isfinite

import pytest
import torch

from perceiver import Perceiver
from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.drawing.figures import contact_sheets
from perceiver.inspection.drawing.media import Media, page_samples
from perceiver.inspection.evaluation.faithfulness import faithfulness
from perceiver.inspection.evaluation.localization import localization
from perceiver.inspection.explorer.page import explorer_page, page_event
from perceiver.inspection.maps.capture import Explainable, input_pictures, input_sounds
from perceiver.types import Batch
from tests.inspection.explanations import CLASS_NAMES, arrays_of, contents_of, explainer, labelled
from tests.inspection.models import (
    ForeignModel,
    direct_text,
    perceiver,
    perceiver_io,
    perceiver_joint,
    query_decoder,
    small_inputs,
    text_decoder,
    without_end,
)
from tests.models import DIM, NUM_CLASSES, direct

ENCODER = [f"self{number}" for number in range(6)]


def pooled_tokens(num_layers: int) -> Perceiver:
    """Without latents and queries: the mean over the tokens."""
    decoder = PooledDecoder(dim=DIM, num_classes=NUM_CLASSES)
    return perceiver_io(memory=direct(num_layers=num_layers), decoder=decoder)


def joint_without_latents() -> Perceiver:
    decoder = JointDecoder(decoders={"caption": text_decoder(), "label": query_decoder()})
    return perceiver_io(memory=direct(), decoder=decoder)


def joint_pooled() -> Perceiver:
    pooled = PooledDecoder(dim=DIM, num_classes=NUM_CLASSES)
    return perceiver_io(decoder=JointDecoder(decoders={"caption": text_decoder(1), "label": pooled}))


IN_WORDS = ["decode_self0", "decode0", "decode_self1", "decode1"]
JOINT = ["label/decode0", *(f"caption/{name}" for name in IN_WORDS)]
MODELS = pytest.mark.parametrize(
    ("make", "layers", "readers"),
    [
        (
            perceiver,
            ["cross0", "self0", "self1", "cross1", "self2", "self3", "cross2", "self4", "self5"],
            ["cross0", "cross1", "cross2"],
        ),
        (ForeignModel, ["ask0", "ask1"], ["ask0", "ask1"]),
        (direct_text, ["encode0", "encode1", *IN_WORDS], ["decode0", "decode1"]),
        (partial(pooled_tokens, 2), ["encode0", "encode1"], []),
        (partial(pooled_tokens, 0), [], []),
        (perceiver_joint, ["cross0", *ENCODER, *JOINT], ["cross0"]),
        (
            joint_without_latents,
            ["encode0", "encode1", *JOINT[1:], JOINT[0]],
            ["caption/decode0", "caption/decode1", "label/decode0"],
        ),
        (joint_pooled, ["cross0", *ENCODER, *JOINT[1:3]], ["cross0"]),
    ],
    ids=[
        "shared weights",
        "foreign",
        "direct_text",
        "pooled",
        "pooled, no layer",
        "joint",
        "joint_without_latents",
        "joint_pooled",
    ],
)


def batch_for(model: Explainable, masked: bool) -> Batch:
    """A batch that the model reads, part of which is masked if `masked`."""
    inputs = small_inputs() if "image" in model.encoders else {"signal": torch.randn(3, 31, 22)}
    masks = {"signal": torch.arange(31) < torch.tensor([[31], [7], [23]])} if "signal" in inputs else {}
    masks = masks or {"depth": torch.tensor([True, False, True])}
    return labelled(inputs, masks if masked else None)


@MODELS
@pytest.mark.parametrize(("masked", "alpha"), [(False, 0.3), (True, "norm")])
def test_its_answers_are_explained(make, layers, readers, masked, alpha):
    model = without_end(make())
    batch, of_model = batch_for(model, masked), explainer(model, alpha=alpha)
    explanation = of_model.explain(batch)
    num_tokens = explanation.record.tokens.values.shape[1]
    assert list(explanation.record.layers) == layers
    assert explanation.record.input_layers == readers
    widths = torch.tensor([len(row) for row in explanation.answers])
    is_answer = torch.arange(int(widths.max())) < widths[:, None]
    assert explanation.rollout.inputs.shape == explanation.relevance.shape == (*is_answer.shape, num_tokens)
    torch.testing.assert_close(explanation.rollout.inputs.sum(dim=-1) + explanation.rollout.residual, is_answer.float())
    assert (explanation.rollout.residual > 0).any() == ("cross0" in layers)
    assert (explanation.relevance.sum(dim=-1) > 0)[is_answer].float().mean() > 0.9
    assert (explanation.relevance >= 0).all()
    assert (explanation.relevance[~is_answer] == 0).all()
    with torch.no_grad():
        outputs = of_model.task.probabilities(model(batch.inputs, batch.masks, explanation.record.queries))
    for row, answers in enumerate(explanation.answers):
        for slot, answer in enumerate(answers):
            at = (row, list(answer.queries), list(answer.ids)) if answer.is_word else (row, answer.label)
            torch.testing.assert_close(explanation.probability[row, slot], outputs[answer.output][at].prod())
    if masked:
        hidden = ~explanation.record.token_mask[:, None]
        assert not explanation.rollout.inputs.masked_select(hidden).any()
        assert not explanation.relevance.masked_select(hidden).any()
    assert all(map(isfinite, explanation.statistics.values()))
    assert {name.split("/", 1)[1].rpartition("/")[0] for name in explanation.statistics} == {
        name for name in layers if "decode_self" not in name
    }
    found = faithfulness(of_model, explanation, num_orders=2)
    assert set(found.kinds) == {"relevance", "rollout"} | ({"mean_map"} if readers else set())
    assert set(localization(explanation)) <= {"word_overlap"}, "there are no boxes"


@MODELS
def test_its_explanation_is_stored_and_drawn(make, layers, readers):
    model = without_end(make())
    batch = batch_for(model, masked=True)
    explanation = explainer(model).explain(batch)
    arrays = arrays_of(explanation, **explanation.statistics)
    assert [name.removesuffix("/latents") for name in arrays if name.endswith("/latents")] == readers
    event = page_event(arrays)
    media = Media(input_pictures(model, batch.inputs), input_sounds(model, batch.inputs))
    samples = page_samples(batch, explanation.record.spans, media, CLASS_NAMES)
    page, maps = contents_of(explorer_page("title", samples, {"run": [event]}))
    assert [list(sample["modalities"]) for sample in page["samples"]] == [list(batch.inputs)] * 3
    for content, answers in zip(maps, explanation.answers, strict=True):
        assert [answer["name"] for answer in content["answers"]] == [answer.name for answer in answers]
        assert [layer["name"] for layer in content["layers"]] == readers
        assert all(len(layer["rollout"]) == len(answers) for layer in content["layers"])
    sheets = contact_sheets(explanation, media.pictures, num_latents=2)
    in_words = {"caption/words"} if any("decode_self" in name for name in layers) else set()
    assert set(sheets) == {f"{modality}/{name}" for modality in batch.inputs for name in readers} | in_words
    assert all(len(of_rows) == 3 for of_rows in sheets.values())
