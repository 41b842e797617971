"""How well maps lie where things truly are, for data that says so in boxes.

Two scores, each beside what a map that knows nothing would have: the share of a map's mass inside of the boxes (the
energy-based pointing game of Wang et al. 2020, Score-CAM), and the pointing game (Zhang et al. 2016, section 4.1),
whether the brightest place lies in one. Deviations: what lies in a box is counted by shares of cells, since a cell may
be larger than a box; there is no margin around boxes; where several cells are the brightest, the share of them counts.

Each word of which is known what it speaks of is one case: the rollout from it against the boxes of that. With one query
a class, each class that a sample truly has is one: the rollout from its query against its boxes. Otherwise a sample is
one: the rollout from the mean of its outputs against all its boxes. A case is left out where nothing can be found: no
map, or no box on what is real of the input.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.axes import extent
from perceiver.inspection.record import Record
from perceiver.inspection.rollout import Alpha, readers_of, rollout
from perceiver.types import Answer, Box, Grid

TOUCHED = 1e-6
"""Least share of a cell that a box covers where it touches it: less comes from rounding at a common edge."""


@dataclass(frozen=True)
class Case:
    """One map that is held against boxes: that of some queries for one sample; `kind` of a word, else empty."""

    sample: int
    queries: Sequence[int]
    boxes: Sequence[Box]
    kind: str = ""


def truth_scores(
    captured: Record,
    boxes: Sequence[Sequence[Box] | None],
    answers: Sequence[Sequence[Answer]],
    *,
    num_classes: int,
    alpha: Alpha = 0.5,
) -> dict[str, Float[Tensor, " cases"]]:
    """The scores of every case of a captured batch.

    Args:
        captured: the forward pass.
        boxes: for each row of the batch where things truly are.
        answers: for each row what the model said, where that has queries of its own.
        num_classes: as many queries of the decoder mean that the one of class k has number k; 0 where there are words.
        alpha: of the rollout.

    Returns:
        `energy_in_box`, `pointing_game`, and each with `_chance` behind it; of words each with `_<kind>` behind it.
    """
    cases = cases_of(boxes, answers, num_outputs=captured.num_outputs, num_classes=num_classes)
    of_sample = [[case for case in cases if case.sample == sample] for sample in range(len(boxes))]
    readers = readers_of([[case.queries for case in row] for row in of_sample], captured.num_outputs)
    return held_against_boxes(captured, rollout(captured, alpha=alpha, readers=readers).inputs, of_sample)


def held_against_boxes(
    captured: Record, maps: Float[Tensor, "batch slots tokens"], cases: Sequence[Sequence[Case]]
) -> dict[str, Float[Tensor, " cases"]]:
    """The scores of maps, for each sample one a case; see `truth_scores`."""
    mask = captured.token_mask
    parts = []
    for modality, span in captured.spans.items():
        here = [
            (replace(case, boxes=boxes), slot)
            for row in cases
            for slot, case in enumerate(row)
            if (boxes := [box for box in case.boxes if box.modality == modality])
        ]
        keys = slice(span.start, span.stop)
        for kind in dict.fromkeys(case.kind for case, _ in here):
            chosen = [(case, slot) for case, slot in here if case.kind == kind]
            samples, slots = (
                torch.tensor(numbers) for numbers in zip(*((case.sample, at) for case, at in chosen), strict=True)
            )
            scores = map_scores(
                maps.cpu()[samples, slots][:, keys],
                box_coverage([case.boxes for case, _ in chosen], span.grid),
                None if mask is None else mask.cpu()[samples, keys],
            )
            parts.append({f"{name}_{kind}".rstrip("_"): values for name, values in scores.items()})
    return joined(parts)


def spoken_of(
    boxes: Sequence[Sequence[Box] | None], answers: Sequence[Sequence[Answer]], *, num_classes: int
) -> list[list[Answer]]:
    """For each sample what there is to hold relevance against: words that speak of something, or each class it has.

    Unlike rollout, relevance tells classes apart whether or not the decoder has a query for each.
    """
    if _are_words(answers, num_classes):
        return [[answer for answer in row if answer.boxes] for row in answers]
    output = next(answer.output for row in answers for answer in row)
    found = []
    for row in boxes:
        labels = sorted({box.label for box in row or ()})
        of_label = {label: tuple(box for box in row or () if box.label == label) for label in labels}
        found.append(
            [Answer(str(label), (label,), output, label=label, boxes=there) for label, there in of_label.items()]
        )
    return found


def relevance_scores(
    captured: Record, maps: Float[Tensor, "batch answers tokens"], answers: Sequence[Sequence[Answer]]
) -> dict[str, Float[Tensor, " cases"]]:
    """The scores of the relevance of what `spoken_of` found; see `truth_scores`."""
    cases = [
        [Case(sample, answer.queries, answer.boxes, answer.kind) for answer in row]
        for sample, row in enumerate(answers)
    ]
    return held_against_boxes(captured, maps, cases)


def cases_of(
    boxes: Sequence[Sequence[Box] | None], answers: Sequence[Sequence[Answer]], *, num_outputs: int, num_classes: int
) -> list[Case]:
    """What there is to compare: words with what they speak of; each class that a sample has; or all its boxes."""
    if _are_words(answers, num_classes):
        return [
            Case(sample, answer.queries, answer.boxes, answer.kind)
            for sample, row in enumerate(answers)
            for answer in row
            if answer.boxes
        ]
    cases = []
    for sample, row in enumerate(boxes):
        true = row or ()
        if num_outputs == num_classes:
            labels = sorted({box.label for box in true})
            cases += [Case(sample, [label], [box for box in true if box.label == label]) for label in labels]
        elif true:
            cases.append(Case(sample, range(num_outputs), true))
    return cases


def _are_words(answers: Sequence[Sequence[Answer]], num_classes: int) -> bool:
    return not num_classes or any(answer.is_word for row in answers for answer in row)


def overlaps(
    captured: Record, answers: Sequence[Sequence[Answer]], *, alpha: Alpha = 0.5
) -> dict[str, Float[Tensor, " samples"]]:
    """How much alike the maps of a text's different words are: 0 where no two share a token, 1 where all are the same.

    The mean over pairs of words of the mass that two maps have in common (1 - total variation). A model that looks at
    the same for every word is found out by it.

    Returns:
        `word_overlap`, of each sample with at least two words that have a map; nothing where answers are no words.
    """
    words = [[answer.queries for answer in row if answer.is_word and answer.queries] for row in answers]
    if not any(len(row) > 1 for row in words):
        return {}
    inputs = rollout(captured, alpha=alpha, readers=readers_of(words, captured.num_outputs)).inputs
    found = []
    for of_sample in inputs:
        maps = of_sample[of_sample.sum(dim=-1) > 0]
        if (count := len(maps)) > 1:
            shares = maps / maps.sum(dim=-1, keepdim=True)
            common = 1 - torch.cdist(shares, shares, p=1) / 2
            found.append((common.sum() - common.trace()) / (count * (count - 1)))
    return {"word_overlap": torch.stack(found).cpu()} if found else {}


def box_coverage(boxes: Sequence[Sequence[Box]], grid: Grid) -> Float[Tensor, "cases tokens"]:
    """Which share of each cell of the grid the boxes of a case cover together, however they overlap.

    An axis that the grid lacks counts for nothing: on a grid of time alone a box covers its time.
    """
    pieces = [
        _pieces([[extent(box, axis) for box in case] for case in boxes], num_cells)
        for axis, num_cells in zip(grid.axes, grid.shape, strict=True)
    ]
    covered = pieces[0].covered
    for piece in pieces[1:]:
        covered = covered[..., None] * piece.covered[:, :, *[None] * (covered.ndim - 2)]
    covered = covered.sum(dim=1).clamp(max=1)
    for piece in pieces:  # the axis in front goes to the end, cell by cell
        covered = torch.einsum("cp...,cnp->c...n", covered, piece.shares)
    return covered.flatten(1)


@dataclass(frozen=True)
class Pieces:
    """One axis, cut at the edges of all cells and boxes of a case.

    Attributes:
        covered: 1 where a box covers a piece.
        shares: what a piece is of a cell.
    """

    covered: Float[Tensor, "cases boxes pieces"]
    shares: Float[Tensor, "cases cells pieces"]


def _pieces(extents: Sequence[Sequence[tuple[float, float]]], num_cells: int) -> Pieces:
    most = max(len(case) for case in extents)
    padded = [[*case, *[(0.0, 0.0)] * (most - len(case))] for case in extents]  # what has no width covers nothing
    boxes = torch.tensor(padded, dtype=torch.float64)
    cells = torch.arange(num_cells + 1, dtype=torch.float64).expand(len(boxes), -1) / num_cells
    edges = torch.cat([cells, boxes.flatten(1)], dim=1).sort(dim=1).values
    middles, widths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    within = (middles[:, None] > boxes[..., :1]) & (middles[:, None] < boxes[..., 1:])
    lies_in = (middles * num_cells).long()[:, None] == torch.arange(num_cells)[:, None]
    return Pieces(covered=within.double(), shares=lies_in * (widths * num_cells)[:, None])


def map_scores(
    maps: Float[Tensor, "cases tokens"],
    coverage: Float[Tensor, "cases tokens"],
    mask: Bool[Tensor, "cases tokens"] | None,
) -> dict[str, Float[Tensor, " cases"]]:
    """Scores of maps; those left out that have no mass, or nothing covered, where `mask` is True.

    Args:
        maps: weights, at least 0.
        coverage: the share of each cell that is covered by boxes.
        mask: True where a cell is real; None means that all are.
    """
    real = torch.ones_like(coverage) if mask is None else mask.double()
    mass, covered = maps.double() * real, coverage * real
    touched = (coverage > TOUCHED) * real
    possible = (mass.sum(dim=1) > 0) & (touched.sum(dim=1) > 0)
    mass, covered, touched, real = (values[possible] for values in (mass, covered, touched, real))
    brightest = (mass == mass.amax(dim=1, keepdim=True)) * real
    return {
        "energy_in_box": (mass * covered).sum(dim=1) / mass.sum(dim=1),
        "energy_in_box_chance": covered.sum(dim=1) / real.sum(dim=1),
        "pointing_game": (brightest * touched).sum(dim=1) / brightest.sum(dim=1),
        "pointing_game_chance": touched.sum(dim=1) / real.sum(dim=1),
    }


def joined(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> dict[str, Float[Tensor, " cases"]]:
    """The cases of several parts as one."""
    found = list(parts)
    names = dict.fromkeys(name for part in found for name in part)
    return {name: torch.cat([part[name] for part in found if name in part]) for name in names}


def mean_scores(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> dict[str, float]:
    """The mean over all cases of all parts; nothing where there is no case."""
    return {name: float(values.mean()) for name, values in joined(parts).items() if len(values)}
