"""Structures that several packages share: samples and batches, and tokens with their place in the input.

Shape vocabulary of the code base: batch, tokens, latents, queries, keys, heads, dim, channels, classes, length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, log10, nan, prod
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Queries: TypeAlias = Float[Tensor, "batch heads queries qk_dim"]
Keys: TypeAlias = Float[Tensor, "batch heads keys qk_dim"]
Values: TypeAlias = Float[Tensor, "batch heads keys v_dim"]
Pairwise: TypeAlias = Float[Tensor, "batch heads queries keys"]
"""Logits or weights of attention."""
KeyMask: TypeAlias = Bool[Tensor, "batch keys"]
"""True where a key is real."""
Mask: TypeAlias = KeyMask | None
Pairs: TypeAlias = Bool[Tensor, "_ _ _ keys"]
"""True where a query may attend to a key, by sample, head, query and key; an axis of size 1 holds for all."""
Positions: TypeAlias = Float[Tensor, "_ length"]
"""Of queries or keys among the real keys, for each sample, or for all."""
Indices: TypeAlias = slice | Sequence[int]
ALL = slice(None)

Stage: TypeAlias = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Axis:
    """One axis of a token grid in physical units; its cells are equally wide between `start` and `stop`.

    They are so on the given `scale`: `linear` in `unit`, or `mel` (then `start` and `stop` are in Hz).
    """

    name: str
    unit: str
    start: float
    stop: float
    scale: Literal["linear", "mel"] = "linear"

    def fraction(self, value: float) -> float:
        """Return the position of a value along the axis: 0 at `start`, 1 at `stop`."""
        start, stop, here = (mel(x) if self.scale == "mel" else x for x in (self.start, self.stop, value))
        return (here - start) / (stop - start)

    def value(self, fraction: float) -> float:
        """Return the value at a position along the axis, in `unit`."""
        if self.scale == "mel":
            low, high = mel(self.start), mel(self.stop)
            return hertz(low + fraction * (high - low))
        return self.start + fraction * (self.stop - self.start)


def mel(frequency: float) -> float:
    """Convert Hz to mel (O'Shaughnessy 1987, as in HTK)."""
    return 2595.0 * log10(1.0 + frequency / 700.0)


def hertz(mels: float) -> float:
    """Convert mel to Hz."""
    return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)


@dataclass(frozen=True)
class Grid:
    """The layout of a token sequence over its input: cells per axis (row-major), and the axes."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def num_tokens(self) -> int:
        return prod(self.shape)


UNLABELED = 255
"""The value of a mask where no class is given; it counts in neither losses nor metrics."""


def cell_centers(shape: Sequence[int], device: torch.device | None = None) -> Float[Tensor, "cells axes"]:
    """Return the places of the centers of all cells of a grid in row-major order.

    A place is 0 at the start of an axis and 1 at its stop, at any resolution.
    """
    axes = [(torch.arange(size, device=device) + 0.5) / size for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


QueryKind: TypeAlias = Literal["token_ids", "places"]
"""What a task gives for the queries of an output: token ids [rows, length] for one that is predicted token by token, or
the places (`cell_centers`) [batch, places, axes] at which a dense one is computed."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one modality. `mask` is True where a token is real; None means all are."""

    values: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None
    grid: Grid


@dataclass(frozen=True)
class Span:
    """The place of one modality in the joined token sequence."""

    start: int
    stop: int
    grid: Grid


@dataclass(frozen=True)
class JoinedTokens:
    """All modalities of a batch as one sequence; `spans` has the place of each."""

    values: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None
    spans: dict[str, Span]

    def mask_of(self, modalities: Sequence[str]) -> Bool[Tensor, "batch tokens"]:
        """Return the mask restricted to the tokens of some modalities."""
        chosen = torch.zeros(self.values.shape[:2], dtype=torch.bool, device=self.values.device)
        for name in modalities:
            if name in self.spans:
                chosen[:, self.spans[name].start : self.spans[name].stop] = True
        return chosen if self.mask is None else chosen & self.mask


@dataclass(frozen=True)
class Memory:
    """The input of a decoder: the latents, or the tokens themselves.

    Attributes:
        mask: True where an element is real; None means all are.
        spans: modality name -> its place, if the elements are tokens.
        tokens: the input, for queries that are made of it; not kept by `select` and `repeat`.
    """

    values: Float[Tensor, "batch length dim"]
    mask: Bool[Tensor, "batch length"] | None = None
    spans: dict[str, Span] = field(default_factory=dict)
    tokens: JoinedTokens | None = None

    def __len__(self) -> int:
        return len(self.values)

    def mean(self) -> Float[Tensor, "batch dim"]:
        """Return the mean over the real elements of each row; zeros where there are none."""
        if self.mask is None:
            return self.values.mean(dim=1)
        total = self.values.masked_fill(~self.mask[..., None], 0.0).sum(dim=1)
        return total / self.mask.sum(dim=1, keepdim=True).clamp_min(1)

    def select(self, rows: Int[Tensor, " chosen"]) -> "Memory":
        """Return some rows of the batch, in any order, each any number of times."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, values=self.values[rows], mask=mask, tokens=None)

    def repeat(self, times: int) -> "Memory":
        """Return each row of the batch `times` times in succession."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, dim=0)
        return replace(self, values=self.values.repeat_interleave(times, dim=0), mask=mask, tokens=None)


class IncrementalDecoder(Protocol):
    """Token sequences in generation, one per row."""

    def next(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append a token to each row, and return logits or log-probabilities of the next one."""
        ...

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Continue with some of the rows, in any order, each any number of times."""
        ...


class Model(Protocol):
    """The interface of a model for tasks; `perceiver.model.Perceiver` implements it."""

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute outputs by name from raw inputs, and from queries for the outputs that need them (`QueryKind`).

        Tokens in `hidden` cells, True in a grid [batch, *cells] over the input of a modality, are not read.
        """
        ...


@runtime_checkable
class GenerativeModel(Model, Protocol):
    """A model that can generate an output token by token."""

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> Memory:
        """Compute the memory that the decoder reads."""
        ...

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Start generating an output, one sequence per row of the memory."""
        ...


@runtime_checkable
class HasAuxiliaryLoss(Protocol):
    """A module of a model whose parameters also need a loss of their own in training, such as one that draws."""

    def auxiliary_loss(self, losses: Float[Tensor, " batch"], terms: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the sum over the samples of the last forward pass, which it concludes, in units of a term's loss.

        Args:
            losses: mean loss over the terms of each sample, without gradients; NaN where it does not count.
            terms: number of terms of each sample, or their weight.
        """
        ...


class UnsuitableError(ValueError):
    """A sample does not suit the settings of a part, such as a text that is too long; the message names both."""


@runtime_checkable
class Resizable(Protocol):
    """A module with parameters that can be computed from those of another size, such as learned positions."""

    def resized(self, name: str, value: Tensor) -> Tensor | None:
        """Return the parameter `name` computed from that of another module; None if the two have no relation."""
        ...


@dataclass(frozen=True)
class Picture:
    """Raw inputs of one modality in visible form.

    Attributes:
        values: images in [0, 1] if `unit` is empty; otherwise one channel in that unit.
        grid: the axes of rows and columns, of a video after that of its frames. An axis in Hz is drawn upwards.
    """

    values: Float[Tensor, "batch channels *frames rows columns"]
    grid: Grid
    unit: str


@dataclass(frozen=True)
class Sound:
    """Raw inputs of one modality in audible form.

    Attributes:
        values: in [-1, 1].
        sample_rate: in Hz.
    """

    values: Float[Tensor, "batch length"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.values.shape[-1] / self.sample_rate


@dataclass
class Box:
    """The true location of an object of a class in an input: intervals along axes, by name and in their units.

    An axis that is not named is covered entirely. Not frozen, since Lightning rebuilds the contents of a batch.
    """

    label: int
    modality: str
    ranges: dict[str, tuple[float, float]]

    def extent(self, axis: Axis) -> tuple[float, float]:
        """Return start and stop along an axis as fractions of the axis, clipped to it."""
        start, stop = self.ranges.get(axis.name, (axis.start, axis.stop))
        return min(max(axis.fraction(start), 0.0), 1.0), min(max(axis.fraction(stop), 0.0), 1.0)


@dataclass(frozen=True)
class Mention:
    """A word of a text that correctly refers to something in the sample.

    Attributes:
        word: its number among the words of the text (`perceiver.tokenizer.split_words`).
        kind: of word: `color`, `relation`, …
        boxes: where the referent is.
    """

    word: int
    kind: str
    boxes: list[Box]


class Facts(Protocol):
    """Ground truth of a sample that any text about it can be compared with.

    An implementation must not be a dataclass, since Lightning rebuilds these.
    """

    def scores(self, text: str) -> dict[str, float]:
        """Return the score of the text by name of a metric, without metrics that are not defined for it."""
        ...

    def mentions(self, text: str) -> list[Mention]:
        """Return the words of a text that correctly refer to something with a location."""
        ...


@dataclass(frozen=True)
class Answer:
    """One answer of a model about a sample: a class, or a word of a text.

    Attributes:
        name: displayed name.
        queries: indices of the decoder's queries that give it; in a dense output, those at the places of the class.
        output: name of the model's output.
        label: of a class. Its query is specific to it only if the decoder has one per class.
        ids: of a word, the token id that each of its queries predicts.
        kind: of a word with `boxes`.
        boxes: true locations, as far as they are known.
    """

    name: str
    queries: tuple[int, ...]
    output: str
    label: int | None = None
    ids: tuple[int, ...] = ()
    kind: str = ""
    boxes: tuple[Box, ...] = ()

    @property
    def is_word(self) -> bool:
        return self.label is None


@dataclass(frozen=True)
class Outcome:
    """The answer of a model about one sample, compared with the truth.

    Probabilities are geometric means over the decisions of an answer: a class, each of several independent classes, or
    each token of a text.

    Attributes:
        loss: of the sample.
        answer, truth: as displayed; empty where there is none.
        confidence: probability of the answer; NaN where it is not known.
        truth_probability: likewise of the truth.
        predicted: labels of the answer; none where answers are not classes.
        true: labels that apply.
    """

    loss: float
    answer: str = ""
    truth: str = ""
    confidence: float = nan
    truth_probability: float = nan
    predicted: tuple[int, ...] = ()
    true: tuple[int, ...] = ()

    @property
    def wrongness(self) -> float:
        """Confidence less the probability of the truth: 0 where the answer is the truth, near 1 for a sure error."""
        return self.confidence - self.truth_probability


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its class if it has none."""
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__


def utf8_safe(text: str) -> str:
    """Escape what UTF-8 cannot encode, as in names of files in other encodings."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Sample:
    """One item of a dataset.

    Attributes:
        inputs: modality name -> raw input as its encoder takes it (an image: channels height width, in [0, 1]; a sound:
            1 length, in [-1, 1]; a text: 1 length, ids of a tokenizer).
        targets: name -> ground truth: `label`, an int; `tags`, one float per class, 1 where it applies; `caption`, a
            text; `references`, all correct texts, the caption first; `boxes`, a list of `Box`; `facts`, see `Facts`;
            `mask`, the class of each cell of an input or `UNLABELED`; `flow`, [2, height, width], the motion of each
            pixel to the right and downwards, or NaN;
            `group`, the name of a subset of the samples that is measured separately, or empty; and any numbers.
        id: the origin of the sample (a path, or `digits/17`), named in every error, caption and table.
        windows: names of the windows of a long sample (a sound), or empty. Inputs then have a first dimension of
            windows.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    id: str
    windows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", utf8_safe(self.id))

    def relabel(self, labels: Sequence[int]) -> "Sample":
        """Replace each class by `labels[class]`, in `label`, `tags`, `boxes` and `mask`."""
        targets = dict(self.targets)
        if "label" in targets:
            targets["label"] = labels[targets["label"]]
        if "tags" in targets:
            targets["tags"] = torch.zeros_like(targets["tags"]).index_copy(0, torch.tensor(labels), targets["tags"])
        if "mask" in targets:
            table = torch.cat([torch.tensor(labels), torch.full((UNLABELED + 1 - len(labels),), UNLABELED)])
            targets["mask"] = table[targets["mask"]]
        if "boxes" in targets:
            targets["boxes"] = [replace(box, label=labels[box.label]) for box in targets["boxes"]]
        return replace(self, targets=targets)

    def split(self) -> list["Sample"]:
        """Return each window as a separate sample.

        Raises:
            ValueError: an input has more or fewer windows than there are names.
        """
        if not self.windows:
            return [self]
        for name, values in self.inputs.items():
            if len(values) != len(self.windows):
                raise ValueError(
                    f"{self.id}: {len(self.windows)} windows are named, but input {name!r} has {len(values)}"
                )
        return [
            Sample({name: values[place] for name, values in self.inputs.items()}, self.targets, f"{self.id} {window}")
            for place, window in enumerate(self.windows)
        ]


@dataclass
class Batch:
    """Samples, stacked.

    Attributes:
        inputs: modality name -> raw inputs, batch first.
        targets: name -> Tensor, batch first, or a list with one entry per sample.
        ids: the samples' ids.
        masks: modality name -> Bool, True where the input is real: [batch] where a modality is missing for whole
            samples, [batch, *sizes of the input without channels] where inputs were padded to one size.
        unreadable: one message, naming it, for each sample that was left out because it could not be read.
        windows: names of each sample's windows, if samples have several. Inputs and masks then have a row for each
            window, those of one sample in succession; targets and ids have one for each sample.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    ids: list[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    windows: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> list[str]:
        """The `group` of each sample; empty for none."""
        return self.targets.get("group", [""] * len(self))

    def log_mean_over_windows(self, logs: Float[Tensor, "rows *rest"]) -> Float[Tensor, "batch *rest"]:
        """Return the logarithm of the mean over the windows of each sample, from logarithms for each window."""
        if not self.windows:
            return logs
        parts = torch.split(logs, [len(names) for names in self.windows])
        return torch.stack([part.logsumexp(dim=0) - log(len(part)) for part in parts])

    def first_windows(self) -> Self:
        """Return the samples without windows: of several windows the first alone."""
        if not self.windows:
            return self
        rows = torch.tensor([sum(map(len, self.windows[:sample])) for sample in range(len(self))])
        return replace(
            self,
            inputs={name: values[rows.to(values.device)] for name, values in self.inputs.items()},
            masks={name: values[rows.to(values.device)] for name, values in self.masks.items()},
            windows=[],
        )

    def part(self, samples: slice) -> Self:
        """Return some of the samples, none of which has several windows."""
        return replace(
            self,
            inputs={name: values[samples] for name, values in self.inputs.items()},
            targets={name: values[samples] for name, values in self.targets.items()},
            ids=self.ids[samples],
            masks={name: values[samples] for name, values in self.masks.items()},
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor, including those in lists of targets."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(child) for name, child in value.items()}
            if isinstance(value, list):
                return [apply(child) for child in value]
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, inputs=apply(self.inputs), targets=apply(self.targets), masks=apply(self.masks))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(lambda tensor: tensor.pin_memory())
