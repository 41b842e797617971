"""A checkpoint file is always complete, and a damaged one is never loaded."""

import io
import logging
import os
import pathlib
import resource
import shutil
import signal
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest
import torch

from perceiver.runtime import checkpoints
from perceiver.runtime.checkpoints import DurableIO
from perceiver.runtime.errors import ConfigError
from perceiver.training.checkpoint import find_damage, read_checkpoint
from tests.kills import assert_same, assert_same_run, before_call, continued, in_fork, run_in_fork
from tests.runs import assert_refused, metrics, script, trained
from tests.training.test_build import DAMAGES

slow = pytest.mark.slow
OLD, NEW = ({"weights": torch.full((11, 13), value)} for value in (1.0, 2.0))
SETUP = ["trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run. Only read it."""
    return trained(tmp_path_factory.mktemp("whole") / "run", *SETUP)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in its last epoch. Only read it."""
    run = tmp_path_factory.mktemp("killed") / "run"
    assert run_in_fork(run, *SETUP, before=before_call(7, "training_step", kill)) == -signal.SIGKILL
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    return run


@pytest.fixture
def run(killed, tmp_path):
    """A copy of it, to resume."""
    return shutil.copytree(killed, tmp_path / "run")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def room_for(size):
    """Limit the size of files that this process writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def save_half(content, file):
    """A `torch.save` that is killed while it writes."""
    torch.serialization.save(content, written := io.BytesIO())
    file.write(written.getbuffer()[: len(written.getbuffer()) // 2])
    file.flush()
    kill()


class TestWriting:
    @pytest.mark.parametrize("at", ["save", "fsync", "replace", "sync_folder"])
    def test_a_killed_writer_leaves_the_old_or_the_new_file(self, tmp_path, monkeypatch, at):
        path = tmp_path / "last.ckpt"
        DurableIO().save_checkpoint(OLD, path)
        if at == "fsync":
            monkeypatch.setattr(os, "fsync", lambda descriptor: kill())
        elif at == "replace":
            monkeypatch.setattr(pathlib.Path, "replace", lambda *paths: kill())
        elif at == "sync_folder":
            monkeypatch.setattr(checkpoints, "sync_folder", lambda folder: kill())
        else:
            monkeypatch.setattr(torch, "save", save_half)
        assert in_fork(lambda: DurableIO().save_checkpoint(NEW, path)) == -signal.SIGKILL
        assert find_damage(path) is None
        assert_same(torch.load(path), NEW if at == "sync_folder" else OLD)
        assert {other.name for other in tmp_path.iterdir()} <= {"last.ckpt", "last.part"}

    def test_a_file_is_synced_before_and_after_it_is_renamed(self, tmp_path, monkeypatch):
        done, fsync, replace = [], os.fsync, pathlib.Path.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
        monkeypatch.setattr(pathlib.Path, "replace", lambda *paths: (done.append("name"), replace(*paths)))
        DurableIO().save_checkpoint(OLD, tmp_path / "last.ckpt")
        assert done == ["sync", "name", "sync"]

    @pytest.mark.parametrize("hinder", ["limit", "full", "refused"])
    def test_a_failed_write_keeps_the_old_file_and_is_fatal_the_third_time_in_a_row(self, tmp_path, hinder):
        path, writer = tmp_path / "last.ckpt", DurableIO()
        writer.save_checkpoint(OLD, path)

        def write():
            messages = []
            logging.getLogger(checkpoints.__name__).warning = lambda text, *args: messages.append(text % args)
            if hinder == "limit":
                room_for(100)
            if hinder == "refused":  # as where the folder is not writable, which root ignores
                pathlib.Path.open = Mock(side_effect=PermissionError(13, "Permission denied"))
            for failures in range(3):
                assert len(messages) == failures
                assert all(message.startswith(f"{path} could not be written (") for message in messages)
                if hinder == "full":
                    path.with_suffix(".part").symlink_to("/dev/full")
                if failures < 2:
                    writer.save_checkpoint(NEW, path)
            with pytest.raises(ConfigError, match=r"could not be written .* 3 times in a row"):
                writer.save_checkpoint(NEW, path)

        assert in_fork(write) == 0
        assert_same(torch.load(path), OLD)
        assert [other.name for other in tmp_path.iterdir()] == ["last.ckpt"]

    @slow
    def test_a_run_continues_after_two_failed_writes(self, tmp_path, whole):
        def prepare():
            before_call(3, "training_step", lambda: room_for(20_000))()
            before_call(5, "training_step", lambda: room_for(resource.RLIM_INFINITY))()

        assert run_in_fork(tmp_path / "run", *SETUP, before=prepare) == 0
        assert_same_run(tmp_path / "run", whole)
        assert "could not be written (" in (tmp_path / "run" / "train.log").read_text()

    @slow
    def test_a_run_that_a_full_disk_ends_can_be_resumed(self, tmp_path, whole, capfd):
        run = tmp_path / "run"
        assert run_in_fork(run, *SETUP, before=before_call(3, "training_step", lambda: room_for(20_000))) == 1
        err = capfd.readouterr().err
        assert err.count("error: ") == err.count("3 times in a row; older ones are kept") == 1
        assert "Traceback" not in err
        assert continued(run) == 0
        assert_same_run(run, whole)

    @slow
    @pytest.mark.parametrize("count", range(7))
    def test_a_run_that_is_killed_at_a_rename_can_be_resumed(self, tmp_path, whole, count):
        run = tmp_path / "run"
        named = before_call(count, "replace", kill, owner=pathlib.Path)
        assert run_in_fork(run, *SETUP, before=named) == -signal.SIGKILL
        assert continued(run) == 0
        assert_same_run(run, whole)


class TestReading:
    @pytest.mark.parametrize("trials", [30, pytest.param(200, marks=slow)])
    def test_a_flipped_bit_is_detected_or_has_no_effect(self, killed, tmp_path, trials):
        path, random = tmp_path / "last.ckpt", Random(trials)
        content = (killed / "checkpoints" / "last.ckpt").read_bytes()
        path.write_bytes(content)
        expected, found = torch.load(path), 0
        for trial in range(trials):
            # Every other one in the names and numbers at the end, which say where in the file everything is.
            byte = random.randrange(len(content)) if trial % 2 else len(content) - 1 - random.randrange(5000)
            path.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << random.randrange(8)]) + content[byte + 1 :])
            try:
                read_checkpoint(path)
            except ConfigError:
                found += 1
            else:
                assert_same(torch.load(path), expected, f"byte {byte} of {len(content)}")
        assert found > trials / 2

    @pytest.mark.parametrize(
        "damage",
        ["truncated", *(pytest.param(name, marks=slow) for name in ("empty", "malicious pickle", "malicious"))],
    )
    def test_a_run_with_a_damaged_last_checkpoint_is_resumed_from_the_previous_one(self, run, whole, tmp_path, damage):
        last, marker = run / "checkpoints" / "last.ckpt", tmp_path / "marker"
        DAMAGES[damage][1](last, marker)
        ended = script("experiments/train.py", f"run={run}")
        assert ended.ok, ended.err
        log = (run / "train.log").read_text()
        assert f"{last}: " in log
        assert f"{run}/checkpoints/previous.ckpt" in log
        assert not marker.exists()
        assert_same_run(run, whole)

    def test_if_both_are_damaged_it_is_one_sentence(self, run, tmp_path):
        for name in ("last", "previous"):
            DAMAGES["truncated"][1](run / "checkpoints" / f"{name}.ckpt", tmp_path / "marker")
        ended = script("experiments/train.py", f"run={run}")
        assert_refused(ended, "ckpt_path=last: ", "ckpt_path=null")

    def test_without_validation_a_resumed_run_has_no_metrics_of_an_earlier_one(self, run):
        ended = script("experiments/train.py", f"run={run}", "trainer.limit_val_batches=0")
        assert ended.ok, ended.err
        assert not [name for name in metrics(run) if name.startswith(("val/", "best/"))]

    @pytest.mark.parametrize("target", ["os.system", pytest.param("torch.hub.load", marks=slow)])
    def test_a_resumed_run_calls_nothing_that_its_checkpoint_names(self, run, tmp_path, target):
        path = run / "checkpoints" / "last.ckpt"
        content = torch.load(path)
        content["description"]["config"]["model"] = {"_target_": target, "command": f"touch {tmp_path}/marker"}
        torch.save(content, path)
        ended = script("experiments/train.py", f"run={run}", f"ckpt_path={path}")
        assert ended.ok, ended.err  # by the config of its own command line
        assert not (tmp_path / "marker").exists()

    @slow
    def test_partial_files_of_a_killed_process_are_removed(self, run):
        for name in ("next.part", "best.part", "next.ckpt"):
            Path(run / "checkpoints" / name).write_bytes(b"half")
        assert script("experiments/train.py", f"run={run}").ok
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
