"""A look in the terminal, for those who sit on a cluster without a browser. It fits into 80 columns."""

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

from perceiver.inspection.arrays import SCORE
from perceiver.inspection.axes import on_plane
from perceiver.inspection.explanation import Explanation
from perceiver.inspection.explorer.packing import pooling, sum_pooled
from perceiver.types import Axis, Span

SHADES = "·░▒▓█"
MOST_CELLS, MOST_COLUMNS = 16 * 64, 64
"""Of a map in letters; two letters a cell, which makes it about square, where they have room."""
FEW_COLUMNS = 7
"""Statistics that there are of a single modality; more stand closer together."""
MOST_ANSWERS = 12
"""Of a sample, in the table."""
BRIGHT = 0.1
"""Share of the cells that are called the brightest."""
SCORED = re.compile(r"(?P<of>|relevance/)(?P<score>energy_in_box|pointing_game)(?P<kind>|_(?!chance).+)")
"""Names of what `truth.localization` measures beside chance: of rollouts, and of relevance."""


def report(
    name: str, explanation: Explanation, arrays: Mapping[str, np.ndarray], *, num_tested: int
) -> Iterator[RenderableType]:
    """What a look gave, to be printed.

    Args:
        name: of what was looked at.
        look: at some samples.
        arrays: of the look, with what was measured.
        num_tested: on how many samples it was tested how far maps may be believed.
    """
    scores = {key.removeprefix(SCORE): float(value) for key, value in arrays.items() if key.startswith(SCORE)}
    yield statistics_table(f"attention of {name}, step {int(arrays['step'])}", scores)
    if not explanation.probability.isfinite().all():
        yield "\nthe model's answers are no numbers: its training has diverged, and its maps say nothing"
    for row in range(len(explanation.batch)):
        yield ""
        yield sample_table(explanation, row)
        yield from clearest_maps(explanation, row)
    yield ""
    yield from belief(scores, json.loads(str(arrays["deletion"])) if "deletion" in arrays else None, num_tested)


def statistics_table(title: str, scores: Mapping[str, float]) -> Table:
    """One row a layer, one column a statistic."""
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


def sample_table(explanation: Explanation, row: int) -> Table:
    """What was said of a sample, and where each answer comes from."""
    answers = explanation.answers[row][:MOST_ANSWERS]
    left_out = len(explanation.answers[row]) - len(answers)
    title = f"{explanation.batch.ids[row]}{f' (and {left_out} more answers)' if left_out else ''}"
    table = _table("answer", title=title)
    table.add_column("how\nlikely", justify="right", no_wrap=True)
    maps = _maps_of(explanation, row)
    for kind in maps:
        table.add_column(f"{kind}\nbrightest at", overflow="fold")
        table.add_column(f"in top\n{BRIGHT:.0%}", justify="right", no_wrap=True)
    for slot, answer in enumerate(answers):
        places = [cell for of_kind in maps.values() for cell in brightest(of_kind[slot], explanation.record.spans)]
        table.add_row(answer.name, f"{float(explanation.probability[row, slot]):.3f}", *places)
    return table


def clearest_maps(explanation: Explanation, row: int) -> Iterator[RenderableType]:
    """The maps of one answer of a sample in letters: of the likeliest class; of that word whose relevance is clearest.

    How likely a word is says little about its map: articles are the likeliest of all.
    """
    maps, answers = _maps_of(explanation, row), explanation.answers[row]
    if not answers:
        return
    slot = max(range(len(answers)), key=lambda slot: float(explanation.probability[row, slot]))
    if answers[slot].is_word:
        slot = max(range(len(answers)), key=lambda slot: _concentration(maps["relevance"][slot]))
    for kind, tokens in maps.items():
        for name, span in explanation.record.spans.items():
            whole = ", ".join(_where(span.grid.axes, [(0, 1)] * len(span.grid.axes)))
            yield Text(f"{kind} of {answers[slot].name!r} over {name}: {whole}")
            yield Text(shaded(tokens[slot], span), no_wrap=True, overflow="crop")


def _table(first: str, *, title: str, gap: int = 1) -> Table:
    """Without lines between columns, which would cost a third of the width; `gap` is what lies between beside one."""
    return Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False)


def _maps_of(explanation: Explanation, row: int) -> dict[str, Float[np.ndarray, "answers tokens"]]:
    """The maps of a sample's answers, with nothing where there are no numbers."""
    maps = {"relevance": explanation.relevance[row], "rollout": explanation.rollout.inputs[row]}
    return {kind: of_kind.float().nan_to_num().cpu().numpy() for kind, of_kind in maps.items()}


def brightest(tokens: Float[np.ndarray, " tokens"], spans: Mapping[str, Span]) -> tuple[str, str]:
    """Where a map is brightest, in the units of its input, and its share in the brightest cells."""
    inside = np.zeros(len(tokens), dtype=bool)
    for span in spans.values():
        inside[span.start : span.stop] = True
    seen = np.where(inside, tokens, 0)
    if not seen.any():
        return "", ""
    best = int(seen.argmax())
    name, span = next((name, span) for name, span in spans.items() if span.start <= best < span.stop)
    cell = np.unravel_index(best - span.start, span.grid.shape)
    along = zip(cell, span.grid.shape, strict=True)
    where = ",\n".join(
        _where(span.grid.axes, [(int(place) / count, (int(place) + 1) / count) for place, count in along])
    )
    return f"{f'{name}: ' if len(spans) > 1 else ''}{where}", f"{_concentration(tokens):.0%}"


def _concentration(tokens: Float[np.ndarray, " tokens"]) -> float:
    """The share of a map in its brightest cells."""
    count = max(round(BRIGHT * len(tokens)), 1)
    return float(np.sort(tokens)[-count:].sum() / max(tokens.sum(), np.finfo(np.float32).tiny))


def _where(axes: Sequence[Axis], ranges: Sequence[tuple[float, float]]) -> list[str]:
    """Ranges along axes, given in fractions, in their units; those of one unit together, named to tell them apart."""
    by_unit: dict[str, list[str]] = {}
    units = [axis.unit for axis in axes]
    for axis, (start, stop) in zip(axes, ranges, strict=True):
        name = axis.name if not axis.unit or units.count(axis.unit) > 1 else ""
        by_unit.setdefault(axis.unit, []).append(f"{name} {axis.value(start):.4g}–{axis.value(stop):.4g}".strip())
    return [f"{', '.join(parts)} {unit}".rstrip() for unit, parts in by_unit.items()]


def shaded(tokens: Float[np.ndarray, " tokens"], span: Span) -> str:
    """A map in letters, the darker the more, on the scale of square roots."""
    values = on_plane(tokens[span.start : span.stop], span.grid)
    rows, columns = values.shape
    down, across = pooling(rows, columns, MOST_CELLS)
    values = sum_pooled(values, (down, max(across, -(-columns // MOST_COLUMNS))))
    levels = np.sqrt(values / max(values.max(), np.finfo(np.float32).tiny)) * (len(SHADES) - 1)
    width = 2 if 2 * values.shape[1] <= MOST_COLUMNS else 1
    return "\n".join("".join(width * SHADES[level] for level in line) for line in levels.round().astype(int))


def belief(scores: Mapping[str, float], deletion: Mapping[str, Any] | None, num_tested: int) -> Iterator[str]:
    """How far the maps may be believed, a sentence each.

    Args:
        scores: everything that was measured.
        deletion: see `Deletion.summary`; None where it was not tested.
        num_tested: samples on which all of this was tested.
    """
    for name, value in scores.items():
        found = SCORED.fullmatch(name)
        chance = scores.get(f"{found['of']}{found['score']}_chance{found['kind']}") if found else None
        if found and chance is not None:
            of, score, kind = (found[part].replace("_", " ").strip(" /") for part in ("of", "score", "kind"))
            title = f"{of or 'rollout'}, {score}{f' of {kind} words' if kind else ''}"
            yield f"{title}: {value:.2f}, by chance {chance:.2f}"
    if "word_overlap" in scores:
        yield f"rollouts of two words of a text have {scores['word_overlap']:.2f} of their mass in common"
    if not num_tested:
        yield "it was not tested whether hiding what maps mark hurts the answers"
        return
    if deletion is None or not deletion["num_samples"]:
        yield "no answer lost much when its whole input was hidden: nothing to test maps on"
        return
    yield f"hiding what a map marks, against hiding at random (area between, {deletion['num_samples']} samples):"
    for name, area in deletion["areas"].items():
        error = "" if area["error"] is None else f" ± {area['error']:.2f}"
        yield f"  {name.replace('_', ' ')} {area['mean']:+.2f}{error}: {area['brief']}"
