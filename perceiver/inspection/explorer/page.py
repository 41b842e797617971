"""The explorer: a page about the attention of runs, for any browser, without a server or network.

A page shows events, explanations at several steps of training or of several checkpoints, of the same samples. It is
made from the arrays of the events (`events.event_arrays`), in memory or in files, so that the page of a run can be made
again at any time. Maps are pooled, and only the most read latents are included, so that the maps of a sample take at
most `MAX_VALUES` bytes before compression, over all events.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from perceiver.inspection.drawing.axes import Plane
from perceiver.inspection.drawing.colormap import COLORMAPS, DIFFERENCE, OUTLINE
from perceiver.inspection.evaluation.knockout import mean_effect
from perceiver.inspection.explorer.events import event_paths, replace_file, scores_in
from perceiver.inspection.explorer.html import page_html
from perceiver.inspection.explorer.packing import compressed, packed, pooling
from perceiver.inspection.maps.sinks import MIN_SAMPLES, sinks_in
from perceiver.types import Axis, Box, Grid

Arrays = Mapping[str, np.ndarray]
PAGE = "index.html"
"""In the folder of the events."""
Planes = dict[str, Float[np.ndarray, "*rest rows columns"]]

MAX_VALUES = 1_000_000
"""Weights of a sample in a page, one byte each; compressed and in base64 less than 1.4 MB."""
MAX_EVENTS = 6
"""Events of a run whose maps are in a page, including the last; of the others it has the scores."""
ANSWER_SHARE = 0.25
"""Share of the bytes for the maps of answers; the rest is for contrasts and for the maps of latents."""
CONTRAST_SHARE = 0.15
"""Share of the bytes for contrasts of answers, where there are any."""
CELLS = (224 * 224, 112 * 112, 56 * 56, 28 * 28, 14 * 14, 7 * 7)
"""Numbers of cells to which maps are pooled: the largest that leaves room for all answers or `ENOUGH_LATENTS`."""
ENOUGH_LATENTS = 32
METHODS = {
    "attention": {"name": "decoder", "label": "attention of the decoder", "unit": "weight"},
    "relevance": {"name": "relevance", "label": "relevance (Chefer et al. 2021)", "unit": "share of relevance"},
}
"""Methods of attribution besides rollout, by their name in an event."""


@dataclass(frozen=True)
class Event:
    """An event as it is shown in a page.

    Attributes:
        name: its title.
        step, epoch: of the training.
        values: all scores, by the names under which they are logged.
        maps: id of a sample -> its maps (`sample_maps`); empty if the page has only the scores of the event.
        faithfulness: of the maps (`verdicts.summarize`), if it was measured.
        sinks: attention sinks with their cells (`page_sinks`), if they were looked for.
    """

    name: str
    step: int
    epoch: int
    values: Mapping[str, float]
    maps: Mapping[str, Mapping[str, Any]]
    faithfulness: Mapping[str, Any] | None = None
    sinks: Mapping[str, Any] | None = None


def page_event(
    arrays: Arrays, *, max_values: int = MAX_VALUES // MAX_EVENTS, with_maps: bool = True, name: str | None = None
) -> Event:
    """Make an event from its arrays.

    Args:
        arrays: see `events.event_arrays` and `events.with_scores`.
        max_values: limit of the bytes of the maps of a sample.
        with_maps: whether the page contains the maps.
        name: title of the event; None: its step and epoch.
    """
    step, epoch = int(arrays["step"]), int(arrays["epoch"])
    ids = [str(id) for id in arrays["ids"]] if with_maps else []
    return Event(
        name=f"step {step} · epoch {epoch}" if name is None else name,
        step=step,
        epoch=epoch,
        values={f"attention/{key}": value for key, value in scores_in(arrays).items()},
        maps={id: sample_maps(arrays, row, max_values=max_values) for row, id in enumerate(ids)},
        faithfulness=json.loads(str(arrays["faithfulness"])) if "faithfulness" in arrays else None,
        sinks=page_sinks(arrays),
    )


def page_sinks(arrays: Arrays) -> dict[str, Any] | None:
    """Return the sinks of an event, see `Sinks`, each with the `row` and `column` of its token on the plane."""
    sinks = sinks_in(arrays)
    if sinks is None:
        return None
    planes = {
        name: Plane(grid).arrange(np.arange(grid.num_tokens, dtype=np.float64)) for name, grid in _grids(arrays).items()
    }
    cells = [np.argwhere(planes[sink["modality"]] == sink["token"])[0].tolist() for sink in sinks["found"]]
    found = [sink | {"row": row, "column": column} for sink, (row, column) in zip(sinks["found"], cells, strict=True)]
    return sinks | {"found": found, "fewest_samples": MIN_SAMPLES}


def sample_maps(arrays: Arrays, row: int, *, max_values: int) -> dict[str, Any]:
    """Return the maps of one sample of an event for the page; the head of `data.js` describes the keys."""
    answers = json.loads(str(arrays["answers"]))[row]
    probabilities = arrays["answers/probability"][row].tolist()
    alpha = str(arrays["rollout/alpha"])
    rollouts = _planes(arrays, arrays["rollout/inputs"][row, : len(answers)])
    num_methods = 1 + sum(f"{kind}/{part}" in arrays for kind in METHODS for part in ("inputs", "against"))
    contrast_share = CONTRAST_SHARE if "contrast/foils" in arrays else 0.0
    cells = _cells(rollouts, ANSWER_SHARE * max_values / (num_methods * max(len(answers), 1)))
    return {
        "answers": [
            {
                "name": answer["name"],
                "detail": f"{probability:.3f}",
                "is_word": answer["label"] is None,
                "output": answer["output"],
                "boxes": _boxes(arrays, answer),
            }
            for answer, probability in zip(answers, probabilities, strict=False)
        ],
        "layers": _layers(arrays, row, len(answers), (1 - ANSWER_SHARE - contrast_share) * max_values),
        "knockouts": _knockouts(arrays, row, len(answers)),
        "note": str(arrays["relevance/none"]) if "relevance/none" in arrays else "",
        "methods": [
            *_methods(arrays, row, len(answers), cells, contrast_share * max_values),
            {
                "name": "rollout",
                "label": "rollout, norm-weighted" if alpha == "norm" else f"rollout, α = {alpha}",
                "unit": "share",
                "shared": len(answers) > 1 and all(bool((maps == maps[:1]).all()) for maps in rollouts.values()),
                "residual": arrays["rollout/residual"][row, : len(answers)].tolist(),
                "maps": packed(rollouts, max_cells=cells),
            },
        ],
    }


def _methods(
    arrays: Arrays, row: int, num_answers: int, max_cells: int, contrast_values: float
) -> list[dict[str, Any]]:
    """Return the methods with a map for each answer, as far as the event has them."""
    found = []
    for kind, method in METHODS.items():
        if f"{kind}/inputs" in arrays:
            maps = packed(_planes(arrays, arrays[f"{kind}/inputs"][row, :num_answers]), max_cells=max_cells)
            against = _against(arrays, kind, row, num_answers, max_cells)
            found.append(method | {"shared": False, "residual": None, "maps": maps} | against)
    if found and "contrast/foils" in arrays:  # of the last of the methods, relevance
        planes = _planes(arrays, arrays["contrast/inputs"][row, :num_answers])
        foils = json.loads(str(arrays["contrast/foils"]))[row]
        num_maps = 2 * num_answers * max(max(map(len, foils), default=0), 1)
        cells = _cells(planes, contrast_values / max(num_maps, 1))
        maps = packed(planes, max_cells=cells)
        found[-1]["contrast"] = {"foils": foils, "maps": maps} | _against(arrays, "contrast", row, num_answers, cells)
    return found


def _against(arrays: Arrays, kind: str, row: int, num_answers: int, max_cells: int) -> dict[str, Any]:
    """Return the evidence against the answers of a sample, if the event has it."""
    if f"{kind}/against" not in arrays:
        return {}
    planes = _planes(arrays, arrays[f"{kind}/against"][row, :num_answers])
    balance = _rounded(arrays[f"{kind}/balance"][row, :num_answers])
    return {"against": packed(planes, max_cells=max_cells), "balance": balance}


def _knockouts(arrays: Arrays, row: int, num_answers: int) -> list[dict[str, Any]]:
    """Return for each kind of knock-out the changes of the answers of a sample, and the mean effects over all."""
    found = []
    for kind in (key.split("/")[1] for key in arrays if key.startswith("knockout/") and key.endswith("/parts")):
        change = arrays[f"knockout/{kind}/change"]
        effect = mean_effect(change)
        parts = arrays[f"knockout/{kind}/parts"].tolist()
        found.append(
            {"kind": kind, "parts": parts, "change": _rounded(change[row, :num_answers]), "effect": _rounded(effect)}
        )
    return found


def _boxes(arrays: Arrays, answer: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Return the boxes of an answer: modality -> outlines on its plane."""
    boxes = [Box(**fields) for fields in answer["boxes"]]
    found: dict[str, list[dict[str, float]]] = {}
    for modality, grid in _grids(arrays).items():
        here = [box for box in boxes if box.modality == modality]
        if outlines := [asdict(outline) for box in here for outline in Plane(grid).outlines(box)]:
            found[modality] = outlines
    return found


def _layers(arrays: Arrays, row: int, num_answers: int, max_values: float) -> list[dict[str, Any]]:
    """Return the layers that read the tokens, grouped by role and decoder, since only those share their queries.

    The rollouts from the places of an output are one, too.
    """
    names = [key.removesuffix("/latents") for key in arrays if key.endswith("/latents")]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rstrip("0123456789"), []).append(name)
    return [
        layer
        for group in groups.values()
        for layer in _group(arrays, group, row, num_answers, max_values * len(group) / len(names))
    ]


def _group(arrays: Arrays, names: Sequence[str], row: int, num_answers: int, max_values: float) -> list[dict[str, Any]]:
    """Return layers that share their latents, or queries, with the ones that all answers read most in all of them."""
    weights = {name: arrays[f"{name}/weights"][row].astype(np.float32) for name in names}
    planes = {name: _planes(arrays, of_layer) for name, of_layer in weights.items()}
    num_maps = sum(len(of_layer) for of_layer in weights.values())  # per latent: one for each head and layer
    kept = arrays[f"{names[0]}/latents"][row]
    cells = _cells(planes[names[0]], max_values / (num_maps * min(len(kept), ENOUGH_LATENTS)))
    num_latents = max(int(max_values / (num_maps * _pooled_cells(planes[names[0]], cells))), 1)
    reads = {name: arrays[f"{name}/reads"][row, :num_answers].astype(np.float32) for name in names}
    most_read = sum(of_layer.sum(axis=0) for of_layer in reads.values())[kept].argsort()[::-1][:num_latents]
    chosen = np.sort(most_read)
    return [
        {
            "name": name,
            "query_kind": str(arrays[f"{name}/query_kind"]),
            "num_queries": reads[name].shape[1],
            "queries": kept[chosen].tolist(),
            "places": _rounded(arrays[f"{name}/centers"][row, kept[chosen]]) if f"{name}/centers" in arrays else None,
            "num_heads": len(weights[name]),
            "rollout": _rounded(reads[name][:, kept[chosen]]),
            "entropy": _rounded(_entropies(weights[name][:, chosen])),
            "scores": _scores(arrays, name, row, chosen),
            "maps": packed({modality: maps[:, chosen] for modality, maps in planes[name].items()}, max_cells=cells),
        }
        for name in names
    ]


def _scores(arrays: Arrays, name: str, row: int, chosen: np.ndarray) -> dict[str, Any] | None:
    """Return what scores of a layer are computed from besides its maps: mean log weights, bits of visible tokens."""
    if f"{name}/log_weight" not in arrays:
        return None
    visible = None
    if f"{name}/visible" in arrays:
        num_tokens = arrays[f"{name}/weights"].shape[-1]
        bits = np.unpackbits(arrays[f"{name}/visible"][row][:, chosen], axis=-1, count=num_tokens)
        planes = [maps.reshape(*maps.shape[:2], -1) for maps in _planes(arrays, bits).values()]
        visible = compressed(np.packbits(np.concatenate(planes, axis=-1), axis=-1))
    return {"log_weight": _rounded(arrays[f"{name}/log_weight"][row][:, chosen]), "visible": visible}


def _entropies(weights: Float[np.ndarray, "heads latents keys"]) -> Float[np.ndarray, "maps latents"]:
    """Return the entropies in nats of each head, and of the mean over heads."""
    rows = np.concatenate([weights, weights.mean(axis=0, keepdims=True)])
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(axis=-1)


def _rounded(values: Float[np.ndarray, "..."]) -> Any:
    return np.asarray(values, dtype=np.float64).round(5).tolist()


def _grids(arrays: Arrays) -> dict[str, Grid]:
    """Return modality -> grid."""
    grids = {}
    for modality in (key.removeprefix("grid/") for key in arrays if key.startswith("grid/")):
        axes = tuple(Axis(**fields) for fields in json.loads(str(arrays[f"axes/{modality}"])))
        grids[modality] = Grid(tuple(arrays[f"grid/{modality}"].tolist()), axes)
    return grids


def _planes(arrays: Arrays, weights: Float[np.ndarray, "*rest keys"]) -> Planes:
    """Arrange weights over all keys by modality in rows and columns."""
    return {
        modality: Plane(grid).arrange(weights[..., slice(*arrays[f"span/{modality}"].tolist())])
        for modality, grid in _grids(arrays).items()
    }


def _cells(planes: Planes, most: float) -> int:
    """Return the largest of `CELLS` that gives at most `most` cells over all modalities, or the smallest."""
    return next((cells for cells in CELLS if _pooled_cells(planes, cells) <= most), CELLS[-1])


def _pooled_cells(planes: Planes, max_cells: int) -> int:
    """Return the number of cells of the planes of all modalities, each pooled to `max_cells`."""
    sizes = [(maps.shape[-2], maps.shape[-1]) for maps in planes.values()]
    factors = [pooling(rows, columns, max_cells) for rows, columns in sizes]
    return sum(
        -(-rows // down) * -(-columns // across) for (rows, columns), (down, across) in zip(sizes, factors, strict=True)
    )


def evenly_spread(count: int, num_chosen: int) -> list[int]:
    """Return evenly spaced numbers below `count`, including the last."""
    return sorted({round(place) for place in np.linspace(count - 1, 0, min(count, num_chosen))})


def explorer_page(
    title: str,
    samples: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Sequence[Event]],
    *,
    opened: Sequence[Event] = (),
    live: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as one HTML text.

    Args:
        title: of the page.
        samples: the inputs of each sample (`media.page_samples`).
        runs: name of a run -> its events in order.
        opened: the event that is shown first, and the one that it is compared with; by default the last event with maps
            of the first run, without a comparison.
        live: data for the panel of a served page, see `live.js`; None for a file.
    """
    places = {str(sample["id"]): place for place, sample in enumerate(samples)}
    described: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    num_looks = 0
    opens: list[list[int]] = []
    for run, (name, events) in enumerate(runs.items()):
        of_run: list[dict[str, Any]] = []
        for event in events:
            opens += [[run, len(of_run)] for one in opened if one is event]
            found = [(places[id], of_sample) for id, of_sample in event.maps.items() if id in places]
            maps += [{"explanation": num_looks, "sample": place, **of_sample} for place, of_sample in found]
            of_run.append(
                {
                    "name": event.name,
                    "step": event.step,
                    "epoch": event.epoch,
                    "explanation": num_looks if found else None,
                    "values": dict(event.values),
                    "faithfulness": event.faithfulness,
                    "sinks": event.sinks,
                }
            )
            num_looks += bool(found)
        described.append({"name": name, "events": of_run})
    colors = {"colormaps": COLORMAPS, "difference": DIFFERENCE, "outline": OUTLINE}
    return page_html(
        {"title": title, "initial_events": opens, "runs": described, "samples": list(samples), "live": live, **colors},
        maps,
    )


def events_in(
    folder: Path, *, num_with_maps: int = MAX_EVENTS, known: Mapping[int, Event] | None = None
) -> list[Event]:
    """Return the events of a folder in order.

    Args:
        folder: of the files.
        num_with_maps: number of events whose maps are in the page.
        known: step -> event, with its maps if it has them, so that its file is not read again.
    """
    paths = event_paths(folder)
    with_maps = {list(paths)[index] for index in evenly_spread(len(paths), num_with_maps)}
    found = []
    for step, path in paths.items():
        event = (known or {}).get(step)
        if event is None or (step in with_maps and not event.maps):
            with np.load(path) as file:
                # Each array is needed for every sample, and the file would read it again each time.
                event = page_event(dict(file) if step in with_maps else file, with_maps=step in with_maps)
        found.append(event if step in with_maps else replace(event, maps={}))
    return found


def write_page(path: Path, page: str) -> Path:
    """Replace a page; return its path."""
    replace_file(path, lambda file: file.write(page.encode(errors="backslashreplace")))
    return path
