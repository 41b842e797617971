"""The script that writes shards."""

import shlex

import pytest

from perceiver.data.sources.shards import Shards
from scripts import data_trees
from tests.data.datasets import dataset, sizes
from tests.runs import assert_refused, image_tree, script, train

SCENES = ["data=shape_scenes", "data.num_samples={train: 5, val: 2, test: 0}", "data.image_size=31"]


def write(tmp_path, *overrides: str):
    return script("scripts/write_shards.py", f"out={tmp_path}/out", *overrides)


def test_it_writes_all_stages_and_a_summary_and_never_overwrites(tmp_path):
    ended = write(tmp_path, *SCENES, "samples_per_shard=2")
    assert ended.ok, ended.err
    assert ended.out.splitlines() == [
        "train: 5 samples in 3 shards",
        "val: 2 samples in 1 shards",
        "targets not written: boxes, facts, group",
        f"uv run experiments/train.py … data=caption_shards data.source.root={tmp_path}/out "
        "data.readers.image.image_size=31 data.readers.image.channels=3 data.source.test_fraction=0",
    ]
    tars = [f"train-{number:06d}.tar" for number in range(3)] + ["val-000000.tar"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(path.name for path in times) == sorted([*tars, *(f"{name}.index.npz" for name in tars)])
    ended = write(tmp_path, *SCENES)
    assert ended.code == 1
    assert f"out={tmp_path}/out: " in ended.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_the_command_of_the_summary_works(tmp_path):
    root = image_tree(tmp_path / "in", per_class=20)
    ended = write(tmp_path, "data=image_folder", f"data.root={root}", "check=false")
    assert ended.ok, ended.err
    *_, command = ended.out.splitlines()
    ended = train(tmp_path / "run", *shlex.split(command.partition("…")[2]))
    assert ended.ok, ended.err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_samples_raise_or_are_left_out_and_named(tmp_path, num_workers):
    root = data_trees.flickr8k(tmp_path / "in").root
    (root / "Images" / "3.png").write_text("not an image")
    (root / "Images" / "12.png").unlink()
    overrides = ["data=flickr8k", f"data.root={root}", f"loader.num_workers={num_workers}"]
    ended = write(tmp_path, *overrides)
    assert ended.code == 1
    assert ended.err.startswith(f"error: {root}/Images/3.png: ")
    assert list((tmp_path / "out").iterdir()) == []
    ended = write(tmp_path, *overrides, "data.on_error=skip")
    assert ended.ok, ended.err
    assert f"{root}/Images/3.png: " in ended.out
    assert f"{root}/Images/12.png: no such file" in ended.out
    options = {"target": "references", "val_fraction": 0.0, "test_fraction": 0.0}
    assert sizes(dataset(Shards, "image", root=f"{tmp_path}/out", **options)) == [10, 4, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SCENES, "samples_per_shard=0"], "samples_per_shard=0 must be"),
        ([*SCENES, "samples_per_shard=many"], "samples_per_shard=many: must be"),
        (["data=text_pairs", "data.root=x"], "data.readers.text: "),
        (["data=image_folder"], "data.source.root must be given: data.root=…"),
        ([*SCENES, "data.num_samples={train: 0, val: 1, test: 0}"], "data: there are no training samples"),
        ([*SCENES, "data.image_sizes=3"], "data.image_sizes: no such key; did you mean data.image_size?"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(tmp_path, overrides, message):
    ended = write(tmp_path, *overrides)
    assert_refused(ended, f"error: {message}")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
