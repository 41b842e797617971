"""Pickles that hold arrays and plain values and nothing else, read without executing anything in them.

A pickle is a program. Of what it may call there is left what numpy writes for an array, each function replaced by one
that does this and no more: `ndarray(10**12)` would take all memory there is, and `_codecs.encode(…, "hex")`, over and
over, too.
"""

import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from perceiver.data.files import UnreadableError, refuse_special

MAX_BYTES = 2**29
"""Of a file: three times the largest of the release."""
MAX_STEPS = 2**21
"""Of the program: eight times those of the largest. Each may take some hundred bytes of memory."""
NDARRAY = object()
"""Stands for numpy's class where a pickle names it: arrays are made by `_array` alone."""


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickle of arrays and plain values as a dict with string keys; nothing in it is executed.

    Raises:
        UnreadableError: the file is missing, damaged, too large, or holds anything but arrays and plain values.
    """
    refuse_special(path)
    try:
        with path.open("rb") as file:
            if (size := file.seek(0, 2)) > MAX_BYTES:
                raise pickle.UnpicklingError(f"{size:,} bytes are more than {MAX_BYTES:,}")
            file.seek(0)
            for step, _ in enumerate(pickletools.genops(file)):
                if step >= MAX_STEPS:
                    raise pickle.UnpicklingError(f"more than {MAX_STEPS:,} values")
            file.seek(0)
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UnreadableError(f"{path}: not a pickle of arrays ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"{path}: holds a {type(content).__name__}, not a dict")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise UnreadableError(f"{path}: holds a {type(strange[0]).__name__} as a key, not a text")
    return content


def _array(kind: Any, shape: Any, letter: Any) -> np.ndarray:
    """The empty array that numpy fills afterwards."""
    if (kind, shape, letter) not in ((NDARRAY, (0,), "b"), (NDARRAY, (0,), b"b")):
        raise pickle.UnpicklingError("refuses to build an array in another way than numpy does")
    return np.ndarray(0, np.int8)


def _scalar(kind: np.dtype[Any], content: Any) -> Any:
    return np.frombuffer(_latin1(content), kind, count=1)[0]


def _latin1(text: Any, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 3 writes them for Python 2: as a text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refuses to encode as {encoding!r}")
    return text if isinstance(text, bytes) else text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and numpy arrays; anything else in the file is refused."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): NDARRAY,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return self.ALLOWED[module, name]
