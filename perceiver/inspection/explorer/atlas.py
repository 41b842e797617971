"""An atlas of latents: the tokens of many samples that each latent reads most, collected while the samples stream by.

The weights are the exact ones of the cross-attends, the layers in which latents read the tokens, averaged over heads
and over all or some of these layers. Memory does not depend on the number of samples: for each latent and modality,
`top` tokens are kept, each with an excerpt of its input, and the sums of a few statistics.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceiver.inspection.drawing.excerpts import Excerpt, excerpts
from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.media import Media, media_of
from perceiver.inspection.maps.capture import capture
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.record import Layer, Record
from perceiver.roles import LATENTS
from perceiver.types import Batch, Span

Pieces = Callable[[str, Tensor], list[str] | None]
Place = tuple[str, int, int]
"""Modality, number of the sample, and number of the token on the modality's grid."""


@dataclass
class TopTokens:
    """The tokens of one modality that each latent reads most, at most one of each sample, in descending order.

    Attributes:
        weights: of the latents on them; 0 if there are fewer than `top`.
        samples: numbers of the samples, in the order in which they were added.
        tokens: numbers of the tokens on the modality's grid.
    """

    weights: Float[Tensor, "latents top"]
    samples: Int[Tensor, "latents top"]
    tokens: Int[Tensor, "latents top"]

    @classmethod
    def empty(cls, num_latents: int, top: int) -> "TopTokens":
        """Return a table without tokens."""
        numbers = torch.full((num_latents, top), -1)
        return cls(torch.zeros(num_latents, top), numbers, numbers.clone())

    def add(
        self, latents: Sequence[int], weights: Float[Tensor, "batch chosen tokens"], samples: Int[Tensor, " batch"]
    ) -> None:
        """Merge the weights of some latents in further samples; of equal weights the earlier sample is kept."""
        largest, tokens = (found.T.cpu() for found in weights.max(dim=-1))
        chosen, top = list(latents), self.weights.shape[1]
        merged = torch.cat([self.weights[chosen], largest], dim=1)
        order = merged.argsort(dim=1, descending=True, stable=True)[:, :top]
        numbers = torch.cat([self.samples[chosen], samples.expand(len(chosen), -1)], dim=1)
        places = torch.cat([self.tokens[chosen], tokens], dim=1)
        self.weights[chosen] = merged.gather(1, order)
        self.samples[chosen] = numbers.gather(1, order)
        self.tokens[chosen] = places.gather(1, order)

    @property
    def is_read(self) -> Bool[Tensor, "latents top"]:
        """True for tokens with a weight above 0; the others are padding."""
        return self.weights > 0


@dataclass
class Atlas:
    """What each latent reads in the samples that were added.

    Attributes:
        top: number of tokens for each latent and modality.
        layers: the layers whose weights are averaged, as named in a `Record`; empty for all cross-attends.
        num_samples: number of samples that were added; the windows of a long sample are samples of their own.
        read: modality -> the tokens that are read most.
        excerpts: the inputs of these tokens; no others are kept.
        ids: number of a sample of these tokens -> its name.
    """

    top: int
    layers: Sequence[str] = ()
    num_samples: int = 0
    read: dict[str, TopTokens] = field(default_factory=dict)
    excerpts: dict[Place, Excerpt] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    _num_counted: int = 0
    _entropy: Tensor = field(default_factory=lambda: torch.zeros(0))
    _entropy_chance: float = 0.0
    _mass: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.top) is not int or self.top < 1:
            raise ValueError(f"top={self.top}: must be a number of tokens, at least 1")

    def add(self, record: Record, ids: Sequence[str], media: Callable[[Sequence[int]], Media]) -> None:
        """Add the samples of a forward pass.

        Args:
            record: of the forward pass.
            ids: names of its rows.
            media: returns the inputs of some of the rows.

        Raises:
            ValueError: no latents read the tokens, or a chosen layer does not exist.
        """
        layers = self._chosen_layers(record)
        num_latents, first = layers[0].num_queries, self.num_samples
        mask = record.token_mask
        for modality in record.spans:
            if modality not in self.read:
                self.read[modality] = TopTokens.empty(num_latents, self.top)
                self._mass[modality] = torch.zeros(num_latents)
        if not len(self._entropy):
            self._entropy = torch.zeros(num_latents)
        samples = torch.arange(first, first + len(ids))
        for latents in min((list(layer.chunks()) for layer in layers), key=lambda chunks: len(chunks[0])):
            weights = torch.stack([record.on_tokens(one, one.weights(latents).mean(dim=1)) for one in layers]).mean(0)
            if mask is not None:
                weights = weights.masked_fill(~mask[:, None], 0.0)
            chosen = list(latents)
            self._entropy[chosen] += torch.special.entr(weights).sum(dim=(0, 2)).cpu()
            for modality, span in record.spans.items():
                of_modality = weights[..., span.start : span.stop]
                self._mass[modality][chosen] += of_modality.sum(dim=(0, 2)).cpu()
                self.read[modality].add(chosen, of_modality, samples)
        counts = samples.new_full((len(ids),), next(reversed(record.token_places.values())).stop)
        if mask is not None:
            counts = mask.sum(dim=1).cpu()
        self._num_counted += int((counts > 0).sum())
        self._entropy_chance += float(counts[counts > 0].float().log().sum())
        self.num_samples += len(ids)
        self._keep_excerpts(record.spans, ids, first, media)

    def _chosen_layers(self, record: Record) -> list[Layer]:
        readers = [name for name in record.input_layers if record.layers[name].role.queries == LATENTS]
        if not readers:
            raise ValueError("the model has no latents that read its inputs, so that there is no atlas of it")
        if unknown := [name for name in self.layers if name not in readers]:
            raise ValueError(f"layers={unknown[0]}: latents read the input in {', '.join(readers)}")
        layers = [record.layers[name] for name in self.layers or readers]
        if len({layer.num_queries for layer in layers}) > 1:
            raise ValueError(f"{', '.join(readers)} have different numbers of latents; choose one of these layers")
        return layers

    def _keep_excerpts(
        self, spans: Mapping[str, Span], ids: Sequence[str], first: int, media: Callable[[Sequence[int]], Media]
    ) -> None:
        """Draw the excerpts of new tokens, and forget those of tokens that are no longer among the most read."""
        kept = {place for modality, read in self.read.items() for place in _places(modality, read)}
        new = sorted(kept - self.excerpts.keys())
        rows = sorted({number - first for _, number, _ in new})
        self.excerpts = {place: excerpt for place, excerpt in self.excerpts.items() if place in kept}
        numbers = {number for _, number, _ in kept}
        self.ids = {number: id for number, id in self.ids.items() if number in numbers}
        if not new:
            return
        self.ids |= {first + row: ids[row] for row in rows}
        drawn = media(rows)
        frames = {name: Frame(span.grid, drawn.pictures.get(name)) for name, span in spans.items()}
        for modality, frame in frames.items():
            for index, row in enumerate(rows):
                tokens = [token for name, number, token in new if (name, number) == (modality, first + row)]
                for token, excerpt in zip(tokens, excerpts(frame, modality, index, drawn, tokens), strict=True):
                    self.excerpts[modality, first + row, token] = excerpt

    @property
    def num_latents(self) -> int:
        return len(self._entropy)

    @property
    def shares(self) -> dict[str, Float[np.ndarray, " latents"]]:
        """Modality -> mean share of the weights of each latent on it."""
        return {name: (mass / max(self._num_counted, 1)).numpy() for name, mass in self._mass.items()}

    @property
    def entropy(self) -> Float[np.ndarray, " latents"]:
        """Mean entropy of the weights of each latent over all tokens, in nats."""
        return (self._entropy / max(self._num_counted, 1)).numpy()

    @property
    def entropy_chance(self) -> float:
        """The entropy of uniform weights over all real tokens, in nats (mean over samples)."""
        return self._entropy_chance / max(self._num_counted, 1)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file of an atlas.

        Keys: `num_samples`; `layers`, those that were averaged, empty for all cross-attends; `entropy` [latents] and
        `entropy_chance` in nats; per modality `<modality>/share` [latents], `<modality>/weight` [latents, top], 0 where
        there are fewer tokens, with `<modality>/sample`, the index of the sample in `ids`, and `<modality>/token`, the
        number of the token on its grid, both -1 there; `ids`, the names of these samples.
        """
        numbers = {number: index for index, number in enumerate(sorted(self.ids))}
        arrays = {
            "num_samples": np.array(self.num_samples),
            "layers": np.array(list(self.layers), dtype=str),
            "entropy": self.entropy,
            "entropy_chance": np.array(self.entropy_chance),
            "ids": np.array([self.ids[number] for number in numbers], dtype=str),
        }
        for modality, read in self.read.items():
            samples, found = read.samples.numpy(), read.is_read.numpy()
            arrays[f"{modality}/share"] = self.shares[modality]
            arrays[f"{modality}/weight"] = read.weights.numpy()
            arrays[f"{modality}/sample"] = np.vectorize(lambda number: numbers.get(number, -1), otypes=[int])(
                np.where(found, samples, -1)
            )
            arrays[f"{modality}/token"] = np.where(found, read.tokens.numpy(), -1)
        return arrays


def collect(explainer: Explainer, batches: Iterable[Batch], pieces: Pieces, atlas: Atlas) -> Atlas:
    """Add the samples of batches to an atlas, and return it.

    Args:
        explainer: of the model; texts that it predicts are those of the samples, not generated ones.
        batches: on the device of the model.
        pieces: splits the ids of a text of a modality into pieces (`Dataset.pieces`).
        atlas: which may contain samples.

    Raises:
        ValueError: see `Atlas.add`.
    """
    for batch in batches:
        if not len(batch):
            continue
        converted = replace(batch, inputs=explainer.converted(batch.inputs))
        with capture(explainer.module) as record, explainer.forward_context():
            explainer.task.outputs(explainer.model, explainer.task.prepare(converted, train=False))

        def media(rows: Sequence[int], batch: Batch = batch) -> Media:
            return media_of(explainer, batch, rows, pieces)

        names = [f"{id} {window}" for id, of in zip(batch.ids, batch.windows, strict=False) for window in of]
        atlas.add(record, names or batch.ids, media)
    return atlas


def _places(modality: str, read: TopTokens) -> set[Place]:
    found = read.is_read
    numbers = zip(read.samples[found].tolist(), read.tokens[found].tolist(), strict=True)
    return {(modality, sample, token) for sample, token in numbers}
