"""Attention on the grid of its input, and contact sheets of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from perceiver.inspection.answers import Weighed, shares_of
from perceiver.inspection.frames import Frame
from perceiver.inspection.look import Look
from perceiver.inspection.record import Record
from perceiver.inspection.rollout import even_share, mean_reader, rollout
from perceiver.inspection.sheets import Tile, contact_sheet
from perceiver.mechanisms.base import LATENTS
from perceiver.types import Answer, Box, Picture, Span


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """The part of the weights that falls on one modality, in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def query_ranking(record: Record, name: str) -> Int[Tensor, "batch queries"]:
    """The queries of a layer that reads the tokens: latents by how much the outputs read from them.

    Without decoder attention, and where the outputs read the tokens themselves, by how sharply they attend.
    """
    layer = record.layers[name]
    if layer.role.queries == LATENTS:
        if decoders := record.decoders:
            score = record.map(decoders[-1]).mean(dim=1)
            return score.argsort(dim=1, descending=True, stable=True)
        layer = record.layers[record.readers[-1]]
    score = torch.cat([-_entropy(layer.weights(chunk)) for chunk in layer.chunks(range(layer.num_queries))], dim=1)
    return score.argsort(dim=1, descending=True, stable=True)


def _entropy(weights: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch queries"]:
    return torch.special.entr(weights.mean(dim=1)).sum(dim=-1)


def panels(look: Look, pictures: Mapping[str, Picture], *, num_latents: int) -> dict[str, list[Image.Image]]:
    """All sheets of a batch that was looked at, one a row under each name.

    Args:
        look: the batch.
        pictures: modality name -> its inputs, a row each; a modality without has maps alone.
        num_latents: how many latents to show.

    Returns:
        `<modality>/<layer>` for each layer that reads the tokens: the input, the mean over latents over it and alone,
        the rollout from the outputs to the input (from each class that has a query of its own; else from all together),
        the relevance of each class, and the `num_latents` latents that the outputs read most. `caption/words`, where
        answers are words: the input, and the relevance of each word. Boxes, where there are any, are drawn on the input
        and on maps of answers; on that of a class, its own.
    """
    spans = look.record.spans
    frames = {modality: Frame(span.grid, pictures.get(modality)) for modality, span in spans.items()}
    drawn = _Sheets(look, spans, frames)
    sheets = drawn.by_latents(num_latents)
    if frames and any(answer.is_word for row in look.answers for answer in row):
        sheets["caption/words"] = drawn.by_words()
    return sheets


@dataclass(frozen=True)
class _Sheets:
    """What the sheets of a batch are drawn from."""

    look: Look
    spans: Mapping[str, Span]
    frames: Mapping[str, Frame]

    def by_latents(self, num_latents: int) -> dict[str, list[Image.Image]]:
        """A sheet for each layer that reads the tokens, modality and row, all maps of a sheet on one colour scale."""
        record = self.look.record
        rolled_out = [self._rolled_out(row) for row in range(record.num_rows)]
        sheets: dict[str, list[Image.Image]] = {}
        for name in record.readers:
            layer = record.layers[name]
            kind = "latent" if layer.role.queries == LATENTS else "query"
            means = layer.through(even_share(layer))
            for row, chosen in enumerate(query_ranking(record, name)[:, :num_latents].tolist()):
                maps = {f"{kind} {one}": layer.sample(row).weights([one]).mean(dim=1)[0, 0] for one in chosen}
                for modality, span in self.spans.items():
                    frame, mean = self.frames[modality], on_grid(means[row, 0], span)
                    here = self._boxes_in(modality, row)
                    plural = "latents" if kind == "latent" else "queries"
                    tiles = [*frame.picture_tiles(row, mean, here), frame.map_tile(f"mean over {plural}", mean)]
                    for title, answer, weights in (
                        *(("rollout from", *weighed) for weighed in rolled_out[row]),
                        *(("relevance of", *weighed) for weighed in self.look.relevant[row] if not weighed[0].is_word),
                    ):
                        own = [box for box in here if answer.label in (None, box.label)]
                        tiles.append(frame.map_tile(f"{title} {answer.name}", on_grid(weights, span), own))
                    tiles += [frame.map_tile(title, on_grid(weights, span)) for title, weights in maps.items()]
                    sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                    sheets.setdefault(f"{modality}/{name}", []).append(sheet)
        return sheets

    def by_words(self) -> list[Image.Image]:
        """A strip for each row: each modality's input, then what each word depended on, with its true place."""
        strips = []
        for row, weighed in enumerate(self.look.relevant):
            of_words = [(answer, weights) for answer, weights in weighed if answer.is_word]
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
            strips.append(contact_sheet(tiles, max_columns=max_columns, unit="relevance"))
        return strips

    def _rolled_out(self, row: int) -> list[Weighed]:
        """The rollout from each class with a query of its own, from the words together, or from all outputs."""
        look = self.look
        maps = list(zip(look.answers[row], look.rollout.inputs[row], strict=False))
        classes = [(answer, inputs) for answer, inputs in maps if not answer.is_word and answer in look.own[row]]
        words = [(answer, inputs) for answer, inputs in maps if answer.is_word]
        found = [(answer, shares_of(inputs)) for answer, inputs in classes]
        if words:  # rollout is linear in its readers, and the mean over queries is that of their rollouts
            total = torch.stack([inputs * len(answer.queries) for answer, inputs in words]).sum(dim=0)
            found.append((replace(words[0][0], name="caption"), shares_of(total)))
        if not found:
            inputs = maps[0][1] if maps else self._from_all_outputs[row]
            found.append((Answer("output", (), maps[0][0].output if maps else ""), shares_of(inputs)))
        return found

    @cached_property
    def _from_all_outputs(self) -> Float[Tensor, "batch tokens"]:
        """The rollout from the mean of all that there is to say."""
        alpha, parts = self.look.alpha, self.look.record.parts
        found = [rollout(part, alpha=alpha, readers=mean_reader(part)).inputs[:, 0] for part in parts]
        return torch.stack(found).mean(dim=0)

    def _boxes_in(self, modality: str, row: int) -> list[Box]:
        boxes = self.look.batch.targets.get("boxes", [None] * self.look.record.num_rows)
        return [box for box in boxes[row] or () if box.modality == modality]
