"""What README.md shows works: its code blocks, and the package of one's own, are run as they stand there."""

import csv
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

import perceiver
from perceiver.runtime.config import register_resolvers, resolved
from tests.pretrained.small import CONV, SMALL, small
from tests.runs import ROOT, composed, image_tree, metrics, script, trained

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
NAME = re.compile(r"(?:# @package _global_\n)?# (\S+\.(?:py|yaml))\n")
FILES = {name[1]: block for _, block in BLOCKS if (name := NAME.match(block))}
PYTHON = [block for language, block in BLOCKS if language == "python" and block not in FILES.values()]
COMMANDS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("python ../perceiver/")]


@pytest.mark.slow
def test_a_package_of_ones_own_is_trained_evaluated_used_inspected_and_resumed(tmp_path, monkeypatch):
    assert {path.split("/")[0] for path in FILES} == {"mylab", "conf"}
    assert [shlex.split(command)[1].rpartition("/")[2] for command in COMMANDS] == [
        *("train.py", "evaluate.py", "predict.py", "inspect_attention.py", "train.py"),
    ]
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    np.save(tmp_path / "wave.npy", np.sin(np.linspace(0, 10 * np.pi, 48))[None])
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        _, path, *arguments = shlex.split(command)
        ended = script(path.removeprefix("../perceiver/"), *arguments)
        assert ended.ok, ended.err
        assert "sample_name" not in ended.err, "samples of a list are known by their ids"
    run = tmp_path / "outputs" / "waves"
    assert metrics(run)["test/accuracy"] > 0.8
    (answer,) = json.loads((run / "predictions" / "predictions.json").read_text())
    assert answer["predictions"][0]["class"] == "fast"
    with (run / "metrics.csv").open() as file:
        norms = [row["val/latent_norm"] for row in csv.DictReader(file) if row["val/latent_norm"]]
    assert len(norms) == 6


def test_the_blocks_of_python_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = trained(
        tmp_path / "run",
        "attention.every_n_epochs=2",
        "model.memory.num_latents=7",
        "model.memory.cross_attention.num_heads=2",
    )
    (event,) = run.glob("attention/*.npz")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    small(CONV).save_pretrained(tmp_path / "published")
    assert len(PYTHON) == 8
    for split in ("train", "test"):
        ended = script("experiments/embed.py", f"run={run}", f"split={split}", f"out={tmp_path / split}.npz")
        assert ended.ok, ended.err
    names: dict[str, object] = {}
    for block in PYTHON:
        for shown, real in {
            "outputs/image_classification/…": run,
            "outputs/…/attention/step_00002399.npz": event,
            "cat.jpg": tmp_path / "cat.png",
            "train.npz": tmp_path / "train.npz",
            "test.npz": tmp_path / "test.npz",
            "attention": tmp_path / "attention",
            "vit_tiny_patch16_224": "test_vit",
            "cat_attention.png": tmp_path / "cat_attention.png",
            "deepmind/vision-perceiver-conv": tmp_path / "published",
        }.items():
            block = block.replace(f'"{shown}"', repr(str(real)))
        exec(block, names)
    assert names["logits"].shape == (1, SMALL["num_labels"])
    assert (tmp_path / "cat_attention.png").exists()
    assert (tmp_path / "attention" / "index.html").exists()
    loaded = perceiver.load(run)
    (answers,) = loaded.predict(tmp_path / "cat.png")
    assert {one["class"] for one in answers} <= set(loaded.class_names)


@pytest.mark.slow
def test_every_line_of_overrides_fits_what_it_builds(tmp_path):
    (block,) = (block for _, block in BLOCKS if block.startswith("# data and loader"))
    lines = [line.partition(" #")[0] for line in block.splitlines()]
    register_resolvers()
    image_tree(tmp_path)
    for line in (line for line in lines if line.strip() and not line.startswith(("#", "-m"))):
        with composed(*shlex.split(line.replace("PATH", str(tmp_path)))) as cfg:
            assert resolved(cfg), line
