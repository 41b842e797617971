"""A checkpoint from anywhere is read without running anything in it."""

import json
import logging
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError
from perceiver.tokenizer import WordTokenizer
from perceiver.training.build import DataInfo, build, construct, log_tokenizer_coverage
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.trust import is_trusted
from tests.runs import CAPTIONING, SMALL, composed, script


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def truncated(path, marker):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path, marker):
    path.write_bytes(b"")


def a_text(path, marker):
    path.write_text("not a checkpoint")


def an_archive_of_something_else(path, marker):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def a_malicious_pickle(path, marker):
    path.write_bytes(pickle.dumps({"description": Malicious(marker), "state_dict": {}}))


def a_malicious_checkpoint(path, marker):
    torch.save({"description": {"config": {}, "class_names": []}, "state_dict": Malicious(marker)}, path)


def weights_alone(path, marker):
    torch.save(torch.load(path)["state_dict"], path)


def no_description(path, marker):
    torch.save({**torch.load(path), "description": {}}, path)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of a run, and a file that must never come to be."""
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run", tmp_path / "marker"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((spoil, "the file is damaged or no checkpoint (") for spoil in (truncated, emptied, a_text)),
        (a_malicious_pickle, "the file is damaged or no checkpoint ("),
        *((spoil, "not a readable checkpoint of a run (") for spoil in (an_archive_of_something_else, weights_alone)),
        *((spoil, "not a readable checkpoint of a run (") for spoil in (a_malicious_checkpoint, no_description)),
    ],
)
def test_a_damaged_or_foreign_checkpoint_ends_in_one_sentence_and_nothing_in_it_runs(copied, damage, said):
    run, marker = copied
    path = run / "checkpoints" / "best.ckpt"
    damage(path, marker)
    ended = script("experiments/evaluate.py", f"run={run}")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {path}: {said}")
    assert ended.err.count("\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize(
    ("place", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch MARKER"}),
        ("task", {"_target_": "builtins.eval", "_args_": ["open('MARKER', 'w')"]}),
        ("planted", [{"_target_": "subprocess.run", "args": ["touch", "MARKER"]}]),
        ("optimizer", {"_target_": "perceiver.commands.train.write_metrics", "metrics": {}, "path": "MARKER"}),
        ("schedule", {"_target_": "perceiver.training.build.torch.save", "obj": {}, "f": "MARKER"}),
        ("data", {"_target_": "torch.hub.load", "repo_or_dir": "MARKER", "model": "x", "source": "local"}),
    ],
)
def test_a_checkpoint_whose_config_calls_what_is_not_trusted_is_refused_and_nothing_runs(copied, place, node):
    run, marker = copied
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path)
    planted = json.loads(json.dumps(node).replace("MARKER", str(marker)))
    content["description"]["config"][place] = planted
    torch.save(content, path)
    ended = script("experiments/evaluate.py", f"run={run}")
    target = (planted[0] if isinstance(planted, list) else planted)["_target_"]
    assert ended.code == 1
    assert ended.err.startswith(f"error: {path}: its config builds {target!r}")
    assert not marker.exists()


def test_every_target_of_a_run_is_trusted(run):
    read_checkpoint(run / "checkpoints" / "last.ckpt")
    for target in ("perceiver.training.optimization.constant", "timm.optim.Lamb", "torch.nn.GELU"):
        assert is_trusted(target)
    for target in ("lightning.pytorch.callbacks.EMAWeightAveraging", "lightning.pytorch.Trainer"):
        assert is_trusted(target)


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.nn.Nope", "perceiver.model.torch.load"),
        *(
            "perceiver.commands.train.shutil.rmtree",
            "perceiver.data.sources.cifar.read_pickle",
            "perceiver_evil.Model",
            "",
        ),
    ],
)
def test_other_names_are_not(target):
    assert not is_trusted(target)


def test_what_a_constructor_refuses_is_said_with_the_key():
    with composed(*SMALL) as cfg:
        config = resolved(cfg)
    config["model"]["encoders"]["image"]["mean"] = [0.1, 0.2]
    with pytest.raises(ConfigError, match=r"^model\.encoders\.image\.mean=\[0\.1, 0\.2\] must be"):
        construct(config, "model")


def test_a_run_is_built_without_its_data_where_the_class_names_are_known(tmp_path):
    with composed(*SMALL, "data=image_folder", f"data.root={tmp_path}/gone", "data.num_classes=3") as cfg:
        parts = build(resolved(cfg), DataInfo(["cat", "dog", "eel"], None))
    assert parts.model({"image": torch.rand(2, 3, 32, 32)})["logits"].shape == (2, 3)


def test_one_tokenizer_is_for_all_tasks():
    task = ["task=joint", *(f"+task@task.tasks.{name}=captioning" for name in ("short", "long"))]
    outputs = [f"task.tasks.{name}.output={name}/logits" for name in ("short", "long")]
    decoder = [
        "decoder@model.decoder=joint",
        *(f"+decoder@model.decoder.decoders.{one}=text" for one in ("short", "long")),
    ]
    heads = [
        f"model.decoder.decoders.{name}.{kind}_attention.num_heads=1"
        for name in ("short", "long")
        for kind in ("self", "cross")
    ]
    data = [one for one in CAPTIONING if one.startswith(("data", "tokenizer"))]
    with composed(*SMALL, *data, *task, *outputs, *decoder, *heads) as cfg:
        parts = build(resolved(cfg))
    assert parts.tokenizer.is_trained
    assert all(one.tokenizer is parts.tokenizer for one in parts.task.tasks.values())


class TestWhatTheTokenizerLoses:
    def told(self, caplog, texts, **options) -> list[tuple[int, str]]:
        tokenizer = WordTokenizer(
            **{"vocab_size": 53, "max_length": 7, "lowercase": True, "min_frequency": 1} | options
        )
        tokenizer.train(texts)
        caplog.set_level(logging.INFO)
        log_tokenizer_coverage(tokenizer, texts)
        return [(record.levelno, record.message) for record in caplog.records]

    def test_both_shares_are_told_in_one_line_where_they_are_small(self, caplog):
        ((level, text),) = self.told(caplog, ["a red star", "a blue star"])
        assert level == logging.INFO
        assert text.count("0.0 %") == 2

    @pytest.mark.parametrize(
        ("options", "share", "key"),
        [
            ({"min_frequency": 2}, "33.3 %", "tokenizer.min_frequency, now 2"),
            ({"vocab_size": 5}, "66.7 %", "tokenizer.vocab_size, now 5"),
            ({"max_length": 3}, "100.0 %", "tokenizer.max_length=5"),
        ],
    )
    def test_much_is_warned_of_with_the_key_that_mends_it(self, caplog, options, share, key):
        (_, line), (level, text) = self.told(caplog, ["a red star", "a blue star"], **options)
        assert share in line
        assert level == logging.WARNING
        assert share in text
        assert key in text
