"""The classes of a data set whose samples have any number of them, as a table lists them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from perceiver.data.tables import Row


class Vocabulary:
    """Classes by label and by what other tables call them.

    Args:
        path: the table.
        rows: what it holds; labels may come in any order.
        index, key, name: the columns of the label, of what other tables call the class, and of its name.
        num_classes: how many classes there must be.

    Raises:
        UnreadableError: a class is listed twice or without a name, or labels are not 0, 1, 2, …; names the line.
        ValueError: there are not `num_classes` classes.
    """

    def __init__(self, path: Path, rows: Iterable[Row], *, index: str, key: str, name: str, num_classes: int) -> None:
        self.path = path
        listed = list(rows)
        if len(listed) != num_classes:
            raise ValueError(f"num_classes={num_classes}, but {path} has {len(listed)} classes")
        names: dict[int, str] = {}
        self.labels: dict[str, int] = {}
        for row in listed:
            label = row.integer(index)
            if label in names or not 0 <= label < num_classes:
                raise row.error(f"{index}={label}: the classes must be numbered from 0 to {num_classes - 1}")
            for column, there in ((key, self.labels.keys()), (name, names.values())):
                if not row[column].strip():
                    raise row.error(f"{column} is empty")
                if row[column] in there:
                    raise row.error(f"{column}={row[column]!r} is there a second time")
            names[label] = row[name]
            self.labels[row[key]] = label
        self.names: Sequence[str] = [names[label] for label in range(num_classes)]

    def labels_in(self, row: Row, column: str) -> list[int]:
        """The classes in a cell, where commas separate them; none where it is empty.

        Raises:
            UnreadableError: one of them is unknown; names the line.
        """
        keys = [key.strip() for key in row[column].split(",")] if row[column].strip() else []
        if unknown := [key for key in keys if key not in self.labels]:
            raise row.error(f"{column}: {unknown[0]!r} is no class of {self.path}")
        return [self.labels[key] for key in keys]
