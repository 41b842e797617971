"""The example of CONTRIBUTING.md: its files are written as they stand there, fit the contract, and train."""

import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from perceiver.runtime.config import resolved
from perceiver.training.build import construct
from scripts.data_trees import write_sound
from tests.runs import ROOT, composed, metrics, script
from tests.test_contract import check_built, check_masks, missing_keywords

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE))
SPECIES = ("finch", "owl", "wren")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The files in a folder, from which they are imported as if they were in the repository."""
    for path, content in FILES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        if file.suffix == ".py":
            parent = importlib.import_module(".".join(Path(path).parent.parts))
            monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(file.parent)])
            monkeypatch.delitem(sys.modules, f"{parent.__name__}.{file.stem}", raising=False)
    return tmp_path


def bird_tree(root: Path) -> Path:
    """Clips of three species, of which the first has no photograph and the second no song."""
    (root / "photos").mkdir(parents=True)
    rows = [
        (f"{stage}{number}", stage, SPECIES[number % 3], 10.0 + number)
        for stage, count in (("train", 11), ("val", 5), ("test", 3))
        for number in range(count)
    ]
    for number, (clip, *_) in enumerate(rows):
        if number != 0:
            Image.new("RGB", (13, 11), (13 * number, 0, 0)).save(root / "photos" / f"{clip}.jpg")
        if number != 1:
            write_sound(root / "songs" / f"{clip}.wav")
    with (root / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("clip", "split", "species", "grams"), *rows])
    return root


def test_its_files_fit_the_contract_and_train(package, tmp_path):
    root, conf, run = bird_tree(tmp_path / "birds"), tmp_path / "conf", tmp_path / "run"
    overrides = ["experiment=birds", f"data.root={root}", "trainer=cpu", "data.image_size=8"]
    with composed(*overrides, "+encoder@model.encoders.points=points", f"hydra.searchpath=[file://{conf}]") as cfg:
        config = resolved(cfg)
    assert missing_keywords(config) == []
    check_built(config, tmp_path)
    check_masks(construct(config["model"]["encoders"], "points"))
    small = ["logger.mode=disabled", "loader.num_workers=0", "loader.batch_size=5", "trainer.max_epochs=1"]
    sizes = ["model.memory.dim=16", "model.memory.num_latents=3", "attention.every_n_epochs=1"]
    arguments = [f"--config-dir={conf}", f"hydra.run.dir={run}", *overrides, *small, *sizes]
    ended = script("experiments/train.py", *arguments)
    assert ended.ok, ended.err
    assert metrics(run).keys() >= {"test/species/accuracy", "test/weight/absolute_error"}
