"""Models whose truth is known: maps, contrasts and knock-outs must find what is planted in them, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from perceiver.decoders.base import LOGITS
from perceiver.inspection.evaluation.knockout import KnockOut, knock_out
from perceiver.inspection.maps.contrast import SECOND
from perceiver.inspection.maps.explanation import Explanation
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.roles import CROSS, DECODE
from perceiver.types import Axis, Grid, JoinedTokens, Span
from tests.inspection.explanations import CLASS_NAMES, explainer, labelled
from tests.inspection.models import IdentityEncoder

CHANNELS, LATENTS, PATCHES = 7, 5, 13
NUM_CLASSES, EVIDENCE, PATCH, WIRED, ONLY = 3, 5, 8, 3, 2
"""The channel that the model reads, where it is planted, and the latent that is wired to one class, the last."""


class Joined(nn.Module):
    """Joins the tokens of several modalities."""

    def forward(self, tokens: dict[str, Tensor]) -> JoinedTokens:
        spans, start = {}, 0
        for name, values in tokens.items():
            length = values.shape[1]
            spans[name] = Span(start, start + length, Grid((length,), (Axis("patch", "", 0.0, float(length)),)))
            start += length
        return JoinedTokens(torch.cat([*tokens.values()], dim=1), None, spans)


class Wired(nn.Module):
    """Latents read tokens, and classes latents, with weights made by hand; there is no residual.

    Latent `WIRED` reads the token of the first modality with the largest value in channel `EVIDENCE`, and its value
    there is the logit of class `ONLY`; class 0 is the mean of the other latents, which read tokens by channel 0 and
    pass channel 1 on. Of other modalities nothing is read: the logits of their tokens are lower by far.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: IdentityEncoder(CHANNELS) for name in names})
        self.join = Joined()
        self.cross, self.decode = ScaledDotProduct(role=CROSS), ScaledDotProduct(role=DECODE)
        # A channel that only the first modality has in its keys.
        self.latents = nn.Parameter(torch.zeros(LATENTS, CHANNELS + 1))
        self.latents.data[:, 0] = 1.0
        self.latents.data[WIRED] = 0.0
        self.latents.data[WIRED, EVIDENCE] = 20.0
        self.latents.data[:, CHANNELS] = 99.0
        self.classes = nn.Parameter(torch.zeros(NUM_CLASSES, LATENTS))
        self.classes.data[0] = 20.0
        self.classes.data[0, WIRED] = -99.0
        self.classes.data[ONLY, WIRED] = 99.0

    def forward(self, inputs, masks=None, queries=None, hidden=None) -> dict[str, Tensor]:
        return self.forward_tokens(self.join({name: self.encoders[name](raw).values for name, raw in inputs.items()}))

    def forward_tokens(self, tokens: JoinedTokens, queries=None) -> dict[str, Tensor]:
        rows, values = len(tokens.values), tokens.values
        first = next(iter(tokens.spans.values()))
        is_first = torch.zeros(rows, values.shape[1], 1)
        is_first[:, first.start : first.stop] = 1.0
        keys = torch.cat([values, is_first], dim=-1)[:, None]
        latents = self.cross(self.latents.expand(rows, 1, -1, -1), keys, values[:, None], tokens.mask)
        places = torch.eye(LATENTS).expand(rows, 1, -1, -1)
        read = self.decode(self.classes.expand(rows, 1, -1, -1), places, latents)[:, 0]
        logits = torch.stack([read[:, 0, 1], read[:, 1, 2], read[:, ONLY, EVIDENCE]], dim=1)
        return {LOGITS: 3 * logits}


def wired_inputs(*names: str) -> dict[str, Tensor]:
    """Noise; in the first modality one patch has a large value in the channel of the evidence."""
    generator = torch.Generator().manual_seed(7)
    inputs = {
        name: 0.1 * torch.rand(4, PATCHES - number, CHANNELS, generator=generator) for number, name in enumerate(names)
    }
    inputs[names[0]][:, PATCH, EVIDENCE] = 1.0
    return inputs


@pytest.fixture(scope="module")
def found() -> tuple[Explanation, dict[str, KnockOut]]:
    model = Wired("image", "sound").eval()
    made = explainer(model, class_names=CLASS_NAMES[:NUM_CLASSES])
    explanation = made.explain(labelled(wired_inputs("image", "sound")), foil=SECOND)
    assert all(row[0].label == ONLY for row in explanation.answers), "the planted class is the likeliest one"
    return explanation, {one.kind: one for one in knock_out(made, explanation)}


def test_the_patch_is_found_by_relevance_contrast_and_rollout(found):
    explanation, _ = found
    for values in (explanation.relevance[:, 0], explanation.contrasts.relevance[:, 0, 0]):
        assert (values.argmax(dim=-1) == PATCH).all()
        shares = values / values.sum(dim=-1, keepdim=True)
        assert (shares[:, PATCH] > 0.9).all()
    assert (explanation.rollout.inputs[:, 0].argmax(dim=-1) == PATCH).all()
    foils = explanation.contrasts.foils
    for row, answers in enumerate(explanation.answers):
        for slot, answer in enumerate(answers):
            against_it = [number for number, foil in enumerate(foils[row][slot]) if foil.label == ONLY]
            for number in against_it:
                assert explanation.contrasts.against[row, slot, number].argmax() == PATCH, answer.name


def test_masking_the_patch_lowers_the_answer_more_than_masking_any_other():
    model = Wired("image").eval()
    inputs = wired_inputs("image")
    made = explainer(model, class_names=CLASS_NAMES[:NUM_CLASSES])
    explanation = made.explain(labelled(inputs))
    grid = explanation.record.tokens.spans["image"].grid
    spans = {str(patch): Span(patch, patch + 1, replace(grid, shape=(1,))) for patch in range(PATCHES)}
    explanation.record.tokens = replace(explanation.record.tokens, spans=spans)  # each patch is a part of its own
    model.forward_tokens, original = (
        lambda tokens, queries=None: original(replace(tokens, spans={"image": Span(0, PATCHES, grid)}), queries),
        model.forward_tokens,
    )
    (by_patch,) = knock_out(made, explanation, ["modalities"])
    assert by_patch.ranking[0] == PATCH
    assert by_patch.effect[PATCH] > 10 * by_patch.effect.sort().values[-2]


def test_the_latent_that_is_wired_to_the_class_is_ranked_first(found):
    _, by_kind = found
    latents = by_kind["latents"]
    assert latents.ranking[0] == WIRED
    assert (latents.change[:, 0, WIRED] < -0.2).all()
    others = [latent for latent in range(LATENTS) if latent != WIRED]
    assert (latents.change[:, 0, others].abs() < 0.1 * latents.change[:, 0, [WIRED]].abs()).all()
    assert by_kind["layers"].effect.min() > 0


def test_a_modality_that_is_ignored_has_no_relevance_and_no_effect(found):
    explanation, by_kind = found
    sound = slice(explanation.record.spans["sound"].start, explanation.record.spans["sound"].stop)
    for values in (explanation.relevance, explanation.against, explanation.rollout.inputs):
        assert values[..., sound].max() <= 1e-6 * values.max()
    contrasts = explanation.contrasts
    for values in (contrasts.relevance, contrasts.against):
        assert values[..., sound].max() <= 1e-6 * values.max()
    modalities = by_kind["modalities"]
    effects = dict(zip(modalities.names, modalities.effect.tolist(), strict=True))
    assert effects["sound"] < 1e-6 < 0.1 < effects["image"]
