"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32×32 colour images, in the released pickle format.

Whatever batches lie on disk are used, a partial copy too; what is missing altogether is downloaded. The pickles are
read by an unpickler that can build arrays and nothing else.
"""

import logging
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import torch
from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10
from torchvision.datasets import CIFAR100 as TORCHVISION_CIFAR100
from torchvision.datasets.utils import download_url
from torchvision.transforms.v2 import functional as F

from perceiver.data.base import OnError, Split, UnreadableError, stratified_split
from perceiver.data.images import ImageArray, ImageAugment, ImageDataset
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


class CIFAR(ImageDataset):
    """CIFAR-10 or CIFAR-100.

    Args:
        variant: which of the two.
        root: folder that holds, or is to hold, `cifar-10-batches-py` or `cifar-100-python`.
        num_classes: 10 or 100, as the variant has.
        on_error, image_size, channels, augment: see `ImageDataset`.
        val_fraction: share of the training images kept for validation, balanced over classes; 0 for none.
    """

    def __init__(
        self,
        *,
        variant: Variant,
        root: str,
        num_classes: int,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        val_fraction: float,
    ) -> None:
        super().__init__(
            num_classes=num_classes, on_error=on_error, image_size=image_size, channels=channels, augment=augment
        )
        self.release = RELEASES[variant]
        if num_classes != self.release.num_classes:
            raise ValueError(f"num_classes={num_classes}: {variant} has {self.release.num_classes} classes")
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction

    @property
    def folder(self) -> Path:
        return self.root / self.release.folder

    @property
    def class_names(self) -> list[str]:
        names = read_pickle(self.folder / self.release.meta_file)[self.release.names_key]
        return [str(name) for name in names]

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
        with tarfile.open(self.root / source.filename) as archive:
            archive.extractall(self.root, filter="data")

    def split(self, stage: Stage) -> Split | None:
        files = (self.release.test_file,) if stage == "test" else self.release.train_files
        there = [name for name in files if (self.folder / name).exists()]
        if not there:
            raise FileNotFoundError(f"{self.folder}: none of {', '.join(files)} is there")
        if len(there) < len(files) and stage == "train":
            log.warning("%s: %d of %d training files are there", self.folder, len(there), len(files))
        images, labels, ids = [], [], []
        for path in (self.folder / name for name in there):
            batch = read_pickle(path)
            try:
                labels.append(torch.as_tensor(batch[self.release.label_key], dtype=torch.long))
                images.append(torch.as_tensor(batch["data"], dtype=torch.uint8).reshape(len(labels[-1]), 3, 32, 32))
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UnreadableError(f"{path}: not a CIFAR batch ({error!r})") from error
            names = batch.get("filenames", range(len(labels[-1])))
            ids += [f"{path.name}/{name}" for name in names]
        all_labels = torch.cat(labels)
        if not 0 <= int(all_labels.min()) <= int(all_labels.max()) < self.num_classes:
            raise ValueError(f"{self.folder}: labels must be 0 to {self.num_classes - 1}")
        indices = torch.arange(len(all_labels))
        if stage != "test":
            train, val = stratified_split(all_labels, self.val_fraction, seed=0)
            indices = train if stage == "train" else val
            if len(indices) == 0:
                return None
        pixels = torch.cat(images)[indices]
        if self.channels == 1:
            pixels = F.rgb_to_grayscale(pixels)
        return ImageArray(self, pixels, all_labels[indices].tolist(), [ids[i] for i in indices], train=stage == "train")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and numpy arrays; anything else in the file is refused."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """A CIFAR pickle as a dict with string keys; nothing in it is executed.

    Raises:
        UnreadableError: the file is missing, damaged, or holds anything but arrays and plain values.
    """

    def load(file: IO[bytes]) -> Any:
        return _ArrayUnpickler(file, encoding="latin1").load()

    try:
        with path.open("rb") as file:
            content = load(file)
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UnreadableError(f"{path}: not a CIFAR pickle ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"{path}: holds a {type(content).__name__}, not a dict")
    return content
