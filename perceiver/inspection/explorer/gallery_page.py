"""The page of a gallery: one HTML file that makes no network request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.thumbnails import displayed, map_url
from perceiver.inspection.explorer.events import event_paths, write_arrays
from perceiver.inspection.explorer.extremes import ORDERS
from perceiver.inspection.explorer.gallery import Gallery, Item, OutputGallery
from perceiver.inspection.explorer.html import embed, filled, read_part
from perceiver.inspection.explorer.mean_maps import MeanMaps
from perceiver.inspection.explorer.page import PAGE, write_page

GALLERY = "gallery.html"
"""In the folder of the events, with the arrays beside it."""
MAX_MEDIA = 4_000_000
"""Characters of all pictures of samples in a page."""
MAX_MEANS = 60
"""Classes whose mean maps are in a page: those with the most samples."""
MAX_CELLS = 20_000
"""Pairs of classes in a page that occur: those that occur most."""


def gallery_page(title: str, gallery: Gallery, *, explained: Sequence[str] = (), indices: bool = False) -> str:
    """Return the page of a gallery.

    It has pictures of at most `MAX_MEDIA` characters, first those of samples at the front of the orders of all.

    Args:
        title: of the page.
        gallery: the gallery.
        explained: the names of the samples of the explorer (`PAGE`) in the same folder, in their order there.
        indices: whether the numbers of the samples are their indices in the validation set.
    """
    content = embed(page_content(title, gallery, explained=explained, indices=indices))
    return filled(
        "gallery.html",
        style=f"{read_part('page.css')}\n{read_part('gallery.css')}",
        script="\n".join(read_part(f"{name}.js") for name in ("dom", "format", "gallery")),
        data=f'<script type="application/json" id="gallery">{content}</script>',
    )


def page_content(title: str, gallery: Gallery, *, explained: Sequence[str], indices: bool) -> dict[str, Any]:
    """Return what the page shows; the head of `gallery.js` describes the keys."""
    places = {id: place for place, id in reversed(list(enumerate(explained)))}
    budget, omitted, outputs = MAX_MEDIA, 0, []
    for name, shown in gallery.outputs.items():
        ranks = shown.extremes.ranks()
        items = {number: _item(shown.items[number], number, places) for number in sorted(shown.items, key=ranks.get)}  # type: ignore[arg-type]
        for item in items.values():
            size = sum(_size(of) for of in item["thumbnails"].values())
            if size > budget:
                item["thumbnails"], omitted = {}, omitted + 1
            else:
                budget -= size
        outputs.append(
            {
                "name": name,
                "items": [items[number] for number in sorted(items)],
                "tops": {group: shown.extremes.top_of(group) for group in ("all", "true", "cell")},
                "counts": {":".join(map(str, group)): count for group, count in shown.extremes.counts.items()},
                "confusion": None if shown.confusion is None else _cells(shown.confusion.numpy()),
                "means": {modality: _means(means, shown) for modality, means in shown.means.items()},
            }
        )
    return {
        "title": title,
        "num_samples": gallery.num_samples,
        "orders": list(ORDERS),
        "class_names": list(gallery.class_names),
        "class_metrics": gallery.class_metrics,
        "explorer": PAGE,
        "indices": indices,
        "outputs": outputs,
        "omitted": omitted,
    }


def _item(item: Item, number: int, places: Mapping[str, int]) -> dict[str, Any]:
    one = item.outcome
    return {
        "id": item.id,
        "window": item.window,
        "number": number,
        "explained": places.get(f"{item.id} {item.window}" if item.window else item.id),
        "answer": one.answer,
        "truth": one.truth,
        "loss": one.loss,
        "confidence": one.confidence,
        "wrongness": one.wrongness,
        "predicted": list(one.predicted),
        "true": list(one.true),
        "thumbnails": {modality: drawn.content for modality, drawn in item.thumbnails.items()},
    }


def _size(drawn: Mapping[str, Any]) -> int:
    words = sum(len(word) + 20 for word in drawn["words"] or ())
    return len(drawn["picture"] or "") + sum(map(len, drawn["maps"].values())) + words


def _cells(counts: np.ndarray) -> list[list[int]]:
    """Return [true, predicted, number of samples] of the most frequent pairs."""
    pairs = np.argwhere(counts > 0)
    order = np.argsort(-counts[counts > 0], kind="stable")[:MAX_CELLS]
    return [[int(true), int(predicted), int(counts[true, predicted])] for true, predicted in pairs[order]]


def _means(means: MeanMaps, shown: OutputGallery) -> dict[str, Any]:
    """Return the mean maps of a modality: of all samples, and of the classes with the most of them by role."""
    if means.reason or means.grid is None or not means.kinds:
        return {"reason": means.reason or "no sample has an answer with a map", "groups": []}
    frame = Frame(means.grid, None)
    counts = shown.extremes.counts
    groups = sorted(dict.fromkeys(group for group, _ in means.sums), key=lambda group: -counts[group])
    chosen = [group for group in groups if group[0] == "all"]
    for role in ("true", "predicted"):
        of_role = [group for group in groups if group[0] == role][:MAX_MEANS]
        chosen += sorted(of_role, key=lambda group: group[1:])
    return {
        "reason": "",
        "size": displayed(*frame.size),
        "groups": [
            {
                "role": group[0],
                "label": group[1] if len(group) > 1 else None,
                "count": means.counts[group, means.kinds[0]],
                "maps": {
                    kind: [map_url(frame.plane.arrange(mean)), float(mean.max())]
                    for kind in means.kinds
                    if (group, kind) in means.sums
                    for mean in [means.mean(group, kind)]
                },
            }
            for group in chosen
        ],
        "omitted": len(groups) - len(chosen),
    }


def write_gallery(page: Path, title: str, gallery: Gallery, *, indices: bool = False) -> Path:
    """Write the page of a gallery, and its arrays beside it; return the page.

    Args:
        page: the file. If it lies in the folder of the explorer, samples are linked to it.
        title, gallery, indices: see `gallery_page`.
    """
    explained: list[str] = []
    events = event_paths(page.parent)
    if events and (page.parent / PAGE).exists():
        with np.load(list(events.values())[-1]) as event:
            explained = [str(id) for id in event["ids"]]
    write_arrays(page.with_suffix(".npz"), gallery.arrays)
    return write_page(page, gallery_page(title, gallery, explained=explained, indices=indices))
