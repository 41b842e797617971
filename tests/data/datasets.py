"""Data sets of one source and one reader for tests: each option is passed to what accepts it, others have defaults."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from perceiver.data.dataset import Dataset, Split
from perceiver.data.files import UnreadableError
from perceiver.data.readers.audio import AudioReader
from perceiver.data.readers.image import ImageReader
from perceiver.data.readers.text import TextReader
from perceiver.types import Sample, Stage

STAGES: tuple[Stage, ...] = ("train", "val", "test")
READERS = {"image": ImageReader, "audio": AudioReader, "text": TextReader}
HELD_OUT = {"val_fraction": 0.2, "test_fraction": 0.1, "fold": None, "num_folds": 5}
DEFAULTS: dict[str, Any] = {
    **{"image_size": 8, "channels": 3, "max_value": None, "eval_crop": 1.0},
    **{"sample_rate": 2003, "seconds": 0.31, "hop_seconds": 0.17, "log_mel": None, "augment": None},
    **HELD_OUT,
}


def built(target: type, /, **options: Any) -> Any:
    """Build an object from options and defaults."""
    return target(**{name: value for name, value in (DEFAULTS | options).items() if name in parameters(target)})


def parameters(target: type) -> set[str]:
    return set(inspect.signature(target).parameters)


def dataset(source: type, modality: str, /, *, on_error: Any = "raise", **options: Any) -> Dataset:
    unknown = options.keys() - parameters(source) - parameters(READERS[modality])
    assert not unknown, unknown
    readers = {modality: built(READERS[modality], **options)}
    return Dataset(source=built(source, **options), readers=readers, on_error=on_error)


def samples(split: Split | None) -> list[Sample]:
    return [] if split is None else [split[index] for index in range(len(split))]


def names(split: Split | None) -> list[str]:
    return [] if split is None else [split.sample_name(index) for index in range(len(split))]


def splits(data: Dataset) -> dict[str, Split | None]:
    return {stage: data.split(stage) for stage in STAGES}


def sizes(data: Dataset) -> list[int]:
    """Return the numbers of samples of train, val and test."""
    return [len(split or ()) for split in splits(data).values()]


def check_error(action: Callable[[], Any], *parts: str, error: type[Exception] = UnreadableError) -> None:
    """Assert that an action raises one sentence that contains all parts."""
    with pytest.raises(error) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def check_split_error(
    data: Dataset, *parts: str, error: type[Exception] = UnreadableError, stages: Sequence[Stage] = STAGES
) -> None:
    """Assert that the splits of a data set raise such an error."""
    check_error(lambda: [data.split(stage) for stage in stages], *parts, error=error)
