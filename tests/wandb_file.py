"""A W&B logger that writes offline, and what it wrote."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

from perceiver.runtime.loggers.base import RunInfo
from perceiver.runtime.loggers.wandb import WandB

BLOCK, HEADER = 32768, 7
FULL, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


def offline_mirror(folder: Path, monkeypatch) -> WandB:
    """A logger whose W&B run lies in a folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # set by the logger, and to be undone
        monkeypatch.setenv(name, str(folder))
    logger = WandB(project="p", tags=[], mode="offline")
    logger.begin(RunInfo(folder=folder, config={}))
    return logger


def records(path: Path) -> Iterator[Record]:
    """All records of a `.wandb` file, which is a LevelDB log behind a header of its own."""
    data, offset, record = path.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while offset + HEADER <= len(data):
        if offset % BLOCK > BLOCK - HEADER:  # no room for a fragment's header: the block ends in zeros
            offset += -offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        fragment = data[offset + HEADER : offset + HEADER + length]
        offset += HEADER + length
        record = fragment if kind in (FULL, FIRST) else record + fragment
        if kind in (FULL, LAST):
            yield Record.FromString(record)


def run_folders(run_dir: Path) -> list[Path]:
    """The folders of the runs that were mirrored from a run directory, in order."""
    wandb.teardown()  # a run's file is whole only when W&B's own process has ended
    return sorted((run_dir / "wandb").glob("*run-*/"), key=lambda folder: folder.stat().st_mtime)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that a run logged; what is known of a picture or a list of them is a dict."""
    (path,) = folder.glob("*.wandb")
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            found.append({})
            for item in record.history.item:
                key, *parts = item.nested_key or [item.key]
                if parts:
                    found[-1].setdefault(key, {})["/".join(parts)] = json.loads(item.value_json)
                else:
                    found[-1][key] = json.loads(item.value_json)
    return found


def files_of_artifact(folder: Path, path: str) -> dict[str, Path]:
    """The files of the artifact that a run logged with a file at `path` in it, by their paths in it."""
    (log,) = folder.glob("*.wandb")
    contents = [
        {content.path: Path(content.local_path) for content in record.artifact.manifest.contents}
        for record in records(log)
        if record.WhichOneof("record_type") == "artifact"
    ]
    (found,) = [files for files in contents if path in files]
    return found


def exit_codes(folder: Path) -> list[int]:
    """How a run ended: one number, or nothing if nobody ended it."""
    (path,) = folder.glob("*.wandb")
    return [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"]
