"""The grids of the tokens of a watched model: declared, or guessed from its inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor

from perceiver.types import Axis, Grid, Picture, Span

MAX_SPECIAL = 16
"""Special tokens, such as class and register tokens, that are looked for before those of an image."""
Texts: TypeAlias = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Input:
    """An input of a watched model and the grid of its tokens.

    Attributes:
        values: images in [0, 1] [batch, channels, height, width], or the text of each token of each sample; None: the
            input is not drawn.
        grid: of its tokens; None: the patches of an image, or a single axis.
        special: number of special tokens before the others, such as a class token; None: guessed if it is an image.
        picture: how it is drawn, if it is not an image.
    """

    SPECIAL: ClassVar[str] = "_special"

    values: Tensor | Texts | None = None
    grid: Grid | None = None
    special: int | None = None
    picture: Picture | None = None

    @classmethod
    def of(cls, given: "GivenInput") -> "Input":
        """Return an `Input` from what the user passed."""
        return given if isinstance(given, cls) else cls(given)  # type: ignore[arg-type]

    def fitted(self, length: int) -> tuple[int, Grid] | None:
        """Return the number of special tokens and the grid for a sequence of some length; None if it does not fit."""
        if self.grid is not None:
            special = length - self.grid.num_tokens
            return (special, self.grid) if special >= 0 and self.special in (None, special) else None
        if isinstance(self.values, Tensor) and self.values.ndim == 4:
            return next(self._patches(length), None)
        if self.values is not None and not isinstance(self.values, Tensor):
            lengths = {len(text) for text in self.values}
            return (self.special or 0, line(length - (self.special or 0))) if lengths == {length} else None
        return self.special or 0, line(length - (self.special or 0))

    def _patches(self, length: int) -> Iterator[tuple[int, Grid]]:
        """Yield numbers of special tokens and grids whose cells have the same size."""
        assert isinstance(self.values, Tensor)
        height, width = self.values.shape[2:]
        choices = range(MAX_SPECIAL + 1) if self.special is None else [self.special]
        for special in choices:
            count = length - special
            rows = isqrt(max(count * height // width, 0))
            for down in (rows, rows + 1):
                if down > 0 and count % down == 0 and down * width == count // down * height:
                    axes = (Axis("y", "px", 0.0, float(height)), Axis("x", "px", 0.0, float(width)))
                    yield special, Grid((down, count // down), axes)

    @property
    def drawn(self) -> Picture | None:
        """The picture of the input; None if it cannot be drawn."""
        if self.picture is not None or not isinstance(self.values, Tensor) or self.values.ndim != 4:
            return self.picture
        height, width = self.values.shape[2:]
        grid = Grid((height, width), (Axis("y", "px", 0.0, float(height)), Axis("x", "px", 0.0, float(width))))
        return Picture(_in_range(self.values), grid, "")


GivenInput: TypeAlias = Tensor | Texts | Input


def line(length: int) -> Grid:
    """Return a grid of one axis of tokens."""
    return Grid((length,), (Axis("token", "", 0.0, float(max(length, 1))),))


def placed(
    lengths: Mapping[str, int], inputs: Mapping[str, Input], num_rows: int
) -> tuple[dict[str, Span], dict[str, list[list[str]]]]:
    """Return the places of inputs among the tokens, and the texts of those that are text.

    Args:
        lengths: of the sequences that make up the tokens, in order.
        inputs: by name; each belongs to the first sequence that it fits.
        num_rows: number of samples.

    Raises:
        ValueError: an input fits no sequence.
    """
    spans: dict[str, Span] = {}
    texts: dict[str, list[list[str]]] = {}
    left, start = dict(inputs), 0
    for sequence, length in lengths.items():
        name = next((name for name, given in left.items() if given.fitted(length) is not None), None)
        given = Input() if name is None else left.pop(name)
        name = sequence if name is None else name
        fitted = given.fitted(length)
        assert fitted is not None
        special, grid = fitted
        if special:
            spans[f"{name}{Input.SPECIAL}"] = Span(start, start + special, line(special))
            labels = ["class", *(f"register {number}" for number in range(1, special))]
            texts[f"{name}{Input.SPECIAL}"] = [labels] * num_rows
        spans[name] = Span(start + special, start + length, grid)
        if given.values is not None and not isinstance(given.values, Tensor):
            texts[name] = [list(text)[special:] for text in given.values]
        start += length
    if left:
        found = ", ".join(f"{name} of {length}" for name, length in lengths.items())
        needed = "give each text one word per token, padding included; for other inputs, Input(grid=…)"
        raise ValueError(f"inputs={list(left)}: their tokens are none of the sequences {found}; {needed}")
    return spans, texts


def _in_range(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Return images in [0, 1] unchanged; normalized ones are rescaled to [0, 1], each image by itself."""
    if images.min() >= 0 and images.max() <= 1:
        return images.float()
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    return ((images - low) / (images.amax(dim=(1, 2, 3), keepdim=True) - low).clamp_min(1e-6)).float()
