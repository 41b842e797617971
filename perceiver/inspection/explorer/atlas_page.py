"""The page of an atlas: one HTML file that makes no network request."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver.inspection.explorer.atlas import Atlas
from perceiver.inspection.explorer.events import write_arrays
from perceiver.inspection.explorer.html import embed, filled, read_part
from perceiver.inspection.explorer.page import write_page

ATLAS = "atlas.html"
"""In the folder of the events, with the arrays beside it."""
MAX_MEDIA = 4_000_000
"""Characters of all pictures and sounds in a page."""


def atlas_page(title: str, atlas: Atlas) -> str:
    """Return the page of an atlas.

    It has pictures and sounds of at most `MAX_MEDIA` characters: first the pictures of the token that each latent
    reads most, then those of the second ones, and so on, then the sounds in the same order.
    """
    content = embed(page_content(title, atlas))
    return filled(
        "atlas.html",
        style=f"{read_part('page.css')}\n{read_part('atlas.css')}",
        script="\n".join(read_part(f"{name}.js") for name in ("dom", "format", "atlas")),
        data=f'<script type="application/json" id="atlas">{content}</script>',
    )


def page_content(title: str, atlas: Atlas) -> dict[str, Any]:
    """Return what the page shows; the head of `atlas.js` describes the keys."""
    places = {place: number for number, place in enumerate(atlas.excerpts)}
    shares, entropy = atlas.shares, atlas.entropy
    latents: list[dict[str, Any]] = [
        {
            "entropy": float(entropy[latent]),
            "modalities": {
                modality: {
                    "share": float(shares[modality][latent]),
                    "read": [
                        [float(weight), places[modality, sample, token]]
                        for weight, sample, token, is_read in zip(
                            read.weights[latent].tolist(),
                            read.samples[latent].tolist(),
                            read.tokens[latent].tolist(),
                            read.is_read[latent].tolist(),
                            strict=True,
                        )
                        if is_read
                    ],
                }
                for modality, read in atlas.read.items()
            },
        }
        for latent in range(atlas.num_latents)
    ]
    items = [{"id": atlas.ids[sample], **excerpt.content} for (_, sample, _), excerpt in atlas.excerpts.items()]
    omitted = _limit_media(items, latents, atlas.top)
    return {
        "title": title,
        "num_samples": atlas.num_samples,
        "layers": list(atlas.layers),
        "entropy_chance": atlas.entropy_chance,
        "latents": latents,
        "excerpts": items,
        "omitted": omitted,
    }


def _limit_media(items: list[dict[str, Any]], latents: Sequence[Mapping[str, Any]], top: int) -> int:
    """Remove pictures and sounds beyond `MAX_MEDIA`, and return their number."""
    by_rank = [
        of_modality["read"][rank][1]
        for rank in range(top)
        for latent in latents
        for of_modality in latent["modalities"].values()
        if rank < len(of_modality["read"])
    ]
    total, omitted = 0, 0
    for kind, number in itertools.product(("picture", "sound"), dict.fromkeys(by_rank)):
        size = len(items[number][kind] or "")
        if total + size > MAX_MEDIA:
            items[number][kind], omitted = None, omitted + 1
        else:
            total += size
    return omitted


def write_atlas(page: Path, title: str, atlas: Atlas) -> Path:
    """Write the page of an atlas, and its arrays beside it; return the page."""
    write_arrays(page.with_suffix(".npz"), atlas.arrays)
    return write_page(page, atlas_page(title, atlas))
