"""Where a watched model embeds its tokens: the tensor of a sequence through which all of the answer depends on it.

Before its first attention, a sequence passes through several tensors: embedded, with positions, normalized, projected.
Its embedding is the first of them that has all elements, special tokens too, and through which every path to the logits
goes (a dominator in the graph of gradients), often before positions are added. `Results` finds it again when the model
is called for other rows, and replaces it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Node = Any
"""Of the graph of gradients."""


@dataclass(frozen=True)
class Place:
    """A result of a model in which a sequence is embedded.

    Attributes:
        length: of the sequence.
        number: its index among the results of this length.
        name: of the function that returned it.
        is_first: whether the axis of the sequence comes before that of the rows.
    """

    length: int
    number: int
    name: str
    is_first: bool


class Results(TorchFunctionMode):
    """Passes each result with the axes of a sequence, [rows, length, dim] or [length, rows, dim], to a function.

    Args:
        rows: of the call.
        lengths: of sequences.
        on_result: takes the place of a result and the result, and returns the tensor that the model continues with.
    """

    def __init__(self, rows: int, lengths: Iterable[int], on_result: Callable[[Place, Tensor], Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.counts = dict.fromkeys(lengths, 0)
        self.on_result = on_result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        return self.passed(name, out) if isinstance(out, Tensor) and name != "__get__" else out

    def passed(self, name: str, out: Tensor) -> Tensor:
        """Return the tensor that the model continues with in place of one."""
        if out.ndim != 3 or not out.is_floating_point() or isinstance(out, nn.Parameter):
            return out
        for length in self.counts:
            if sorted(out.shape[:2]) == sorted((self.rows, length)):
                self.counts[length] += 1
                out = self.on_result(Place(length, self.counts[length], name, out.shape[0] == length), out)
        return out


def replacing(values: Mapping[Place, Float[Tensor, "rows length dim"]]) -> Callable[[Place, Tensor], Tensor]:
    """Return an `on_result` that replaces the results at some places; values that are wider are cut to their width."""

    def replaced(place: Place, out: Tensor) -> Tensor:
        found = values.get(place)
        if found is None:
            return out
        found = found[..., : out.shape[2]].to(out.dtype)
        return found.transpose(0, 1) if place.is_first else found

    return replaced


@dataclass(frozen=True)
class Candidate:
    """A result that may be the embedding of a sequence.

    Attributes:
        place: where it is computed.
        values: the result.
        node: the node of the graph of gradients that computed it.
    """

    place: Place
    values: Tensor
    node: Node


def dominating(candidates: Sequence[Candidate], first: Node, last: Node) -> Candidate | None:
    """Return the first candidate on every path from the start of a sequence to the logits; None if no candidate is.

    Args:
        candidates: before the first attention of the sequence.
        first: node of the output of that attention.
        last: node of the logits.
    """
    before = _reached([first])
    for candidate in candidates:
        earlier = {one for one in _reached(_next(candidate.node)) if not _is_parameter(one)}
        if candidate.node in before and earlier.isdisjoint(_reached([last], without=candidate.node)):
            return candidate
    return None


def _reached(starts: Iterable[Node], without: Node = None) -> set[Node]:
    """Return the given nodes and all nodes that they depend on by paths that avoid the node `without`."""
    left, found = [node for node in starts if node is not without], set()
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [one for one in _next(node) if one is not without]
    return found


def _next(node: Node) -> list[Node]:
    return [one for one, _ in node.next_functions if one is not None]


def _is_parameter(node: Node) -> bool:
    return isinstance(getattr(node, "variable", None), nn.Parameter)
