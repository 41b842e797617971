"""Attention on the grid of its input, and contact sheets of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from perceiver.inspection.capture import Capture
from perceiver.inspection.frames import Frame
from perceiver.inspection.rollout import even_share, rollout
from perceiver.inspection.sheets import contact_sheet
from perceiver.types import Box, Picture, Span

MAX_ANSWERS = 3
"""How many of a sample's answers have a map of their own in its sheet."""


@dataclass(frozen=True)
class Answer:
    """A class that a sample was said to be of, and the number of the decoder's query that asked for it."""

    name: str
    query: int


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """The part of the weights that falls on one modality, in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def latent_ranking(captured: Capture) -> Int[Tensor, "batch latents"]:
    """Latents by how much the outputs read from them; without decoder attention by how sharply they look."""
    decoders = captured.named("decode")
    if decoders:
        score = captured.map(decoders[-1]).mean(dim=1)
    else:
        layer = captured.layers[captured.named("cross")[-1]]
        score = torch.cat([-_entropy(layer.weights(chunk)) for chunk in layer.chunks(range(layer.num_queries))], dim=1)
    return score.argsort(dim=1, descending=True, stable=True)


def _entropy(weights: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch queries"]:
    return torch.special.entr(weights.mean(dim=1)).sum(dim=-1)


def class_answers(
    captured: Capture, predictions: Sequence[Sequence[Mapping[str, Any]]], class_names: Sequence[str]
) -> list[list[Answer]]:
    """The best answers of each sample, where the decoder has one query a class.

    Args:
        captured: the forward pass.
        predictions: of each sample its answers, best first, whose `class` is one of `class_names`.
        class_names: in the order of the outputs.

    Returns:
        An empty list where the decoder asks for all classes at once, or answers are no classes.
    """
    if captured.num_outputs != len(class_names) or not all("class" in one for of in predictions for one in of):
        return []
    numbers = {name: number for number, name in enumerate(class_names)}
    return [[Answer(one["class"], numbers[one["class"]]) for one in of[:MAX_ANSWERS]] for of in predictions]


def contact_sheets(
    captured: Capture,
    pictures: Mapping[str, Picture],
    *,
    num_latents: int,
    alpha: float = 0.5,
    answers: Sequence[Sequence[Answer]] = (),
    boxes: Sequence[Sequence[Box] | None] = (),
) -> dict[str, list[Image.Image]]:
    """One sheet per row of the captured batch for each cross-attend and modality whose grid has one or two axes.

    A sheet shows the input, the mean over latents over it and alone, the rollout from the outputs to the input, and the
    `num_latents` latents that the outputs read most, all on one colour scale.

    Args:
        captured: the forward pass.
        pictures: modality name -> its inputs, a row each; a modality without has maps alone.
        num_latents: how many latents to show.
        alpha: of the rollout.
        answers: for each row those with a rollout of their own, instead of the mean over all outputs.
        boxes: for each row where things truly are: drawn on the input and on rollouts; on that of an answer, those of
            its class.

    Returns:
        `<modality>/cross<k>` -> sheets.
    """
    ranking = latent_ranking(captured)[:, :num_latents].tolist()
    rollouts = _rollouts(captured, answers or [()] * len(ranking), alpha)
    truth = [row or () for row in boxes] or [()] * len(ranking)
    spans = {modality: span for modality, span in captured.spans.items() if len(span.grid.shape) <= 2}
    sheets: dict[str, list[Image.Image]] = {}
    for name in captured.named("cross"):
        layer = captured.layers[name]
        means = layer.through(even_share(layer))
        for row, (latents, rolled_out, true) in enumerate(zip(ranking, rollouts, truth, strict=True)):
            looks = {f"latent {one}": layer.sample(row).weights([one]).mean(dim=1)[0, 0] for one in latents}
            for modality, span in spans.items():
                frame = Frame(span.grid, pictures.get(modality))
                mean = on_grid(means[row, 0], span)
                here = [box for box in true if box.modality == modality]
                tiles = [*frame.picture_tiles(row, mean, here), frame.map_tile("mean over latents", mean)]
                for title, label, weights in rolled_out:
                    own = [box for box in here if label in (None, box.label)]
                    tiles.append(frame.map_tile(title, on_grid(weights, span), own))
                tiles += [frame.map_tile(title, on_grid(weights, span)) for title, weights in looks.items()]
                sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                sheets.setdefault(f"{modality}/{name}", []).append(sheet)
    return sheets


def _rollouts(
    captured: Capture, answers: Sequence[Sequence[Answer]], alpha: float
) -> list[list[tuple[str, int | None, Float[Tensor, " keys"]]]]:
    """For each row its rollouts with their titles and classes: from each answer, or from the mean over all outputs."""
    most = max(len(row) for row in answers)
    if not most:
        means = _shares(rollout(captured, alpha=alpha, mean=True).inputs)
        return [[("rollout from output", None, row[0])] for row in means]
    chosen = torch.tensor([[answer.query for answer in row] + [0] * (most - len(row)) for row in answers])
    each = _shares(rollout(captured, alpha=alpha, queries=chosen).inputs)
    return [
        [(f"rollout from {answer.name}", answer.query, weights) for answer, weights in zip(row, from_row, strict=False)]
        for row, from_row in zip(answers, each, strict=True)
    ]


def _shares(values: Float[Tensor, "*rows keys"]) -> Float[Tensor, "*rows keys"]:
    """Rows that sum to one, or to zero where there is nothing to share."""
    return values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
