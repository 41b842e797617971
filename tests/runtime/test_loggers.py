import csv
import io
import json
import logging
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.loggers import base
from perceiver.runtime.loggers import tensorboard as tensorboard_module
from perceiver.runtime.loggers import wandb as wandb_module
from perceiver.runtime.loggers.base import RunInfo, RunLogger
from perceiver.runtime.loggers.curves import Curves
from perceiver.runtime.loggers.wandb import WandB, pad_to_same_size, usable_mode
from perceiver.training.build import construct
from tests.kills import in_fork
from tests.processes import until
from tests.runs import CONF, SMALL, assert_refused, composed, script
from tests.wandb_file import exit_codes, records, rows, run_folders

WANDB_SETTINGS = [
    f"WANDB_{name}" for name in ("MODE", "API_KEY", "SILENT", "DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR")
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home folder of a user who is not logged in and cannot be prompted, and a new W&B process."""
    wandb.teardown()
    for name in WANDB_SETTINGS:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("home", "cwd", "run", "second"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    yield tmp_path / "home"
    wandb.teardown()


def mirror(run_dir: Path, mode: str = "auto", *, step: int = 0, **settings) -> WandB:
    logger = WandB(project="p", name="n", group="g", tags=["t"], mode=mode, **settings)
    logger.begin(RunInfo(folder=run_dir, config={"lr": 0.1}, step=step))
    return logger


class TestCurves:
    ROWS = ({"loss": 2.5}, {"loss": 1.5, "accuracy": 0.1}, {"accuracy": 0.7})

    def written(self, path):
        with path.open(newline="") as file:
            return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]

    def expected(self, count):
        return [
            {name: str(value) for name, value in row.items()} | {"step": str(step)}
            for step, row in enumerate(self.ROWS[:count])
        ]

    def test_each_call_is_a_row_whatever_its_metrics(self, tmp_path):
        curves = Curves(tmp_path / "metrics.csv")
        for step, row in enumerate(self.ROWS):
            curves.log_metrics(row, step)
            curves.save()
        assert curves.rows == 3
        assert self.written(curves.path) == self.expected(3)

    @pytest.mark.parametrize("rows", [0, 1, 3])
    def test_rows_after_a_checkpoint_are_truncated(self, tmp_path, rows):
        before = Curves(tmp_path / "metrics.csv")
        for step, row in enumerate(self.ROWS):
            before.log_metrics(row, step)
        before.save()
        after = Curves(tmp_path / "metrics.csv")
        after.truncate(rows)
        for step, row in list(enumerate(self.ROWS))[rows:]:
            after.log_metrics(row, step)
        after.save()
        assert self.written(after.path) == self.expected(3)

    @pytest.mark.parametrize("columns", ["known", "new"])
    def test_on_a_full_disk_rows_are_buffered_and_written_once(self, tmp_path, columns):
        path = tmp_path / "metrics.csv"

        def log():
            curves = Curves(path)
            curves.log_metrics(self.ROWS[1] if columns == "known" else self.ROWS[0], 0)
            curves.save()
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, resource.RLIM_INFINITY))  # room for half a row
            for step in (1, 2):
                curves.log_metrics(self.ROWS[step], step)
                curves.save()
            assert path.stat().st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            curves.save()
            assert curves.rows == 3

        assert in_fork(log) == 0
        assert self.written(path)[1:] == self.expected(3)[1:]
        assert len(self.written(path)) == 3


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("perceiver.runtime.loggers")]


def kill_wandb() -> None:
    """Kill W&B's own process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = {child: Path(f"/proc/{child}/stat") for child in children}
    (core,) = (child for child, state in states.items() if re.search(r"\(wandb-core\) [^Z]", state.read_text()))
    os.kill(int(core), signal.SIGKILL)
    until(lambda: ") Z" in states[core].read_text())


@pytest.mark.parametrize(
    ("mode", "environment", "logged_in", "expected", "warnings"),
    [
        ("auto", None, False, "offline", 0),
        ("auto", None, True, "online", 0),
        ("auto", None, ConnectionError("no connection"), "offline", 1),
        ("auto", "disabled", True, "disabled", 0),
        ("auto", "offline", True, "offline", 0),
        ("online", None, False, "offline", 1),
        ("online", "offline", True, "online", 0),
        ("offline", None, True, "offline", 0),
        ("disabled", None, True, "disabled", 0),
    ],
)
def test_the_mode_depends_on_the_login_and_never_prompts(
    tmp_path, monkeypatch, caplog, mode, environment, logged_in, expected, warnings
):
    def login(**options):
        assert options == {"prompt": False}
        if isinstance(logged_in, Exception):
            raise logged_in
        return logged_in

    monkeypatch.setattr(wandb, "login", login)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert usable_mode(mirror(tmp_path / "run", mode).mode) == expected
    assert len(warnings_of(caplog)) == warnings


def test_without_login_a_run_is_recorded_offline_in_its_directory_only(tmp_path, monkeypatch, capfd, home):
    said = []
    monkeypatch.setattr(wandb, "termwarn", lambda message, **options: said.append(message))
    logger = mirror(tmp_path / "run")
    logger.log_metrics({"loss": 2.0}, step=3)
    logger.images({"panel": [Image.new("RGB", (7, 5))]}, ["seven by five"], 5)
    logger.table("table", ["staged"], [[Image.new("RGB", (3, 2))]], 5)
    logger.log_metrics({"loss": 1.0}, step=5)
    logger.log_hyperparams({"ignored": 1})
    logger.finalize("success")
    logger.end(0)
    (folder,) = run_folders(tmp_path / "run")
    assert folder.name.startswith("offline-run-")
    logged = rows(folder)
    assert [(row["loss"], row["trainer/global_step"]) for row in logged] == [(2.0, 3), (1.0, 5)]
    assert (folder / "files" / logged[1]["panel"]["filenames"][0]).is_file()
    assert exit_codes(folder) == [0]
    assert os.listdir(home) == os.listdir() == os.listdir(tmp_path / "second") == []
    written = capfd.readouterr()
    assert (written.out, written.err, said) == ("", "", [])


def test_errors_of_wandb_end_its_run_as_failed_and_keep_what_was_logged_before(tmp_path, monkeypatch, caplog):
    logger = mirror(tmp_path / "run")
    logger.log_metrics({"loss": 2.0}, step=0)
    fails = Mock(side_effect=BrokenPipeError)
    monkeypatch.setattr(logger.experiment, "log", fails)
    for step in range(1, 7):
        logger.log_metrics({"loss": 2.0}, step=step)
    logger.end(1)
    assert (fails.call_count, len(warnings_of(caplog))) == (base.MAX_FAILURES, 1)
    (folder,) = run_folders(tmp_path / "run")
    assert (exit_codes(folder), len(rows(folder))) == ([1], 1)


def test_a_disabled_mirror_writes_nothing(tmp_path):
    logger = mirror(tmp_path / "run", "disabled")
    logger.log_metrics({"loss": 2.0}, step=3)
    logger.end(0)
    assert logger.failures == len(run_folders(tmp_path / "run")) == 0


@pytest.mark.parametrize("failures", [0, base.MAX_FAILURES])
def test_a_killed_wandb_process_does_not_stop_a_run_and_the_next_run_is_new(tmp_path, caplog, failures):
    first = mirror(tmp_path / "run")
    first.log_metrics({"loss": 2.0}, step=0)
    kill_wandb()
    for step in range(failures):
        first.log_metrics({"loss": 2.0}, step=step)
    first.end(0)
    assert len(warnings_of(caplog)) == 1
    second = mirror(tmp_path / "second")
    second.log_metrics({"loss": 1.0}, step=0)
    assert second.failures == 0
    second.end(0)
    (folder,) = run_folders(tmp_path / "second")
    assert [row["loss"] for row in rows(folder)] == [1.0]


def test_two_new_runs_in_one_folder_are_different_runs(tmp_path):
    ids = set()
    for loss in (0.0, 1.0):
        logger = mirror(tmp_path / "run")
        logger.log_metrics({"loss": loss}, step=0)
        ids.add(logger.experiment.id)
        logger.end(0)
    assert len(ids) == 2
    assert [[row["loss"] for row in rows(folder)] for folder in run_folders(tmp_path / "run")] == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("held", "goes_on"),
    [(None, True), (b"", False), (b"../../etc\n", False), (b"\xff\x00\x81", False)],
    ids=["valid", "empty", "path", "binary"],
)
def test_a_resumed_run_is_the_same_run_unless_its_id_is_lost(tmp_path, held, goes_on):
    first = mirror(tmp_path / "run")
    first.log_metrics({"loss": 2.0}, step=0)
    first.end(1)
    path = tmp_path / "run" / "wandb" / "run_id"
    assert path.read_text() == f"{first.experiment.id}\n"
    if held is not None:
        path.write_bytes(held)
    second = mirror(tmp_path / "run", step=1)
    second.log_metrics({"loss": 1.0}, step=1)
    assert second.failures == 0
    assert (second.experiment.id == first.experiment.id) == goes_on
    assert path.read_text() == f"{second.experiment.id}\n"
    second.end(0)
    assert [row["loss"] for folder in run_folders(tmp_path / "run") for row in rows(folder)] == [2.0, 1.0]


def test_a_logger_without_items_does_not_end_the_run_of_another(tmp_path):
    with wandb.init(mode="offline", dir=tmp_path / "second") as run:
        mirror(tmp_path / "run").end(1)
        assert wandb.run is run
    assert exit_codes(run_folders(tmp_path / "second")[0]) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("login", ["verified", "not verified"])
def test_online_without_a_server_is_recorded_offline(tmp_path, monkeypatch, caplog, login):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_module, "INIT_TIMEOUT_SECONDS", 3)
    if login == "not verified":
        monkeypatch.setattr(wandb, "login", lambda **options: True)
    caplog.set_level(logging.WARNING)
    before = time.monotonic()
    logger = mirror(tmp_path / "run", "online")
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.log_metrics({"loss": 1.0}, step=1)
    assert time.monotonic() - before < 60
    logger.end(0)
    assert len(warnings_of(caplog)) == 1
    offline = [folder for folder in run_folders(tmp_path / "run") if folder.name.startswith("offline")]
    assert [row["loss"] for row in rows(offline[0])] == [2.0, 1.0]


@pytest.mark.parametrize("log_model", [True, "all"])
def test_the_summary_has_best_and_final_metrics_and_checkpoints_are_artifacts(tmp_path, log_model):
    logger = mirror(tmp_path / "run", "offline", log_model=log_model)
    for step, (loss, accuracy) in enumerate([(0.5, 0.2), (0.3, 0.7), (0.4, 0.6)]):
        logger.log_metrics({"val/loss": loss, "val/accuracy": accuracy}, step=step)
    logger.summary({"best/val/accuracy": 0.7, "parameters": 11.0, "val/accuracy": 0.6})
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best.write_bytes(b"best")
    last.write_bytes(b"last")
    logger.checkpoints(best, {"test/accuracy": 0.5}, last, 13)
    logger.end(0)
    (folder,) = run_folders(tmp_path / "run")
    (path,) = folder.glob("*.wandb")
    summary, kept = {}, {}
    for record in records(path):
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.WhichOneof("record_type") == "artifact":
            (content,) = record.artifact.manifest.contents
            (alias,) = set(record.artifact.aliases) - {"latest"}
            kept[alias] = content.path, json.loads(record.artifact.metadata)
    assert (summary["val/loss"], summary["val/accuracy"]) == ({"min": 0.3}, {"max": 0.7})
    assert (summary["best/val/accuracy"], summary["parameters"]) == (0.7, 11.0)
    expected = {"best": ("best.ckpt", {"test/accuracy": 0.5}), "last": ("last.ckpt", {"step": 13})}
    assert kept == (expected if log_model == "all" else {"best": expected["best"]})


def test_smaller_images_are_padded_with_white():
    random = np.random.default_rng(1)
    arrays = [random.integers(255, size=(*size, 3), dtype=np.uint8) for size in ((5, 3), (2, 7), (5, 7))]
    padded = [np.asarray(picture) for picture in pad_to_same_size([Image.fromarray(array) for array in arrays])]
    for array, page in zip(arrays, padded, strict=True):
        rows, columns, _ = array.shape
        assert page.shape == (5, 7, 3)
        assert (page[:rows, :columns] == array).all()
        assert (page[rows:] == 255).all()
        assert (page[:, columns:] == 255).all()
    assert pad_to_same_size([]) == []


CHOICES = sorted(path.stem for path in (CONF / "logger").glob("*.yaml"))
SETTINGS = [setting for setting in SMALL if not setting.startswith("logger")]


def chosen(choice: str, folder: Path, step: int = 0) -> RunLogger:
    with composed(f"logger={choice}") as cfg:
        config = resolved(cfg)
    logger: RunLogger = construct(config, "logger")
    logger.begin(RunInfo(folder=folder, config=config, name="n", group="g", step=step))
    return logger


def show_everything(logger: RunLogger, folder: Path, steps: range) -> None:
    (folder / "page.html").write_text("<p>seen</p>")
    for step in steps:
        logger.attempt(logger.images, {"maps": [Image.new("RGB", (5, 3)), Image.new("L", (2, 7))]}, ["a", "b"], step)
        logger.attempt(logger.html, "explorer", folder / "page.html", step)
        logger.log_metrics({"loss": float(step)}, step)
        logger.save()
    last = steps[-1] + 1
    logger.attempt(
        logger.table,
        "answers",
        ["picture", "id", "said"],
        [[Image.new("RGB", (3, 2)), 7, "a|b"], [None, 11, None]],
        last,
    )
    logger.attempt(logger.confusion_matrix, "confusion", ["cat", "eel"], Counter({("cat", "eel"): 13}), last)
    logger.attempt(logger.summary, {"test/loss": 0.5})
    (folder / "best.ckpt").write_bytes(b"best")
    logger.attempt(logger.checkpoints, folder / "best.ckpt", {}, folder / "last.ckpt", last)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_logs_all_items_and_is_resumed(tmp_path, caplog, home, choice):
    for step in (0, 3):
        logger = chosen(choice, tmp_path / "run", step)
        assert os.listdir(tmp_path / "run") == [] or step, "a run that never began leaves nothing"
        show_everything(logger, tmp_path / "second", range(step, step + 5))
        assert logger.failures == 0
        logger.end(0)
    assert warnings_of(caplog) == []
    assert os.listdir(home) == os.listdir() == []


@pytest.mark.parametrize("choice", ["none", "tensorboard"])
def test_the_run_directory_does_not_depend_on_the_logger(run, tmp_path, choice):
    overrides = [*SETTINGS, f"logger={choice}", "trainer.log_every_n_steps=2"]
    overrides += ["attention.every_n_epochs=1", "attention.num_samples=3"]
    ended = script("experiments/train.py", f"hydra.run.dir={tmp_path / 'run'}", *overrides)
    assert ended.ok, ended.err
    assert (tmp_path / "run" / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    found, before = ({path.name for path in folder.iterdir()} for folder in (tmp_path / "run", run))
    assert found - {"tensorboard"} == before - {"wandb"}
    assert ("tensorboard" in found) == (choice == "tensorboard")
    if choice == "tensorboard":
        events = events_in(tmp_path / "run")
        with (tmp_path / "run" / "metrics.csv").open() as file:
            lines = [line for line in csv.DictReader(file) if line["val/loss"]]
        assert [(one.step, str(one.value)[:7]) for one in events.Scalars("val/loss")] == [
            (int(line["step"]), line["val/loss"][:7]) for line in lines
        ]
        assert "attention/image/cross0/0" in events.Tags()["images"]
        assert {f"{key}/text_summary" for key in ("config", "attention/explorer", "test/predictions")} <= {
            *events.Tags()["tensors"]
        }


def events_in(run_dir: Path) -> EventAccumulator:
    """The events of a run as TensorBoard reads them."""
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()


class TestTensorBoard:
    def test_a_resumed_run_discards_the_steps_after_its_checkpoint(self, tmp_path):
        for step, count in ((0, 7), (3, 2)):  # the first is killed
            logger = chosen("tensorboard", tmp_path / "run", step)
            for number in range(step, step + count):
                logger.log_metrics({"loss": 10.0 * step + number}, number)
                logger.attempt(logger.images, {"maps": [Image.new("RGB", (5, 3))]}, ["a"], number)
            logger.save()
        events = events_in(tmp_path / "run")
        assert [(one.step, one.value) for one in events.Scalars("loss")] == [(0, 0), (1, 1), (2, 2), (3, 33), (4, 34)]
        assert [one.step for one in events.Images("maps/0")] == [0, 1, 2, 3, 4]

    def test_tables_are_text_without_images(self, tmp_path):
        logger = chosen("tensorboard", tmp_path / "run")
        show_everything(logger, tmp_path / "second", range(1))
        logger.end(0)
        events = events_in(tmp_path / "run")
        (answers,) = (one.tensor_proto.string_val[0].decode() for one in events.Tensors("answers/text_summary"))
        assert answers.splitlines() == ["|id|said|", "|---|---|", "|7|a\\|b|", "|11||"]

    def test_without_its_package_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(tensorboard_module, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="--extra tensorboard"):
            chosen("tensorboard", Path())


@pytest.mark.parametrize("override", ["~logger", "logger=false"])
def test_a_missing_logger_is_one_sentence(tmp_path, override):
    ended = script("experiments/train.py", f"hydra.run.dir={tmp_path / 'run'}", *SETTINGS, override)
    assert_refused(ended, "logger=none")


class Broken(RunLogger):
    """Raises errors except in the methods `works`; `calls` lists all."""

    calls: ClassVar[list[str]] = []

    def __init__(self, *, works: list[str]) -> None:
        self.start, self.metrics, self.close = (
            partial(self._do, name, works) for name in ("start", "metrics", "close")
        )

    def _do(self, name: str, works: list[str], *args: object) -> None:
        self.calls.append(name)
        if name not in works:
            raise RuntimeError("not today")

    start = metrics = close = None  # not abstract


@pytest.mark.parametrize(
    ("works", "calls"),
    [([], ["start"] * 3), (["start"], ["start", *["metrics"] * 3, "close"])],
    ids=["start fails", "metrics fail"],
)
def test_a_failing_logger_of_the_user_does_not_stop_the_run(tmp_path, monkeypatch, works, calls):
    monkeypatch.setattr(Broken, "calls", [])
    own = ["logger=none", f"logger._target_={Broken.__module__}.Broken", f"+logger.works={works}"]
    ended = script("experiments/train.py", f"hydra.run.dir={tmp_path / 'run'}", *SETTINGS, *own)
    assert ended.ok, ended.err
    assert Broken.calls == calls
    assert (tmp_path / "run" / "train.log").read_text().count("Broken failed 3 times") == 1
    assert (tmp_path / "run" / "predictions.csv").exists()
