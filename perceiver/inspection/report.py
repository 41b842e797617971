"""A report of an explanation for the terminal, in 80 columns."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from perceiver.inspection.drawing.axes import Plane
from perceiver.inspection.drawing.matrix import SHADES, alignment_matrices, matrix_lines
from perceiver.inspection.evaluation.knockout import KnockOut
from perceiver.inspection.evaluation.verdicts import SCORES
from perceiver.inspection.explorer.events import scores_in
from perceiver.inspection.explorer.packing import pooling, sum_pooled
from perceiver.inspection.maps.contrast import Contrasts
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.sinks import MIN_SAMPLES, sinks_in
from perceiver.types import Axis, Span

MAX_CELLS, MAX_COLUMNS = 16 * 64, 64
"""Limits of a heat map in characters; a cell is two characters wide, which makes it about square, where possible."""
FEW_COLUMNS = 7
"""Number of statistics for a single modality; more columns have no gap between them."""
MAX_ANSWERS = 12
"""Answers of a sample in its table."""
MAX_SINKS = 5
"""Sinks of a layer in the table of them."""
MAX_PARTS = 5
"""Parts of each kind of knock-out in its table."""
TOP_SHARE = 0.1
"""Share of the cells with the highest values, whose mass is reported."""
SCORED = re.compile(r"(?P<of>|relevance/)(?P<score>energy_in_box|pointing_game)(?P<kind>|_(?!chance).+)")
"""Names of localization scores that have a chance level: of rollouts, and of relevance."""


def report(
    name: str,
    explanation: Explanation,
    arrays: Mapping[str, np.ndarray],
    *,
    num_tested: int,
    texts: Mapping[str, Sequence[Sequence[str]]],
    knock_outs: Sequence[KnockOut] = (),
) -> Iterator[RenderableType]:
    """Yield the parts of a report.

    Args:
        name: of the run.
        explanation: of some samples.
        arrays: of the event, with its scores.
        num_tested: number of samples on which localization and faithfulness were tested.
        texts: the pieces of input texts by modality (`media.texts_of`).
        knock_outs: of the answers.
    """
    scores = scores_in(arrays)
    yield statistics_table(f"attention of {name}, step {int(arrays['step'])}", scores)
    if (sinks := sinks_in(arrays)) is not None:
        yield from sink_parts(sinks, explanation.record.spans)
    if not explanation.probability.isfinite().all():
        yield "\nthe model's answers are not finite: its training has diverged, and its maps are meaningless"
    for row in range(len(explanation.batch)):
        yield ""
        yield sample_table(explanation, row)
        if explanation.contrasts is not None and any(explanation.contrasts.foils[row]):
            yield contrast_table(explanation, row)
        matrices = alignment_matrices(explanation, row, texts)
        for modality, of_modality in matrices.items():
            yield Text(f"{of_modality[0].kind} of the words over {modality}; true links in brackets")
            yield Text("\n".join(matrix_lines(of_modality[0])), no_wrap=True, overflow="crop")
        yield from answer_heat_maps(explanation, row, without=[name for name in matrices if name in texts])
    yield ""
    if knock_outs:
        yield knock_out_table(knock_outs, len(explanation.batch))
        yield ""
    yield from evaluation_parts(
        scores, json.loads(str(arrays["faithfulness"])) if "faithfulness" in arrays else None, num_tested
    )


def statistics_table(title: str, scores: Mapping[str, float]) -> Table:
    """Return a table with a row per layer and a column per statistic."""
    found: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        kind, _, rest = key.partition("/")
        if kind == "stat":
            layer, _, statistic = rest.rpartition("/")
            found.setdefault(layer, {})[statistic] = value
    columns = list(dict.fromkeys(statistic for of_layer in found.values() for statistic in of_layer))
    table = _table("layer", title=title, gap=1 if len(columns) <= FEW_COLUMNS else 0)
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="right", overflow="fold", min_width=len("0.000"))
    for layer, values in found.items():
        table.add_row(
            layer.replace("/", "/\n"), *(f"{values[column]:.3f}" if column in values else "" for column in columns)
        )
    return table


def sink_parts(sinks: Mapping[str, Any], spans: Mapping[str, Span]) -> Iterator[RenderableType]:
    """Yield the attention sinks as a table, or a sentence if there are none.

    Args:
        sinks: of an event (`sinks_in`).
        spans: of the modalities.
    """
    if sinks["num_samples"] < MIN_SAMPLES:
        yield f"attention sinks: not looked for in fewer than {MIN_SAMPLES} samples"
        return
    rule = (
        f"more than {sinks['criterion']['times_uniform']:g} times the uniform share "
        f"in more than {sinks['criterion']['sample_share']:.0%} of {sinks['num_samples']} samples"
    )
    if not sinks["found"]:
        yield f"attention sinks: no token gets {rule}"
        return
    table = _table("layer", title=f"attention sinks: tokens that get {rule}")
    table.add_column("token", overflow="fold")
    for column in ("samples", "mean\nweight"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer, number in sinks["numbers"].items():
        of_layer = [sink for sink in sinks["found"] if sink["layer"] == layer][:MAX_SINKS]
        for place, sink in enumerate(of_layer):
            name = f"{layer} ({number})" if place == 0 else ""
            where = token_place(sink["token"], sink["modality"], spans)
            table.add_row(name, where, f"{sink['sample_share']:.0%}", f"{sink['weight']:.1%}")
    yield table


def token_place(token: int, modality: str, spans: Mapping[str, Span]) -> str:
    """Return the place of a token, by its number in its modality, in the units of its input."""
    grid = spans[modality].grid
    cell = zip(np.unravel_index(token, grid.shape), grid.shape, strict=True)
    ranges = [(int(index) / count, (int(index) + 1) / count) for index, count in cell]
    where = ",\n".join(_ranges(grid.axes, ranges))
    return f"{f'{modality}: ' if len(spans) > 1 else ''}{where}"


def sample_table(explanation: Explanation, row: int) -> Table:
    """Return a table of the answers for a sample, and where their maps have their maximum."""
    answers = explanation.answers[row][:MAX_ANSWERS]
    left_out = len(explanation.answers[row]) - len(answers)
    title = f"{explanation.batch.ids[row]}{f' (and {left_out} more answers)' if left_out else ''}"
    table = _table("answer", title=title)
    table.add_column("proba-\nbility", justify="right", no_wrap=True)
    maps = _maps_of(explanation, row)
    for kind in maps:
        table.add_column(f"{kind}\nmaximum at", overflow="fold")
        table.add_column(f"in top\n{TOP_SHARE:.0%}", justify="right", no_wrap=True)
    for slot, answer in enumerate(answers):
        cells = [cell for of_kind in maps.values() for cell in maximum(of_kind[slot], explanation.record.spans)]
        table.add_row(answer.name, f"{float(explanation.probability[row, slot]):.3f}", *cells)
    return table


def contrast_table(explanation: Explanation, row: int) -> Table:
    """Return a table of the answers for a sample rather than their first foils, and the maxima of the evidence."""
    contrasts = explanation.contrasts
    assert contrasts is not None
    table = _table("answer", title="relevance of one answer rather than another")
    table.add_column("rather than", overflow="fold")
    table.add_column("proba-\nbility", justify="right", no_wrap=True)
    table.add_column("evidence for\nmaximum at", overflow="fold")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("evidence against\nmaximum at", overflow="fold")
    for slot, (answer, foils) in enumerate(zip(explanation.answers[row], contrasts.foils[row], strict=True)):
        if foils and slot < MAX_ANSWERS:
            both = [side[row, slot, 0].float().nan_to_num().cpu().numpy() for side in _sides(contrasts)]
            places = [maximum(tokens, explanation.record.spans)[0] for tokens in both]
            total = float(both[0].sum() + both[1].sum())
            share = f"{float(both[0].sum()) / total:.0%}" if total > 0 else ""
            probability = f"{float(contrasts.probability[row, slot, 0]):.3f}"
            table.add_row(answer.name, foils[0].name, probability, places[0], share, places[1])
    return table


def _sides(contrasts: Contrasts) -> tuple[Float[Tensor, "batch answers foils tokens"], ...]:
    """Return the evidence for answers rather than foils, and against them."""
    return contrasts.relevance, contrasts.against


def answer_heat_maps(explanation: Explanation, row: int, *, without: Sequence[str] = ()) -> Iterator[RenderableType]:
    """Yield the maps of one answer of a sample: the most probable class, or the word with the sharpest map.

    The probability of a word says little about its map: articles are the most probable. Modalities in `without` are
    left out.
    """
    maps, answers = _maps_of(explanation, row), explanation.answers[row]
    if not answers:
        return
    slot = max(range(len(answers)), key=lambda slot: float(explanation.probability[row, slot]))
    if answers[slot].is_word:
        slot = max(range(len(answers)), key=lambda slot: _concentration(next(iter(maps.values()))[slot]))
    if explanation.no_relevance:
        yield Text(explanation.no_relevance)
    shown = {f"{kind} of {answers[slot].name!r}": of_kind[slot] for kind, of_kind in maps.items()}
    if explanation.contrasts is not None and (foils := explanation.contrasts.foils[row][slot]):
        for kind, side in zip(("relevance", "evidence against"), _sides(explanation.contrasts), strict=True):
            title = f"{kind} of {answers[slot].name!r} rather than {foils[0].name!r}"
            shown[title] = side[row, slot, 0].float().nan_to_num().cpu().numpy()
    for title, tokens in shown.items():
        for name, span in explanation.record.spans.items():
            if name in without:
                continue
            extent = ", ".join(_ranges(span.grid.axes, [(0, 1)] * len(span.grid.axes)))
            yield Text(f"{title} over {name}: {extent}")
            yield Text(heat_map(tokens, span), no_wrap=True, overflow="crop")


def _table(first: str, *, title: str, gap: int = 1) -> Table:
    """Return a table without vertical lines, which would take a third of the width."""
    return Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False)


def _maps_of(explanation: Explanation, row: int) -> dict[str, Float[np.ndarray, "answers tokens"]]:
    """Return the maps of a sample's answers, with 0 for NaN."""
    maps = {kind: values[row] for kind, values in explanation.maps.items() if kind in ("relevance", "rollout")}
    return {kind: of_kind.float().nan_to_num().cpu().numpy() for kind, of_kind in maps.items()}


def maximum(tokens: Float[np.ndarray, " tokens"], spans: Mapping[str, Span]) -> tuple[str, str]:
    """Return the place of a map's maximum in the units of its input, and the mass of its `TOP_SHARE` of the cells."""
    inside = np.zeros(len(tokens), dtype=bool)
    for span in spans.values():
        inside[span.start : span.stop] = True
    values = np.where(inside, tokens, 0)
    if not values.any():
        return "", ""
    best = int(values.argmax())
    name, span = next((name, span) for name, span in spans.items() if span.start <= best < span.stop)
    return token_place(best - span.start, name, spans), f"{_concentration(tokens):.0%}"


def _concentration(tokens: Float[np.ndarray, " tokens"]) -> float:
    """Return the share of the mass of a map in its `TOP_SHARE` of the cells."""
    count = max(round(TOP_SHARE * len(tokens)), 1)
    return float(np.sort(tokens)[-count:].sum() / max(tokens.sum(), np.finfo(np.float32).tiny))


def _ranges(axes: Sequence[Axis], ranges: Sequence[tuple[float, float]]) -> list[str]:
    """Format ranges along axes, given in fractions, in their units; several axes of one unit are named."""
    by_unit: dict[str, list[str]] = {}
    units = [axis.unit for axis in axes]
    for axis, (start, stop) in zip(axes, ranges, strict=True):
        name = axis.name if not axis.unit or units.count(axis.unit) > 1 else ""
        by_unit.setdefault(axis.unit, []).append(f"{name} {axis.value(start):.4g}–{axis.value(stop):.4g}".strip())
    return [f"{', '.join(parts)} {unit}".rstrip() for unit, parts in by_unit.items()]


def heat_map(tokens: Float[np.ndarray, " tokens"], span: Span) -> str:
    """Draw a map with characters, darker for larger values, on a square-root scale."""
    values = Plane(span.grid).arrange(tokens[span.start : span.stop])
    rows, columns = values.shape
    down, across = pooling(rows, columns, MAX_CELLS)
    values = sum_pooled(values, (down, max(across, -(-columns // MAX_COLUMNS))))
    levels = np.sqrt(values / max(values.max(), np.finfo(np.float32).tiny)) * (len(SHADES) - 1)
    width = 2 if 2 * values.shape[1] <= MAX_COLUMNS else 1
    return "\n".join("".join(width * SHADES[level] for level in line) for line in levels.round().astype(int))


def knock_out_table(knock_outs: Sequence[KnockOut], num_samples: int) -> Table:
    """Return a table of the parts with the largest effects of each kind of knock-out."""
    table = _table("silent", title=f"knock-out: change of probability ({num_samples} samples)")
    table.add_column("part", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("signed", justify="right", no_wrap=True)
    for one in knock_outs:
        signed = one.change.nanmean(dim=(0, 1)).tolist()
        for place, part in enumerate(one.ranking[:MAX_PARTS]):
            kind = f"{one.kind} ({len(one.names)})" if place == 0 else ""
            table.add_row(kind, one.names[part], f"{float(one.effect[part]):.3f}", f"{signed[part]:+.3f}")
    return table


def evaluation_parts(
    scores: Mapping[str, float], faithfulness: Mapping[str, Any] | None, num_tested: int
) -> Iterator[RenderableType]:
    """Yield the results of localization, a sentence each, and of faithfulness, a table and a sentence for each map.

    Args:
        scores: all scores.
        faithfulness: see `summarize`; None if there was no test.
        num_tested: number of samples that were tested.
    """
    for name, value in scores.items():
        found = SCORED.fullmatch(name)
        chance = scores.get(f"{found['of']}{found['score']}_chance{found['kind']}") if found else None
        if found and chance is not None:
            of, score, kind = (found[part].replace("_", " ").strip(" /") for part in ("of", "score", "kind"))
            title = f"{of or 'rollout'}, {score}{f' of {kind} words' if kind else ''}"
            yield f"{title}: {value:.2f}, by chance {chance:.2f}"
        elif name.startswith("AER_"):
            yield f"alignment error rate of {name.removeprefix('AER_')}: {value:.3f}"
    if "word_overlap" in scores:
        yield f"rollouts of two words of a text have {scores['word_overlap']:.2f} of their mass in common"
    if not num_tested:
        yield "faithfulness was not tested (scored_samples=0)"
        return
    if faithfulness is None or not faithfulness["num_samples"]:
        yield "faithfulness: no answer lost much without its input, so maps could not be tested"
        return
    yield faithfulness_table(faithfulness)
    for one in faithfulness["maps"].values():
        yield f"{one['mark']} {one['sentence']}"


def faithfulness_table(summary: Mapping[str, Any]) -> Table:
    """Return a table with a row for each kind of map and a column for each score, with its interval."""
    title = f"faithfulness ({summary['num_samples']} samples): area between the curves of random tokens and the map"
    table = _table("map", title=title)
    scores = [score for score in SCORES if any(score in one["scores"] for one in summary["maps"].values())]
    for score in scores:
        chance = summary["chance"].get(score)
        table.add_column(SCORES[score] + ("" if chance is None else f"\n(chance {chance:.2f})"), justify="right")
    table.add_column("verdict")
    for one in summary["maps"].values():
        cells = [_with_interval(**one["scores"][score]) if score in one["scores"] else "" for score in scores]
        table.add_row(one["title"], *cells, f"{one['mark']} {one['brief']}")
    return table


def _with_interval(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f}\n[{low:.2f}, {high:.2f}]"
