"""The explorer as one HTML file that makes no network request."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any

SCRIPTS = (
    "dom format data colors state scores selection canvas save drawing panels audio frames versions figure "
    "readout matrix samples queries knockout sinks chart statistics faithfulness controls shortcuts main"
)
"""Concatenated in this order into one module, whose scope they share."""
LIVE = "live"
"""The script of the panel of a page that is served."""
OFFLINE = "default-src 'none';"
"""The rule of the page's content security policy that forbids requests; a served page may ask its server."""


def page_html(page: Mapping[str, Any], maps: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of some events for the same samples.

    Args:
        page: everything but the maps: `title`, `runs` with their events and values, `samples` and their drawings, and
            `live`, if the page is served (`live.js`).
        maps: of each event and sample. Each is a block of its own, so that a browser parses only what is selected.
    """
    blocks = [f'<script type="application/json" id="page">{embed(page)}</script>']
    blocks += [
        f'<script type="application/json" class="maps" data-explanation="{content["explanation"]:d}" '
        f'data-sample="{content["sample"]:d}">{embed(content)}</script>'
        for content in maps
    ]
    names = SCRIPTS.split()
    is_live = page.get("live") is not None
    scripts = "\n".join(read_part(f"{name}.js") for name in ([LIVE, *names] if is_live else names))
    html = filled("page.html", style=read_part("page.css"), script=scripts, data="\n".join(blocks))
    return html.replace(OFFLINE, f"{OFFLINE} connect-src 'self';", 1) if is_live else html


def filled(template: str, *, style: str, script: str, data: str) -> str:
    """Return a template with its style sheet, script and data."""
    parts = {"/*STYLE*/": style, "/*SCRIPT*/": script, "<!--DATA-->": data}  # data last: it may contain the others
    html = read_part(template)
    for place, content in parts.items():
        before, after = html.split(place)
        html = before + content + after
    return html


def read_part(name: str) -> str:
    """Read a file of `web/`."""
    return resources.files(__package__).joinpath("web", name).read_text(encoding="utf-8")


def embed(content: Mapping[str, Any]) -> str:
    """Return JSON that is safe within a script element, and valid for JavaScript, which has no NaN."""
    encode = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text = encode(content)
    except (TypeError, ValueError):  # a mapping that is no dict, or a NaN: most have neither
        text = encode(finite(content))
    return text.replace("<", "\\u003c")


def finite(content: Any) -> Any:
    """Replace numbers that are not finite by None."""
    match content:
        case Mapping():
            return {key: finite(value) for key, value in content.items()}
        case list() | tuple():
            return [finite(value) for value in content]
        case float():
            return content if math.isfinite(content) else None
        case _:
            return content
