"""A W&B logger in offline mode, and a reader of the files it writes."""

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
    """Return a logger that stores its W&B run in a folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # so that what the logger sets is undone
        monkeypatch.setenv(name, str(folder))
    logger = WandB(project="p", tags=[], mode="offline")
    logger.begin(RunInfo(folder=folder, config={}))
    return logger


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a `.wandb` file: a LevelDB log that follows a header."""
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
    """Return the folders of the W&B runs in a run directory, oldest first."""
    wandb.teardown()  # a file is complete only after W&B's process has ended
    return sorted((run_dir / "wandb").glob("*run-*/"), key=lambda folder: folder.stat().st_mtime)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows; the metadata of images is a dict."""
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
    """Return the files, by their paths, of the logged artifact that contains `path`."""
    (log,) = folder.glob("*.wandb")
    contents = [
        {content.path: Path(content.local_path) for content in record.artifact.manifest.contents}
        for record in records(log)
        if record.WhichOneof("record_type") == "artifact"
    ]
    (found,) = [files for files in contents if path in files]
    return found


def exit_codes(folder: Path) -> list[int]:
    """Return the exit code of a run in a list, which is empty if it was not ended."""
    (path,) = folder.glob("*.wandb")
    return [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"]
