"""A look in the terminal, for those who sit on a cluster without a browser."""

import json
from collections.abc import Iterator, Mapping
from math import isnan

import numpy as np
from jaxtyping import Float
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from perceiver.inspection.arrays import SCORE
from perceiver.inspection.axes import plane, runs_upwards
from perceiver.inspection.look import Look
from perceiver.inspection.packing import pooling, sum_pooled
from perceiver.types import Axis, Grid, Span

SHADES = " ░▒▓█"
MOST_CELLS, MOST_COLUMNS = 16 * 64, 64
"""Of a map in letters; two letters a cell, which makes it about square, where they have room."""
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
        yield from clearest_maps(look, row)
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
    """What was said of a sample, and where each answer comes from."""
    answers = look.answers[row][:MOST_ANSWERS]
    left_out = len(look.answers[row]) - len(answers)
    title = f"{look.batch.ids[row]}{f' (and {left_out} more words)' if left_out else ''}"
    table = Table("answer", "probability", title=title, title_justify="left")
    maps = _maps_of(look, row)
    for kind in maps:
        table.add_column(f"{kind} at")
        table.add_column(f"top {BRIGHT:.0%}", justify="right")
    for slot, answer in enumerate(answers):
        places = [cell for of_kind in maps.values() for cell in brightest(of_kind[slot], _planes(look))]
        table.add_row(answer.name, f"{float(look.probability[row, slot]):.3f}", *places)
    return table


def clearest_maps(look: Look, row: int) -> Iterator[RenderableType]:
    """The maps of that answer of a sample whose relevance is the most concentrated, in letters."""
    maps = _maps_of(look, row)
    answers = look.answers[row]
    for slot in sorted(range(len(answers)), key=lambda slot: -_concentration(maps["relevance"][slot]))[:1]:
        for kind, tokens in maps.items():
            for name, span in _planes(look).items():
                yield f"{kind} of {answers[slot].name!r} over {name}"
                yield Text(shaded(tokens[slot], span), no_wrap=True, overflow="crop")


def _maps_of(look: Look, row: int) -> dict[str, Float[np.ndarray, "answers tokens"]]:
    maps = {"relevance": look.relevance[row], "rollout": look.rollout.inputs[row]}
    return {kind: of_kind.float().cpu().numpy() for kind, of_kind in maps.items()}


def _planes(look: Look) -> dict[str, Span]:
    """The modalities that can be drawn."""
    return {name: span for name, span in look.record.spans.items() if len(span.grid.shape) < 3}


def brightest(tokens: Float[np.ndarray, " tokens"], spans: Mapping[str, Span]) -> tuple[str, str]:
    """Where a map is brightest, in the units of its input, and its share in the brightest cells."""
    if not tokens.any():
        return "", ""
    best = int(tokens.argmax())
    name, span = next((name, span) for name, span in spans.items() if span.start <= best < span.stop)
    cell = np.unravel_index(best - span.start, span.grid.shape)
    along = zip(span.grid.axes, cell, span.grid.shape, strict=True)
    where = ", ".join(_range(axis, int(place), count) for axis, place, count in along)
    return f"{f'{name}: ' if len(spans) > 1 else ''}{where}", f"{_concentration(tokens):.0%}"


def _concentration(tokens: Float[np.ndarray, " tokens"]) -> float:
    """The share of a map in its brightest cells."""
    count = max(round(BRIGHT * len(tokens)), 1)
    return float(np.sort(tokens)[-count:].sum() / max(tokens.sum(), np.finfo(np.float32).tiny))


def _range(axis: Axis, place: int, count: int) -> str:
    start, stop = axis.value(place / count), axis.value((place + 1) / count)
    return f"{axis.name} {start:.4g}–{stop:.4g} {axis.unit}".rstrip()


def shaded(tokens: Float[np.ndarray, " tokens"], span: Span) -> str:
    """A map in letters, the darker the more, on the scale of square roots."""
    grid: Grid = plane(span.grid)
    values = tokens[span.start : span.stop].reshape(grid.shape)
    rows, columns = values.shape
    down, across = pooling(rows, columns, MOST_CELLS)
    values = sum_pooled(values, (down, max(across, -(-columns // MOST_COLUMNS))))
    if runs_upwards(grid.axes[0]):
        values = values[::-1]
    levels = np.sqrt(values / max(values.max(), np.finfo(np.float32).tiny)) * (len(SHADES) - 1)
    width = 2 if 2 * values.shape[1] <= MOST_COLUMNS else 1
    return "\n".join("".join(width * SHADES[level] for level in line) for line in levels.round().astype(int))


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
