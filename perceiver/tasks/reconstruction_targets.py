"""What is reconstructed of a modality at each place: patches of values, or ids."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceiver.tokenizer import PAD, Tokenizer

if TYPE_CHECKING:
    from torchmetrics import Metric

    from perceiver.tasks.fidelity import Fidelity, IdFidelity, SignalFidelity

SignalLoss: TypeAlias = Literal["l1", "l2"]
Measure: TypeAlias = Literal["PSNR", "SNR"]


class ReconstructionTarget(ABC):
    """The raw input of a modality as a grid of cells with one or more values each.

    Attributes:
        num_channels: width of the model's output at a place.
        num_values: values of a cell.
    """

    num_channels: int
    num_values: int

    @abstractmethod
    def shape(self, raw: Tensor | None) -> tuple[int, ...]:
        """Return the number of cells along each axis of an input, or of one that is missing.

        Raises:
            ValueError: the input does not have these axes, or is missing and its size is not known.
        """

    def places(self, centers: Float[Tensor, "places axes"], shape: tuple[int, ...]) -> Float[Tensor, "places axes"]:
        """Return the places that are queried for fractions of the axes of an input of some shape in cells."""
        return centers

    @abstractmethod
    def values(self, raw: Tensor) -> Tensor:
        """Return the values of all cells, [rows, cells, values]."""

    @abstractmethod
    def restored(self, raw: Tensor, values: Tensor) -> Tensor:
        """Return an input of the size of `raw` that has these values: the inverse of `values`."""

    @abstractmethod
    def scorable(self, raw: Tensor, real: Bool[Tensor, "rows *shape"]) -> Bool[Tensor, "rows cells values"]:
        """Return which values may be hidden and scored; `real` is True where the input is."""

    @abstractmethod
    def predicted(self, output: Float[Tensor, "rows places channels"]) -> Tensor:
        """Return the values that an output of the model stands for, [rows, places, values]."""

    @abstractmethod
    def blank(self, values: Tensor) -> Tensor:
        """Return values that show that nothing is known."""

    @abstractmethod
    def random(self, values: Tensor) -> Tensor:
        """Return values of the same shape, drawn at random, that replace those of some cells."""

    @abstractmethod
    def losses(
        self, output: Float[Tensor, "rows places channels"], values: Tensor
    ) -> Float[Tensor, "rows places values"]:
        """Return the loss of each value."""

    @abstractmethod
    def metric(self) -> "Fidelity":
        """Return a metric of predicted values."""

    @abstractmethod
    def update(
        self, metric: "Metric", output: Tensor, values: Tensor, scored: Bool[Tensor, "rows places values"]
    ) -> None:
        """Add the values that are scored to a metric of this kind."""

    def names(self, class_names: Sequence[str]) -> Sequence[str]:
        """Return a name for each channel of the output, if channels are alternatives: by default none."""
        return ()

    def probabilities(self, output: Float[Tensor, "rows places channels"]) -> Float[Tensor, "rows places channels"]:
        """Return the probability of each channel, if channels are alternatives: by default NaN."""
        return torch.full_like(output, torch.nan)


class Patches(ReconstructionTarget):
    """Patches of an image, a video, a sound, or of any other input [rows, channels, *sizes].

    Args:
        patch_size: size of a patch along each axis; the last ones may extend beyond the input.
        channels: of the input.
        mean, std: of the values; the output of the model is (value - mean) / std.
        loss: absolute (l1) or squared (l2) error of the output.
        measure: PSNR, whose peak is 1, or SNR.
        size: of an input that is missing, so that it can be reconstructed from others; None if it is not known.

    Raises:
        ValueError: a number or name is not valid.
    """

    def __init__(
        self,
        *,
        patch_size: Sequence[int],
        channels: int,
        mean: float,
        std: float,
        loss: SignalLoss,
        measure: Measure,
        size: Sequence[int] | None = None,
    ) -> None:
        if min(patch_size, default=0) < 1:
            raise ValueError(f"patch_size={list(patch_size)} must be at least 1 along each axis")
        if size is not None and (len(size) != len(patch_size) or min(size) < 1):
            raise ValueError(f"size={list(size)} must be at least 1 along each axis of patch_size={list(patch_size)}")
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        if std <= 0.0:
            raise ValueError(f"std={std} must be more than 0")
        if loss not in ("l1", "l2"):
            raise ValueError(f"loss={loss!r} must be l1 or l2")
        if measure not in ("PSNR", "SNR"):
            raise ValueError(f"measure={measure!r} must be PSNR or SNR")
        self.patch_size = tuple(patch_size)
        self.channels = channels
        self.mean, self.std = mean, std
        self.loss = loss
        self.measure = measure
        self.size = size
        self.num_values = self.num_channels = channels * math.prod(patch_size)
        axes = range(len(patch_size))
        inner = " ".join(f"p{axis}" for axis in axes)
        self._raster = "rows channels " + " ".join(f"(n{axis} p{axis})" for axis in axes)
        self._cells = f"rows ({' '.join(f'n{axis}' for axis in axes)}) ({inner} channels)"

    def shape(self, raw: Tensor | None) -> tuple[int, ...]:
        if raw is None and self.size is None:
            raise ValueError("size: of an input that is missing must be given to reconstruct it from others")
        if raw is not None and (raw.ndim != 2 + len(self.patch_size) or raw.shape[1] != self.channels):
            axes = f"channels={self.channels} and the {len(self.patch_size)} axes of patch_size={list(self.patch_size)}"
            raise ValueError(f"an input of shape {list(raw.shape)} does not have {axes}")
        sizes = self.size if raw is None else raw.shape[2:]
        assert sizes is not None
        return tuple(-(-size // patch) for size, patch in zip(sizes, self.patch_size, strict=True))

    def values(self, raw: Float[Tensor, "rows channels *shape"]) -> Float[Tensor, "rows cells values"]:
        shape = self.shape(raw)
        missing = [
            count * patch - size for count, patch, size in zip(shape, self.patch_size, raw.shape[2:], strict=True)
        ]
        padded = F.pad(raw, [amount for extra in reversed(missing) for amount in (0, extra)])
        return rearrange(padded, f"{self._raster} -> {self._cells}", **self._patch_sizes)

    def restored(
        self, raw: Float[Tensor, "rows channels *shape"], values: Float[Tensor, "rows cells values"]
    ) -> Float[Tensor, "rows channels *shape"]:
        counts = {f"n{axis}": count for axis, count in enumerate(self.shape(raw))}
        raster = rearrange(values, f"{self._cells} -> {self._raster}", **self._patch_sizes, **counts)
        for axis, size in enumerate(raw.shape[2:], start=2):
            raster = raster.narrow(axis, 0, size)
        return raster.to(raw.dtype)

    @property
    def _patch_sizes(self) -> dict[str, int]:
        return {f"p{axis}": size for axis, size in enumerate(self.patch_size)}

    def scorable(
        self, raw: Float[Tensor, "rows channels *shape"], real: Bool[Tensor, "rows *shape"]
    ) -> Bool[Tensor, "rows cells values"]:
        return self.values(real[:, None].expand(-1, self.channels, *real.shape[1:]))

    def predicted(self, output: Float[Tensor, "rows places channels"]) -> Float[Tensor, "rows places values"]:
        return output.float() * self.std + self.mean

    def blank(self, values: Float[Tensor, "rows cells values"]) -> Float[Tensor, "rows cells values"]:
        return torch.full_like(values, self.mean)

    def random(self, values: Float[Tensor, "rows cells values"]) -> Float[Tensor, "rows cells values"]:
        """Return the patches of other cells of the batch."""
        cells = values.flatten(0, 1)
        return cells[torch.randint(len(cells), values.shape[:2], device=values.device)]

    def losses(
        self, output: Float[Tensor, "rows places channels"], values: Float[Tensor, "rows places values"]
    ) -> Float[Tensor, "rows places values"]:
        errors = output.float() - (values.float() - self.mean) / self.std
        return errors.abs() if self.loss == "l1" else errors.square()

    def metric(self) -> "SignalFidelity":
        from perceiver.tasks.fidelity import SignalFidelity

        return SignalFidelity(self.measure, self.channels)

    def update(
        self, metric: "Metric", output: Tensor, values: Tensor, scored: Bool[Tensor, "rows places values"]
    ) -> None:
        metric.update(self.predicted(output), values, scored)


class TokenIds(ReconstructionTarget):
    """The ids of a text or of labels, [rows, 1, length]: cross-entropy at each place.

    A place is a fraction of `length`, not of the text, so that it does not depend on what is padded in a batch.

    Args:
        vocab_size: number of ids.
        length: most ids of an input.
        first_id: smaller ones, such as those of padding and the ends of a text, are neither hidden nor scored.
        tokenizer: names the ids; None: they are classes.

    Raises:
        ValueError: a number is out of range.
    """

    num_values = 1

    def __init__(self, *, vocab_size: int, length: int, first_id: int, tokenizer: Tokenizer | None = None) -> None:
        if not 0 <= first_id < vocab_size:
            raise ValueError(f"first_id={first_id} must be 0 to less than vocab_size={vocab_size}")
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        self.num_channels = vocab_size
        self.length = length
        self.first_id = first_id
        self.tokenizer = tokenizer

    def shape(self, raw: Tensor | None) -> tuple[int, ...]:
        if raw is None:
            return (self.length,)
        if raw.ndim != 3 or raw.shape[1] != 1 or raw.is_floating_point() or raw.shape[2] > self.length:
            expected = f"[rows, 1, at most length={self.length}]"
            raise ValueError(f"ids must be whole numbers {expected}, not {raw.dtype} {list(raw.shape)}")
        return (raw.shape[2],)

    def places(self, centers: Float[Tensor, "places 1"], shape: tuple[int, ...]) -> Float[Tensor, "places 1"]:
        return centers * (shape[0] / self.length)

    def values(self, raw: Int[Tensor, "rows 1 length"]) -> Int[Tensor, "rows length 1"]:
        self.shape(raw)
        return rearrange(raw, "rows 1 length -> rows length 1")

    def restored(
        self, raw: Int[Tensor, "rows 1 length"], values: Int[Tensor, "rows length 1"]
    ) -> Int[Tensor, "rows 1 length"]:
        return rearrange(values, "rows length 1 -> rows 1 length").to(raw.dtype)

    def scorable(
        self, raw: Int[Tensor, "rows 1 length"], real: Bool[Tensor, "rows length"]
    ) -> Bool[Tensor, "rows length 1"]:
        return ((self.values(raw) >= self.first_id) & real[..., None]).expand(-1, -1, 1)

    def predicted(self, output: Float[Tensor, "rows places channels"]) -> Int[Tensor, "rows places 1"]:
        return output.argmax(dim=-1, keepdim=True)

    def blank(self, values: Int[Tensor, "rows cells 1"]) -> Int[Tensor, "rows cells 1"]:
        return torch.full_like(values, PAD)

    def random(self, values: Int[Tensor, "rows cells 1"]) -> Int[Tensor, "rows cells 1"]:
        """Return ids that are equally probable."""
        return torch.randint_like(values, self.first_id, self.num_channels)

    def losses(
        self, output: Float[Tensor, "rows places channels"], values: Int[Tensor, "rows places 1"]
    ) -> Float[Tensor, "rows places 1"]:
        ids = values[..., 0].long()
        return F.cross_entropy(output.float().transpose(1, 2), ids, reduction="none")[..., None]

    def metric(self) -> "IdFidelity":
        from perceiver.tasks.fidelity import IdFidelity

        return IdFidelity(self.num_channels)

    def update(self, metric: "Metric", output: Tensor, values: Tensor, scored: Bool[Tensor, "rows places 1"]) -> None:
        metric.update(output.float(), values.long(), scored)

    def names(self, class_names: Sequence[str]) -> Sequence[str]:
        return class_names if self.tokenizer is None else self.tokenizer.pieces(range(self.tokenizer.num_ids))

    def probabilities(self, output: Float[Tensor, "rows places channels"]) -> Float[Tensor, "rows places channels"]:
        return output.float().softmax(dim=-1)
