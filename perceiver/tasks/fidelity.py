"""Metrics of reconstructions: sums over all values of all batches and processes, from which one number is computed."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from perceiver.tasks.reconstruction_targets import Measure


class Fidelity(Metric):
    """How well values are predicted.

    Attributes:
        names: keys of `compute`.
        sample_names: those that say something about a single sample.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    names: tuple[str, ...]
    sample_names: tuple[str, ...]


class SignalFidelity(Fidelity):
    """Peak signal-to-noise ratio or signal-to-noise ratio, in dB, of all values that were added.

        PSNR = 10 log10(peak² · values / Σ error²)        SNR = 10 log10(Σ value² / Σ error²)

    It is not the mean of ratios of batches or samples, of which a single good one may be infinite. Beside it,
    `PSNR_of_mean` or `SNR_of_mean` is that of a constant, the mean of each channel of each row: of the mean color of a
    picture, of silence in a sound. What is not clearly above it has not been reconstructed.

    Args:
        measure: PSNR or SNR.
        channels: of the values, which are those of one place and channel after another.
        peak: range of the values, for PSNR.

    Raises:
        ValueError: the range is not positive.
    """

    squared_error: Tensor
    squared_signal: Tensor
    squared_deviation: Tensor
    count: Tensor

    def __init__(self, measure: Measure, channels: int = 1, peak: float = 1.0) -> None:
        super().__init__()
        if not peak > 0.0:
            raise ValueError(f"peak={peak} must be more than 0")
        self.measure = measure
        self.channels = channels
        self.peak = peak
        self.names = self.sample_names = (measure, f"{measure}_of_mean")
        for name in ("squared_error", "squared_signal", "squared_deviation", "count"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, "rows places values"],
        true: Float[Tensor, "rows places values"],
        scored: Bool[Tensor, "rows places values"],
    ) -> None:
        """Add the values that are scored."""
        cells = "rows places (inner channels) -> rows (places inner) channels"
        by_channel = rearrange(true.double(), cells, channels=self.channels)
        weights = rearrange(scored.double(), cells, channels=self.channels)
        mean = (by_channel * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
        self.squared_deviation += ((by_channel - mean).square() * weights).sum()
        true = true[scored].double()
        self.squared_error += (predicted[scored].double() - true).square().sum()
        self.squared_signal += true.square().sum()
        self.count += len(true)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        power = self.squared_signal if self.measure == "SNR" else self.peak**2 * self.count
        errors = (self.squared_error, self.squared_deviation)
        ratios = [(10.0 * torch.log10(power / error)).float() for error in errors]
        return dict(zip(self.names, ratios, strict=True))


class IdFidelity(Fidelity):
    """`accuracy` of ids, and `perplexity`, the exponential of their mean cross-entropy.

    Beside them, `accuracy_of_constant` and `perplexity_of_constant` are those of the best prediction that is the same
    everywhere: the frequencies of the scored ids (a unigram model), the most frequent of which is its answer. What is
    not clearly better has not been predicted from the input.

    Args:
        num_ids: number of different ids.
    """

    sample_names = ("accuracy", "perplexity")
    names = (*sample_names, "accuracy_of_constant", "perplexity_of_constant")

    correct: Tensor
    cross_entropy: Tensor
    counts: Tensor

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        for name, size in (("correct", ()), ("cross_entropy", ()), ("counts", (num_ids,))):
            self.add_state(name, default=torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        logits: Float[Tensor, "rows places ids"],
        true: Int[Tensor, "rows places 1"],
        scored: Bool[Tensor, "rows places 1"],
    ) -> None:
        """Add the places that are scored."""
        logits, true = logits[scored[..., 0]], true[scored]
        self.correct += (logits.argmax(dim=-1) == true).sum()
        self.cross_entropy += F.cross_entropy(logits, true, reduction="none").double().sum()
        self.counts += true.bincount(minlength=len(self.counts))

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        count = self.counts.sum()
        frequencies = self.counts / count
        accuracies = (self.correct / count, frequencies.max())
        perplexities = ((self.cross_entropy / count).exp(), torch.special.entr(frequencies).sum().exp())
        values = (accuracies[0], perplexities[0], accuracies[1], perplexities[1])
        return {name: value.float() for name, value in zip(self.names, values, strict=True)}
