"""Runs built from configs, and checkpoints that are read without executing anything in them."""

import json
import logging
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.nodes import targets
from perceiver.tokenizer import WordTokenizer
from perceiver.training import trust
from perceiver.training.build import DataInfo, build, construct, log_tokenizer_coverage
from perceiver.training.trust import check_trust, is_trusted
from tests.runs import CAPTIONING, CONF, SMALL, assert_refused, composed, script


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


DAMAGED, UNREADABLE = "the file is damaged or no checkpoint (", "not a readable checkpoint of a run ("
DAMAGES = {
    "truncated": (DAMAGED, lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    "empty": (DAMAGED, lambda path, _: path.write_bytes(b"")),
    "text": (DAMAGED, lambda path, _: path.write_text("not a checkpoint")),
    "malicious pickle": (DAMAGED, lambda path, marker: path.write_bytes(pickle.dumps({"a": Malicious(marker)}))),
    "other zip": (UNREADABLE, lambda path, _: write_zip(path)),
    "malicious": (UNREADABLE, lambda path, marker: torch.save({"description": Malicious(marker)}, path)),
    "weights alone": (UNREADABLE, lambda path, _: torch.save(torch.load(path)["state_dict"], path)),
    "no description": (UNREADABLE, lambda path, _: torch.save({**torch.load(path), "description": {}}, path)),
}


@pytest.fixture
def copied(run, tmp_path):
    """A copy of a run, its best checkpoint, and a file that must not be created."""
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "marker"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_executes_nothing(copied, damage):
    run, path, marker = copied
    reason, write = DAMAGES[damage]
    write(path, marker)
    assert_refused(script("experiments/evaluate.py", f"run={run}"), f"error: {path}: {reason}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch MARKER"}),
        ("task", {"_target_": "builtins.eval", "_args_": ["open('MARKER', 'w')"]}),
        ("planted", [{"_target_": "subprocess.run", "args": ["touch", "MARKER"]}]),
        ("optimizer", {"_target_": "perceiver.commands.train.write_metrics", "metrics": {}, "path": "MARKER"}),
        ("schedule", {"_target_": "perceiver.training.build.torch.save", "obj": {}, "f": "MARKER"}),
        ("data", {"_target_": "torch.hub.load", "repo_or_dir": "MARKER", "model": "x", "source": "local"}),
    ],
)
def test_a_config_with_an_untrusted_target_is_refused_and_executes_nothing(copied, key, node):
    run, path, marker = copied
    content = torch.load(path)
    content["description"]["config"][key] = json.loads(json.dumps(node).replace("MARKER", str(marker)))
    torch.save(content, path)
    target = (node[0] if isinstance(node, list) else node)["_target_"]
    assert_refused(script("experiments/evaluate.py", f"run={run}"), f"error: {path}: its config builds {target!r}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("target", "trusted"),
    [
        *((target, True) for target in ("timm.optim.Lamb", "timm.optim.Adan")),
        ("perceiver.training.optimization.constant", True),
        *((target, True) for target in ("torch.nn.GELU", "lightning.pytorch.callbacks.EMAWeightAveraging")),
        ("lightning.pytorch.Trainer", True),
        *((target, False) for target in ("os.system", "builtins.eval", "torch.load", "torch.hub.load", "")),
        *((target, False) for target in ("torch.nn.Nope", "perceiver.model.torch.load", "perceiver_evil.Model")),
        *((f"perceiver.{name}", False) for name in ("commands.train.shutil.rmtree", "data.sources.cifar.read_pickle")),
    ],
)
def test_trust(target, trusted):
    assert is_trusted(target) == trusted


def test_classes_known_by_name_are_those_of_conf_that_need_lightning_or_timm_and_pass_the_whole_check(monkeypatch):
    known = trust.TRAINING_CLASSES
    monkeypatch.setattr(trust, "TRAINING_CLASSES", frozenset())
    assert [target for target in sorted(known) if not is_trusted(target)] == []
    groups = ("trainer", "callbacks", "logger", "checkpointing", "attention", "optimizer")
    files = [path for group in groups for path in (CONF / group).rglob("*.yaml")]
    nodes = [node for path in files for _, node in targets(OmegaConf.to_container(OmegaConf.load(path)))]
    found = {node["_target_"] for node in nodes}
    assert known <= found
    light = ("perceiver.inspection.", "perceiver.runtime.signals.", "torch.optim.")
    assert {target for target in found - known if not target.startswith(light)} == set()


def test_errors_of_a_constructor_name_the_key():
    with composed(*SMALL) as cfg:
        config = resolved(cfg)
    config["model"]["encoders"]["image"]["mean"] = [0.1, 0.2]
    with pytest.raises(ConfigError, match=r"^model\.encoders\.image\.mean=\[0\.1, 0\.2\] must be"):
        construct(config, "model")


def test_a_class_that_this_version_lacks_is_not_called_untrusted(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.ckpt.*perceiver\.model\.Gone.* as model, .*version"):
        check_trust({"model": {"_target_": "perceiver.model.Gone"}}, [], tmp_path / "run.ckpt")


def test_a_run_is_built_without_its_data_if_the_class_names_are_known(tmp_path):
    with composed(*SMALL, "data=image_folder", f"data.root={tmp_path}/gone", "data.num_classes=3") as cfg:
        parts = build(resolved(cfg), DataInfo(["cat", "dog", "eel"], None))
    assert parts.model({"image": torch.rand(2, 3, 32, 32)})["logits"].shape == (2, 3)


def test_all_tasks_share_one_tokenizer():
    overrides = ["task=joint", "decoder@model.decoder=joint"]
    for name in ("short", "long"):
        overrides += [f"+task@task.tasks.{name}=captioning", f"task.tasks.{name}.output={name}/logits"]
        overrides += [f"+decoder@model.decoder.decoders.{name}=text"]
        overrides += [f"model.decoder.decoders.{name}.{kind}_attention.num_heads=1" for kind in ("self", "cross")]
    data = [one for one in CAPTIONING if one.startswith(("data", "tokenizer"))]
    with composed(*SMALL, *data, *overrides) as cfg:
        parts = build(resolved(cfg))
    assert parts.tokenizer.is_trained
    assert all(one.tokenizer is parts.tokenizer for one in parts.task.tasks.values())


@pytest.mark.parametrize(
    ("options", "percentage", "key"),
    [
        ({}, "0.0 %", None),
        ({"min_frequency": 2}, "33.3 %", "tokenizer.min_frequency, now 2"),
        ({"vocab_size": 5}, "66.7 %", "tokenizer.vocab_size, now 5"),
        ({"max_length": 3}, "100.0 %", "tokenizer.max_length=5"),
    ],
    ids=str,
)
def test_losses_of_the_tokenizer_are_logged_and_warned_of_with_the_key_to_change(caplog, options, percentage, key):
    texts = ["a red star", "a blue star"]
    tokenizer = WordTokenizer(**{"vocab_size": 53, "max_length": 7, "lowercase": True, "min_frequency": 1} | options)
    tokenizer.train(texts)
    caplog.set_level(logging.INFO)
    log_tokenizer_coverage("tokenizer", tokenizer, texts)
    info, *warnings = caplog.records
    assert percentage in info.message
    assert len(warnings) == (key is not None)
    for warning in warnings:
        assert warning.levelno == logging.WARNING
        assert percentage in warning.message
        assert key in warning.message
