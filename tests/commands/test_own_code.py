"""Data, encoder, schedule and callback of a package outside of this repository, from training to inspection."""

import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from perceiver.runtime.errors import ConfigError
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.trust import check_trust, is_trusted, untrusted_targets
from tests.kills import assert_same_run, continued, killed_at, run_in_fork
from tests.own_code import CHOICES, write_package
from tests.processes import TWO
from tests.runs import ROOT, SMALL, checkpoint, metrics, script

OWN = [
    *(override for override in SMALL if not override.startswith(("data=", "encoder@", "callbacks="))),
    *(*CHOICES, "loader.batch_size=13", "trainer.log_every_n_steps=1"),
]
TRUSTED = "trusted=[ownlab]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of a package, which a user would run commands in, with a finished run. Only read it."""
    folder = write_package(tmp_path_factory.mktemp("lab"), "ownlab")
    (folder / "notes.py").write_text("")  # nothing here takes the place of what is installed
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(folder)
        ended = script("experiments/train.py", *OWN, "--config-dir", "conf", "hydra.run.dir=run")
        assert ended.ok, ended.err
        Image.new("L", (8, 8)).save(folder / "black.png")
        yield folder


def test_a_run_is_tested_as_any_other_and_says_what_the_tools_will_need(lab):
    assert metrics(lab / "run").keys() >= {"best/val/accuracy", "test/accuracy"}
    assert f"need {TRUSTED}" in (lab / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    ("tool", "options"),
    [("evaluate", []), ("predict", ["inputs=[black.png]"]), ("inspect_attention", ["samples=2", "scored_samples=0"])],
)
def test_each_tool_opens_it_only_when_the_package_is_trusted(lab, tool, options):
    refused, opened = (script(f"experiments/{tool}.py", "run=run", *options, *more) for more in ([], [TRUSTED]))
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "ownlab.parts.Bars" in refused.err
    assert TRUSTED in refused.err
    assert opened.ok, opened.err
    if tool == "evaluate":
        evaluated = metrics(lab / "run", "evaluation")
        assert evaluated == {name: metrics(lab / "run")[name] for name in evaluated}


@pytest.mark.parametrize("place", ["--config-dir=lab/conf", "hydra.searchpath=[lab/conf]"])
def test_a_killed_run_goes_on_exactly_from_its_directory_alone(lab, tmp_path, monkeypatch, place):
    (tmp_path / "lab").symlink_to(lab)
    monkeypatch.syspath_prepend(str(lab))
    monkeypatch.chdir(tmp_path)
    assert run_in_fork(tmp_path / "run", place, setup=OWN, before=killed_at(4)) == -signal.SIGKILL
    monkeypatch.chdir(lab)
    assert continued(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", lab / "run")
    assert checkpoint(tmp_path / "run")["callbacks"]["Steps"]["count"] == 3 + 6


@pytest.mark.slow
def test_processes_that_lightning_or_a_sweep_start_and_their_workers_find_the_code(lab, tmp_path):
    options = [*OWN, *TWO, "trainer.max_epochs=1", "loader.num_workers=1", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, str(ROOT / "experiments/train.py"), *options, "--config-dir", "conf"]
    ended = subprocess.run(command, cwd=lab, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert metrics(tmp_path / "run")["test/accuracy"] >= 0
    sweep = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]  # each run is a command of its own
    ended = subprocess.run([*command, *sweep], cwd=lab, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert metrics(tmp_path / "sweep", "summary")["runs"] == 2


class TestTrust:
    def test_it_is_of_what_a_package_defines_and_not_of_what_it_imports(self, lab):
        assert is_trusted("ownlab.parts.Bars", ["ownlab"])
        assert is_trusted("ownlab.parts.halved", ["ownlab.parts"])
        for target in ("ownlab.parts.torch.load", "ownlab.parts.torch.os.system", "ownlab.parts.nope", "ownlabx.parts"):
            assert not is_trusted(target, ["ownlab"])
        assert not is_trusted("ownlab.parts.Bars", ["ownlab.other", "own"])

    @pytest.mark.parametrize("package", ["os", "builtins", "torch", "subprocess.run", "hydra.utils"])
    def test_what_could_run_anything_is_never_trusted(self, lab, package):
        ended = script("experiments/evaluate.py", "run=run", f"trusted=[{package}]")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert f"trusted=[{package}]" in ended.err

    @pytest.mark.parametrize(
        "node",
        [
            {"_target_": "os.system", "command": "true"},
            {"_target_": "ownlab.parts.torch.hub.load", "_partial_": True},
            {"_target_": "ownlab.parts.halved", "_args_": [{"_target_": "builtins.eval", "_args_": ["1"]}]},
        ],
    )
    def test_trust_in_a_package_opens_nothing_else(self, lab, tmp_path, node):
        content = torch.load(lab / "run" / "checkpoints" / "best.ckpt")
        content["description"]["config"]["model"]["encoders"]["image"]["stem"]["dim"] = node
        torch.save(content, tmp_path / "x.ckpt")
        config = read_checkpoint(tmp_path / "x.ckpt").config
        with pytest.raises(ConfigError, match=r"model\.encoders\.image\.stem\.dim.* no class of"):
            check_trust(config, ["ownlab"], tmp_path / "x.ckpt")
        assert [] in untrusted_targets(config).values()

    def test_an_interpolation_in_a_checkpoint_is_refused(self, lab, tmp_path):
        """It could make a node that only the resolver shows."""
        content = torch.load(lab / "run" / "checkpoints" / "best.ckpt")
        content["description"]["config"]["seed"] = "${oc.create:'{_target_: os.getcwd}'}"
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ConfigError, match="interpolation"):
            read_checkpoint(tmp_path / "x.ckpt")
