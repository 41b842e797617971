"""A call of any model, which runs again for some of its samples with less attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from perceiver.inspection.capture import undisturbed
from perceiver.inspection.intercept import OTHER_CALLS, Effect, Interceptor, Lineage


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
        """Return the call for some rows of its batch of the given size, each any number of times."""
        args, kwargs = _select((self.args, self.kwargs), rows, batch)
        return replace(self, args=args, kwargs=kwargs)

    def repeated(self, effects: Sequence[Effect]) -> Any:
        """Return what the method returns in eval mode, with an effect on each of its attention calls.

        Raises:
            ValueError: it makes more or fewer calls.
        """
        left = iter(effects)
        interceptor = Interceptor(self.model, lambda call: None, lineage=Lineage(), effects=left)
        with undisturbed(self.model), interceptor.running():
            output = self.method(*self.args, **self.kwargs)
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
    if isinstance(arguments, Tensor):
        axis = next((axis for axis, size in enumerate(arguments.shape[:2]) if size == batch), None)
        return arguments if axis is None else arguments.index_select(axis, rows.to(arguments.device))
    if isinstance(arguments, Mapping):
        return {name: _select(value, rows, batch) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return type(arguments)(_select(value, rows, batch) for value in arguments)
    return arguments
