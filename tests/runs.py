"""Configs and runs for tests, in this process: a new one would import torch and Lightning for ten seconds."""

import csv
import io
import json
import os
import runpy
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from logging import Logger, getLogger
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from PIL import Image

from perceiver.data.synthetic import shape_scenes
from perceiver.runtime.overrides import expand_short_key

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

SMALL = [
    *("data=digits", "model=perceiver", "encoder@model.encoders.image=image_patches", "decoder@model.decoder=pooled"),
    *("model.memory.num_latents=5", "model.memory.dim=14"),
    *("model.memory.cross_attention.num_heads=1", "model.memory.self_attention.num_heads=2"),
    *("model.memory.schedule.num_cross_attends=2", "model.memory.schedule.num_blocks=3"),
    "model.memory.schedule.num_self_attends=1",
    *("loader.batch_size=53", "loader.num_workers=0", "trainer=cpu", "trainer.max_epochs=2"),
    *("trainer.limit_train_batches=3", "callbacks=[]", "logger.mode=disabled", "attention.every_n_epochs=0"),
]
"""A run on the digits in about a second."""
CAPTIONING = [
    *("data=shape_scenes", "decoder@model.decoder=text", "task=captioning", "tokenizer=words_small"),
    *("data.image_size=24", "data.num_samples={train: 211, val: 13, test: 17}"),
    *("tokenizer.max_length=13", "model.decoder.num_layers=1", "model.decoder.self_attention.num_heads=2"),
    *("model.decoder.cross_attention.num_heads=1", "optimizer.lr=0.01"),
]
"""After `SMALL`: a run on captions."""
JOINT = [
    *("task=joint", "+task@task.tasks.label=classification", "task.tasks.label.output=label/logits"),
    *("decoder@model.decoder=joint", "+decoder@model.decoder.decoders.label=queries"),
]
"""A joint task and a joint decoder with one part each, to which more can be added."""


@contextmanager
def composed(*overrides: str, conf: Path = CONF, name: str = "train"):
    """A composed config, as a Hydra main receives it."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(name, overrides=[expand_short_key(override) for override in overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        yield cfg
    finally:
        HydraConfig.instance().cfg = None


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a script."""

    code: Any
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.code in (None, 0)


def assert_refused(ended: Ended, *parts: str) -> None:
    """Assert that a script ended with status 1 and an error of one line that contains all parts."""
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
    assert ended.err.startswith("error: ")
    for part in parts:
        assert part in ended.err


def script(path: str, *arguments: str) -> Ended:
    """Run a script of the repository as from the command line, and restore the state of the process."""
    out, err = io.StringIO(), io.StringIO()
    with _restored_process(), _few_texts(), redirect_stdout(out), redirect_stderr(err):
        sys.argv = [str(ROOT / path), *arguments]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code: Any = 0
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # as the interpreter does
                err.write(f"{code}\n")
                code = 1
    return Ended(code, out.getvalue(), err.getvalue())


def _few_texts():
    """Let vocabularies be learned from few generated captions, which takes a fifth of the time of a small run."""
    return mock.patch.multiple(shape_scenes, NUM_TEXTS=401, NUM_CONSTANT=7)


def train(run_dir: Path, *overrides: str) -> Ended:
    return script("experiments/train.py", f"hydra.run.dir={run_dir}", *SMALL, *overrides)


def trained(run_dir: Path, *overrides: str) -> Path:
    """Train a run that must succeed, and return its directory."""
    ended = train(run_dir, *overrides)
    assert ended.ok, ended.err
    return run_dir


def metrics(run_dir: Path, name: str = "metrics") -> dict[str, float]:
    found = json.loads((run_dir / f"{name}.json").read_text())
    found.pop("of", None)
    return found


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def image_tree(root: Path, classes: tuple[str, ...] = ("cat", "dog", "eel"), per_class: int = 7) -> Path:
    """Class folders with small images of 13×11 pixels, one color per class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            color = tuple(30 + 60 * ((number + channel) % 3) + 5 * index for channel in range(3))
            Image.new("RGB", (13, 11), color).save(root / name / f"{index}.png")
    return root


@contextmanager
def _restored_process():
    """Restore arguments, environment, logging and signals of this process."""
    root: Logger = getLogger()
    handlers, level, interrupt = root.handlers[:], root.level, signal.getsignal(signal.SIGINT)
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    argv, path = mock.patch.object(sys, "argv", sys.argv[:]), mock.patch.object(sys, "path", sys.path[:])
    with argv, path, mock.patch.dict(os.environ):
        try:
            yield
        finally:
            for handler in (one for one in root.handlers if one not in handlers):
                handler.close()  # that of the log file
            root.handlers[:], root.level = handlers, level
            signal.signal(signal.SIGINT, interrupt)
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(threads)
