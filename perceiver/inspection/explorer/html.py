"""The attention explorer: one html file that asks for nothing else, and what is seen in it."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

SCRIPTS = (
    "dom.js",
    "format.js",
    "data.js",
    "colors.js",
    "state.js",
    "selection.js",
    "canvas.js",
    "panels.js",
    "audio.js",
    "figure.js",
    "readout.js",
    "samples.js",
    "queries.js",
    "chart.js",
    "statistics.js",
    "faithfulness.js",
    "controls.js",
    "shortcuts.js",
    "main.js",
)
"""Concatenated in this order into one module, whose scope they share."""


def page_html(page: Mapping[str, Any], maps: Sequence[Mapping[str, Any]]) -> str:
    """The explorer of some looks at some samples.

    Args:
        page: everything but the maps: `title`, `runs` with their events and values, `samples` and how they are drawn.
        maps: of each look at each sample. Each stands in a block of its own, so that a browser parses only what is
            chosen.
    """
    blocks = [f'<script type="application/json" id="page">{embedded(page)}</script>']
    blocks += [
        f'<script type="application/json" class="maps" data-explanation="{content["explanation"]:d}" '
        f'data-sample="{content["sample"]:d}">{embedded(content)}</script>'
        for content in maps
    ]
    parts = {
        "/*STYLE*/": part("page.css"),
        "/*SCRIPT*/": "\n".join(part(name) for name in SCRIPTS),
        "<!--DATA-->": "\n".join(blocks),  # last, since nobody knows what stands in it
    }
    html = part("page.html")
    for place, content in parts.items():
        before, after = html.split(place)
        html = before + content + after
    return html


def part(name: str) -> str:
    """A file that lies beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def embedded(content: Mapping[str, Any]) -> str:
    """JSON that no text inside can close, and that JavaScript reads: it knows no NaN."""
    text = json.dumps(finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def finite(content: Any) -> Any:
    """The same with null for each number that is not finite."""
    match content:
        case Mapping():
            return {key: finite(value) for key, value in content.items()}
        case list() | tuple():
            return [finite(value) for value in content]
        case float():
            return content if math.isfinite(content) else None
        case _:
            return content
