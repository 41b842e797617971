"""A call of any model, and its repetition for some of its samples with parts of its attention removed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from perceiver.inspection.maps.capture import undisturbed
from perceiver.inspection.watched.embeddings import Results
from perceiver.inspection.watched.intercept import OTHER_CALLS, AttentionCall, Effect, Interceptor
from perceiver.inspection.watched.lineage import Lineage


@dataclass(frozen=True)
class ModelCall:
    """A call of a method of a model."""

    model: nn.Module
    method: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors among the arguments."""
        return _leaves((self.args, self.kwargs))

    def of_rows(self, rows: Int[Tensor, " cases"], batch: int) -> "ModelCall":
        """Return the call for some rows of its batch of the given size; a row may occur repeatedly."""
        args, kwargs = _select((self.args, self.kwargs), rows, batch)
        return replace(self, args=args, kwargs=kwargs)

    def repeated(
        self,
        effects: Sequence[Effect],
        results: Results | None = None,
        on_call: Callable[[AttentionCall], int | None] = lambda call: None,
    ) -> Any:
        """Return what the method returns in eval mode, with an effect on each of its attention calls.

        Args:
            effects: in the order of the calls.
            results: takes the arguments of the call and everything that the model computes.
            on_call: see `Interceptor`.

        Raises:
            ValueError: the model makes more or fewer calls of attention.
        """
        left, enabled = iter(effects), torch.is_grad_enabled()
        interceptor = Interceptor(self.model, on_call, lineage=Lineage(), effects=left)
        args, kwargs = self.args, self.kwargs
        with undisturbed(self.model), torch.set_grad_enabled(enabled):
            if results is not None:
                args, kwargs = _mapped((args, kwargs), lambda tensor: results.passed("", tensor))
            with interceptor.running(), results or nullcontext():
                output = self.method(*args, **kwargs)
        if next(left, None) is not None:
            raise ValueError(OTHER_CALLS)
        return output


def _leaves(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, Mapping):
        for value in arguments.values():
            yield from _leaves(value)
    elif isinstance(arguments, tuple | list):
        for value in arguments:
            yield from _leaves(value)


def _select(arguments: Any, rows: Int[Tensor, " cases"], batch: int) -> Any:
    """Select rows of the tensors in nested arguments, along the first or second axis of the size of the batch."""

    def selected(tensor: Tensor) -> Tensor:
        axis = next((axis for axis, size in enumerate(tensor.shape[:2]) if size == batch), None)
        return tensor if axis is None else tensor.index_select(axis, rows.to(tensor.device))

    return _mapped(arguments, selected)


def _mapped(arguments: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return nested arguments with a function applied to each tensor."""
    if isinstance(arguments, Tensor):
        return function(arguments)
    if isinstance(arguments, Mapping):
        return {name: _mapped(value, function) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return type(arguments)(_mapped(value, function) for value in arguments)
    return arguments
