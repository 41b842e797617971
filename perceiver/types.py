"""The structures that cross package borders: samples and batches, and tokens with a way back to their input.

Shape vocabulary of the whole code base: batch, tokens, latents, queries, keys, heads, dim, channels, classes, length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, log10, prod
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Stage: TypeAlias = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Axis:
    """One axis of a token grid in physical units; its cells are equally wide between `start` and `stop`.

    `scale` says on which scale they are equally wide: `linear` in `unit`, or `mel` (then `start` and `stop` are Hz).
    """

    name: str
    unit: str
    start: float
    stop: float
    scale: Literal["linear", "mel"] = "linear"

    def fraction(self, value: float) -> float:
        """The place of a value along the axis: 0 at `start`, 1 at `stop`."""
        start, stop, here = (mel(x) if self.scale == "mel" else x for x in (self.start, self.stop, value))
        return (here - start) / (stop - start)

    def value(self, fraction: float) -> float:
        """What is at a place along the axis, in `unit`."""
        if self.scale == "mel":
            low, high = mel(self.start), mel(self.stop)
            return hertz(low + fraction * (high - low))
        return self.start + fraction * (self.stop - self.start)


def mel(frequency: float) -> float:
    """Hz -> mel (O'Shaughnessy 1987, as in HTK)."""
    return 2595.0 * log10(1.0 + frequency / 700.0)


def hertz(mels: float) -> float:
    """Mel -> Hz."""
    return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)


@dataclass(frozen=True)
class Grid:
    """How a token sequence lies over its input: cells per axis (row-major) and what the axes measure."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def num_tokens(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Tokens:
    """What an encoder makes of one modality. `mask` is True where a token is real; None means all are."""

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
    """All modalities of a batch as one sequence; `spans` finds each again."""

    values: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None
    spans: dict[str, Span]


@dataclass(frozen=True)
class Memory:
    """What a decoder reads: the latents, or the tokens themselves.

    Attributes:
        mask: True where an element is real; None means all are.
        spans: modality name -> its place, where the elements are tokens.
    """

    values: Float[Tensor, "batch length dim"]
    mask: Bool[Tensor, "batch length"] | None = None
    spans: dict[str, Span] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: Int[Tensor, " chosen"]) -> "Memory":
        """Some rows of the batch, in a new order; any may be there several times."""
        return replace(self, values=self.values[rows], mask=None if self.mask is None else self.mask[rows])

    def repeat(self, times: int) -> "Memory":
        """Each row of the batch so many times, one after the other."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, dim=0)
        return replace(self, values=self.values.repeat_interleave(times, dim=0), mask=mask)


class IncrementalDecoder(Protocol):
    """Token sequences that are being generated, one a row."""

    def next(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """The newest token of each row -> logits, or log-probabilities, of the next one."""
        ...

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Continue with some of the rows, in a new order; any may be there several times."""
        ...


class Model(Protocol):
    """What a task knows of a model; `perceiver.model.Perceiver` is one."""

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Raw inputs, and token ids for those outputs that need them -> outputs by name."""
        ...


@runtime_checkable
class GenerativeModel(Model, Protocol):
    """A model that can generate an output token by token."""

    def encode(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Memory:
        """Raw inputs -> what the decoder reads."""
        ...

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Begin to generate an output, a sequence for each row of the memory."""
        ...


@dataclass(frozen=True)
class Picture:
    """Raw inputs of one modality as a person would look at them.

    Attributes:
        values: an image in [0, 1] where `unit` is empty; otherwise one channel of what is measured in `unit`.
        grid: what rows and columns measure. An axis in Hz is drawn upwards.
    """

    values: Float[Tensor, "batch channels rows columns"]
    grid: Grid
    unit: str


@dataclass(frozen=True)
class Sound:
    """Raw inputs of one modality as a person would hear them.

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
    """Where something of a class truly is in an input: intervals along axes, by name and in their units.

    An axis that is not named is covered from end to end. Not frozen, since Lightning rebuilds what is in a batch.
    """

    label: int
    modality: str
    ranges: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Mention:
    """What a word of a text speaks of, where that is known to be right.

    Attributes:
        word: its number among the words of the text (`perceiver.tokenizer.split_words`).
        kind: of word: `color`, `relation`, …
        boxes: where that is.
    """

    word: int
    kind: str
    boxes: list[Box]


class Facts(Protocol):
    """What is true of a sample, for data that knows: any text about it can be compared with it.

    No dataclass may be one, since Lightning takes them apart.
    """

    def scores(self, text: str) -> dict[str, float]:
        """Name of a metric -> the score of the text; metrics that are not defined for it are left out."""
        ...

    def mentions(self, text: str) -> list[Mention]:
        """The words of a text that rightly speak of something that has a place."""
        ...


@dataclass(frozen=True)
class Answer:
    """One thing that a model says of a sample: a class, or a word of a text.

    Attributes:
        name: as it is shown.
        queries: the decoder's queries that gave it.
        output: the model's output that it is read from.
        label: of a class. Its query is its own only where the decoder has one a class.
        ids: of a word, what each of its queries said.
        kind: of word, where `boxes` say where it truly is.
        boxes: that place, as far as it is known.
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


def utf8_safe(text: str) -> str:
    """A text with escapes for what UTF-8 cannot hold, as in names of files in other encodings."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Sample:
    """One item of a dataset.

    Attributes:
        inputs: modality name -> raw input as its encoder takes it (an image: channels height width, in [0, 1]; a sound:
            1 length, in [-1, 1]; a text: 1 length, ids of a tokenizer).
        targets: name -> what is to be predicted or is known to be true: `label`, an int; `tags`, one float a class, 1
            where it applies; `caption`, a text; `references`, all texts that say it right, that one first;
            `boxes`, a list of `Box`; `facts`, see `Facts`; `group`, the name of a part of the samples that is measured
            for itself, or empty.
        id: where the sample comes from (a path, or `digits/17`): named in every error, caption and table.
        windows: names of the windows of a long sample (a sound), or empty. Every input of such a sample has one more
            dimension in front, the windows.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    id: str
    windows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", utf8_safe(self.id))

    def relabel(self, labels: Sequence[int]) -> "Sample":
        """The sample with each class replaced by that of the given number: `label`, `tags` and those of `boxes`."""
        targets = dict(self.targets)
        if "label" in targets:
            targets["label"] = labels[targets["label"]]
        if "tags" in targets:
            targets["tags"] = torch.zeros_like(targets["tags"]).index_copy(0, torch.tensor(labels), targets["tags"])
        if "boxes" in targets:
            targets["boxes"] = [replace(box, label=labels[box.label]) for box in targets["boxes"]]
        return replace(self, targets=targets)

    def split(self) -> list["Sample"]:
        """Each window as a sample of its own.

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
        targets: name -> Tensor, batch first, or a list with one entry a sample where the entries are not tensors.
        ids: the samples' ids.
        masks: modality name -> Bool, True where the input is real: [batch] where a modality is missing for whole
            samples, [batch, *sizes of the input without channels] where inputs were padded to one size.
        unreadable: what was left out because it could not be read: one message a sample, naming it.
        windows: names of each sample's windows, where samples have several. Inputs and masks then have a row for each
            window, those of one sample next to each other; targets and ids have one for each sample.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    ids: list[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    windows: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def log_mean_over_windows(self, logs: Float[Tensor, "rows *rest"]) -> Float[Tensor, "batch *rest"]:
        """Logarithms of what the model said of each window -> that of the mean for each sample, however small it is."""
        if not self.windows:
            return logs
        parts = torch.split(logs, [len(names) for names in self.windows])
        return torch.stack([part.logsumexp(dim=0) - log(len(part)) for part in parts])

    def part(self, samples: slice) -> Self:
        """Some of the samples, none of which has several windows."""
        return replace(
            self,
            inputs={name: values[samples] for name, values in self.inputs.items()},
            targets={name: values[samples] for name, values in self.targets.items()},
            ids=self.ids[samples],
            masks={name: values[samples] for name, values in self.masks.items()},
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with `function` applied to every tensor, those in lists of targets among them."""

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
