"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32×32 color images, in the released pickle format.

All batches on disk are used, also of a partial copy; if there are none, the release is downloaded.

A pickle is a program, so nothing in it is executed: of the functions that it may call, only those that numpy writes for
an array remain, each replaced by one that does no more than that. Otherwise `ndarray(10**12)` or a repeated
`_codecs.encode(…, "hex")` would exhaust the memory.
"""

import logging
import pickle
import pickletools
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10
from torchvision.datasets import CIFAR100 as TORCHVISION_CIFAR100
from torchvision.datasets.utils import download_url

from perceiver.data.files import UnreadableError, refuse_special
from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.types import Stage

MAX_BYTES = 2**29
"""Largest size of a file: three times that of the largest of the release."""
MAX_STEPS = 2**21
"""Largest number of opcodes: eight times that of the largest file. Each may take some hundred bytes of memory."""
NDARRAY = object()
"""Replaces numpy's class in a pickle: arrays are made by `_array` alone."""

log = logging.getLogger(__name__)

Variant: TypeAlias = Literal["cifar10", "cifar100"]


@dataclass(frozen=True)
class _Release:
    """The layout of one of the two; addresses and checksums are torchvision's."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    label_key: str
    names_key: str
    num_classes: int
    source: type[TORCHVISION_CIFAR10]


RELEASES: dict[Variant, _Release] = {
    "cifar10": _Release(
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{batch}" for batch in range(1, 6)),
        test_file="test_batch",
        meta_file="batches.meta",
        label_key="labels",
        names_key="label_names",
        num_classes=10,
        source=TORCHVISION_CIFAR10,
    ),
    "cifar100": _Release(
        folder="cifar-100-python",
        train_files=("train",),
        test_file="test",
        meta_file="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
        num_classes=100,
        source=TORCHVISION_CIFAR100,
    ),
}


class CIFAR(Source):
    """CIFAR-10 or CIFAR-100.

    Args:
        variant: which of the two.
        root: folder that contains `cifar-10-batches-py` or `cifar-100-python`, or to which it is downloaded.
        num_classes: 10 or 100, that of the variant.
        val_fraction: share of the training images for validation (`HeldOut`); 0 for none.
    """

    def __init__(self, *, variant: Variant, root: str, num_classes: int, val_fraction: float) -> None:
        self.release = RELEASES[variant]
        if num_classes != self.release.num_classes:
            raise ValueError(f"num_classes={num_classes}: {variant} has {self.release.num_classes} classes")
        self.root = Path(root).expanduser()
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=0.0)

    @property
    def folder(self) -> Path:
        return self.root / self.release.folder

    @property
    def class_names(self) -> list[str]:
        path = self.folder / self.release.meta_file
        names = read_pickle(path).get(self.release.names_key)
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise UnreadableError(f"{path}: {self.release.names_key} is not a list of names")
        if len(names) != self.num_classes or len(set(names)) < len(names):
            raise UnreadableError(f"{path}: {self.release.names_key} are not {self.num_classes} different names")
        return names

    def prepare(self) -> None:
        if (self.folder / self.release.meta_file).exists():
            return
        source = self.release.source
        try:
            download_url(source.url, self.root, source.filename, source.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"root={self.root}: no {self.release.folder}/{self.release.meta_file}, and the download failed "
                f"({error}); put the files there, or set data.root to their folder"
            ) from error
        archived = self.root / source.filename
        try:
            with tarfile.open(archived) as archive:
                archive.extractall(self.root, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UnreadableError(f"{archived}: not the archive of the release ({error})") from error

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        files = (self.release.test_file,) if stage == "test" else self.release.train_files
        found = [name for name in files if (self.folder / name).exists()]
        if not found:
            raise FileNotFoundError(f"{self.folder}: none of the files {', '.join(files)} exists")
        if len(found) < len(files) and stage == "train":
            log.warning("%s: only %d of %d training files exist", self.folder, len(found), len(files))
        images, labels, ids = list[Tensor](), list[int](), list[str]()
        for name in found:
            batch = _read_batch(self.folder / name, self.release)
            images.append(batch[0])
            labels += batch[1]
            ids += batch[2]
        table = ItemTable(ids=ids, parts={"image": torch.cat(images)}, labels=labels)
        if stage == "test":
            return table
        train, val = self.held_out.split_val(ids)
        return table.subset(train if stage == "train" else val)


def _read_batch(path: Path, release: _Release) -> tuple[Tensor, list[int], list[str]]:
    """Return images [samples, channels, height, width] as bytes, labels and ids of a file.

    Raises:
        UnreadableError: it is damaged, or not a batch of the release.
    """

    def check(condition: bool, problem: str) -> None:
        if not condition:
            raise UnreadableError(f"{path}: not a CIFAR batch: {problem}")

    content = read_pickle(path)
    for key in ("data", release.label_key):
        check(key in content, f"no {key!r}")
    pixels, labels = content["data"], _integers(content[release.label_key])
    is_array = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)
    check(is_array, "'data' is not an array of 3072 bytes per image")
    check(0 < len(labels) == len(pixels), f"{release.label_key!r} is not a list of one integer for each image")
    for index, label in enumerate(labels):
        problem = f"label {label} of image {index}; labels are 0 to {release.num_classes - 1}"
        check(0 <= label < release.num_classes, problem)
    names = content.get("filenames", [str(index) for index in range(len(labels))])
    is_list = isinstance(names, list) and len(names) == len(labels) and all(isinstance(name, str) for name in names)
    check(is_list, "'filenames' is not a list of one name for each image")
    check(len(set(names)) == len(names), f"the name {Counter(names).most_common(1)[0][0]!r} appears twice")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, labels, [f"{path.name}/{name}" for name in names]


def _integers(values: Any) -> list[int]:
    """Return a list or an array of integers as a list; an empty one for anything else, which may be deeply nested."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.tolist()
    is_list = isinstance(values, list) and all(isinstance(value, int | np.integer) for value in values)
    return [int(value) for value in values] if is_list and not any(isinstance(value, bool) for value in values) else []


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickle of arrays and plain values as a dict with string keys; nothing in it is executed.

    Raises:
        UnreadableError: the file is missing, damaged, too large, or contains anything but arrays and plain values.
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
    except Exception as error:  # a damaged pickle raises almost any exception
        raise UnreadableError(f"{path}: not a pickle of arrays ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"{path}: contains a {type(content).__name__}, not a dict")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise UnreadableError(f"{path}: contains a key of type {type(strange[0]).__name__}, not a string")
    return content


def _array(kind: Any, shape: Any, letter: Any) -> np.ndarray:
    """Make the empty array that numpy's pickles fill afterwards."""
    if (kind, shape, letter) not in ((NDARRAY, (0,), "b"), (NDARRAY, (0,), b"b")):
        raise pickle.UnpicklingError("refuses to build an array in another way than numpy")
    return np.ndarray(0, np.int8)


def _scalar(kind: np.dtype[Any], content: Any) -> Any:
    return np.frombuffer(_latin1(content), kind, count=1)[0]


def _latin1(text: Any, encoding: str = "latin1") -> bytes:
    """Decode bytes that Python 3 has written for Python 2, as a string."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refuses to encode as {encoding!r}")
    return text if isinstance(text, bytes) else text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and numpy arrays, and refuses anything else."""

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
