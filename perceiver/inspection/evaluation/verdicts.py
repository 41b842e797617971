"""Which maps are better than the nulls: intervals by bootstrap over samples, and a correction for the maps compared.

A map is faithful if deletion and insertion both show it to be better than each null of `faithfulness`, an
intersection-union test (Berger 1982): its p value is the largest of the comparisons. It is misleading if both show it
to be worse than tokens in random order. The p values of all maps are corrected by the method of Holm (1979): where no
map is faithful, one is called so with a probability of at most `LEVEL` / 2, and so for misleading ones.

Intervals and p values are those of the studentized bootstrap (Efron & Tibshirani 1993, sections 12.5 and 16.4) of
paired differences: samples are drawn with replacement, and the mean is compared in units of its standard error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.evaluation.faithfulness import CENTER, FRACTIONS, OTHER, RANDOM, FaithfulnessCurves

LEVEL = 0.05
"""Of the two-sided tests, and 1 - coverage of the intervals."""
NUM_RESAMPLES = 2000
MIN_SAMPLES = 8
"""Samples needed for an interval: of fewer, it is too uncertain itself."""
NULLS = {RANDOM: "random tokens", OTHER: "the map of another sample", CENTER: "the center of the input"}
"""Null -> its name in sentences."""
TITLES = {
    "mean_map": "mean attention of all layers",
    "gradient_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
}
"""Kind of map -> its name in sentences, where they differ."""
SCORES = {
    "deletion": "deletion",
    "insertion": "insertion",
    "pointing_game": "pointing game",
    "randomization": "randomization",
}
"""Scores of maps and their titles, in the order of tables."""


@dataclass(frozen=True)
class Mean:
    """A mean over samples.

    Attributes:
        mean: of the finite values; NaN without any.
        low, high: the interval; None of too few samples.
        better, worse: p values of a mean above and below 0, each one-sided; 1 of too few samples.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    better: float = 1.0
    worse: float = 1.0

    @property
    def summary(self) -> dict[str, float | None]:
        """Mean (None without values) and interval as plain values."""
        return {"mean": None if self.mean != self.mean else self.mean, "low": self.low, "high": self.high}


def bootstrap_mean(values: Float[Tensor, " samples"], *, lower: float = -torch.inf, upper: float = torch.inf) -> Mean:
    """Return the mean of values between `lower` and `upper`; values that are not finite are excluded."""
    values = values[values.isfinite()].double()
    count = len(values)
    if not count:
        return Mean(torch.nan)
    mean = float(values.mean())
    if count < MIN_SAMPLES:
        return Mean(mean)
    error = float(values.std()) / count**0.5
    if error <= 1e-9 * abs(mean) or error == 0:  # equal values
        smallest = 1 / (NUM_RESAMPLES + 1)
        return Mean(mean, mean, mean, smallest if mean > 0 else 1.0, smallest if mean < 0 else 1.0)
    shares, centered = _resamples(count), values - mean
    means = shares @ centered
    variances = (shares @ centered.square() - means.square()) * count / (count - 1)
    # A resample of equal values has no standard error: it is as far from the mean as possible.
    errors = variances.where(variances > 1e-12 * error**2 * count, 0.0).sqrt() / count**0.5
    distances = (means / errors).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    quantiles = torch.quantile(distances, torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.float64))
    infinite = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    below, above = quantiles.where(~quantiles.isnan(), infinite).tolist()  # NaN between two infinite ones
    better, worse = (
        (1 + int((sign * distances >= sign * mean / error).sum())) / (NUM_RESAMPLES + 1) for sign in (1, -1)
    )
    return Mean(mean, max(mean - above * error, lower), min(mean - below * error, upper), better, worse)


@lru_cache(maxsize=4)
def _resamples(count: int) -> Float[Tensor, "resamples samples"]:
    """Return the share of each sample in resamples of as many, drawn with replacement."""
    drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add(1, drawn, ones) / count


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number (Holm 1979)."""
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min((len(p_values) - place) * p_values[name], 1.0))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def summarize(
    curves: FaithfulnessCurves,
    more: Mapping[str, Mapping[str, Float[Tensor, " samples"]]] | None = None,
    stages: Mapping[str, Float[Tensor, "stages samples"]] | None = None,
) -> dict[str, Any]:
    """Return a summary of the curves as plain values.

    Args:
        curves: of all samples.
        more: further scores of `SCORES` -> kind of map -> value of each sample, between -1 and 1; with `chance` among
            the kinds the value of an uninformative map.
        stages: kind of map -> `randomization`, whose last stage is a score.

    Returns:
        `num_samples`, `fractions`, `curves` (`deletion` and `insertion`: name -> mean curve, without samples empty),
        `stages` (kind -> mean of the original model, 1, and after each stage of randomization; empty if not measured),
        `chance` (score -> value of an uninformative map) and `maps`: kind -> `title`, `scores` (see `SCORES`; deletion
        and insertion are relative to random tokens), `differences` (null -> `deletion` and `insertion`), each with
        `mean`, `low` and `high`; `p`, corrected; and the conclusion as a sign (`mark`), in a few words (`brief`), and
        in a `sentence`.
    """
    stages = {kind: values for kind, values in (stages or {}).items() if values.shape[1]}
    more = dict(more or {}) | (
        {"randomization": {kind: values[-1] for kind, values in stages.items()}} if stages else {}
    )
    compared = {
        kind: {
            null: {name: bootstrap_mean(values) for name, values in curves.gains(kind, null).items()} for null in NULLS
        }
        for kind in (curves.kinds if curves.num_samples else ())
    }
    better = holm({kind: max(one.better for one in _each(nulls)) for kind, nulls in compared.items()})
    worse = holm({kind: max(one.worse for one in nulls[RANDOM].values()) for kind, nulls in compared.items()})
    maps = {}
    for kind, nulls in compared.items():
        found = {
            score: bootstrap_mean(values[kind], lower=-1.0, upper=1.0)
            for score, values in more.items()
            if kind in values and len(values[kind])
        }
        maps[kind] = {
            "title": TITLES.get(kind, kind),
            "scores": {score: one.summary for score, one in ({**nulls[RANDOM]} | found).items()},
            "differences": {
                null: {name: one.summary for name, one in of_null.items()} for null, of_null in nulls.items()
            },
            "p": better[kind],
            **conclusion(kind, nulls, better=better[kind], worse=worse[kind], num_samples=curves.num_samples),
        }
    by_name = {"deletion": curves.deletion, "insertion": curves.insertion}
    return {
        "num_samples": curves.num_samples,
        "fractions": list(FRACTIONS),
        "curves": {
            score: {name: _mean_curve(values) for name, values in of_score.items()} if curves.num_samples else {}
            for score, of_score in by_name.items()
        },
        "stages": {kind: [1.0, *values.mean(dim=1).tolist()] for kind, values in stages.items()},
        "chance": {
            score: float(values["chance"].mean()) for score, values in more.items() if len(values.get("chance", ()))
        },
        "maps": maps,
    }


def conclusion(
    kind: str, nulls: Mapping[str, Mapping[str, Mean]], *, better: float, worse: float, num_samples: int
) -> dict[str, str]:
    """Return the conclusion from the comparisons of a map with the nulls: `mark`, `brief` and `sentence`.

    Args:
        kind: of map.
        nulls: null -> `deletion` and `insertion` -> mean difference.
        better, worse: the corrected p values.
        num_samples: number of samples tested.
    """
    title = TITLES.get(kind, kind)
    if any(one.low is None for one in _each(nulls)):
        sentence = f"Too few samples were tested for a conclusion: do not read {title} as an explanation."
        return {"mark": "?", "brief": "too few samples", "sentence": sentence}
    size = f"{num_samples} samples"
    if better <= LEVEL / 2:
        sentence = (
            f"By deletion and insertion of tokens, {title} is better than random tokens, the map of another sample and "
            f"the center of the input ({size}): the map is faithful."
        )
        return {"mark": "✓", "brief": "better than all nulls", "sentence": sentence}
    if worse <= LEVEL / 2:
        sentence = (
            f"By deletion and insertion of tokens, {title} is worse than random tokens ({size}): the map is misleading."
        )
        return {"mark": "✗", "brief": "worse than random", "sentence": sentence}
    failed = {
        null: [name for name, one in of_null.items() if one.low is not None and one.low <= 0]
        for null, of_null in nulls.items()
    }
    failed = {null: names for null, names in failed.items() if names}
    if not failed:
        brief, reasons = "not after correction", "each null, but not after the correction for the number of maps"
        sentence = f"{title[0].upper()}{title[1:]} is better than {reasons} ({size}): do not read it as an explanation."
        return {"mark": "≈", "brief": brief, "sentence": sentence}
    first = next(iter(failed))
    reasons = "; ".join(f"{NULLS[null]} by {' and '.join(names)}" for null, names in failed.items())
    sentence = (
        f"{title[0].upper()}{title[1:]} is not shown to be better than {reasons} ({size}): do not read the map as an "
        "explanation."
    )
    return {"mark": "≈", "brief": f"no better than {NULLS[first].removeprefix('the ')}", "sentence": sentence}


def method_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str | float | None]]]:
    """Return the columns and rows of a summary as a table: a row for each map, and each score with its interval."""
    scores = [score for score in SCORES if any(score in one["scores"] for one in summary["maps"].values())]
    columns = ["map", *(name for score in scores for name in (score, f"{score} low", f"{score} high")), "p", "verdict"]
    rows: list[list[str | float | None]] = []
    for one in summary["maps"].values():
        cells = [one["scores"].get(score, {}).get(name) for score in scores for name in ("mean", "low", "high")]
        rows.append([one["title"], *cells, one["p"], f"{one['mark']} {one['brief']}"])
    return columns, rows


def _each(nulls: Mapping[str, Mapping[str, Mean]]) -> Sequence[Mean]:
    return [one for of_null in nulls.values() for one in of_null.values()]


def _mean_curve(values: Float[Tensor, "samples fractions"]) -> list[float | None]:
    """Return the mean curve of the samples that have one; None for values that are not finite."""
    return [one if one == one else None for one in values.nanmean(dim=0).tolist()]
