"""Localization: how well maps agree with the boxes of what the answers refer to, for data with boxes.

Two scores, each with the value expected of an uninformative map: the share of a map's mass inside the boxes (the
energy-based pointing game of Wang et al. 2020, Score-CAM), and the pointing game (Zhang et al. 2016, section 4.1),
whether the maximum of the map lies in a box. Deviations: the part of a cell that a box covers is counted, since a cell
may be larger than a box; boxes have no margin; of several equal maxima the share inside counts.

A case is one map and the boxes that it is compared with: each word with a known referent, its rollout and the boxes of
the referent; with one query per class, each class that applies to a sample, its rollout and its boxes; otherwise each
sample, the rollout of its outputs and all its boxes. Relevance is specific to a class with or without such queries.
Cases without a map, or without a box on real input, are excluded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.inspection.maps.record import Record
from perceiver.types import Box, Grid

MIN_COVERAGE = 1e-6
"""Least covered share of a cell that a box touches: less is due to rounding at a common edge."""
Scores = dict[str, Float[Tensor, " cases"]]


@dataclass(frozen=True)
class Case:
    """A map that is compared with boxes: the one of answer `slot` of a sample; `kind` is that of a word, or empty."""

    sample: int
    slot: int
    boxes: Sequence[Box]
    kind: str = ""


def localization(explanation: Explanation) -> Scores:
    """Return the scores of every case of a batch, over all modalities, and the overlap of the maps of words.

    Returns:
        For rollouts `energy_in_box` and `pointing_game`, each also with `_chance`, and for words all of these with
        `_<kind>` appended; of several modalities, also each with `_<modality>`; for relevance the same as
        `relevance/…`, if it is defined; and `word_overlap`, see `word_overlap`.
    """
    located, shared = _located(explanation), []
    for sample, (row, boxes) in enumerate(zip(explanation.answers, explanation.boxes, strict=True)):
        outputs = set()
        for slot, answer in enumerate(row):
            if boxes and answer.output not in outputs and not explanation.has_own_queries(answer):
                outputs.add(answer.output)
                shared.append(Case(sample, slot, boxes))
    own = [case for case in located if explanation.has_own_queries(explanation.answers[case.sample][case.slot])]
    of_rollout = localization_scores(explanation.record, explanation.rollout.inputs, own + shared)
    located = [] if explanation.no_relevance else located
    of_relevance = localization_scores(explanation.record, explanation.relevance, located)
    return of_rollout | word_overlap(explanation) | {f"relevance/{name}": cases for name, cases in of_relevance.items()}


def pointing_games(
    explanation: Explanation, maps: Mapping[str, Float[Tensor, "batch answers tokens"]]
) -> dict[str, Float[Tensor, " samples"]]:
    """Return how often the maximum of a map lies in the boxes of its answer: the mean over the answers of each sample.

    A map that several answers share is compared with the boxes of each. Negative values count as zero.

    Returns:
        Kind of map -> the share of each sample that has such answers, and `chance`; empty without boxes.
    """
    by_sample: dict[int, list[Case]] = {}
    for case in _located(explanation):
        by_sample.setdefault(case.sample, []).append(case)
    found: dict[str, list[Tensor]] = {}
    for cases in by_sample.values():
        for kind, values in maps.items():
            scores = localization_scores(
                explanation.record, values.clamp_min(0.0), [replace(case, kind="") for case in cases]
            )
            if len(scores.get("pointing_game", ())):
                found.setdefault(kind, []).append(scores["pointing_game"].mean())
                found.setdefault("chance", []).append(scores["pointing_game_chance"].mean())
    return {kind: torch.stack(values) for kind, values in found.items()}


def _located(explanation: Explanation) -> list[Case]:
    """Return the answers with boxes."""
    return [
        Case(sample, slot, answer.boxes, answer.kind)
        for sample, row in enumerate(explanation.answers)
        for slot, answer in enumerate(row)
        if answer.boxes
    ]


def localization_scores(record: Record, maps: Float[Tensor, "batch answers tokens"], cases: Sequence[Case]) -> Scores:
    """Return the scores of the maps of some cases; see `localization`."""
    parts = []
    for modality, span in record.spans.items():
        here = [
            replace(case, boxes=boxes)
            for case in cases
            if (boxes := [box for box in case.boxes if box.modality == modality])
        ]
        keys = slice(span.start, span.stop)
        for kind in dict.fromkeys(case.kind for case in here):
            chosen = [case for case in here if case.kind == kind]
            samples, slots = torch.tensor([(case.sample, case.slot) for case in chosen]).unbind(dim=1)
            scores = map_scores(
                maps.cpu()[samples, slots][:, keys],
                box_coverage([case.boxes for case in chosen], span.grid),
                None if record.token_mask is None else record.token_mask.cpu()[samples, keys],
            )
            parts.append({f"{name}_{kind}".rstrip("_"): values for name, values in scores.items()})
            if len(record.spans) > 1:
                parts.append({f"{name}_{modality}": values for name, values in scores.items()})
    return _concatenate(parts)


def word_overlap(explanation: Explanation) -> dict[str, Float[Tensor, " samples"]]:
    """Return the similarity of the rollouts of the words of a text: 0 for disjoint maps, 1 for equal ones.

    It is the mean over pairs of words of the mass that two maps have in common (1 - total variation distance). A model
    that attends to the same tokens for every word has a high overlap.

    Returns:
        `word_overlap`, of each sample with at least two words that have a map; empty where answers are classes.
    """
    found = []
    for row, inputs in zip(explanation.answers, explanation.rollout.inputs, strict=True):
        maps = inputs[[slot for slot, answer in enumerate(row) if answer.is_word]]
        maps = normalized(maps[maps.sum(dim=-1) > 0])
        if (count := len(maps)) > 1:
            common = 1 - torch.cdist(maps, maps, p=1) / 2
            found.append((common.sum() - common.trace()) / (count * (count - 1)))
    return {"word_overlap": torch.stack(found).cpu()} if found else {}


def box_coverage(boxes: Sequence[Sequence[Box]], grid: Grid) -> Float[Tensor, "cases tokens"]:
    """Return the share of each cell of the grid that the union of a case's boxes covers.

    A range along an axis that the grid lacks is ignored: on a grid of time alone a box covers its time.
    """
    segments = [
        _segments([[box.extent(axis) for box in case] for case in boxes], num_cells)
        for axis, num_cells in zip(grid.axes, grid.shape, strict=True)
    ]
    covered, _ = segments[0]
    for inside, _ in segments[1:]:
        covered = covered[..., None] * inside[:, :, *[None] * (covered.ndim - 2)]
    covered = covered.sum(dim=1).clamp(max=1)
    for _, shares in segments:  # each step moves the first axis to the end, summed over the segments of a cell
        covered = torch.einsum("cp...,cnp->c...n", covered, shares)
    return covered.flatten(1)


def _segments(
    extents: Sequence[Sequence[tuple[float, float]]], num_cells: int
) -> tuple[Float[Tensor, "cases boxes segments"], Float[Tensor, "cases cells segments"]]:
    """Cut an axis at the edges of all cells and boxes of a case.

    Returns:
        1 where a box covers a segment; and the share of a segment in a cell.
    """
    most = max(len(case) for case in extents)
    padded = [[*case, *[(0.0, 0.0)] * (most - len(case))] for case in extents]  # zero width covers nothing
    boxes = torch.tensor(padded, dtype=torch.float64)
    cells = torch.arange(num_cells + 1, dtype=torch.float64).expand(len(boxes), -1) / num_cells
    edges = torch.cat([cells, boxes.flatten(1)], dim=1).sort(dim=1).values
    middles, widths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    inside = (middles[:, None] > boxes[..., :1]) & (middles[:, None] < boxes[..., 1:])
    in_cell = (middles * num_cells).long()[:, None] == torch.arange(num_cells)[:, None]
    return inside.double(), in_cell * (widths * num_cells)[:, None]


def map_scores(
    maps: Float[Tensor, "cases tokens"],
    coverage: Float[Tensor, "cases tokens"],
    mask: Bool[Tensor, "cases tokens"] | None,
) -> Scores:
    """Return scores of maps, without those that have no mass or no coverage where `mask` is True.

    Args:
        maps: weights, at least 0.
        coverage: share of each cell that the boxes cover.
        mask: True where a cell is real; None: all are.
    """
    real = torch.ones_like(coverage) if mask is None else mask.double()
    mass, covered = maps.double() * real, coverage * real
    touched = (coverage > MIN_COVERAGE) * real
    possible = (mass.sum(dim=1) > 0) & (touched.sum(dim=1) > 0)
    mass, covered, touched, real = (values[possible] for values in (mass, covered, touched, real))
    maxima = (mass == mass.amax(dim=1, keepdim=True)) * real
    return {
        "energy_in_box": (mass * covered).sum(dim=1) / mass.sum(dim=1),
        "energy_in_box_chance": covered.sum(dim=1) / real.sum(dim=1),
        "pointing_game": (maxima * touched).sum(dim=1) / maxima.sum(dim=1),
        "pointing_game_chance": touched.sum(dim=1) / real.sum(dim=1),
    }


def mean_scores(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> dict[str, float]:
    """Return the mean over the cases of several parts; a score without cases is left out."""
    return {name: float(values.mean()) for name, values in _concatenate(parts).items() if len(values)}


def _concatenate(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> Scores:
    found = list(parts)
    names = dict.fromkeys(name for part in found for name in part)
    return {name: torch.cat([part[name] for part in found if name in part]) for name in names}
