"""A look in the terminal, for those who sit on a cluster without a browser."""

import json
from collections.abc import Iterator, Mapping
from math import isnan
from textwrap import wrap

import numpy as np
from jaxtyping import Float
from rich.console import RenderableType
from rich.table import Table

from perceiver.inspection.arrays import SCORE
from perceiver.inspection.axes import plane, runs_upwards
from perceiver.inspection.look import Look
from perceiver.inspection.packing import pooling, sum_pooled
from perceiver.types import Axis, Grid, Span

SHADES = " ░▒▓█"
MOST_CELLS = 16 * 32
"""Of a map in letters: two letters a cell, which makes it about square."""
MOST_ANSWERS = 12
"""Of a sample, in the table."""
BRIGHT = 0.1
"""Share of the cells that are called the brightest."""


def report(name: str, look: Look, arrays: Mapping[str, np.ndarray]) -> Iterator[RenderableType]:
    """What a look gave, to be printed.

    Args:
        name: of what was looked at.
        look: at some samples.
        arrays: of the look, with what was measured.
    """
    scores = {key.removeprefix(SCORE): float(value) for key, value in arrays.items() if key.startswith(SCORE)}
    yield statistics_table(f"attention of {name}, step {int(arrays['step'])}", scores)
    for row in range(len(look.batch)):
        yield sample_table(look, row)
    yield from belief(scores, json.loads(str(arrays["deletion"])) if "deletion" in arrays else None)


def statistics_table(title: str, scores: Mapping[str, float]) -> Table:
    """One row a layer, one column a statistic."""
    found: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        kind, _, rest = key.partition("/")
        if kind == "stat":
            layer, _, statistic = rest.partition("/")
            found.setdefault(layer, {})[statistic] = value
    columns = list(dict.fromkeys(statistic for of_layer in found.values() for statistic in of_layer))
    table = Table("layer", *(column.replace("_", " ") for column in columns), title=title, title_justify="left")
    for layer, values in found.items():
        table.add_row(layer, *(f"{values[column]:.3f}" if column in values else "" for column in columns))
    return table


def sample_table(look: Look, row: int) -> Table:
    """What was said of a sample, and where each answer comes from; maps of the first."""
    answers = look.answers[row][:MOST_ANSWERS]
    left_out = len(look.answers[row]) - len(answers)
    table = Table("answer", "probability", "relevance is highest at", "rollout at", title_justify="left")
    table.title = f"{look.batch.ids[row]}{f' (and {left_out} more words)' if left_out else ''}"
    spans = {name: span for name, span in look.record.spans.items() if len(span.grid.shape) < 3}
    maps = {"relevance": look.relevance[row], "rollout": look.rollout.inputs[row]}
    for slot, answer in enumerate(answers):
        places = [brightest(of_kind[slot].float().cpu().numpy(), spans) for of_kind in maps.values()]
        table.add_row(answer.name, f"{float(look.probability[row, slot]):.3f}", *places)
    if answers:
        table.add_section()
        for name, span in spans.items():
            drawn = [shaded(of_kind[0].float().cpu().numpy(), span) for of_kind in maps.values()]
            table.add_row(answers[0].name, name, *drawn)
    return table


def brightest(tokens: Float[np.ndarray, " tokens"], spans: Mapping[str, Span]) -> str:
    """Where a map is brightest, in the units of its input, and how much of it is concentrated."""
    if not tokens.any():
        return "nothing"
    best = int(tokens.argmax())
    name, span = next((name, span) for name, span in spans.items() if span.start <= best < span.stop)
    cell = np.unravel_index(best - span.start, span.grid.shape)
    along = zip(span.grid.axes, cell, span.grid.shape, strict=True)
    where = ", ".join(_range(axis, int(place), count) for axis, place, count in along)
    count = max(round(BRIGHT * len(tokens)), 1)
    share = np.sort(tokens)[-count:].sum() / tokens.sum()
    return f"{f'{name}: ' if len(spans) > 1 else ''}{where} ({share:.0%} in the brightest {BRIGHT:.0%})"


def _range(axis: Axis, place: int, count: int) -> str:
    start, stop = axis.value(place / count), axis.value((place + 1) / count)
    return f"{axis.name} {start:.4g} to {stop:.4g} {axis.unit}".rstrip()


def shaded(tokens: Float[np.ndarray, " tokens"], span: Span) -> str:
    """A map in letters, the darker the more, on the scale of square roots."""
    grid: Grid = plane(span.grid)
    values = tokens[span.start : span.stop].reshape(grid.shape)
    rows, columns = grid.shape
    values = sum_pooled(values, pooling(rows, columns, MOST_CELLS))
    if runs_upwards(grid.axes[0]):
        values = values[::-1]
    levels = np.sqrt(values / max(values.max(), np.finfo(np.float32).tiny)) * (len(SHADES) - 1)
    lines = ["".join(2 * SHADES[level] for level in line) for line in levels.round().astype(int)]
    return "\n".join(part for line in lines for part in wrap(line, 64, drop_whitespace=False))


def belief(scores: Mapping[str, float], deletion: Mapping[str, object] | None) -> Iterator[str]:
    """How far the maps may be believed, a sentence each."""
    for name, value in scores.items():
        if f"{name}_chance" in scores and not name.startswith("stat/"):
            yield f"{name.replace('_', ' ')}: {value:.2f}, by chance {scores[f'{name}_chance']:.2f}"
    if deletion is None:
        yield "whether hiding what the maps mark hurts the answers was not tested, or no answer needed its input"
        return
    areas: Mapping[str, Mapping[str, float]] = deletion["areas"]  # type: ignore[assignment]
    for name, area in areas.items():
        mean, error = area["mean"], area["error"]
        verdict = "no more than chance: do not take it for an explanation"
        if isnan(error):
            verdict = "so much more than chance in a single answer, which proves nothing"
        elif abs(mean) > 2 * error:
            marks = ("more than chance: it marks what matters", "less than chance: it marks what does not matter")
            verdict = marks[mean < 0]
        yield f"hiding what {name.replace('_', ' ')} marks hurts the answer {verdict} ({mean:+.2f} ± {error:.2f})"
