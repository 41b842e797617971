"""What the tensors of a forward pass were computed from: inputs, parameters, or the outputs of attention."""

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm", "einsum")
JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack")
"""Functions whose results have elements that each come from one argument."""
MIXTURES = ("linear", "conv", "permute", "transpose", "swap", "move", "flip", "roll", "__get__")
"""Prefixes of the names of functions whose results are not attention weights, whatever their shape; `x.mT` is a get."""


@dataclass(frozen=True)
class Trace:
    """What a tensor was computed from.

    Attributes:
        origins: of all its elements, in the order of their concatenation.
        factors: of logits, the traces of queries and keys.
        weights: of attention weights, the weights before dropout.
        axis: the axis along which the weights sum to one.
        is_dropped: whether dropout may have changed the weights.
    """

    origins: tuple[int, ...] = ()
    factors: "tuple[Trace, Trace] | None" = None
    weights: Tensor | None = None
    axis: int = -1
    is_dropped: bool = False


class Lineage:
    """The origins of the tensors of a forward pass.

    An origin is the number of an input or parameter that a tensor was computed from. The output of attention has one
    origin, the number of the sequence that the attention updates, in place of the origins of that sequence. Parameters
    are origins if they stand alone or are elements of a sequence, such as latents and class tokens; weights of layers
    and positions are not.

    Attributes:
        indices: origins that are tensors of integers, such as token ids.
        parameters: origins that are parameters.
        within: sequence -> its own origins.
    """

    def __init__(self) -> None:
        self.traces: MutableMapping[Tensor, Trace] = WeakTensorKeyDictionary()
        self.indices: set[int] = set()
        self.parameters: set[int] = set()
        self.within: dict[int, set[int]] = {}
        self._numbers = count()

    def new(self) -> int:
        """Return a new origin."""
        return next(self._numbers)

    def trace(self, tensor: Tensor) -> Trace:
        """Return the trace of a tensor; an unknown tensor becomes an origin."""
        found = self.traces.get(tensor)
        if found is None:
            found = self.traces[tensor] = Trace((self.new(),))
            if not tensor.is_floating_point():
                self.indices.update(found.origins)
            if isinstance(tensor, nn.Parameter):
                self.parameters.update(found.origins)
        return found

    def union(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Return the origins of several tensors, without the origins of sequences that are among them."""
        origins = dict.fromkeys(origin for tensor in tensors for origin in self.trace(tensor).origins)
        replaced = {one for origin in origins for one in self.within.get(origin, ())}
        return tuple(origin for origin in origins if origin not in replaced)

    def follow(self, name: str, sources: list[Tensor], result: Tensor) -> None:
        """Record the trace of the result of a function."""
        if name in JOINS:
            tensors = sources
        else:
            tensors = [source for source in sources if not self._is_parameter(source)] or sources[:1]
        if not tensors:
            return
        first = self.trace(tensors[0])
        trace = Trace(self.union(tensors))
        if name in PRODUCTS and len(sources) > 1:
            trace = replace(trace, factors=(self.trace(sources[-2]), self.trace(sources[-1])))
        elif (
            result.numel() == tensors[0].numel()
            and result.shape[-1:] == tensors[0].shape[-1:]
            and not (name.startswith(MIXTURES) and first.weights is not None)
        ):
            is_dropped = first.is_dropped or "dropout" in name
            trace = replace(trace, factors=first.factors, weights=first.weights, axis=first.axis, is_dropped=is_dropped)
        self.traces[result] = trace

    def _is_parameter(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter, or computed from parameters alone."""
        return isinstance(tensor, nn.Parameter) or self.parameters.issuperset(self.trace(tensor).origins)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or results of a function, also within lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(value)
