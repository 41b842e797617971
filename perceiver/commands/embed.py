"""Features of samples or files: the latents of a finished run or a published model, as an `.npz` file."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from perceiver.commands.finished_run import FinishedRun, check_writable, load_named
from perceiver.commands.predict import InParts, input_files, named, to_accelerator
from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.summary import console
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.training.build import Parts, config_errors
from perceiver.types import STAGES, Batch, Sample

Pool: TypeAlias = Literal["mean", "none"]
"""Whether the features of a sample are the mean over the elements of the memory, or all of them."""
POOLS = ("mean", "none")


def embed(cfg: DictConfig) -> Path:
    """Write the features of files, or of a split of a data set, and return the file.

    It has `features` [samples, dim], or with `pool=none` [samples, latents, dim], and `ids`, in the order of the files
    or of the data set; where samples have them, the targets `label` and `tags` and other numbers by their names, and
    `class_names`. Features of a long recording are the mean over its windows. They are written batch by batch: only ids
    and targets of all samples are held in memory. Training samples are not augmented.

    Raises:
        ConfigError: a setting is not valid, or there are no samples.
        UnreadableError: some files could not be read; raised after all others are written.
    """
    for name, value, known in (("pool", cfg.pool, POOLS), ("split", cfg.split, STAGES)):
        if value not in known:
            raise ConfigError(f"{name}={value}: must be one of {', '.join(known)}")
    if cfg.inputs is not None and cfg.data is not None:
        raise ConfigError("data=… and inputs=…: give one of them")
    finished = load_named(cfg, cfg.overrides, augment=False, replaces_data=True)
    prepare_torch(finished.config)
    to_accelerator(finished.parts)
    out = finished.output_dir / "features.npz" if cfg.out is None else Path(str(cfg.out))
    if out.is_dir():
        raise ConfigError(f"out={out}: is a folder; name a file in it")
    check_writable(out.parent, "out")
    problems: list[str] = []
    data = finished.parts.data
    if cfg.inputs is None:
        batches, class_names = split_batches(finished, cfg)
    else:
        files = input_files(named(cfg.inputs), data.dataset.file_endings)
        batches, class_names = file_batches(data.dataset, files, data.batch_size, problems), []
    count = write_features(out, finished.parts, batches, cfg.pool, class_names)
    if count:
        console.print(f"features of {count} samples written to {out}", soft_wrap=True)
    if problems:
        raise UnreadableError("; ".join(problems))
    if not count:
        raise ConfigError(
            "inputs=[]: name at least one file" if cfg.inputs is not None else f"split={cfg.split}: empty"
        )
    return out


def split_batches(finished: FinishedRun, cfg: DictConfig) -> tuple[Iterator[Batch], Sequence[str]]:
    """Return the batches of a split, and the names of the classes by label.

    These are the run's, or those of the data set that is given in its place.

    Raises:
        ConfigError: the data set has no such split.
    """
    data = finished.parts.data
    class_names = finished.parts.description["class_names"]
    with config_errors(finished.config, "data"):
        data.prepare_data()
        if cfg.data is None:
            data.match_classes(class_names)
        else:
            class_names = data.dataset.class_names
        data.tested = cfg.split
        if data.splits[data.tested] is None:
            if cfg.data is None and cfg.run is None:
                raise ConfigError("a published model has no samples of its own; give inputs=… or data=…")
            raise ConfigError(f"split={cfg.split}: the data set has no such samples")
        loader: Any = data.test_dataloader()
    return (data.report_unreadable(batch) for batch in loader), class_names


def file_batches(dataset: Dataset, files: Iterable[Path], size: int, problems: list[str]) -> Iterator[Batch]:
    """Yield batches of files; `problems` receives the errors of those that cannot be read."""
    samples: list[Sample] = []
    for file in files:
        try:
            samples.append(dataset.read(file))
        except UnreadableError as error:
            problems.append(str(error))
        if len(samples) == size:
            yield collate(samples)
            samples = []
    if samples:
        yield collate(samples)


@torch.no_grad()
def embeddings(parts: Parts, batch: Batch, pool: Pool) -> Float[Tensor, "samples *latents dim"]:
    """Return the latents of each sample, or their mean.

    Raises:
        ConfigError: `pool=none` of a memory of tokens, of which samples have different numbers.
    """
    batch = batch.to(parts.device)
    memory = InParts(parts.model, parts.data.batch_size).encode(batch.inputs, batch.masks)
    if pool == "none" and memory.mask is not None:
        raise ConfigError(
            "pool=none: the memory has the tokens of each sample, which are not equally many; choose mean"
        )
    memory = replace(memory, values=memory.values.float())
    values = memory.values if pool == "none" else memory.mean()
    if batch.windows:
        rows = torch.split(values, [len(names) for names in batch.windows])
        values = torch.stack([of_sample.mean(dim=0) for of_sample in rows])
    return values.cpu()


def write_features(out: Path, parts: Parts, batches: Iterable[Batch], pool: Pool, class_names: Sequence[str]) -> int:
    """Write the features of batches to an `.npz` file, unless there are none, and return the number of samples.

    Raises:
        ConfigError: features of samples differ in shape, or the file cannot be written.
    """
    ids: list[str] = []
    targets: list[dict[str, Tensor]] = []
    shape: tuple[int, ...] | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent) as rows:
            for batch in batches:
                if not len(batch):
                    continue
                features = embeddings(parts, batch, pool)
                if shape is not None and shape != features.shape[1:]:
                    sizes = f"{list(shape)} and {list(features.shape[1:])}"
                    raise ConfigError(f"pool={pool}: the features of samples have the shapes {sizes}; choose pool=mean")
                shape = tuple(features.shape[1:])
                rows.write(features.contiguous().numpy().astype("<f4").tobytes())
                ids += batch.ids
                targets.append({name: value for name, value in batch.targets.items() if is_number(value)})
            if shape is None:
                return 0
            arrays = {"ids": np.array(ids)} | joined(targets)
            if arrays.keys() & {"label", "tags"}:
                arrays["class_names"] = np.array(class_names)
            partial = out.with_name(f"{out.name}.partial")
            with zipfile.ZipFile(partial, "w") as archive:
                for name, values in arrays.items():
                    with archive.open(f"{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, values, allow_pickle=False)
                rows.seek(0)
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), *shape)}
                with archive.open("features.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    while chunk := rows.read(2**20):
                        entry.write(chunk)
            os.replace(partial, out)
    except OSError as error:
        raise ConfigError(f"out={out}: could not be written ({error.strerror}); choose another file") from error
    return len(ids)


def is_number(value: Any) -> bool:
    """Return whether a target is a number, or a few, for each sample: a class, tags, but no mask."""
    return isinstance(value, Tensor) and value.ndim <= 2


def joined(targets: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Return the targets that all batches have, in one shape."""
    found = {}
    for name in targets[0]:
        parts = [of_batch[name] for of_batch in targets if name in of_batch]
        if len(parts) == len(targets) and len({part.shape[1:] for part in parts}) == 1:
            found[name] = torch.cat(parts).numpy()
    return found
