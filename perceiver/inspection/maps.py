"""Attention on the grid of its input, and contact sheets of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from perceiver.inspection.frames import Frame
from perceiver.inspection.record import Record
from perceiver.inspection.rollout import Alpha, even_share, readers_of, rollout
from perceiver.inspection.sheets import Tile, contact_sheet
from perceiver.types import Answer, Box, Picture, Span

Weighed: TypeAlias = tuple[Answer, Float[Tensor, " keys"]]
"""An answer, and how much of it each token has."""


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """The part of the weights that falls on one modality, in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def latent_ranking(captured: Record) -> Int[Tensor, "batch latents"]:
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


def panels(
    captured: Record,
    pictures: Mapping[str, Picture],
    answers: Sequence[Sequence[Answer]],
    *,
    num_latents: int,
    alpha: Alpha = 0.5,
    boxes: Sequence[Sequence[Box] | None] = (),
    relevant: Sequence[Sequence[Weighed]] = (),
) -> dict[str, list[Image.Image]]:
    """All sheets of a captured batch, one a row under each name.

    Args:
        captured: the forward pass.
        pictures: modality name -> its inputs, a row each; a modality without has maps alone.
        answers: for each row those that have queries of their own.
        num_latents: how many latents to show.
        alpha: of the rollout.
        boxes: for each row where things truly are: drawn on the input and on maps of answers; on that of a class, its
            own.
        relevant: for each row all answers, whether or not they have queries of their own, with their relevance.

    Returns:
        `<modality>/cross<k>`: the input, the mean over latents over it and alone, the rollout from the outputs to the
        input (from each class, where there are such answers; else from all together), the relevance of each class,
        and the `num_latents` latents that the outputs read most. `caption/words`, where the answers are words: the
        input, and the relevance of each word; or the rollout from each, where relevance is not known.
    """
    spans = {modality: span for modality, span in captured.spans.items() if len(span.grid.shape) <= 2}
    frames = {modality: Frame(span.grid, pictures.get(modality)) for modality, span in spans.items()}
    num_rows = captured.layers[captured.named("cross")[0]].q.shape[0]
    nothing: list[tuple[()]] = [()] * num_rows
    look = _Look(
        captured=captured,
        spans=spans,
        frames=frames,
        alpha=alpha,
        boxes=[row or () for row in boxes] or nothing,
        answers=answers or nothing,
        relevant=relevant or nothing,
    )
    sheets = look.by_latents(num_latents)
    if frames and any(answer.is_word for row in look.answers for answer in row):
        sheets["caption/words"] = look.by_words()
    return sheets


@dataclass(frozen=True)
class _Look:
    """What the sheets of a captured batch are drawn from."""

    captured: Record
    spans: Mapping[str, Span]
    frames: Mapping[str, Frame]
    alpha: Alpha
    boxes: Sequence[Sequence[Box]]
    answers: Sequence[Sequence[Answer]]
    relevant: Sequence[Sequence[Weighed]]

    def by_latents(self, num_latents: int) -> dict[str, list[Image.Image]]:
        """A sheet for each cross-attend, modality and row, all maps of a sheet on one colour scale."""
        ranking = latent_ranking(self.captured)[:, :num_latents].tolist()
        rolled_out = self._rollouts([self._summed_up(row) for row in self.answers])
        sheets: dict[str, list[Image.Image]] = {}
        for name in self.captured.named("cross"):
            layer = self.captured.layers[name]
            means = layer.through(even_share(layer))
            for row, latents in enumerate(ranking):
                looks = {f"latent {one}": layer.sample(row).weights([one]).mean(dim=1)[0, 0] for one in latents}
                for modality, span in self.spans.items():
                    frame, mean = self.frames[modality], on_grid(means[row, 0], span)
                    here = self._boxes_in(modality, row)
                    tiles = [*frame.picture_tiles(row, mean, here), frame.map_tile("mean over latents", mean)]
                    for title, answer, weights in (
                        *(("rollout from", *weighed) for weighed in rolled_out[row]),
                        *(("relevance of", *weighed) for weighed in self.relevant[row] if not weighed[0].is_word),
                    ):
                        own = [box for box in here if answer.label in (None, box.label)]
                        tiles.append(frame.map_tile(f"{title} {answer.name}", on_grid(weights, span), own))
                    tiles += [frame.map_tile(title, on_grid(weights, span)) for title, weights in looks.items()]
                    sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                    sheets.setdefault(f"{modality}/{name}", []).append(sheet)
        return sheets

    def by_words(self) -> list[Image.Image]:
        """A strip for each row: each modality's input, then what each word depended on, with its true place."""
        strips, unit = [], "relevance" if any(self.relevant) else "rollout"
        maps: Sequence[Sequence[Weighed]] = self.relevant
        if not any(maps):
            maps = self._rollouts([row or self._summed_up(row) for row in self.answers])
        for row, of_words in enumerate(maps):
            tiles: list[Tile] = []
            for modality, span in self.spans.items():
                frame = self.frames[modality]
                tiles += frame.picture_tiles(row, None, self._boxes_in(modality, row))
                for answer, weights in of_words:
                    own = [box for box in answer.boxes if box.modality == modality]
                    tiles.append(frame.map_tile(answer.name, on_grid(weights, span), own))
            if not of_words:
                nothing = [(self.frames[name], np.zeros(span.grid.shape)) for name, span in self.spans.items()]
                tiles += [frame.map_tile("nothing was said", weights) for frame, weights in nothing]
            max_columns = max(frame.max_columns for frame in self.frames.values())
            strips.append(contact_sheet(tiles, max_columns=max_columns, unit=unit))
        return strips

    def _summed_up(self, answers: Sequence[Answer]) -> list[Answer]:
        """Classes as they are; words as one."""
        classes = [answer for answer in answers if not answer.is_word]
        queries = tuple(query for answer in answers for query in answer.queries)
        every = tuple(range(self.captured.num_outputs))
        return classes or [Answer("caption", queries) if queries else Answer("output", every)]

    def _boxes_in(self, modality: str, row: int) -> list[Box]:
        return [box for box in self.boxes[row] if box.modality == modality]

    def _rollouts(self, answers: Sequence[Sequence[Answer]]) -> list[list[Weighed]]:
        """For each row its answers with the shares of the input tokens."""
        readers = readers_of([[answer.queries for answer in row] for row in answers], self.captured.num_outputs)
        inputs = rollout(self.captured, alpha=self.alpha, readers=readers).inputs
        shares = inputs / inputs.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(inputs.dtype).tiny)
        return [list(zip(row, of_row, strict=False)) for row, of_row in zip(answers, shares, strict=True)]
