"""Data sets of one source and one reader for tests: each option goes to what takes it, and the rest is plain."""

import inspect
from typing import Any

from perceiver.data.dataset import Dataset
from perceiver.data.readers.audio import AudioReader
from perceiver.data.readers.image import ImageReader
from perceiver.data.readers.text import TextReader

READERS = {"image": ImageReader, "audio": AudioReader, "text": TextReader}
HELD_OUT = {"val_fraction": 0.2, "test_fraction": 0.1, "fold": None, "num_folds": 5}
DEFAULTS: dict[str, Any] = {
    **{"image_size": 8, "channels": 3, "max_value": None, "eval_crop": 1.0},
    **{"sample_rate": 2003, "seconds": 0.31, "hop_seconds": 0.17, "log_mel": None, "augment": None},
    **HELD_OUT,
}


def built(target: type, /, **options: Any) -> Any:
    """One of what is built from options, with what these leave open."""
    return target(**{name: value for name, value in (DEFAULTS | options).items() if name in parameters(target)})


def parameters(target: type) -> set[str]:
    return set(inspect.signature(target).parameters)


def dataset(source: type, modality: str, /, *, on_error: Any = "raise", **options: Any) -> Dataset:
    unknown = options.keys() - parameters(source) - parameters(READERS[modality])
    assert not unknown, unknown
    readers = {modality: built(READERS[modality], **options)}
    return Dataset(source=built(source, **options), readers=readers, on_error=on_error)
