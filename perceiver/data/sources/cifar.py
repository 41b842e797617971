"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32×32 colour images, in the released pickle format.

Whatever batches lie on disk are used, a partial copy too; what is missing altogether is downloaded. Nothing that the
pickles may hold is executed (`perceiver.data.sources.array_pickle`).
"""

import logging
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10
from torchvision.datasets import CIFAR100 as TORCHVISION_CIFAR100
from torchvision.datasets.utils import download_url

from perceiver.data.files import UnreadableError
from perceiver.data.sources.array_pickle import read_pickle
from perceiver.data.sources.base import ImageItems, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.types import Stage

log = logging.getLogger(__name__)

Variant: TypeAlias = Literal["cifar10", "cifar100"]


@dataclass(frozen=True)
class _Release:
    """How one of the two is laid out; addresses and checksums are torchvision's."""

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
        root: folder that holds, or is to hold, `cifar-10-batches-py` or `cifar-100-python`.
        num_classes: 10 or 100, as the variant has.
        val_fraction: share of the training images kept for validation (`HeldOut`); 0 for none.
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
                f"root={self.root}: there is no {self.release.folder}/{self.release.meta_file}, and downloading failed "
                f"({error}); put the files there, or give their folder as data.root"
            ) from error
        archived = self.root / source.filename
        try:
            with tarfile.open(archived) as archive:
                archive.extractall(self.root, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UnreadableError(f"{archived}: not the archive of the release ({error})") from error

    def items(self, stage: Stage, roles: Roles) -> ImageItems | None:
        files = (self.release.test_file,) if stage == "test" else self.release.train_files
        there = [name for name in files if (self.folder / name).exists()]
        if not there:
            raise FileNotFoundError(f"{self.folder}: none of {', '.join(files)} is there")
        if len(there) < len(files) and stage == "train":
            log.warning("%s: %d of %d training files are there", self.folder, len(there), len(files))
        batches = [_read_batch(self.folder / name, self.release) for name in there]
        found = ImageItems(
            images=torch.cat([batch.images for batch in batches]),
            labels=[label for batch in batches for label in batch.labels],
            ids=[id for batch in batches for id in batch.ids],
        )
        if stage == "test":
            return found
        train, val = self.held_out.without_test(found.ids)
        return found.chosen(train if stage == "train" else val)


def _read_batch(path: Path, release: _Release) -> ImageItems:
    """What a file holds.

    Raises:
        UnreadableError: it is damaged, or no batch of the release.
    """
    content = read_pickle(path)
    missing = [key for key in ("data", release.label_key) if key not in content]
    if missing:
        raise _no_batch(path, f"there is no {missing[0]!r}")
    pixels, labels = content["data"], _flat(content[release.label_key])
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise _no_batch(path, "'data' is not an array of 3072 bytes an image")
    if labels is None or len(labels) != len(pixels) or not len(labels):
        raise _no_batch(path, f"{release.label_key!r} is not a list of one number for each of {len(pixels)} images")
    for place, label in enumerate(labels):
        if not 0 <= label < release.num_classes:
            raise _no_batch(path, f"label {label} of image {place}; labels are 0 to {release.num_classes - 1}")
    names = content.get("filenames", [str(place) for place in range(len(labels))])
    if not isinstance(names, list) or len(names) != len(labels) or not all(isinstance(name, str) for name in names):
        raise _no_batch(path, f"'filenames' is not a list of one name for each of {len(pixels)} images")
    if len(set(names)) < len(names):
        raise _no_batch(path, f"the name {Counter(names).most_common(1)[0][0]!r} is there a second time")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return ImageItems(images=images, labels=labels, ids=[f"{path.name}/{name}" for name in names])


def _no_batch(path: Path, problem: str) -> UnreadableError:
    return UnreadableError(f"{path}: not a CIFAR batch: {problem}")


def _flat(values: Any) -> list[int] | None:
    """A list or an array of whole numbers as a list; None of anything else, which may be nested without end."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.tolist()
    whole = isinstance(values, list) and all(isinstance(value, int | np.integer) for value in values)
    return [int(value) for value in values] if whole and not any(isinstance(value, bool) for value in values) else None
