"""Starts of runs: one directory for all processes, and the command line of a resumed run."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from perceiver.runtime import launch
from perceiver.runtime.command_line import expand_run, options_and_overrides
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import is_restarted, run_name
from perceiver.runtime.overrides import quoted
from perceiver.training.module import TrainingModule
from tests.kills import assert_same_run, killed_at
from tests.processes import TWO, queued_again, restarted, script_on, slurm, torchrun, train_on, trained_on
from tests.runs import SMALL, assert_refused, checkpoint, metrics, script

slow = pytest.mark.slow
SHORT = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "options"),
        [
            ("seed=3 --cfg job", "--cfg job"),
            ("-c job seed=3 --package trainer", "-c job --package trainer"),
            ("--config-dir=mine seed=3 -m", "--config-dir mine -m"),
            ("seed=3 --info", "--info all"),
            ("--info config seed=3", "--info config"),
            ("-i seed=3", "-i all"),
            ("seed=3", ""),
        ],
    )
    def test_they_may_be_on_either_side_of_the_overrides(self, arguments, options):
        assert options_and_overrides(arguments.split()) == (options.split(), ["seed=3"])


class TestRunName:
    @pytest.mark.parametrize("environment", [slurm, torchrun])
    def test_all_processes_have_the_same_also_after_a_restart(self, monkeypatch, environment):
        found = set()
        for rank, again in ((0, False), (1, False), (1, True)):
            with monkeypatch.context() as inside:
                values = {slurm: queued_again, torchrun: restarted}[environment] if again else environment
                for name, value in values(rank, 2, 29500).items():
                    inside.setenv(name, value)
                found.add(run_name())
                assert is_restarted() == again
        assert len(found) == 1

    def test_it_tells_jobs_steps_and_rendezvous_apart(self, monkeypatch):
        environment = slurm(0, 2, 29500)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run_name() == "slurm_1234567.0"
        monkeypatch.delenv("SLURM_STEP_ID")
        assert run_name() == "slurm_1234567"
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")  # torchrun, which SLURM has started
        assert run_name() == "torchrun_mine"

    def test_several_machines_need_a_name_in_common(self, monkeypatch):
        for name, value in torchrun(0, 4, 29500).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="--rdzv-id=NAME"):
            run_name()

    def test_two_runs_started_in_the_same_second_differ(self):
        assert run_name() != run_name()


@pytest.fixture
def run_dir(tmp_path):
    """A run directory whose name needs quotes."""
    run = tmp_path / "a = 'b' [c] {d}, \"é\""
    (run / ".hydra").mkdir(parents=True)
    overrides = ["data=digits", "optimizer.lr=0.01", "+trainer.val_check_interval=2", "~model.encoders.image", "seed=3"]
    OmegaConf.save(OmegaConf.create([*overrides, "ckpt_path=before.ckpt"]), run / ".hydra" / "overrides.yaml")
    return run


class TestExpandRun:
    def test_it_is_replaced_by_overrides_and_directory_of_the_run(self, run_dir):
        asked = f"run={quoted(str(run_dir))}"
        found = expand_run([asked, "seed=7", "trainer.val_check_interval=3"])
        assert found[:3] == ["data=digits", "optimizer.lr=0.01", "~model.encoders.image"]
        assert found[3:6] == ["seed=7", "trainer.val_check_interval=3", "ckpt_path=last"]
        assert found[6:] == ["hydra.mode=RUN", f"hydra.run.dir={quoted(str(run_dir))}"]

    def test_another_checkpoint_may_be_given_and_a_relative_directory(self, run_dir, monkeypatch):
        monkeypatch.chdir(run_dir.parent)
        run_dir.rename(run_dir.parent / "run")
        found = expand_run(["run=run", "ckpt_path=other.ckpt"])
        assert [argument for argument in found if "ckpt_path" in argument] == ["ckpt_path=other.ckpt"]
        assert found[-1] == f'hydra.run.dir="{run_dir.parent / "run"}"'

    def test_without_it_nothing_changes(self):
        assert expand_run(["seed=7", "-m"]) == ["seed=7", "-m"]

    def test_a_run_that_cannot_be_resumed_is_one_sentence(self, run_dir):
        assert_refused(script("experiments/train.py", "run=nowhere"), "no run directory")
        ended = script("experiments/train.py", f"run={quoted(str(run_dir))}", "--multirun")
        assert_refused(ended, "leave out -m")


@pytest.mark.parametrize(
    ("group", "plugin", "choice"), [("launcher", "submitit_slurm", "slurm"), ("sweeper", "optuna", "optuna")]
)
def test_a_missing_plugin_is_named_with_its_extra(monkeypatch, group, plugin, choice):
    Plugins.instance()  # have them found
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{plugin}.yaml")
    assert_refused(script("experiments/train.py", f"{group}={choice}"), f"uv run --extra {choice}")


class Forks:
    """A command that a sweep starts, run in two forked processes that record their learning rates."""

    def __init__(self, command, **options):
        assert {"cwd", "preexec_fn"} == options.keys()
        _, path, *arguments = command
        learned = [Path(command[-1].partition("=")[2].strip('"')) / f"rate{rank}" for rank in (0, 1)]

        def before(rank):
            GlobalHydra.instance().clear()
            original = TrainingModule.configure_optimizers

            def configure_optimizers(self):
                found = original(self)
                learned[rank].write_text(str(found["optimizer"].defaults["lr"]))
                return found

            TrainingModule.configure_optimizers = configure_optimizers

        both = script_on(2, path, *arguments, before=before)
        sys.stderr.writelines({ended.err for ended in both})
        self.status = max(ended.code for ended in both)

    def wait(self):
        return self.status


def swept(folder, *overrides):
    options = [*SMALL, *SHORT, "loader.batch_size=26", *TWO]
    return script("experiments/train.py", "-m", f"hydra.sweep.dir={folder}", *options, *overrides)


def rates(folder):
    """The learning rates of each run's two processes."""
    return {
        run.name: tuple(float((run / f"rate{rank}").read_text()) for rank in (0, 1))
        for run in folder.iterdir()
        if (run / "rate0").exists()
    }


@slow
class TestSweeps:
    """Sweeps of runs that start their other processes themselves."""

    @pytest.fixture(autouse=True)
    def _forks(self, monkeypatch):
        monkeypatch.setattr(launch.subprocess, "Popen", Forks)

    def test_all_processes_of_a_run_have_its_parameters_and_a_failure_is_named(self, tmp_path):
        ended = swept(tmp_path, "optimizer.lr=0.01,-1,0.02")
        assert rates(tmp_path) == {"0": (0.01, 0.01), "2": (0.02, 0.02)}
        assert ended.code == 1
        assert "error: 1 of 3 runs failed: 1 optimizer.lr=-1" in ended.err
        assert metrics(tmp_path, "summary")["failed"] == ["1"]
        for name in ("0", "2"):
            assert OmegaConf.load(tmp_path / name / ".hydra" / "overrides.yaml")
            assert metrics(tmp_path / name)["test/accuracy"] >= 0

    def test_runs_of_one_and_of_two_processes_follow_each_other(self, tmp_path):
        ended = swept(tmp_path, "trainer.strategy=auto", "trainer.devices=1,2,1", "optimizer.lr=0.01")
        assert ended.ok, ended.err
        assert rates(tmp_path) == {"1": (0.01, 0.01)}
        assert metrics(tmp_path, "summary")["runs"] == 3
        assert metrics(tmp_path / "0")["val/loss"] == metrics(tmp_path / "2")["val/loss"]

    def test_a_search_gives_all_processes_the_same_and_reads_their_score(self, tmp_path):
        search = ["sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.02)"]
        ended = swept(tmp_path, *search)
        assert ended.ok, ended.err
        found = rates(tmp_path)
        assert all(first == second for first, second in found.values())
        assert len({first for first, _ in found.values()}) == 2
        best = max(metrics(tmp_path / name)["best/val/accuracy"] for name in found)
        assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_value == pytest.approx(best)

    def test_a_sweep_that_a_signal_ends_starts_no_other_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Forks, "wait", lambda self: 143)
        ended = swept(tmp_path, "optimizer.lr=0.01,0.02")
        assert ended.code == 143
        assert not (tmp_path / "1").exists()


@slow
def test_all_processes_of_torchrun_do_all_runs_of_a_sweep(tmp_path):
    options = [*SMALL, *SHORT, "loader.batch_size=26", *TWO, "optimizer.lr=0.01,0.02"]
    both = script_on(2, "experiments/train.py", "-m", f"hydra.sweep.dir={tmp_path}", *options)
    assert [ended.code for ended in both] == [0, 0], [ended.err for ended in both]
    assert metrics(tmp_path, "summary")["runs"] == 2
    assert [checkpoint(tmp_path / name)["description"]["config"]["optimizer"]["lr"] for name in "01"] == [0.01, 0.02]


OF_TWO = ["trainer.log_every_n_steps=1", "loader.batch_size=26", "checkpointing.every_n_steps=2"]


@slow
def test_a_run_that_torchrun_or_slurm_restarts_is_resumed(tmp_path, monkeypatch):
    stub = tmp_path / "bin" / "scontrol"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    whole = trained_on(2, tmp_path / "whole", *OF_TWO)
    killed = train_on(2, tmp_path / "killed", *OF_TWO, before=lambda rank: rank or killed_at(4)())
    assert killed[0].code == -signal.SIGKILL
    assert killed[1].code not in (0, -signal.SIGKILL)
    assert not (tmp_path / "asked").exists()
    trained_on(2, tmp_path / "killed", *OF_TWO, environment=restarted)
    assert_same_run(tmp_path / "killed", whole)

    def before(rank):
        if rank == 1:
            killed_at(4, "training_step", signal.SIGUSR1)()

    both = train_on(2, tmp_path / "slurm", *OF_TWO, environment=slurm, before=before)
    assert [ended.code for ended in both] == [143, 143], [ended.err for ended in both]
    assert (tmp_path / "asked").read_text() == "requeue 1234567\n"
    trained_on(2, tmp_path / "slurm", *OF_TWO, environment=queued_again)
    assert_same_run(tmp_path / "slurm", whole)
