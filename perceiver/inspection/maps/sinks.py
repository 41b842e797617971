"""Attention sinks: tokens that draw attention in most samples, whatever the samples contain.

Transformers learn to attend to a few tokens that carry no content, such as the first one of a text (Xiao et al. 2024;
Gu et al. 2025) or patches of the background of an image, which registers replace (Darcet et al. 2024). In a map they
outshine the tokens that differ between samples. Tokens are compared by their place, so that a sink here may also be a
place where all samples have content, such as the center of an image.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.inspection.maps.record import Layer, Record

ROLLOUT = "rollout"
"""Name of the rollout among the layers."""
MIN_SAMPLES = 4
"""With fewer samples, what draws attention in most of them may be their content."""
MAX_SINKS = 50
"""Sinks of a layer that are listed."""
KEY = "sinks"
"""Among the arrays of an event."""


@dataclass(frozen=True)
class SinkCriterion:
    """When a token is a sink: it gets more than `times_uniform` times the uniform share in enough samples.

    Attributes:
        times_uniform: a multiple, at least 1, of 1 / number of tokens that the layer reads. A layer that reads no more
            tokens than this has no sinks.
        sample_share: a token is a sink if its weight exceeds the threshold in more than this share of the samples, from
            0 to less than 1; samples in which it is masked count as samples without.
    """

    times_uniform: float = 5.0
    sample_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("times_uniform", "sample_share"):
            if type(getattr(self, name)) not in (int, float):
                raise ValueError(f"{name}={getattr(self, name)} of sinks must be a number")
        if not self.times_uniform >= 1:
            raise ValueError(f"times_uniform={self.times_uniform} of sinks must be at least 1")
        if not 0 <= self.sample_share < 1:
            raise ValueError(f"sample_share={self.sample_share} of sinks must be at least 0 and less than 1")


DEFAULT_CRITERION = SinkCriterion()


@dataclass(frozen=True)
class Sink:
    """A token that draws attention.

    Attributes:
        layer: the one that reads it, or `ROLLOUT`.
        modality, token: its modality, and its number among the tokens of that modality.
        sample_share: share of the samples in which it gets more than the threshold.
        weight: mean share of the attention to the tokens that it gets.
    """

    layer: str
    modality: str
    token: int
    sample_share: float
    weight: float


@dataclass(frozen=True)
class Sinks:
    """The sinks of a batch.

    Attributes:
        criterion: by which they were found.
        num_samples: number of samples; of fewer than `MIN_SAMPLES`, no layer is examined.
        found: by layer, and by weight, the largest first; at most `MAX_SINKS` of a layer.
        numbers: layer -> number of its sinks.
        mass: layer -> mean share of the attention to the tokens that all of its sinks get.
    """

    criterion: SinkCriterion
    num_samples: int
    found: list[Sink]
    numbers: dict[str, int]
    mass: dict[str, float]

    @property
    def statistics(self) -> dict[str, float]:
        """`stat/<layer>/sink_mass` -> number, with the layers as in `mass`."""
        return {f"stat/{layer}/sink_mass": mass for layer, mass in self.mass.items()}


def find_sinks(explanation: Explanation, criterion: SinkCriterion) -> Sinks:
    """Find the sinks of each layer that reads the tokens (mean over heads and queries), and of the rollouts.

    The rollouts of all answers of a sample are averaged. Only attention to tokens counts, not that to latents nor the
    share of the initial latents in a rollout.
    """
    record = explanation.record
    maps = {**explanation.mean_maps, ROLLOUT: explanation.rollout.inputs.sum(dim=1)}
    found = Sinks(criterion, len(explanation.batch), [], {}, {})
    for layer, values in maps.items():
        real = record.real_tokens if layer == ROLLOUT else _read_tokens(record, record.layers[layer])
        shares = normalized(values.float().nan_to_num()) * real
        if found.num_samples < MIN_SAMPLES:
            break
        draws = shares > criterion.times_uniform / real.sum(dim=1, keepdim=True).clamp_min(1)
        in_samples = draws.double().mean(dim=0)
        is_sink = in_samples > criterion.sample_share
        weights = shares.mean(dim=0)
        found.mass[layer] = float(weights[is_sink].sum())
        of_layer = [
            Sink(layer, modality, token, float(in_samples[span.start + token]), float(weights[span.start + token]))
            for modality, span in record.spans.items()
            for token in is_sink[span.start : span.stop].nonzero()[:, 0].tolist()
        ]
        found.numbers[layer] = len(of_layer)
        found.found.extend(sorted(of_layer, key=lambda sink: -sink.weight)[:MAX_SINKS])
    return found


def _read_tokens(record: Record, layer: Layer) -> Bool[Tensor, "batch tokens"]:
    """Return True for the tokens that a layer can read: some layers read a single modality."""
    mask = layer.k.new_ones(layer.num_rows, layer.num_keys) if layer.mask is None else layer.mask.float()
    return record.on_tokens(layer, mask) > 0


def sink_arrays(sinks: Sinks) -> dict[str, np.ndarray]:
    """Return `sinks` (JSON: the fields of `Sinks`, its criterion and each `Sink`) for an event."""
    return {KEY: np.array(json.dumps(asdict(sinks)))}


def sinks_in(arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Return what `sink_arrays` stored in an event; None if sinks were not looked for."""
    return json.loads(str(arrays[KEY])) if KEY in arrays else None
