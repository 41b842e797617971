"""Sweeps and single runs as jobs of a cluster, of which this machine plays all parts."""

import os
import signal
import subprocess
import sys

import pytest

from tests import slurm
from tests.kills import rows
from tests.processes import TWO, until
from tests.runs import ROOT, SMALL, checkpoint, metrics

STEPS = ["trainer.max_epochs=20", "trainer.log_every_n_steps=1", "loader.batch_size=26", "trainer.limit_val_batches=1"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = slurm.install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE_RUN", str(tmp_path / "0"))
    return folder.parent


def assert_whole(run):
    """It took all its steps, each once."""
    assert checkpoint(run)["global_step"] == 60
    assert [int(row["step"]) for row in rows(run) if "train/loss_step" in row] == list(range(60))
    assert metrics(run)["test/accuracy"] >= 0


@pytest.mark.slow
def test_each_run_of_a_sweep_is_a_job_that_is_queued_again_and_goes_on(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_FAKE_SIGNAL", str(int(signal.SIGUSR2)))  # which is what submitit asks for
    options = [f"hydra.sweep.dir={tmp_path}", "launcher=slurm", *SMALL, *STEPS, *TWO, "optimizer.lr=0.01,0.02"]
    command = [sys.executable, "experiments/train.py", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr + (cluster / "out").read_text()
    assert metrics(tmp_path, "summary")["runs"] == 2
    for name, rate in (("0", 0.01), ("1", 0.02)):
        assert_whole(tmp_path / name)
        assert checkpoint(tmp_path / name)["description"]["config"]["optimizer"]["lr"] == rate
    assert "SIGUSR2: the run ends at step" in (tmp_path / "0" / "train.log").read_text()


@pytest.mark.slow
def test_the_script_is_a_job_that_is_queued_again_and_goes_on(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_FAKE_SIGNAL", str(int(signal.SIGUSR1)))
    run, script = tmp_path / "0", tmp_path / "two.sbatch"
    text = (ROOT / "scripts" / "slurm.sbatch").read_text()
    assert "--signal=USR1@" in text
    text = text.replace("--ntasks-per-node=8", "--ntasks-per-node=2").replace("uv run --no-sync", sys.executable)
    options = [f"hydra.run.dir={run}", *SMALL, *STEPS, *TWO]
    script.write_text(text.replace('"$@"', " ".join(f"'{option}'" for option in options)))
    subprocess.run(["sbatch", script], cwd=ROOT, check=True)
    until(lambda: bool(list(cluster.glob("done_*"))))
    assert (run / "metrics.json").exists(), (cluster / "out").read_text()
    assert_whole(run)
    log = (run / "train.log").read_text()
    assert "SIGUSR1: the run ends at step" in log
    assert "is requeued" in log
