"""Source, encoder, schedule and callback of a package outside of this repository, from training to inspection."""

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
from tests.runs import ROOT, SMALL, assert_refused, checkpoint, metrics, script

OWN = [
    *(override for override in SMALL if not override.startswith(("data=", "encoder@", "callbacks="))),
    *(*CHOICES, "loader.batch_size=13", "trainer.log_every_n_steps=1"),
]
TRUSTED = "trusted=[ownlab]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The working directory of a user with a package and a finished run. Read-only."""
    folder = write_package(tmp_path_factory.mktemp("lab"), "ownlab")
    (folder / "notes.py").write_text("")  # does not replace an installed module
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(folder)
        ended = script("experiments/train.py", *OWN, "--config-dir", "conf", "hydra.run.dir=run")
        assert ended.ok, ended.err
        Image.new("L", (8, 8)).save(folder / "black.png")
        yield folder


@pytest.fixture
def changed_checkpoint(lab, tmp_path):
    """Writes a checkpoint with a changed config."""

    def write(change):
        content = torch.load(lab / "run" / "checkpoints" / "best.ckpt")
        change(content["description"]["config"])
        torch.save(content, tmp_path / "x.ckpt")
        return tmp_path / "x.ckpt"

    return write


@pytest.mark.parametrize(
    ("tool", "options"),
    [("evaluate", []), ("predict", ["inputs=[black.png]"]), ("inspect_attention", ["samples=2", "scored_samples=0"])],
)
def test_each_tool_loads_the_run_only_if_the_package_is_trusted_as_its_log_says(lab, tool, options):
    assert f"need {TRUSTED}" in (lab / "run" / "train.log").read_text()
    refused, loaded = (script(f"experiments/{tool}.py", "run=run", *options, *more) for more in ([], [TRUSTED]))
    assert_refused(refused, "ownlab.parts.Bars", TRUSTED)
    assert loaded.ok, loaded.err
    if tool == "evaluate":
        evaluated = metrics(lab / "run", "evaluation")
        assert evaluated == {name: metrics(lab / "run")[name] for name in evaluated}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["--config-dir=lab/conf", "hydra.searchpath=[lab/conf]"])
def test_a_killed_run_is_resumed_exactly_from_its_directory_alone(lab, tmp_path, monkeypatch, place):
    (tmp_path / "lab").symlink_to(lab)
    monkeypatch.syspath_prepend(str(lab))
    monkeypatch.chdir(tmp_path)
    assert run_in_fork(tmp_path / "run", place, setup=OWN, before=killed_at(4)) == -signal.SIGKILL
    monkeypatch.chdir(lab)
    assert continued(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", lab / "run")
    assert checkpoint(tmp_path / "run")["callbacks"]["Steps"]["count"] == 3 + 6


@pytest.mark.slow
def test_processes_and_workers_that_lightning_or_a_sweep_start_find_the_code(lab, tmp_path):
    options = [*OWN, *TWO, "trainer.max_epochs=1", "loader.num_workers=1", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, str(ROOT / "experiments/train.py"), *options, "--config-dir", "conf"]
    sweep = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]  # each run is a command of its own
    for more in ([], sweep):
        ended = subprocess.run([*command, *more], cwd=lab, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
    assert metrics(tmp_path / "run")["test/accuracy"] >= 0
    assert metrics(tmp_path / "sweep", "summary")["runs"] == 2


def test_a_package_is_trusted_for_what_it_defines_and_not_for_what_it_imports(lab):
    assert is_trusted("ownlab.parts.Bars", ["ownlab"])
    assert is_trusted("ownlab.parts.halved", ["ownlab.parts"])
    for target in ("ownlab.parts.torch.load", "ownlab.parts.torch.os.system", "ownlab.parts.nope", "ownlabx.parts"):
        assert not is_trusted(target, ["ownlab"])
    assert not is_trusted("ownlab.parts.Bars", ["ownlab.other", "own"])


def test_packages_that_execute_their_arguments_are_never_trusted(lab):
    assert_refused(script("experiments/evaluate.py", "run=run", "trusted=[os]"), "trusted=[os]")
    for package in ("os", "builtins", "torch", "subprocess.run", "hydra.utils"):
        with pytest.raises(ConfigError, match=rf"^trusted=\[{package}\]"):
            check_trust({}, [package], lab)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "ownlab.parts.torch.hub.load", "_partial_": True},
        {"_target_": "ownlab.parts.halved", "_args_": [{"_target_": "builtins.eval", "_args_": ["1"]}]},
    ],
)
def test_trust_in_a_package_allows_no_other_target(changed_checkpoint, node):
    path = changed_checkpoint(lambda config: config["model"]["encoders"]["image"]["stem"].update(dim=node))
    config = read_checkpoint(path).config
    with pytest.raises(ConfigError, match=r"model\.encoders\.image\.stem\.dim.* no class of"):
        check_trust(config, ["ownlab"], path)
    assert [] in untrusted_targets(config).values()


def test_an_interpolation_in_a_checkpoint_is_refused(changed_checkpoint):
    """Its resolver could create a target."""
    path = changed_checkpoint(lambda config: config.update(seed="${oc.create:'{_target_: os.getcwd}'}"))
    with pytest.raises(ConfigError, match="interpolation"):
        read_checkpoint(path)
