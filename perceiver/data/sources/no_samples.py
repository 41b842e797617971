"""No samples: the data set of a published model, which is only given a user's own files."""

from collections.abc import Sequence

from perceiver.data.sources.base import Items, Roles, Source
from perceiver.types import Stage


class NoSamples(Source):
    """Classes without samples.

    Args:
        names: of the classes, by label.
    """

    def __init__(self, *, names: Sequence[str]) -> None:
        super().__init__(num_classes=len(names))
        self.names = list(names)

    @property
    def class_names(self) -> list[str]:
        return self.names

    def items(self, stage: Stage, roles: Roles) -> Items | None:
        return None
